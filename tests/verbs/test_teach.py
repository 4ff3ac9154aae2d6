"""teach: photos in, a calibrated classifier in an ordinary run folder out."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from vision_zoo.__main__ import main
from vision_zoo.api import load
from vision_zoo.training import features
from vision_zoo.verbs.teach.curve import Point, what_more_brings
from vision_zoo.verbs.teach.head import Head
from vision_zoo.verbs.teach.label_next import worth_a_label

KINDS = ("disc", "square", "stripe", "cross")
SMALL = ["--image_size", "32"]


def draw(kind: str, number: int) -> Image.Image:
    """A shape of one of four kinds, somewhere, in some colour."""
    rng = np.random.default_rng([KINDS.index(kind), number])
    image = Image.new("RGB", (32, 32), tuple(rng.integers(0, 90, 3).tolist()))
    pen, colour = ImageDraw.Draw(image), tuple(rng.integers(140, 255, 3).tolist())
    x, y = rng.integers(4, 12, 2).tolist()
    if kind == "disc":
        pen.ellipse((x, y, x + 16, y + 16), fill=colour)
    elif kind == "square":
        pen.rectangle((x, y, x + 15, y + 15), fill=colour)
    elif kind == "stripe":
        pen.rectangle((0, y, 31, y + 4), fill=colour)
    else:
        pen.line((x, y, x + 16, y + 16), fill=colour, width=3)
        pen.line((x, y + 16, x + 16, y), fill=colour, width=3)
    return image


def write_shapes(root: Path, count: int, first: int = 0) -> Path:
    for kind in KINDS:
        (root / kind).mkdir(parents=True)
        for number in range(first, first + count):
            draw(kind, number).save(root / kind / f"{number:03}.png")
    return root


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "photos", 20)


@pytest.fixture(scope="module")
def taught(shapes, tmp_path_factory) -> Path:
    """The run folder of teach on class folders, with a folder of unlabelled pictures, some of them twice."""
    folder = tmp_path_factory.mktemp("taught")
    (folder / "new").mkdir()
    for number in range(100, 106):
        for kind in KINDS:
            image = draw(kind, number)
            image.save(folder / "new" / f"{kind}{number}.png")
            image.point(lambda value: value + 1).save(folder / "new" / f"{kind}{number}again.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert main(["teach", str(shapes), *SMALL, "--unlabelled", "new", "--next", "6"]) == 0
    return folder / "runs" / "teach" / "version_0"


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def test_the_run_folder_is_whole_and_the_classifier_has_learnt(taught):
    names = {path.name for path in taught.rglob("*") if path.is_file()}
    assert {"config.yaml", "best.ckpt", "last.ckpt", "results.json", "test.json", "confusion_matrix.png"} <= names
    metrics = results(taught)["metrics"]
    assert metrics["test/accuracy"] > 0.6  # chance is 0.25
    low, high = results(taught)["teach"]["test_accuracy_interval"]
    assert 0 < low < metrics["test/accuracy"] <= high <= 1


def test_other_commands_read_it_and_agree(taught, shapes, here, capsys):
    assert main(["test", "--ckpt_path", str(taught), "--output", "tested"]) == 0
    tested = json.loads((here / "tested" / "test.json").read_text())
    assert tested["test/accuracy"] == results(taught)["metrics"]["test/accuracy"]
    image = shapes / "disc" / "000.png"
    assert main(["predict", "--ckpt_path", str(taught), "--images", str(image)]) == 0
    (row,) = csv.DictReader((here / "predictions.csv").open())
    pixels = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)
    model = load(taught)
    with torch.no_grad():
        probabilities = model(pixels).softmax(1)[0]
    assert float(row["probability"]) == pytest.approx(float(probabilities.max()), abs=1e-5)
    assert row["label"] == model.class_names[int(probabilities.argmax())]
    assert main(["export", "--ckpt_path", str(taught), "--output", "shapes.safetensors"]) == 0
    assert main(["report", "--ckpt_path", str(taught)]) == 0
    assert main(["list", "runs", "--root", str(taught.parents[2])]) == 0
    assert "teach" in capsys.readouterr().out


def test_the_learning_curve_is_a_table_and_a_picture(taught):
    rows = list(csv.DictReader((taught / "learning_curve.csv").open()))
    assert [int(row["photos_per_class"]) for row in rows] == [5] * 5 + [10] * 5 + [14]
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    assert {f"recall {kind}" for kind in KINDS} < rows[0].keys()
    assert Image.open(taught / "learning_curve.png").size[0] > 500


def test_what_more_photos_bring_follows_the_law_of_the_curve():
    """Errors of .04 + .8 / sqrt(n): at 200 photos 9.7 %, at 400 8 %; "cat" gains, and "dog" is the same at any n."""
    points = []
    for photos in (5, 10, 20, 50, 100, 200):
        error = 0.04 + 0.8 * photos**-0.5
        points.append(Point(photos, 0, 1 - error, [1 - 2 * error, 0.9]))
    said = what_more_brings(points, ["cat", "dog"])
    assert said.startswith(
        "twice the photos, about 400 of each class, would bring validation accuracy from about 90.3 "
    )
    assert "to about 92.0 %, and most for cat (recall now 81 %, about 3.3 points more)" in said
    assert "too few to tell" in what_more_brings(points[:3], ["cat", "dog"])


def test_next_names_what_lowers_the_variance_of_all_logits_most():
    random = torch.Generator().manual_seed(0)
    labelled, values = torch.randn(9, 5, generator=random), torch.randn(40, 5, generator=random)
    head, strength = Head(torch.randn(3, 5, generator=random), torch.zeros(3)), 2.0
    center, scale = labelled.mean(0), labelled.var(0, correction=0).mean().sqrt()
    images = (torch.cat([labelled, values]) - center) / scale
    doubt = (1 - head.logits(torch.cat([labelled, values])).softmax(1).square().sum(1)) / 2

    def doubtful(chosen):
        """Variance of the logits of all images, weighted, with the labels of those chosen."""
        curvature = sum((doubt[i] * torch.outer(images[i], images[i]) for i in chosen), strength * torch.eye(5))
        return float((doubt * (images @ curvature.inverse() * images).sum(1)).sum())

    have = list(range(9))
    for _ in range(6):
        have.append(min((i for i in range(9, 49) if i not in have), key=lambda i: doubtful([*have, i])))
    assert [9 + index for index in worth_a_label(head, strength, labelled, values, 6)] == have[9:]
    assert sorted(worth_a_label(head, strength, labelled, values, 99)) == list(range(40))


def test_next_names_pictures_that_are_not_alike(taught):
    rows = list(csv.DictReader((taught / "next.csv").open()))
    names = [Path(row["path"]).stem.removesuffix("again") for row in rows]
    assert len(names) == len(set(names)) == 6
    assert [row["rank"] for row in rows] == list("123456")
    assert Image.open(taught / "next.png").size[0] > 500


def test_the_same_again_computes_no_features_and_the_temperature_is_in_the_weights(taught, shapes, here, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(taught.parents[2] / "cache"))
    monkeypatch.setattr(features, "_compute", None)  # calling it would fail
    heat = results(taught)["teach"]["temperature"]
    monkeypatch.setattr("vision_zoo.verbs.teach.temperature_of", lambda *_: 2 * heat)
    assert main(["teach", str(shapes), *SMALL, "--curve", "false"]) == 0
    again = results(here / "runs" / "teach" / "version_0")
    assert again["metrics"]["test/accuracy"] == results(taught)["metrics"]["test/accuracy"]
    assert not (here / "runs" / "teach" / "version_0" / "learning_curve.csv").exists()
    image = torch.from_numpy(np.array(draw("disc", 7))).permute(2, 0, 1)
    with torch.no_grad():
        first, second = (load(run)(image) for run in (taught, here / "runs" / "teach" / "version_0"))
    torch.testing.assert_close(first, 2 * second, rtol=1e-3, atol=1e-3)


@pytest.mark.slow  # 3 s
def test_its_config_trains_on(taught, here):
    words = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.default_root_dir", "."]
    assert main(["fit", "--config", str(taught / "config.yaml"), *words, "--model.weights", str(taught)]) == 0


@pytest.mark.slow
def test_a_table_and_arrays_teach_as_well(shapes, here):
    """4 s."""
    rows = ["file,label", *(f"{path.parent.name}/{path.name},{path.parent.name}" for path in shapes.rglob("*.png"))]
    (here / "table.csv").write_text("\n".join(rows))
    assert main(["teach", "table.csv", *SMALL, "--data.root", str(shapes), "--curve", "false"]) == 0
    images = np.stack([np.array(draw(kind, number)) for number in range(12) for kind in KINDS])
    np.savez("shapes.npz", images=images, labels=np.array(KINDS * 12))
    assert main(["teach", "shapes.npz", *SMALL, "--curve", "false"]) == 0
    for version in (0, 1):
        assert results(here / "runs" / "teach" / f"version_{version}")["metrics"]["test/accuracy"] > 0.4


def test_two_photos_of_each_class_give_something(here, capsys):
    write_shapes(here / "few", 2)
    assert main(["teach", "few", *SMALL]) == 0
    out = capsys.readouterr().out
    assert (
        'no learning curve and no answer "none of these": photos for validation are needed, and none are held out'
        in out
    )
    assert "4 for training, 4 for testing" in out
    assert "the usual L2 penalty: a class has one training image, so that none is held out; no calibration" in out
    assert results(here / "runs" / "teach" / "version_0")["teach"]["temperature"] == 1.0


def test_a_network_without_a_linear_layer_at_its_end_is_refused_first(here, capsys):
    write_shapes(here / "few", 4)
    network = ["--model.backbone", "Torchvision", "--model.backbone.name", "squeezenet1_1"]
    assert main(["teach", "few", *SMALL, *network]) == 2
    assert (
        "squeezenet1_1 has none that alone gives the logits: take another --model.backbone" in capsys.readouterr().err
    )
    assert not (here / "runs").exists()


def test_validation_photos_of_a_configuration_are_held_out_of_small_classes_too(here, capsys):
    write_shapes(here / "few", 4)
    (here / "own.yaml").write_text("data: {class_path: ImageFolder, init_args: {root: few, val_split: 0.3}}")
    assert main(["teach", "--config", "own.yaml", "few", *SMALL, "--curve", "false"]) == 0
    assert "for validation" in capsys.readouterr().out


def test_validation_photos_that_are_asked_for_are_held_out_of_small_classes_too(here, capsys):
    write_shapes(here / "few", 4)
    held = ["--data.val_split", "0.25", "--data.test_split", "0.25", "--known", "0.9", "--curve", "false"]
    assert main(["teach", "few", *SMALL, *held]) == 0
    assert "7 for training, 4 for validation, 5 for testing" in capsys.readouterr().out
    assert results(here / "runs" / "teach" / "version_0")["known"]["share"] == 0.9


@pytest.mark.slow
def test_refine_goes_on_with_the_same_split(shapes, here, capsys, monkeypatch):
    """5 s."""
    recipe = here / "short.yaml"
    recipe.write_text("model: {optimizer: {class_path: SGD, init_args: {lr: 0.001}}}\ntrainer: {max_epochs: 1}\n")
    monkeypatch.setattr("vision_zoo.cli.teaching.RECIPE", str(recipe))
    words = ["--curve", "false", "--seed", "1", "--trainer.precision", "32-true"]
    assert main(["teach", "--refine", str(shapes), *SMALL, *words]) == 0
    refined = here / "runs" / "short" / "version_0"
    assert yaml.safe_load((refined / "config.yaml").read_text())["trainer"]["precision"] == "32-true"
    assert results(refined)["known"]["share"] == 0.95
    out = capsys.readouterr().out
    assert "val/accuracy: taught" in out
    assert "better on validation" in out
    checkpoints = [here / "runs" / name / "version_0/checkpoints/best.ckpt" for name in ("teach", "short")]
    first, second = (torch.load(path, weights_only=True)["datamodule_hyper_parameters"] for path in checkpoints)
    for name in ("root", "seed", "test_split", "val_split", "image_size"):
        assert first[name] == second[name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "teach needs a folder of class folders, a table or an array file"),
        (["a", "b"], "and one of them: got a b"),
        (["nowhere"], "there is no folder"),
        (["--data.root", "nowhere"], "there is no folder"),
        (["notes.txt"], "is none of the files that it takes"),
        (["one"], "has only one folder"),
        (["single"], "the smallest class has 1"),
        (["broken"], "none of the images can be read"),
        (["alike.npz"], "two classes or more are needed, but the data has 1"),
        (["from_one.npz"], "there is no training image of 0: add some; labels of arrays begin with 0"),
        (["shapes", "--next", "0"], "--next must be at least 1"),
        (["shapes", "--unlabelled", "nowhere"], "--unlabelled nowhere"),
        (["shapes", "--ckpt_path", "best"], "teach begins a run"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, message, shapes, here, capsys):
    (here / "notes.txt").write_text("hello")
    shutil.copytree(shapes / "disc", here / "one" / "disc")
    (here / "shapes").symlink_to(shapes)
    noise = np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)
    for name, labels in (("alike", np.zeros(40, int)), ("from_one", np.arange(40) % 2 + 1)):
        np.savez(here / f"{name}.npz", images=noise, labels=labels)
    for kind in ("disc", "cross"):
        for folder, count in (("single", 1), ("broken", 4)):
            (here / folder / kind).mkdir(parents=True)
            for number in range(count):
                (here / folder / kind / f"{number}.png").write_bytes(b"no picture")
    assert main(["teach", *words, *SMALL]) == 2
    assert message in capsys.readouterr().err
    assert not (here / "runs").exists()


@pytest.mark.slow
def test_an_interrupted_run_leaves_nothing(shapes, here, monkeypatch):
    """3 s."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vision_zoo.verbs.teach.write_results", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["teach", str(shapes), *SMALL, "--curve", "false"])
    assert not list((here / "runs" / "teach").glob("version_*"))
