"""study: recipes, seeds, folds and options in one table, whatever stops it, with the test set shut until the end."""

import contextlib
import csv
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.data import ImageFolder, ImageTable, MNIST5k
from vision_zoo.errors import ConfigError
from vision_zoo.files import lock_file, release
from vision_zoo.verbs.study import plan, running
from vision_zoo.verbs.study.table import Configuration, Outcome, best_of

RECIPE = """
model: {backbone: LeNet5, optimizer: {class_path: Adam, init_args: {lr: 0.002}}}
data: {class_path: MNIST5k, init_args: {batch_size: 50, val_split: 40}}
trainer: {max_epochs: 2, limit_train_batches: 4, limit_test_batches: 2}
"""


@pytest.fixture
def study(trained_run, here, monkeypatch):
    """Runs a study of a tiny recipe; its processes are copies of this one, which has imported everything."""
    monkeypatch.setattr(running, "start_method", lambda: "fork")
    monkeypatch.setattr("vision_zoo.verbs.results.plot_curves", lambda *_: None)  # of each run, which takes as long
    (here / "tiny.yaml").write_text(RECIPE)
    MNIST5k().load("train")  # once for all processes
    return lambda *words: main(["study", "tiny.yaml", *words])


@pytest.fixture
def no_page(monkeypatch):
    """Call it when no more page is looked at: drawing one takes as long as a run."""
    return lambda: monkeypatch.setattr("vision_zoo.verbs.study.write_page", lambda *_: None)


def rows(name: str = "tiny") -> list[dict[str, str]]:
    with Path(f"studies/{name}/results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def results_of_tests() -> dict[Path, int]:
    """The files that tests left, and when."""
    return {path: path.stat().st_mtime_ns for path in Path("studies").glob("*/trials/*/runs/*/*/test/test.json")}


def test_every_trial_is_a_row_and_one_that_fails_does_not_end_the_others(study, monkeypatch, capsys):
    load = MNIST5k.load

    def shut(self, split):
        assert split != "test", "the test images were read"
        return load(self, split)

    monkeypatch.setattr(MNIST5k, "load", shut)
    words = ["--vary", "model.optimizer.lr=-1,0.002", "--seeds", "3,5", "--trainer.max_epochs", "1"]
    assert study(*words) == 1
    told = capsys.readouterr()
    found = rows()
    assert [(row["model.optimizer.lr"], row["seed"], row["state"]) for row in found] == [
        ("-1", "3", "failed"),
        ("-1", "5", "failed"),
        ("0.002", "3", "finished"),
        ("0.002", "5", "finished"),
    ]
    assert "tiny, lr -1, seed 3: failed with exit code 2, see " in told.out
    assert "Invalid learning rate: -1" in told.out  # the end of its log
    assert "2 of 4 trials failed" in told.err
    config = yaml.safe_load(Path("studies/tiny", found[3]["run"], "config.yaml").read_text())
    assert (config["seed_everything"], config["data"]["init_args"]["seed"]) == (5, 5)
    assert config["trainer"]["max_epochs"] == 1
    assert found[3]["trial"].startswith("tiny-lr=0.002-seed5-")
    results = json.loads(Path("studies/tiny", found[3]["run"], "results.json").read_text())
    assert float(found[3]["val/accuracy"]) == results["metrics"]["val/accuracy"]
    assert "test/accuracy" not in found[3]

    # The best of those that have all their trials is a recipe, and the page says what failed and what was chosen.
    assert "model.optimizer.lr" not in Path("studies/tiny/best.yaml").read_text()
    page = Path("studies/tiny/report.html").read_text()
    assert "No results: tiny, lr -1, seed 3" in page
    assert "Chosen: <b>tiny, lr 0.002</b>" in page
    assert not re.search(r"(src|href)=|url\(|@import|<script|<link", page)
    assert page.count("<path ") == 2  # a curve for each run
    about = json.loads(Path("studies/tiny/study.json").read_text())
    assert (about["trials"], about["finished"], about["chosen"]) == (4, 2, "tiny, lr 0.002")


def test_what_no_trial_can_be_run_with_ends_a_study_at_its_first(study, capsys):
    assert study("--folds", "500", "--trainer.max_epochs", "1") == 2
    told = capsys.readouterr()
    assert told.out.count("failed with exit code 2") == 1
    assert "the classes have" in told.out
    assert "1 of 500 trials cannot be run as asked, see above: correct the command" in told.err
    assert study("--vary", "model.optimizer.nope=1,2") == 2  # another value might do
    assert "2 of 2 trials cannot be run as asked" in capsys.readouterr().err


def test_a_metric_that_runs_do_not_have_ends_a_study_at_its_first(study, no_page, capsys):
    no_page()
    quick = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1")
    assert study("--seeds", "3", "--metric", "val/nope", *quick) == 2
    told = capsys.readouterr()
    assert [row["state"] for row in rows()] == ["finished", "not finished", "not finished"]
    assert "no configuration has val/nope in all its trials: there are val/accuracy" in told.err
    varied = ("--vary", "model.optimizer.lr=0.1,0.2", "--trainer.fast_dev_run", "false", "--name", "varied")
    assert study(*varied, "--metric", "val/nope", *quick) == 2
    assert [row["state"] for row in rows("varied")] == ["finished", "not finished"]
    assert study("--search", "model.optimizer.lr=0.1..0.2", "--metric", "val/nope", "--name", "search", *quick) == 2
    assert "there are val/accuracy" in capsys.readouterr().err
    assert len(rows("search")) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "3", "--sampler", "grid"], "--trials, --sampler: of a search alone: give --search"),
        (["--trainer.fast_dev_run", "true"], "with --trainer.fast_dev_run=true they leave nothing: leave it out"),
    ],
)
def test_options_that_would_do_nothing_are_refused(words, message, study, capsys):
    assert study(*words) == 2
    assert message in capsys.readouterr().err
    assert not Path("studies").exists()


