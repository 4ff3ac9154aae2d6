"""The script that makes the rows of configs/results.csv, and every measured figure from them."""

import csv
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import yaml

from scripts import ablation, reproduce, results
from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.data import CIFAR10, CIFAR100
from vision_zoo.training.saving import Saving
from vision_zoo.types import TTA
from vision_zoo.verbs import list_ as listing
from vision_zoo.verbs.study import running

ROOT = Path(__file__).parents[1]
PAGE = "# Results\n\n<!-- results -->\n<!-- /results -->\n\nMore.\n"


@pytest.fixture
def project(tmp_path, data_root, monkeypatch):
    """A copy of what the script writes to; `trainings` holds the words of each, which is a copy of this process."""
    root = tmp_path / "project"
    (root / "configs").mkdir(parents=True)
    for name in ("lenet5_mnist", "fc_mnist", "small_cnn_mnist"):
        text = (ROOT / "configs" / f"{name}.yaml").read_text()
        text = re.sub(r"; measured .*\.\n", "; measured not yet.\n", text)
        text = re.sub(r"max_epochs: \d+", f"max_epochs: {1 if 'small' in name else 3}", text)
        (root / "configs" / f"{name}.yaml").write_text(text)
    (root / "configs" / "README.md").write_text(PAGE)
    project = results.Project(root)
    words_of_runs, whole = [], running.run_trials

    def run_trials(trials, *others):
        words_of_runs.extend(trial.words for trial in trials)
        whole(trials, *others)

    monkeypatch.setattr(running, "run_trials", run_trials)
    monkeypatch.setattr(running, "start_method", lambda: "fork")
    monkeypatch.setattr("vision_zoo.verbs.results.plot_curves", lambda *_: None)  # which takes as long as a run

    def run(*words):
        before, after = (words[: words.index("--")], words[words.index("--") :]) if "--" in words else (words, ())
        return reproduce.main([*before, "--data_root", str(data_root), *after], root)

    object.__setattr__(project, "run", run)
    object.__setattr__(project, "trainings", words_of_runs)
    return project


@pytest.fixture
def pretended(project, monkeypatch):
    """Trainings that take no time: they leave what the script reads."""

    def run_trials(trials, _command, _rest, _jobs, told):
        for trial in trials:
            told(trial, None)
            project.trainings.append(trial.words)
            options = " ".join(trial.words).replace("=", " ").split()
            recipe = yaml.safe_load(trial.recipe.path.read_text())
            if recipe["model"]["optimizer"]["init_args"]["lr"] < 0:
                (trial.folder / "log.txt").write_text("Invalid learning rate\n")
                told(trial, 2)
                continue
            asked = "--trainer.max_epochs" in options
            run = trial.folder / "runs" / trial.recipe.path.stem / "version_0"
            run.mkdir(parents=True)
            (run / "metrics.csv").write_text("epoch,step,val/accuracy\n0,2,0.5\n1,4,0.75\n")
            written = {
                "parameters": 5142, "fit_seconds": 8.0, "train_images_per_second": 1000.0,
                "epochs": int(options[options.index("--trainer.max_epochs") + 1]) if asked else 3,
                "metrics": {"test/accuracy": 0.9744, "test/loss": 0.1}, "data": {"name": "MNIST", "note": ""},
                "device": "cpu (Abacus, 2 threads)", "devices": 1, "precision": "32-true", "versions": {"torch": "2"},
            }  # fmt: skip
            (run / "results.json").write_text(json.dumps(written))
            kind = recipe.get("tta", "none")
            (run / "test.json").write_text(json.dumps({} if kind == "none" else {"test_time_augmentation": kind}))
            told(trial, 0)

    monkeypatch.setattr(running, "run_trials", run_trials)


def header_of(project, name: str) -> str:
    return project.recipe(name).read_text().splitlines()[1]


