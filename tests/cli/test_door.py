"""The door: help, versions and names without torch, and the messages about misspelt words."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vision_zoo import __version__
from vision_zoo.__main__ import main
from vision_zoo.cli.commands import COMMANDS, WIDTH

ROOT = Path(__file__).parents[2]
SCREEN = 30  # lines
HEAVY = [name for name, command in COMMANDS.items() if not command.light]


# ---------------------------------------------------------------------------------------------------- without torch


def test_the_door_answers_without_torch(tmp_path):
    lines = [
        *([], ["--help"], ["--version"], ["nonsense"], ["list"], ["list", "runs"], ["completion", "bash"]),
        *([name, "--help"] for name in COMMANDS),
    ]
    program = (
        "import json, sys\n"
        "from vision_zoo.__main__ import main\n"
        "codes = [main(line) for line in json.loads(sys.argv[1])]\n"
        "print(codes, file=sys.stderr)\n"
        "heavy = {'torch', 'torchvision', 'lightning', 'jsonargparse', 'numpy', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    words = [sys.executable, "-c", program, json.dumps(lines)]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}  # this checkout, whatever is installed
    done = subprocess.run(words, cwd=tmp_path, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str([2, 0, 0, 2, 0, 0, 0] + [0] * len(COMMANDS)) in done.stderr


def test_the_overview_fits_one_screen_and_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= SCREEN
    assert max(map(len, text.splitlines())) <= WIDTH
    for name in COMMANDS:
        assert f"\n  {name} " in text
    assert main([]) == 2
    assert capsys.readouterr().out == text


def test_help_of_a_command_by_the_word_help(capsys):
    assert main(["help", "fit"]) == 0
    text = capsys.readouterr().out
    assert main(["fit", "--help"]) == 0
    assert capsys.readouterr().out == text
    assert main(["help", "fti"]) == 2
    assert "there is no command 'fti'; did you mean fit?" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vision_zoo {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_one_screen(name, capsys):
    assert main([name, "--config", "whatever", "--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= SCREEN
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.startswith(f"usage: vision_zoo {name} ")
    assert (f"all options: vision_zoo {name} --help_all" in text) is not COMMANDS[name].light


# --------------------------------------------------------------------------------------------- the table of options


@pytest.mark.parametrize("name", HEAVY)
def test_every_common_option_is_one_of_the_full_parser(name, only_parsed, trained_run, here):
    """All of them on one command line, parsed as the command would, which then ends before it begins."""
    samples = {
        "--trusted_packages": "mine",
        "--config": "lenet5_mnist",
        "--ckpt_path": str(trained_run),
        "--data": "MNIST5k",
        "--model.backbone": "LeNet5",
        "--backbone": "EfficientNetLite",
        "--vary": "data.batch_size=1,2",
        "--search": "data.batch_size=1..2",
        "--storage": "sqlite:///x.db",
        "--metric": "val/loss",
        "--name": "mine",
        "--host": "127.0.0.1",
        "--label": "3",
        "--push": "owner/name",
    }
    by_kind = {
        "N": "2",
        "X": "0.5",
        "true|false": "true",
        "FOLDER": "folder",
        "FILE": "file",
        "PATH": "path",
        "PATH ...": "a",
        "RECIPE": "lenet5_mnist",
        "RUN": str(trained_run),
        "RUNS": str(trained_run),
    }
    words = []
    for option in COMMANDS[name].options:
        if option.flag in ("--apply", "--check"):  # which go with a folder or a file alone
            continue
        known = samples.get(option.flag) or by_kind.get(option.value) or option.completes.split()[0]
        words += [option.flag, known] if option.flag else [known]
    assert main([name, *words]) == 77


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fit", "--data.help", "MNIST5k"], "--data.batch_size"),
        (["fit", "--model.backbone.help", "ResNet"], "--model.backbone.depth"),
        (["report", "--help_all"], "write an HTML report"),
    ],
)
def test_the_full_help_is_at_hand(words, expected, here, capsys):
    assert main(words) == 0
    assert expected in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- misspelt words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tset"], "there is no command 'tset'; did you mean test?"),
        (["nonsense"], "there is no command 'nonsense'\n"),
        (["train"], "there is no command 'train'; did you mean fit?"),
        (["--versoin"], "--versoin; did you mean --version?"),
        (["--config", "cnn_mnist"], "--config must follow a command, as in: vision_zoo fit --config cnn_mnist"),
        (["list", "recipe"], "did you mean recipes?"),
        (["list", "--srot", "x"], "unrecognized arguments: --srot. See: vision_zoo list --help"),
        (["list", "--sort", "test/accuracy"], "only the runs can be sorted"),
        (["list", "runs", "--root", "nowhere"], "--root nowhere: there is no such folder"),
        (["completion"], "completion takes bash, zsh or fish"),
        (["completion", "bahs"], "not 'bahs'; did you mean bash?"),
        (
            ["fit", "--trainer.max_epoch", "3"],
            "there is no option --trainer.max_epoch; did you mean --trainer.max_epochs",
        ),
        (["fit", "--data.bach_size", "3"], "there is no option --data.bach_size; did you mean --data.batch_size"),
        (["fit", "--ckpt_pth", "x"], "there is no option --ckpt_pth; did you mean --ckpt_path"),
        (["fit", "--lr", "0.1"], "there is no option --lr; did you mean --model.optimizer.lr or"),
        (["fit", "--epochs", "1"], "--trainer.max_epochs"),
        (["fit", "--model.backbone", "ResNet", "--model.backbone.dept", "18"], "did you mean --model.backbone.depth"),
        (["fit", "--model.optimizer.lrr", "0.1"], "did you mean --model.optimizer.lr"),
        (["fit", "--zzz=3"], "there is no option --zzz. All options: vision_zoo fit --help_all"),
        (["fit", "cnn_mnist"], "'cnn_mnist' is not an option: those start with two dashes"),
        (["fit", "."], "such as --config finetune --data.root ."),
    ],
)
def test_a_misspelt_word_is_answered_with_the_right_one(words, message, here, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {max_epoch: 3}", "no option --trainer.max_epoch; did you mean --trainer.max_epochs"),
        (
            "data: {class_path: MNIST5k, init_args: {bach_size: 3}}",
            "no option --data.bach_size; did you mean --data.batch",
        ),
    ],
)
def test_a_misspelt_name_in_a_file_is_answered_alike(text, message, here, capsys):
    (here / "own.yaml").write_text(text)
    assert main(["fit", "--config", "own.yaml"]) == 2
    assert message in capsys.readouterr().err


def test_stopping_while_torch_is_imported_is_no_error(monkeypatch):
    def stopped(words):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("vision_zoo.cli.main.main", stopped)
    assert main(["fit"]) == 130