def test_a_trial_that_ends_before_its_log_is_told_and_the_others_go_on(study, no_page, monkeypatch, capsys):
    work = running._work

    def lost(command, trial, *rest):
        os._exit(9) if trial.seed == 0 else work(command, trial, *rest)

    no_page()
    monkeypatch.setattr(running, "_work", lost)
    assert study("--seeds", "2", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1") == 1
    assert "seed 0: failed with exit code 9" in capsys.readouterr().out
    assert [row["state"] for row in rows()] == ["failed", "finished"]


def test_the_chosen_configuration_is_tested_once_and_is_a_recipe(study, no_page, capsys):
    words = ["--vary", "model.optimizer.lr=1e-9,0.005", "--trainer.limit_train_batches", "8", "--jobs", "2"]
    assert study(*words) == 0
    assert not results_of_tests()
    assert "The test set was not read" in Path("studies/tiny/report.html").read_text()
    assert study(*words, "--test") == 0
    table = Path("studies/tiny/results.csv").read_bytes()
    (file,) = read = results_of_tests()
    assert "-lr=0.005-" in str(file)
    told, row = capsys.readouterr().out, rows()[1]
    assert f"test/accuracy {100 * float(row['test/accuracy']):.2f} %" in told
    assert rows()[0]["test/accuracy"] == ""
    page = Path("studies/tiny/report.html").read_text()
    for text in (
        "2 configurations that were compared",
        "winner&#39;s curse",
        "Options and val/accuracy",
        "tiny, lr 0.005: test/accuracy",
    ):
        assert text in page
    no_page()
    assert study(*words) == 0  # what was tested stays known
    assert study(*words, "--test") == 0
    assert results_of_tests() == read
    assert Path("studies/tiny/results.csv").read_bytes() == table
    best = Path("studies/tiny/best.yaml")
    config = yaml.safe_load(best.read_text())
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.005
    assert "seed_everything" not in config
    assert not {"default_root_dir"} & config["trainer"].keys()
    assert main(["fit", "--config", str(best), "--trainer.fast_dev_run", "true"]) == 0
    kept = {path: path.read_bytes() for path in Path("studies/tiny").iterdir() if path.is_file()}
    assert study(*words, "--metric", "val/f1") == 2
    assert study("--vary", "model.optimizer.lrr=1,2") == 2
    assert {path: path.read_bytes() for path in Path("studies/tiny").iterdir() if path.is_file()} == kept


def test_folds_validate_every_image_once_and_are_pooled(study, no_page, capsys):
    words = ["--folds", "2", "--data.seed", "7", "--trainer.max_epochs", "1"]
    assert study(*words, "--metric", "val/loss") == 0
    first, second = rows()
    assert [first["fold"], second["fold"]] == ["1/2", "2/2"]
    with Path("studies/tiny/confusion_matrix.csv").open(newline="") as file:
        (_, *names), *counts = csv.reader(file)
    assert names == list("0123456789")
    assert [sum(map(int, row[1:])) for row in counts] == [400] * 10  # of MNIST5k's 4,000
    hits = sum(int(row[k]) for k, row in enumerate(counts, 1))
    accuracies = [float(row["val/accuracy"]) for row in (first, second)]
    assert hits / 4000 == pytest.approx(sum(accuracies) / 2, abs=1e-6)
    page = Path("studies/tiny/report.html").read_text()
    assert "cross-validation in 2 folds" in page
    assert "Confusion matrix" in page
    with Path("studies/tiny/per_class.csv").open(newline="") as file:
        assert {row["images"] for row in csv.DictReader(file)} == {"400"}
    no_page()
    assert study(*words, "--metric", "val/f1") == 2
    assert "no configuration has val/f1 in all its trials: there are val/accuracy, val/loss" in capsys.readouterr().err
    assert main(["validate", "--ckpt_path", f"studies/tiny/{second['run']}"]) == 0
    assert f"{100 * accuracies[1]:.2f} %" in capsys.readouterr().out


def kill(words: list[str], seconds: float) -> None:
    """Begin a study in a process group of its own and kill that."""

    def begin():
        os.setsid()
        os._exit(main(words))

    process = multiprocessing.get_context("fork").Process(target=begin)
    process.start()
    process.join(0.1 + seconds)
    with contextlib.suppress(ProcessLookupError):  # it had ended
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def test_a_study_that_was_killed_goes_on_and_its_table_is_the_same(study, no_page):
    no_page()
    words = ["--vary", "model.backbone=LeNet5,MLP"]
    assert study(*words, "--name", "whole") == 0
    dice = random.Random(0)
    for _ in range(3):
        kill(["study", "tiny.yaml", *words, "--name", "killed"], dice.random())
    assert study(*words, "--name", "killed") == 0
    whole, killed = (Path(f"studies/{name}/results.csv").read_bytes() for name in ("whole", "killed"))
    assert killed == whole
    assert len(list(Path("studies/killed").glob("trials/*/runs/*/version_*"))) == 2


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_study_stops_it(here):
    """30 s."""
    (here / "tiny.yaml").write_text(RECIPE.replace("max_epochs: 2", "max_epochs: 3000"))
    words = [sys.executable, "-m", "vision_zoo", "study", "tiny.yaml", "--seeds", "2"]
    process = subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE, text=True)
    while not list(here.glob("studies/tiny/trials/*/runs/*/*/metrics.csv")) and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "tiny, seed 0: stopped" in out
    assert "failed" not in out