def test_a_run_becomes_a_row_and_every_figure_comes_from_the_rows(project, monkeypatch):
    assert project.run("fc_mnist", "lenet5_mnist", "--seeds", "2", "--", "--data.num_workers", "0") == 0
    seeds = [word for words in project.trainings for word in words if word.startswith("--data.seed")]
    assert seeds == [f"--data.seed={seed}" for seed in (0, 0, 1, 1)]
    rows = project.rows()
    assert [(row["recipe"], row["seed"], row["epochs"]) for row in rows] == [
        ("fc_mnist", "0", "3"),
        ("fc_mnist", "1", "3"),
        ("lenet5_mnist", "0", "3"),
        ("lenet5_mnist", "1", "3"),
    ]
    for row in rows:
        (folder,) = project.root.glob(f"runs/reproduce/trials/{row['recipe']}-seed{row['seed']}-*")
        found = json.loads((folder / f"runs/{row['recipe']}/version_0/results.json").read_text())
        assert float(row["test/accuracy"]) == found["metrics"]["test/accuracy"]
        assert (row["data"], row["options"]) == ("MNIST", "--data.num_workers 0")
        assert row["hardware"] in found["device"]
        assert row["commit"]
        assert "torch=" in row["versions"]
    # fc_mnist has a validation after each of its 3 epochs, lenet5_mnist has none.
    curve = results.read_rows(project.configs / "curves.csv")
    assert [row["recipe"] for row in curve] == ["fc_mnist"] * 3
    assert float(curve[-1]["seconds"]) == pytest.approx(float(rows[0]["fit_seconds"]), abs=0.06)
    assert sorted(p.name for p in (project.configs / "figures").iterdir()) == ["parameters.png", "time_mnist.png"]
    assert (project.configs / "figures" / "time_mnist.png").read_bytes()[:4] == b"\x89PNG"

    shown = results.groups_of(project)[0].accuracy
    assert re.fullmatch(r"[\d.]+ \+- [\d.]+ %", shown)
    assert f"; measured {shown} (2 seeds), " in header_of(project, "fc_mnist")
    assert header_of(project, "small_cnn_mnist").endswith("; measured not yet.")
    page = project.page.read_text()
    assert page.startswith("# Results\n\n<!-- results -->\n| recipe")
    assert page.endswith("<!-- /results -->\n\nMore.\n")
    assert f"| {shown} (2) | 98.37 % |" in page
    every = "`fc_mnist`, `lenet5_mnist`, `small_cnn_mnist`"  # the first two ran with another option alone
    assert f"Not measured yet, as they stand: {every}." in page
    monkeypatch.setattr(listing, "configs_folder", lambda: project.configs)
    assert shown in {row["name"]: row["measured"] for row in listing.recipes()}["fc_mnist"]

    # Nothing is made twice, and --check sees every kind of change.
    count = len(project.trainings)
    before = {
        path: path.read_bytes() for path in project.root.rglob("*") if path.is_file() and "runs" not in path.parts
    }
    assert project.run("fc_mnist", "lenet5_mnist", "--seeds", "2", "--check", "--", "--data.num_workers", "0") == 0
    assert len(project.trainings) == count
    assert before == {path: path.read_bytes() for path in before}
    for path, old, new in (
        (project.page, shown, "99.99 %"),
        (project.recipe("fc_mnist"), shown, "99.99 %"),
        (project.configs / "results.csv", rows[0]["test/accuracy"], "0.9999"),
    ):
        path.write_text(path.read_text().replace(old, new))
        assert project.run("--check") == 1
        path.write_bytes(before[path])
    (project.configs / "figures" / "parameters.png").unlink()
    assert project.run("--check") == 1
    assert project.run("--write", "--check") == 0


def test_a_run_that_was_stopped_goes_on_and_gives_one_row(project, monkeypatch, capsys):
    whole = Saving.on_train_epoch_end

    def stop_after_the_second_epoch(self, trainer, *others):
        if trainer.current_epoch == 1:
            os.kill(os.getppid(), signal.SIGTERM)  # of the script
            time.sleep(1)
        whole(self, trainer, *others)

    with monkeypatch.context() as patch:
        patch.setattr(Saving, "on_train_epoch_end", stop_after_the_second_epoch)
        assert project.run("lenet5_mnist", "fc_mnist") == 143
    assert not list(project.root.glob("runs/reproduce/trials/fc_mnist*"))  # whoever stops it stops it whole
    assert project.rows() == []
    (folder,) = project.root.glob("runs/reproduce/trials/lenet5_mnist*")
    (folder / "commits.txt").write_text("abc\n")
    assert project.run("lenet5_mnist") == 0
    (row,) = project.rows()
    assert row["commit"] == f"abc {reproduce.commit()}"
    assert row["epochs"] == "3"
    assert len(list(folder.glob("runs/lenet5_mnist/version_*"))) == 1
    assert "lenet5_mnist seed 0: goes on" in capsys.readouterr().out
    # A row that was lost after its training needs no other training.
    (project.configs / "results.csv").unlink()
    count = len(project.trainings)
    assert project.run("lenet5_mnist") == 0
    assert project.rows() == [row]
    assert len(project.trainings) == count


