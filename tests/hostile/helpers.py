"""What tests of hostile files share: payloads that would leave a marker, and commands that must refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vision_zoo.__main__ import main
from vision_zoo.classifier import Classifier
from vision_zoo.errors import CheckpointError

COMMAND = "touch MARKER"
Mutation = Callable[[dict[str, Any]], object]


class Calls:
    """Pickles to a call of whatever it is given."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def refused(capsys, words: list[str]) -> str:
    """Run a command that must be refused, with nothing run and nothing written."""
    before = sorted(Path().rglob("*"))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert [line.startswith("vision_zoo: ") for line in error.splitlines()].count(True) == 1
    assert "Traceback" not in error
    assert "internal error" not in error
    assert not list(Path().rglob("MARKER"))
    assert sorted(path for path in Path().rglob("*") if "cache" not in path.parts) == [
        path for path in before if "cache" not in path.parts
    ]
    return error


def refused_everywhere(capsys, path: str, message: str) -> None:
    """A hostile checkpoint is refused by every command that reads one, and by Python."""
    for verb in ("test", "predict", "export", "report", "summary", "fit"):
        images = ["--images", "."] * (verb == "predict")
        error = refused(capsys, [verb, "--ckpt_path", path, *images])
        assert message in error, (verb, error)
        assert Path(path).name in error
    with pytest.raises(CheckpointError) as caught:
        Classifier.load_from_checkpoint(path)
    assert message in str(caught.value)
    assert not list(Path().rglob("MARKER"))


def save(checkpoint: object, name: str = "run/checkpoints/evil.ckpt") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, name)
    return name


def hparam(name: str, value: object) -> Mutation:
    return lambda c: c["hyper_parameters"].update({name: value})


def model(name: str, value: object) -> Mutation:
    return lambda c: c["vision_zoo"]["config"]["model"].update({name: value})


def data(value: object) -> Mutation:
    return lambda c: c["vision_zoo"]["config"].update({"data": value})


def data_option(name: str, value: object) -> Mutation:
    return lambda c: c["vision_zoo"]["config"]["data"]["init_args"].update({name: value})


def trainer(name: str, value: object) -> Mutation:
    return lambda c: c["vision_zoo"]["config"]["trainer"].update({name: value})


def with_options(class_path: str, **options: object) -> dict[str, object]:
    return {"class_path": class_path, "init_args": options}
