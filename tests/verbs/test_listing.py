"""What `vision_zoo list` prints."""

import json
import math
import re
import sys
from pathlib import Path

import pytest

import vision_zoo.backbones
import vision_zoo.data
from vision_zoo.__main__ import main
from vision_zoo.verbs import list_ as listing


def write_run(root: Path, config: str, version: int, accuracy: float | None, **others) -> Path:
    folder = root / "runs" / config / f"version_{version}"
    folder.mkdir(parents=True)
    metrics = {} if accuracy is None else {"test/accuracy": accuracy, "val/loss": 1 - accuracy, "val/mine": accuracy}
    results = {"config": config, "network": "LeNet5", "data": {"name": "MNIST", "note": ""}, "metrics": metrics}
    results |= {"parameters": 61706, "seed": 7, "epochs": 3, "fit_seconds": 2.5}
    (folder / "results.json").write_text(json.dumps({**results, **others}))
    return folder


def lines_of(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_backbones_and_datasets_are_those_that_can_be_imported():
    assert {row["name"] for row in listing.backbones()} == set(vision_zoo.backbones.__all__)
    assert {row["name"] for row in listing.datasets()} == set(vision_zoo.data.__all__) - {"ImageDataModule"}
    for row in (*listing.backbones(), *listing.datasets()):
        assert row["description"]
        assert (Path(vision_zoo.__file__).parent / row["file"]).is_file()


def test_a_dataset_comes_with_its_paper():
    rows = {row["name"]: row for row in listing.datasets()}
    assert rows["FashionMNIST"]["source"] == "Xiao et al. 2017, https://arxiv.org/abs/1708.07747"
    assert rows["FashionMNIST"]["description"] == "Photos of clothes, 60,000 + 10,000."
    assert rows["CIFAR100"]["source"].startswith("Krizhevsky 2009")
    assert rows["ImageFolder"]["source"] is None


def test_every_shipped_recipe_says_what_was_published_and_measured():
    rows = listing.recipes()
    assert {row["name"] for row in rows} >= {"cnn_mnist", "lenet5_mnist"}
    for row in rows:
        if row["name"] == "finetune":  # of one's own pictures
            continue
        assert row["published"], row["name"]
        assert row["measured"], row["name"]


def test_a_recipe_without_the_usual_header_is_listed_by_its_first_line(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("# my own experiment\nmodel: {}\n")
    full = "# A net (of B. and C.) on D (E. 1998).\n# Test accuracy: published 98.4 % at 2.5 epochs; measured 99.1 %.\n"
    (tmp_path / "full.yaml").write_text(full)
    monkeypatch.setattr(listing, "configs_folder", lambda: tmp_path)
    full_row, mine = listing.recipes()
    assert mine == {"name": "mine", "experiment": "my own experiment", "published": "", "measured": ""}
    assert (full_row["published"], full_row["measured"]) == ("98.4 % at 2.5 epochs", "99.1 %")


def test_runs_are_listed_in_per_cent_by_configuration_and_version(here, capsys):
    for version in (0, 2, 10):
        write_run(here, "lenet5_mnist", version, 0.9 + version / 1000)
    assert main(["list", "runs"]) == 0
    title, header, *rows = lines_of(capsys)
    assert (title, header.split()) == ("RUNS", list(listing.RUN_COLUMNS))
    assert [row.split()[1] for row in rows if row] == ["0", "2", "10"]
    assert rows[0].split() == ["lenet5_mnist", "0", "LeNet5", "MNIST", "90.00", "%", "-", "7", "3", "2.5", "61,706"]


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("test/accuracy", ["b", "a", "c", "d", "e"]),
        ("val/loss", ["b", "a", "c", "d", "e"]),
        ("val/mine", ["b", "a", "c", "d", "e"]),
        ("config", ["a", "b", "c", "d", "e"]),
        ("version", ["c", "b", "a", "d", "e"]),
        ("seconds", ["a", "b", "c", "d", "e"]),
    ],
)
def test_runs_are_sorted_best_first_and_those_without_a_figure_last(column, order, here, capsys):
    for config, version, accuracy in (
        ("a", 12, 0.8),
        ("b", 3, 0.9),
        ("c", 0, 0.7),
        ("d", 13, math.nan),
        ("e", 14, None),
    ):
        write_run(here, config, version, accuracy)
    assert main(["list", "runs", "--sort", column]) == 0
    _, header, *rows = lines_of(capsys)
    assert column in header.split()
    assert [row.split()[0] for row in rows if row] == order