def test_a_shorter_run_is_no_run_of_the_recipe(project, pretended, capsys):
    assert project.run("lenet5_mnist", "--", "--trainer.max_epochs", "1") == 0
    (row,) = project.rows()
    assert (row["options"], row["epochs"]) == ("--trainer.max_epochs 1", "1")
    measured = "; measured 97.44 % (1 seed), 8 s on 2 threads, with --trainer.max_epochs 1."
    assert header_of(project, "lenet5_mnist").endswith(measured)
    assert "`lenet5_mnist` `--trainer.max_epochs 1`" in project.page.read_text()
    # One that stopped early without saying so makes no row.
    (written,) = project.root.glob("runs/reproduce/trials/*/runs/lenet5_mnist/version_0/results.json")
    written.write_text(written.read_text().replace('"epochs": 1', '"epochs": 0'))
    assert project.run("lenet5_mnist", "--", "--trainer.max_epochs", "1") == 1
    assert "trained 0 of 1 epochs" in capsys.readouterr().out


def test_a_variant_has_its_own_row_and_its_own_published_figure(project, pretended):
    assert project.run("small_cnn_mnist", "small_cnn_mnist_batch_1") == 0
    assert [row["options"] for row in project.rows()] == ["", "--data.batch_size 1 --data.shuffle false"]
    assert [results.goal(project, group) for group in results.groups_of(project)] == [
        (97.25, "97.25 %"),
        (97.66, "97.66 %"),
    ]


def test_test_time_augmentation_is_told_beside_the_figure(project, pretended):
    path = project.recipe("fc_mnist")
    path.write_text(path.read_text() + "tta: flip\n")
    assert project.run("lenet5_mnist", "fc_mnist") == 0
    assert {row["recipe"]: row["tta"] for row in project.rows()} == {"lenet5_mnist": "none", "fc_mnist": "flip"}
    assert "97.44 % (1 seed, TTA flip)," in header_of(project, "fc_mnist")
    assert "97.44 % (1 seed)," in header_of(project, "lenet5_mnist")
    page = project.page.read_text()
    assert "| 97.44 % (1, TTA flip) |" in page


def test_every_variant_names_a_recipe_and_one_of_its_figures():
    published = {name: value for name, value in results.VARIANTS.items() if value[0] != ablation.RECIPE}
    for name, (recipe, _, figure) in published.items():
        published = results.header(results.Project(), recipe)["published"]
        assert len(re.findall(r"[\d.]+ %", published)) > figure, name
        assert not results.Project().recipe(name).exists()


def test_rows_of_a_recipe_that_was_edited_count_no_more(project, pretended, capsys):
    assert project.run("lenet5_mnist") == 0
    path = project.recipe("lenet5_mnist")
    path.write_text(path.read_text().replace("lr: 0.001", "lr: 0.002"))
    assert project.run("--write") == 0
    assert "the recipe was edited since: lenet5_mnist  seed 0" in capsys.readouterr().err
    assert header_of(project, "lenet5_mnist").endswith("; measured not yet.")
    assert "Not measured yet." in project.page.read_text()
    assert not list(project.configs.glob("figures/*.png"))
    assert project.run("lenet5_mnist") == 0  # and the next run is a new one
    assert len(project.trainings) == 2
    assert len(project.rows()) == 1


def test_wrong_usage_is_refused_before_anything_is_trained(project, capsys):
    assert project.run("lenet6_mnist") == 2
    assert "there is no recipe 'lenet6_mnist'. Known are fc_mnist, lenet5_mnist" in capsys.readouterr().err
    for words in (["--data.seed", "3"], ["--seed_everything=3"], ["-c", "other.yaml"]):
        assert project.run("lenet5_mnist", "--", *words) == 2
        assert "is chosen by this script" in capsys.readouterr().err
    assert project.trainings == []


