"""Every number that an option of fit may be: a working run, or one line and exit code 2, before the training."""

import typing

import pytest
import yaml

from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.classifier import Classifier
from vision_zoo.cli.parser import Parser
from vision_zoo.data import ArrayFile
from vision_zoo.specs import parameters_of

BASE = (
    "fit", "--model.backbone", "MLP", "--model.optimizer", "SGD", "--model.optimizer.lr", "0.1", "--model.scheduler",
    "null", "--data", "ArrayFile", "--data.path", "data.npz", "--data.batch_size", "8", "--data.val_split", "10",
    "--trainer.max_epochs", "1", "--trainer.max_steps", "3",
)  # fmt: skip
NUMBERS = ("0", "-1", "1000000000000", "99999999999999999999", ".nan", "1e30")
SAMPLE = 31  # of how many numbers one is tried by default


def takes_numbers(kind: object) -> bool:
    return kind in (int, float) or any(map(takes_numbers, typing.get_args(kind)))


@pytest.fixture
def options(monkeypatch) -> list[str]:
    """Every option of fit, and of the dataset, whose type has a number, as the parser says."""
    found: list[str] = []

    def only_look(self, parser, args):
        typed = {a.option_strings[-1]: getattr(a, "_typehint", a.type) for a in parser._actions if a.option_strings}
        found.extend(flag.rstrip("+") for flag, kind in typed.items() if flag[:2] == "--" and takes_numbers(kind))
        raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.setattr(Parser, "parse_arguments", only_look)
        main(list(BASE))
    own = {name: parameter.annotation for name, parameter in parameters_of(ArrayFile).items()}
    return found + [f"--data.{name}" for name, kind in own.items() if takes_numbers(kind)]


def try_numbers(options, here, capsys, monkeypatch, every) -> int:
    tiny.write_npz(here / "data.npz", 40, 20, (8, 8))
    steps, original = [], Classifier.training_step

    def step(self, *batch):
        steps.append(1)
        return original(self, *batch)

    monkeypatch.setattr(Classifier, "training_step", step)
    tried = [(option, number) for option in options for number in NUMBERS][::every]
    for option, number in tried:
        steps.clear()
        value = f"[{number}]" if option in ("--data.mean", "--data.std") else number
        code = main([*BASE, f"{option}={value}"])
        error = capsys.readouterr().err
        assert code == 0 or (code == 2 and len(error.splitlines()) == 1 and not steps), f"{option} {number}: {error}"
        assert "internal error" not in error
    return len(tried)


def test_a_sample_of_all_numbers_works_or_is_refused_before_the_training(options, here, capsys, monkeypatch):
    assert len(options) >= 30
    assert try_numbers(options, here, capsys, monkeypatch, SAMPLE) >= 6


@pytest.mark.slow
def test_every_number_works_or_is_refused_before_the_training(options, here, capsys, monkeypatch):
    """One minute; two on a busy machine."""
    assert try_numbers(options, here, capsys, monkeypatch, 1) >= 180


def test_a_share_of_the_test_images_below_one_batch_is_refused_before_the_training(here, capsys):
    tiny.write_npz(here / "data.npz", 40, 20, (8, 8))
    assert main([*BASE, "--trainer.limit_test_batches", "0.0001"]) == 2
    assert "limit_test_batches 0.0001 of 3 is less than one batch: set it to 0.333" in capsys.readouterr().err
    assert not (here / "runs").exists()


@pytest.mark.parametrize("option", ["data.root", "data.batch_size", "model.optimizer.momentum"])
def test_null_where_no_option_takes_it_is_refused_by_name(option, here, capsys):
    tiny.write_npz(here / "data.npz", 40, 20, (8, 8))
    assert main([*BASE, f"--{option}", "null"]) == 2
    assert f"--{option} is null, or left blank in a file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["trainer:\n  {0}: 1\ndata: A\ntrainer:\n  b: 2", "a: {{b: 1, c: 2,\n\n  b: 3}}"])
def test_a_key_given_twice_is_refused_with_both_lines(text, here, capsys):
    (here / "mine.yaml").write_text(text.format("a"))
    assert main(["fit", "--config", "mine.yaml"]) == 2
    key, first, second = ("trainer", 1, 4) if "trainer" in text else ("b", 1, 3)
    assert f"{key} is given in line {first} and again in line {second}" in capsys.readouterr().err


def test_keys_that_anchors_share_are_not_given_twice(here, only_parsed):
    (here / "mine.yaml").write_text(
        "model: {backbone: LeNet5}\ndata: MNIST5k\ntrainer: {<<: &a {max_epochs: 1}, max_epochs: 2}"
    )
    assert main(["fit", "--config", "mine.yaml"]) == 77


def test_times_and_dates_mean_in_a_file_what_they_mean_on_the_command_line(here, capsys):
    given = {"max_time": "12:00:00:00", "val_check_interval": "01:30:00:00", "default_root_dir": "2026-01-05"}
    lines = "".join(f"  {name}: {value}\n" for name, value in given.items())
    (here / "mine.yaml").write_text(f"model: {{backbone: LeNet5}}\ndata: MNIST5k\ntrainer:\n{lines}")
    words = [word for name, value in given.items() for word in (f"--trainer.{name}", value)]
    for command in (["--config", "mine.yaml"], words):
        assert main(["fit", *command, "--print_config"]) == 0
        trainer = yaml.safe_load(capsys.readouterr().out.replace("01:30:00:00\n", "'01:30:00:00'\n"))["trainer"]
        assert {name: trainer[name] for name in given} == given