def test_a_home_that_the_shell_left_as_a_sign_is_found(here, monkeypatch, capsys):
    run = write_run(here, "a", 0, 0.8)
    monkeypatch.chdir(run)
    monkeypatch.setenv("HOME", str(here))
    assert main(["list", "runs", "--root=~"]) == 0
    assert "LeNet5" in capsys.readouterr().out


def test_an_unknown_column_is_refused_with_close_ones(here, capsys):
    write_run(here, "a", 0, 0.8)
    assert main(["list", "runs", "--sort", "test/acuracy"]) == 2
    assert "did you mean test/accuracy" in capsys.readouterr().err
    assert main(["list", "runs", "--sort", "zzz"]) == 2
    assert "There are config, version, network, data, test/accuracy" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[1]", '{"metrics": 3}', b"\xff\xfe\x00"])
def test_a_broken_file_is_named_and_the_others_are_listed(content, tmp_path, here, capsys):
    write_run(here, "good", 0, 0.8)
    broken = write_run(here, "bad", 0, 0.8) / "results.json"
    broken.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["list", "runs", "--root", str(here)]) == 0
    shown = capsys.readouterr()
    assert "good" in shown.out
    assert "bad" not in shown.out
    assert f"{broken} is broken" in shown.err


def test_a_packed_run_beside_the_others_is_none(here, capsys):
    write_run(here, "good", 0, 0.8)
    (here / "runs" / "good" / "version_0.zip").write_bytes(b"PK")
    assert main(["list", "runs"]) == 0
    assert capsys.readouterr().err == ""


def test_a_run_that_was_stopped_is_listed_without_figures(here, capsys):
    (here / "runs" / "cnn_mnist" / "version_0").mkdir(parents=True)
    assert main(["list", "runs"]) == 0
    assert lines_of(capsys)[2].split() == ["cnn_mnist", "0", *["-"] * 8]


def test_a_folder_without_runs_says_how_to_get_one(here, capsys):
    assert main(["list", "runs"]) == 0
    assert lines_of(capsys)[0] == f"runs: none below {here}; train with: vision_zoo fit"


def test_a_pipe_gets_whole_lines_without_frames_or_control_characters(here, capsys):
    write_run(here, "n" * 150, 0, 0.8)
    write_run(here, "evil\x1b[31m", 0, 0.8)
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert "n" * 150 in text
    assert not set("\x1b│┃━…") & set(text)
    assert {"BACKBONES", "DATASETS", "RECIPES", "RUNS"} <= set(text.splitlines())
    assert main(["list", "backbones"]) == 0
    assert "http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf" in capsys.readouterr().out


def test_a_terminal_gets_tables_that_fit_into_it(here, capsys, monkeypatch):
    write_run(here, "[bold]x", 0, 0.8)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["list"]) == 0
    text = re.sub("\x1b\\[[0-9]*m", "", capsys.readouterr().out)
    assert "[bold]x" in text
    assert "80.00 %" in text
    assert max(map(len, text.splitlines())) <= 140


def test_a_narrow_terminal_cuts_nothing_off(here, capsys, monkeypatch):
    write_run(here, "small_cnn_mnist_one_cycle", 0, 0.8)
    assert main(["list", "runs"]) == 0
    plain = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", "runs"]) == 0
    assert capsys.readouterr().out == plain


def test_a_real_run_is_listed(trained_run, capsys):
    assert main(["list", "runs", "--root", str(trained_run.parents[2])]) == 0
    row = lines_of(capsys)[2].split()
    results = json.loads((trained_run / "results.json").read_text())
    assert row[:2] == ["default", "0"]
    assert f"{100 * results['metrics']['test/accuracy']:.2f}" in row