def test_a_failure_is_told_and_the_next_recipe_runs(project, pretended, capsys):
    project.recipe("fc_mnist").write_text(project.recipe("fc_mnist").read_text().replace("lr: 0.001", "lr: -1"))
    assert project.run("fc_mnist", "lenet5_mnist") == 1
    assert "fc_mnist seed 0: ended with exit code 2" in capsys.readouterr().out
    assert [row["recipe"] for row in project.rows()] == ["lenet5_mnist"]


def test_a_run_that_another_process_makes_is_left_alone(tmp_path):
    with (
        reproduce.locked(tmp_path, wait=False),
        pytest.raises(results.ReproduceError, match="another process is busy"),
        reproduce.locked(tmp_path, wait=False),
    ):
        pass
    with reproduce.locked(tmp_path, wait=False):
        pass


def sha1_of(path):
    """Of the records of a batch of CIFAR-10: a label byte, then the pixels, image by image."""
    batch = pickle.loads(path.read_bytes())
    records = [bytes([label]) + bytes(row) for label, row in zip(batch["labels"], batch["data"], strict=True)]
    return hashlib.sha1(b"".join(records)).hexdigest()


@pytest.fixture
def published(data_root, monkeypatch):
    """Takes the tiny CIFAR-10 for the published one."""
    sums = {path.name: sha1_of(path) for path in data_root.glob("cifar-10-batches-py/*_batch*")}
    monkeypatch.setattr(CIFAR10, "published", sums)
    return sums


def change(root, name, here):
    """A copy of the data with one pixel of one batch changed, and the new sum of that batch."""
    shutil.copytree(root / "cifar-10-batches-py", here / "cifar-10-batches-py", dirs_exist_ok=True)
    path = here / "cifar-10-batches-py" / name
    batch = pickle.loads(path.read_bytes())
    batch["data"][0, 0] ^= 1
    path.write_bytes(pickle.dumps(batch, protocol=4))
    return sha1_of(path)


def test_the_published_images_are_known_by_their_pixels_whatever_their_files_are(published, data_root, recwarn):
    data = CIFAR10(root=str(data_root))
    data.setup()
    assert data.note == ""
    assert not recwarn


@pytest.mark.parametrize("batch", ["data_batch_3", "test_batch"])
def test_other_images_than_the_published_are_called_so(batch, published, data_root, here):
    change(data_root, batch, here)
    data = CIFAR10(root=str(here))
    split = "test" if batch == "test_batch" else "train"
    with pytest.warns(UserWarning, match=f"CIFAR10: the {split} images in .* are not the published ones"):
        data.setup()
    assert data.note == "not the published images"


def test_labels_that_are_not_the_published_ones_are_noticed(published, data_root, here):
    shutil.copytree(data_root / "cifar-10-batches-py", here / "cifar-10-batches-py")
    path = here / "cifar-10-batches-py" / "test_batch"
    batch = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps({**batch, "labels": batch["labels"][::-1]}, protocol=2))
    with pytest.warns(UserWarning, match="the test images in"):
        CIFAR10(root=str(here)).setup("test")


def test_every_figure_of_a_run_on_a_known_copy_says_so(published, data_root, here, monkeypatch, capsys, recwarn):
    note = "20 test images JPEG-compressed"
    monkeypatch.setattr(CIFAR10, "copies", {change(data_root, "test_batch", here): note})
    words = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--data.batch_size", "4"]
    assert main(["fit", "--config", "alexnet_cifar10", "--data.root", str(here), *words]) == 0
    assert f"CIFAR10: {note}" in capsys.readouterr().out
    assert not [warning for warning in recwarn if "published" in str(warning.message)]
    task = reproduce.Task("alexnet_cifar10", tuple(words), 0)
    run = here / "runs/alexnet_cifar10/version_0"
    row, points = reproduce.row_of(results.Project(), task, run, ["abc", "abc"], here / "log.txt")
    assert (row["data"], row["commit"], points) == (f"CIFAR10 ({note})", "abc", [])
    group = results.Group("alexnet_cifar10", row["data"], row["options"], (row,))
    assert results.measured([group]).endswith(f", {note}, with {row['options']}")
    assert results.goal(results.Project(), group) == (75.08, "75.08 %")
    for accuracy, verdict in (("0.7507", "**no**"), ("0.7508", "yes")):
        group = results.Group("alexnet_cifar10", row["data"], "", ({**row, "test/accuracy": accuracy},))
        assert results.reached(results.Project(), group) == verdict
    assert json.loads((run / "test.json").read_text())["note"] == note
    assert main(["test", "--ckpt_path", str(run), "--trainer.limit_test_batches", "1"]) == 0
    assert f"CIFAR10: {note}" in capsys.readouterr().out
    assert main(["list", "runs"]) == 0
    assert f"CIFAR10 ({note})" in capsys.readouterr().out


