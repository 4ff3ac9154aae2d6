"""The door: help, versions and names without torch, and the messages about misspelt words."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vision_zoo import __version__
from vision_zoo.__main__ import main
from vision_zoo.cli import completion
from vision_zoo.cli.commands import COMMANDS, WIDTH
from vision_zoo.cli.parser import VisionZooCLI
from vision_zoo.verbs import list_ as listing

ROOT = Path(__file__).parents[1]
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


@pytest.fixture
def only_parsed(monkeypatch):
    """A command ends where its words are parsed, with exit code 77."""
    parse = VisionZooCLI.parse_arguments

    def only_parse(self, parser, args):
        parse(self, parser, args)
        sys.exit(77)

    monkeypatch.setattr(VisionZooCLI, "parse_arguments", only_parse)


def commands_of(readme: str) -> list[list[str]]:
    """Its lines and inline code that run vision_zoo, and options of the trainer with their values, as fit's."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)).replace("\\\n", " ")
    texts = [line.partition("#")[0] for line in blocks.splitlines()]
    inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", readme)]
    texts += [code for code in inline if code.startswith("vision_zoo ")]
    texts += [f"vision_zoo fit {code}" for code in inline if code.startswith("--trainer.") and " " in code]
    return [shlex.split(text.rpartition("vision_zoo ")[2]) for text in texts if re.search("(^|-m )vision_zoo ", text)]


def test_every_command_of_the_readme_is_one(only_parsed, trained_run, here, capsys):
    readme = (ROOT / "README.md").read_text()
    commands = commands_of(re.sub(r"(?s)<!-- (results|speed) -->.*<!-- /\1 -->", "", readme))
    assert {"fit", "test", "predict", "export", "report", "show", "summary", "list"} <= {words[0] for words in commands}
    (here / "mine.yaml").write_text(re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)[0])
    (here / "my_network.py").write_text(re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[1])
    for words in commands:
        given = [str(trained_run) if word in ("best", "last") else word for word in words]
        if "--data.test_split" in given:  # which the network of somebody's pictures knows, and this one does not
            given += ["--data", "ImageFolder"]
        assert main(given) in (0, 77), f"{' '.join(words)}: {capsys.readouterr().err}"


@pytest.mark.parametrize("name", HEAVY)
def test_every_common_option_is_one_of_the_full_parser(name, only_parsed, trained_run, here):
    """All of them on one command line, parsed as the command would, which then ends before it begins."""
    samples = {
        "--trusted_packages": "mine",
        "--config": "lenet5_mnist",
        "--ckpt_path": str(trained_run),
        "--data": "MNIST5k",
        "--model.backbone": "LeNet5",
    }
    by_kind = {
        "N": "2",
        "X": "0.5",
        "true|false": "true",
        "FOLDER": "folder",
        "FILE": "file",
        "PATH": "path",
        "PATH ...": "a",
    }
    words = []
    for option in COMMANDS[name].options:
        known = samples.get(option.flag) or by_kind.get(option.value) or option.completes.split()[0]
        words += [option.flag, known]
    assert main([name, *words]) == 77


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fit", "--data.help", "MNIST5k"], "--data.batch_size"),
        (["fit", "--model.backbone.help", "ResNet"], "--model.backbone.depth"),
        (["report", "--help_all"], "Write report.html"),
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
        raise KeyboardInterrupt

    monkeypatch.setattr("vision_zoo.cli.main.main", stopped)
    assert main(["fit"]) == 130


# ------------------------------------------------------------------------------------------------------- completion


def complete(folder, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    ask = r"""COMP_WORDS=(vision_zoo "$@"); COMP_CWORD=$#; _vision_zoo; printf '%s\n' "${COMPREPLY[@]}" """
    program = f"{completion.bash()}\n{ask}"
    done = subprocess.run(
        ["bash", "-c", program, "bash", *words], cwd=folder, env={**os.environ, "LC_ALL": "C"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["f"], {"fit"}),
        ([""], {*COMMANDS, "--help", "--version"}),
        (["fit", "--seed"], {"--seed_everything"}),
        (["test", "--ckpt_path", ""], {"best", "last", "runs", "own.yaml"}),
        (["test", "--ckpt_path", "run"], {"runs"}),
        (["fit", "--config", "fc_"], {"fc_mnist"}),
        (["fit", "--config", "o"], {"own.yaml"}),
        (["fit", "--config", "="], {row["name"] for row in listing.recipes()} | {"own.yaml", "runs"}),
        (["fit", "--data", "=", "MNIST5"], {"MNIST5k"}),
        (["fit", "--model.backbone", "LeN"], {"LeNet5"}),
        (["fit", "--trainer.max_epochs", ""], set()),
        (["fit", "--data.root", ""], {"runs"}),
        (["show", "--data.root", "r"], {"runs"}),
        (["list", ""], {"backbones", "datasets", "recipes", "runs"}),
        (["export", "--format", "on"], {"onnx"}),
        (["report", "--out"], {"--output"}),
    ],
)
def test_bash_completes(words, expected, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "own.yaml").touch()
    assert set(complete(tmp_path, *words)) == expected


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_is_valid_and_names_what_there_is(shell, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in (*COMMANDS, "lenet5_mnist", "LeNet5", "MNIST5k", "trainer.max_epochs"):
        assert re.search(rf"\b{re.escape(name)}\b", script)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: the syntax of its script is not checked")
    (tmp_path / "script").write_text(script)
    plain = {**os.environ, "LC_ALL": "C"}
    checked = subprocess.run([shell, "-n", tmp_path / "script"], env=plain, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_name_that_a_shell_would_run_is_left_out(monkeypatch):
    monkeypatch.setattr(listing, "recipes", lambda: [{"name": "$(touch hacked)"}, {"name": "good"}])
    script = completion.bash()
    assert "hacked" not in script
    assert "good" in script
