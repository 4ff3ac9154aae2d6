"""compare: the same images, the right counts, an answer in words."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.api import load
from vision_zoo.data import MNIST5k


def write_run(folder: Path, of: Path, seed: int, noise: float, data_seed: int = 0) -> None:
    """A run like one that was trained, as of another seed: with other weights."""
    content, generator = torch.load(of / "checkpoints" / "best.ckpt"), torch.Generator().manual_seed(seed)
    for weight in content["state_dict"].values():
        weight.add_(noise * weight.std() * torch.randn(weight.shape, generator=generator))
    config = content["vision_zoo"]["config"]
    config["seed_everything"] = seed
    config["data"]["init_args"]["seed"] = data_seed
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(content, folder / "checkpoints" / "best.ckpt")


@pytest.fixture(scope="module")
def runs(trained_run, tmp_path_factory) -> Path:
    """Three seeds of a network, and three of a worse one."""
    folder = tmp_path_factory.mktemp("compared")
    for name, noise in (("good", 0.02), ("bad", 0.8)):
        for seed in range(3):
            write_run(run(folder, name, seed), trained_run, seed, noise)
    return folder


def run(folder: Path, name: str, version: int) -> Path:
    return folder / name / "runs" / "default" / f"version_{version}"


def right(path: Path) -> np.ndarray:
    images, labels = MNIST5k().split_images("test")
    return (load(path)(images).argmax(1) == labels).numpy()


def report(folder: Path) -> dict:
    return json.loads((folder / "compare.json").read_text())


@pytest.mark.draws
def test_two_runs_are_compared_on_the_test_images(runs, here, capsys):
    a, b = run(runs, "good", 0), run(runs, "bad", 0)
    assert main(["compare", str(a), str(b), "--accelerator", "cpu"]) == 0
    out = capsys.readouterr().out
    assert f"{b} is worse than {a}: -" in out
    assert "several runs of both tell what other seeds would give" in out
    (found,), ours, theirs = report(here / "comparison")["comparisons"], right(a), right(b)
    assert [found["against_right_more"], found["group_right_more"]] == [(ours & ~theirs).sum(), (theirs & ~ours).sum()]
    assert found["difference"] == pytest.approx(theirs.mean() - ours.mean())
    assert found["p"] == pytest.approx(scipy.stats.binomtest((theirs & ~ours).sum(), (theirs ^ ours).sum()).pvalue)
    assert found["low"] < found["difference"] < found["high"] < 0
    rows = list(csv.DictReader((here / "comparison" / "compare.csv").open()))
    assert [row["class"] for row in rows] == ["(all)", *"0123456789"]
    labels = MNIST5k().split_images("test").labels.numpy()
    for label in range(10):
        assert float(rows[1 + label]["accuracy"]) == pytest.approx(theirs[labels == label].mean())
    assert Image.open(here / "comparison" / "compare.png").size[0] > 500


def test_trials_of_a_study_are_named_by_what_tells_them_apart(trained_run, here, capsys):
    names = [f"tiny-lr={rate}-seed0-0123456789" for rate in (0.1, 0.2)]
    trials = [here / "studies" / "mine" / "trials" / name for name in names]
    for trial, noise in zip(trials, (0.0, 0.8), strict=True):
        write_run(trial / "runs" / "tiny" / "version_0", trained_run, 0, noise)
    assert main(["compare", *map(str, trials), "--accelerator", "cpu"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in out[:2]] == names


@pytest.mark.parametrize("others", [(0, 1), pytest.param((2, 1), marks=pytest.mark.slow)])
def test_groups_are_paired_by_their_seeds(runs, here, capsys, others):
    """The order of the runs does not matter; runs of other seeds are no pairs, and that is said (2 s)."""
    for version in others:
        shutil.copytree(run(runs, "bad", version), here / "bad" / f"trial_{9 - version}")
    assert main(["compare", f"{runs}/good/runs/*/version_[01]", "bad"]) == 0
    paired = others == (0, 1)
    assert f"({'' if paired else 'not '}paired); p = " in capsys.readouterr().out
    (found,) = report(here / "comparison")["comparisons"]
    good = [right(run(runs, "good", version)).mean() for version in (0, 1)]
    bad = [right(run(runs, "bad", version)).mean() for version in others]
    assert found["seeds"]["paired"] is paired
    test = scipy.stats.ttest_rel(bad, good) if paired else scipy.stats.ttest_ind(bad, good, equal_var=False)
    assert found["seeds"]["p"] == pytest.approx(test.pvalue)
    assert found["p"] == max(found["p_images"], found["seeds"]["p"])


def test_what_cannot_be_told_is_said_with_what_would_tell(runs, here, capsys):
    """Of 20 images, as the runs' own test would have them; a picture for each comparison."""
    words = [str(run(runs, "good", version)) for version in range(3)]
    assert main(["compare", *words, "--split", "val", "--data.val_split", "20", "--output", "out"]) == 0
    out = capsys.readouterr().out
    assert "it cannot be told whether" in out
    assert re.search(r"about [\d,]+ images would tell|no number would tell", out)
    assert "corrected for 2 comparisons" in out
    found = report(here / "out")
    assert [found["split"], found["comparisons"][0]["images"]] == ["val", 20]
    assert found["comparisons"][0]["p_corrected"] >= found["comparisons"][0]["p"]


def test_other_images_are_refused(runs, trained_run, here, capsys):
    write_run(here / "runs/default/version_0", trained_run, 1, 0.1, data_seed=1)
    words = [str(run(runs, "good", 0)), "runs/default/version_0"]
    assert main(["compare", *words, "--split", "val"]) == 2
    assert "the val images of default/version_0 are not those of default/version_0: pixels differ" in (
        capsys.readouterr().err
    )
    assert main(["compare", *words]) == 0  # on the test images, which are the same for each seed


@pytest.mark.parametrize("other", [{"in_memory": False}, {"resize": "squash"}])
def test_the_same_files_are_the_same_images_however_they_are_read(other, trained_run, here):
    tiny.write_image_folder(here / "in", tuple("0123456789"), count=4)
    for path in (here / "in").glob("*/*.png"):  # to crop a picture is not to squash it
        with Image.open(path) as picture:
            picture.paste("white", (0, 0, 12, 30))
            picture.save(path)
    for name, changed in (("first", {}), ("second", other)):
        write_run(here / name / "runs" / "default" / "version_0", trained_run, 0, 0.1)
        file = here / name / "runs" / "default" / "version_0" / "checkpoints" / "best.ckpt"
        content = torch.load(file)
        options = {"root": str(here / "in"), "image_size": 28, "channels": 1, **changed}
        content["vision_zoo"]["data"] = {"class_path": "vision_zoo.data.ImageFolder", "init_args": options}
        content["vision_zoo"]["config"]["data"] = content["vision_zoo"]["data"]
        torch.save(content, file)
    assert main(["compare", "first", "second"]) == 0
    assert main(["compare", "second", "first"]) == 0


def test_a_run_is_not_compared_with_itself_or_alone(runs, here, capsys):
    path = str(run(runs, "good", 0))
    assert main(["compare", path, path]) == 2
    assert "is named twice" in capsys.readouterr().err
    assert main(["compare", path]) == 2
    assert "compare needs two runs or more" in capsys.readouterr().err
    assert main(["compare", path, "nowhere"]) == 2
    assert "nowhere not found" in capsys.readouterr().err