def test_both_labels_of_cifar100_are_checked(here, monkeypatch):
    tiny.write_cifar100(here)
    batch = pickle.loads((here / "cifar-100-python/test").read_bytes())
    triples = zip(batch["coarse_labels"], batch["fine_labels"], batch["data"], strict=True)
    record = b"".join(bytes([coarse, fine]) + bytes(row) for coarse, fine, row in triples)
    monkeypatch.setattr(CIFAR100, "published", {"test": hashlib.sha1(record).hexdigest()})
    data = CIFAR100(root=str(here))
    data.setup("test")
    assert data.note == ""


@pytest.mark.slow
@pytest.mark.skipif("VISION_ZOO_DATA" not in os.environ, reason="VISION_ZOO_DATA does not name a folder of real data")
def test_the_cifar10_at_hand_is_called_what_it_is(tmp_path):
    """20 seconds."""
    program = Path(os.environ["VISION_ZOO_DATA"]) / "prepare_cifar10.py"
    if not program.is_file():
        pytest.skip("CIFAR-10 is not in VISION_ZOO_DATA")
    subprocess.run([sys.executable, program, tmp_path], check=True, capture_output=True)
    data = CIFAR10(root=str(tmp_path))
    data.setup("fit")
    assert data.note == ""
    data.setup("test")
    assert data.note == "20 test images JPEG-compressed"


def test_the_time_of_runs_that_differ_much_is_told_from_end_to_end():
    for seconds, said in (
        (("60", "80"), "70 s"),
        (("60", "95"), "60 s to 95 s"),
        (("2071", "8874"), "35 min to 2.5 h"),
    ):
        assert results.Group("lenet5_mnist", "MNIST", "", tuple({"fit_seconds": s} for s in seconds)).time == said


# What is in this checkout.


def test_every_generated_figure_is_what_the_rows_say(capsys):
    assert reproduce.main(["--check"]) == 0, capsys.readouterr().err


def test_no_measured_figure_stands_outside_of_what_is_generated():
    accuracy = r"\b\d\d\.\d+ ?(%|per cent)|\b0?\.\d\d\d+ (test |validation )?accuracy"
    for folder in ("configs", "scripts"):
        page = (ROOT / folder / "README.md").read_text()
        by_hand = re.sub(r"(?s)<!-- (results|speed) -->.*<!-- /\1 -->", "", page)
        assert not re.search(accuracy, by_hand)
        assert not re.search(r"\b\d+(\.\d+)?( ms\b|x\b)", by_hand), "a figure of speed"
    for path in results.Project().recipes():
        text = path.read_text()
        said = listing.HEADER.match(text)
        assert said, path
        assert not re.search(accuracy, said["what"] + said["source"] + said["how"]), path
        assert not re.search(accuracy, text[said.end() :]), path


def test_a_row_holds_what_its_columns_promise():
    path = ROOT / "configs" / "results.csv"
    if not path.exists():
        pytest.skip("nothing measured yet")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames) == results.COLUMNS
    assert len({tuple(row[name] for name in results.KEY) for row in rows}) == len(rows)
    for row in rows:
        assert 0 < float(row["test/accuracy"]) <= 1
        assert re.fullmatch(r"([\w ]+, \d+ threads?)( then [\w ]+, \d+ threads?)*", row["hardware"])
        assert re.fullmatch(r"[0-9a-f]{12}( [0-9a-f]{12})*", row["commit"])
        assert row["tta"] in get_args(TTA)