@pytest.mark.slow
def test_twenty_kills_of_the_real_program_leave_the_same_table(here):
    """Ten times as long as the study, three minutes on two free cores."""
    (here / "tiny.yaml").write_text(RECIPE.replace("max_epochs: 2", "max_epochs: 12"))
    words = [sys.executable, "-m", "vision_zoo", "study", "tiny.yaml", "--seeds", "2", "--folds", "2", "--jobs", "2"]
    began = time.monotonic()
    subprocess.run([*words, "--name", "whole"], check=True)
    seconds, dice = time.monotonic() - began, random.Random(0)
    for _ in range(20):
        process = subprocess.Popen([*words, "--name", "killed"], start_new_session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds * dice.random())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*words, "--name", "killed"], check=True)
    whole, killed = (Path(f"studies/{name}/results.csv").read_bytes() for name in ("whole", "killed"))
    assert killed == whole


def test_a_signal_ends_a_study_gently(study, capsys):
    def stop():
        until = time.monotonic() + 20
        while (
            not list(Path().glob("studies/tiny/trials/*/runs/*/*/checkpoints/last.ckpt")) and time.monotonic() < until
        ):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    words = ["--trainer.max_epochs", "400", "--trainer.limit_val_batches", "1"]
    thread = threading.Thread(target=stop)
    thread.start()
    assert study(*words) == 143
    thread.join()
    assert "the same command goes on with this study" in capsys.readouterr().err
    (log,) = Path().glob("studies/tiny/trials/*/log.txt")
    assert "saved" in log.read_text().splitlines()[-1]


