"""What a shell completes."""

import os
import re
import shutil
import subprocess

import pytest

from vision_zoo.__main__ import main
from vision_zoo.cli import completion
from vision_zoo.cli.commands import COMMANDS
from vision_zoo.verbs import list_ as listing


def complete(folder, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    ask = r"""COMP_WORDS=(vision_zoo "$@"); COMP_CWORD=$#; _vision_zoo; printf '%s\n' "${COMPREPLY[@]}" """
    program = f"{completion.completion('bash')}\n{ask}"
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
        (["fit", "--data.root", ""], {"runs", "own.yaml"}),
        (["show", "--data.root", "r"], {"runs"}),
        (["list", ""], {"backbones", "networks", "datasets", "recipes", "runs"}),
        (["list", "networks", "t"], {"timm", "torchvision"}),
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
    script = completion.completion("bash")
    assert "hacked" not in script
    assert "good" in script