def test_a_study_is_one_process_at_a_time(study, capsys):
    Path("studies/tiny").mkdir(parents=True)
    lock = lock_file(Path("studies/tiny/.lock"), wait=False)
    assert study() == 2
    assert "is in use by another process" in capsys.readouterr().err
    release(lock)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vary", "lr"], "write OPTION=A,B,C"),
        (["--vary", "model.optimizer.lr=1,1"], "with each value once"),
        (["--vary", "seed_everything=1,2"], "--seed_everything is given twice, or decided by"),
        (["--data.seed", "3"], "--data.seed is given twice, or decided by"),
        (["--folds", "2", "--data.fold", "1/2"], "--data.fold is given twice, or decided by"),
        (["--folds", "1"], "--folds must be at least 2"),
        (["--seeds", "0"], "names none"),
        (["--seeds", "a"], "must be how many, or a list"),
        (["--seeds", "1,1"], "or one twice"),
        (["--metric", "test/accuracy"], "a choice sees validation alone"),
        (["--config", "cnn_mnist"], "--config is given twice"),
        (["nowhere"], "there is no such file or shipped recipe"),
        (["tiny.yaml"], "a recipe is named twice"),
        (["--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_what_no_study_can_do_is_refused_before_any_work(words, said, study, capsys):
    assert study(*words) == 2
    assert said in capsys.readouterr().err
    assert not list(Path().glob("studies/*/trials"))


def outcomes(name: str, metric: str, *values: float) -> Configuration:
    recipe = plan.Recipe(name, Path(f"{name}.yaml"), "")
    trials = [plan.Trial(Path(), recipe, (), "", seed, ()) for seed in range(len(values))]
    return Configuration(
        name, [Outcome(trial, None, {"metrics": {metric: v}}) for trial, v in zip(trials, values, strict=True)]
    )


@pytest.mark.parametrize(
    ("metric", "best"), [("val/accuracy", "high"), ("val/loss", "low"), ("val/calibration_error", "low")]
)
def test_the_best_configuration_has_the_highest_accuracy_or_the_lowest_loss(metric, best):
    found = [
        outcomes("low", metric, 0.2, 0.4),
        outcomes("high", metric, 0.5, 0.3),
        outcomes("cut short", metric, math.nan),
    ]
    assert best_of(found, metric).name == best
    assert best_of(found[2:], metric) is None


def test_a_mean_has_its_95_percent_interval():
    """Of .1, .2, .4: mean .2333, deviation .1528, and Student's 4.303 of two degrees of freedom."""
    summary = outcomes("a", "val/loss", 0.1, 0.2, 0.4).summary("val/loss")
    assert summary == pytest.approx(
        {"n": 3, "mean": 0.7 / 3, "spread": 0.152753, "half": 4.302653 * 0.152753 / 3**0.5}, rel=1e-4
    )
    assert "half" not in outcomes("a", "val/loss", 0.1).summary("val/loss")


def test_seeds_of_a_fold_count_as_one_for_they_validate_the_same_images():
    recipe = plan.Recipe("a", Path("a.yaml"), "")
    accuracies = {("1/2", 0): 0.5, ("2/2", 0): 0.6, ("1/2", 1): 0.7, ("2/2", 1): 0.8}
    found = [
        Outcome(
            plan.Trial(Path(), recipe, (), fold, seed, ()),
            None,
            {"metrics": dict.fromkeys(("val/accuracy", "test/accuracy"), share)},
        )
        for (fold, seed), share in accuracies.items()
    ]
    summary = Configuration("a", found).summary("val/accuracy")
    assert (summary["n"], summary["mean"]) == (2, pytest.approx(0.65))
    assert summary["spread"] == pytest.approx(0.1 / 2**0.5)  # of .6 and .7
    tested = Configuration("a", found).summary("test/accuracy")  # of which all runs see the same images
    assert (tested["n"], tested["spread"]) == (4, pytest.approx(np.std([0.5, 0.6, 0.7, 0.8], ddof=1)))


def test_options_of_one_last_word_are_told_apart():
    recipe = plan.Recipe("tiny", Path("tiny.yaml"), "")
    varied = (("model.optimizer.lr", "0.1"), ("model.other.lr", "1"), ("data.batch_size", "8"))
    trial = plan.Trial(Path("studies/tiny"), recipe, varied, "", 0, ())
    assert trial.title == "tiny, model.optimizer.lr 0.1, model.other.lr 1, batch_size 8, seed 0"


def test_values_with_commas_in_brackets_are_one():
    assert plan.read_variation("data.image_size=[96,128],64") == ("data.image_size", ["[96,128]", "64"])
    several = "[{class_path: RandomCrop, init_args: {padding: 2}}, Cutout]"
    assert plan.read_variation(f"data.augmentation={several},null")[1] == [several, "null"]
    assert plan.read_variation("a=[[1,2],[3,4]], x y ,1e-3")[1] == ["[[1,2],[3,4]]", "x y", "1e-3"]
    for wrong in ("a=[1", "a=", "a=1,,2", "a=1,1", "=1"):
        with pytest.raises(ConfigError, match="write OPTION="):
            plan.read_variation(wrong)


def fold_indices(make, of: int) -> list[list[int]]:
    found = []
    for number in range(1, of + 1):
        data = make(fold=f"{number}/{of}")
        train, val = (data.subset(split).indices.tolist() for split in ("train", "val"))
        assert not {*train} & {*val}
        found.append(val)
    return found


def test_folds_hold_every_image_once_and_as_many_of_each_class():
    cuts = fold_indices(lambda **fold: MNIST5k(val_split=0, **fold), 3)
    assert sorted(itertools.chain(*cuts)) == list(range(4000))
    labels = MNIST5k().load("train").labels
    for cut in cuts:
        assert len(cut) in (1333, 1334)
        assert {*labels[cut].bincount().tolist()} <= {133, 134}
    assert fold_indices(lambda **fold: MNIST5k(seed=1, **fold), 3) != cuts
    assert MNIST5k(fold="1/3").hparams["fold"] == "1/3"


def files_of(make, of: int) -> list[set[str]]:
    found = []
    for number in range(1, of + 1):
        data = make(fold=f"{number}/{of}")
        train, val, test = ({*data.subset(split).source.paths} for split in ("train", "val", "test"))
        assert len(train | val | test) == len(train) + len(val) + len(test)
        found.append(val)
    return found


def test_folds_of_a_folder_leave_the_test_part_alone(here):
    tiny.write_image_folder(here / "photos", count=10)
    every = {str(path) for path in (here / "photos").rglob("*.png")}
    folds = files_of(lambda **fold: ImageFolder("photos", test_split=0.2, image_size=8, in_memory=False, **fold), 3)
    data = ImageFolder("photos", test_split=0.2, image_size=8, in_memory=False)
    assert set.union(*folds) | {*data.subset("test").source.paths} == every
    assert sum(map(len, folds)) == len(set.union(*folds))


def test_folds_keep_the_groups_of_a_table_together(here):
    tiny.write_image_folder(here / "photos", count=24)
    group_of = {path: f"{path.parent.name}{int(path.stem) // 3}" for path in (here / "photos").rglob("*.png")}
    lines = [f"{path},{path.parent.name},{group}" for path, group in group_of.items()]
    (here / "photos/labels.csv").write_text("\n".join(["file,label,group", *lines]))
    options = {"image_size": 8, "in_memory": False, "test_split": 0.25}
    folds = files_of(lambda **fold: ImageTable("photos/labels.csv", **options, **fold), 3)
    groups = [{group_of[Path(path)] for path in fold} for fold in folds]
    assert len(set.union(*groups)) == sum(map(len, groups))
    for fold in folds:
        assert len(fold) > 6
        assert {Path(path).parent.name for path in fold} == {"cat", "dog"}


def test_a_fold_that_cannot_be_is_refused(here, capsys):
    for fold in ("3/2", "0/2", "1/1", "half"):
        with pytest.raises(ConfigError, match="must be a part of two or more"):
            MNIST5k(fold=fold)
    for part in ("train", "val"):
        tiny.write_image_folder(here / "photos" / part, count=3)
    with pytest.raises(ConfigError, match="validation images that ImageFolder has: join them"):
        ImageFolder("photos", image_size=8, fold="1/2").setup("fit")
    with pytest.raises(ConfigError, match="the classes have 3 to 3 images to deal"):
        ImageFolder("photos/train", image_size=8, test_split=0, fold="1/9").setup("fit")
