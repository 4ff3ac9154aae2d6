"""None of these: a threshold that known images pass, kept in the checkpoint and wherever it goes."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import vision_zoo
from tests.conftest import QUICK
from tests.training.test_processes import DDP
from tests.training.test_processes import vision_zoo as vision_zoo_in
from vision_zoo.__main__ import main
from vision_zoo.classifier import Classifier
from vision_zoo.data import MNIST5k
from vision_zoo.errors import CheckpointError
from vision_zoo.known import Known

QUICK_KNOWN = ["fit", "--model.backbone", "LeNet5", "--model.scheduler", "null", "--trainer.limit_train_batches", "20"]


def drawn(count, centers, generator):
    """Features (count, 16) around one of three centers each, and logits (count, 3) that tell the classes apart."""
    features = centers[torch.arange(count) % 3] + torch.randn(count, 16, generator=generator)
    return features[:, :3], features


def share_below(known, unknown, share=0.95):
    """The share of unknown images that pass where this share of known ones does."""
    return float((unknown >= known.quantile(1 - share)).float().mean())


def test_the_share_passes_and_far_images_are_told_apart_better_than_by_the_largest_probability():
    generator = torch.Generator().manual_seed(0)
    centers = 8 * torch.eye(3, 16)
    train, val, test = (drawn(n, centers, generator) for n in (900, 300, 1500))
    far = drawn(900, centers + 8 * torch.eye(16)[10], generator)  # a way in which known images do not vary
    known = Known.fit(train[1], *val, share=0.9)
    assert int((known(*val) >= known.threshold).sum()) == 270
    assert 0.86 < float((known(*test) >= known.threshold).float().mean()) < 0.94
    assert share_below(known(*test), known(*far)) < 0.1
    assert share_below(*(logits.softmax(1).amax(1) for logits in (test[0], far[0]))) > 0.5


def test_logits_below_zero_tell_far_images_too():
    """As of a network that was trained with BinaryCrossEntropy."""
    generator = torch.Generator().manual_seed(0)
    centers = 8 * torch.eye(3, 16)
    (_, train), *parts = (drawn(n, centers, generator) for n in (900, 300, 1500))
    far = drawn(900, centers + 8 * torch.eye(16)[10], generator)
    val, test, far = ((logits - 300, features) for logits, features in (*parts, far))
    assert share_below(*(Known.fit(train, *val, share=0.9)(*images) for images in (test, far))) < 0.1


def test_without_features_the_score_is_the_energy():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    known = Known.fit(logits[:, :0], logits, logits[:, :0], share=0.5)
    torch.testing.assert_close(known(logits, logits[:, :0]), logits.logsumexp(1))
    assert int((logits.logsumexp(1) >= known.threshold).sum()) == 25


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The run of a short fit with a threshold."""
    folder = tmp_path_factory.mktemp("known")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert main([*QUICK_KNOWN, "--known", "0.9", "--trainer.max_epochs", "1"]) == 0
    return folder / "runs/default/version_0"


@pytest.fixture
def scans(here) -> Path:
    """A digit of each class, and four pictures of noise."""
    (here / "scans").mkdir()
    digits = MNIST5k().sample("test", 10).images[:, 0].numpy()
    noise = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    for number, pixels in enumerate([*digits, *noise]):
        Image.fromarray(pixels).save(here / f"scans/{number:02}.png")
    return here / "scans"


def stored(run) -> dict:
    return torch.load(run / "checkpoints/best.ckpt", weights_only=True)["known"]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", pytest.param("16-true", marks=pytest.mark.slow)])  # 5 s
def test_a_run_in_any_precision_has_its_threshold_and_is_tested_in_it(precision, here):
    words = ["--trainer.max_epochs", "1", "--trainer.precision", precision]
    assert main([*QUICK_KNOWN, "--known", "0.9", *words]) == 0
    assert 0 < json.loads(Path("runs/default/version_0/results.json").read_text())["metrics"]["test/known"] <= 1
    assert main(["test", "--ckpt_path", "last", "--trainer.precision", precision]) == 0


def test_the_chosen_share_of_the_validation_images_passes_with_the_checkpoint(run):
    model = vision_zoo.load(run)
    data = MNIST5k()
    with torch.inference_mode():
        _, scores = model.answer(data.split_images("val").images)
    assert int((scores >= model.known.threshold).sum()) == math.ceil(0.9 * len(scores))


def test_results_say_share_threshold_and_how_many_test_images_pass(run, here, capsys):
    results = json.loads((run / "results.json").read_text())
    assert results["known"] == {
        "share": 0.9,
        "threshold": stored(run)["threshold"],
        "test": results["metrics"]["test/known"],
    }
    assert 0.8 < results["known"]["test"] < 1
    assert vision_zoo.test(run)["test/known"] == results["known"]["test"]
    assert f"{100 * results['known']['test']:.2f} %" in capsys.readouterr().out


def test_predict_answers_none_of_these_beside_the_nearest_class(run, scans, capsys):
    assert main(["predict", "--ckpt_path", str(run), "--images", str(scans)]) == 0
    assert "none of these, nearest" in capsys.readouterr().out
    with Path("predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["path", "label", "probability"]
    assert list(rows[0])[-2:] == ["answer", "known_score"]
    assert [row["answer"] for row in rows[10:]] == ["none of these"] * 4
    assert sum(row["answer"] == row["label"] for row in rows[:10]) >= 6
    for row in rows:
        assert row["label"] in MNIST5k().class_names
        assert (row["answer"] == row["label"]) == (float(row["known_score"]) >= stored(run)["threshold"])
    from_python = vision_zoo.predict(run, [scans], top_k=5)
    assert [{key: str(value) for key, value in row.items()} for row in from_python] == rows


def test_a_checkpoint_without_a_threshold_answers_as_ever(trained_run, scans):
    assert main(["predict", "--ckpt_path", str(trained_run), "--images", str(scans), "--top_k", "2"]) == 0
    assert Path("predictions.csv").read_text().startswith("path,label,probability,label_2,probability_2\n")
    assert json.loads((trained_run / "results.json").read_text())["known"] is None
    assert "known" not in torch.load(trained_run / "checkpoints/best.ckpt", weights_only=True)


def test_a_run_that_goes_on_fits_the_threshold_anew(run, here):
    before = stored(run)
    copy = here / "runs/default/version_0"
    shutil.copytree(run, copy)
    assert main(["fit", "--ckpt_path", str(copy), "--trainer.max_epochs", "2"]) == 0
    assert stored(copy)["share"] == 0.9
    assert stored(copy)["threshold"] != before["threshold"]
    assert json.loads((copy / "results.json").read_text())["epochs"] == 2


@pytest.mark.slow
def test_each_of_two_processes_fits_the_threshold_so_that_none_waits_for_long(here):
    """15 s."""
    words = [*QUICK, "--trainer.max_epochs", "1", "--known", "0.95", *DDP, "2"]
    words += ["--trainer.default_root_dir", str(here)]
    done = vision_zoo_in(here, *words)
    assert done.returncode == 0, done.stderr
    run = here / "runs" / "default" / "version_0"
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["known"]
    assert "test/accuracy" in json.loads((run / "results.json").read_text())["metrics"]


@pytest.mark.slow  # 4 s
def test_exported_programs_give_the_score_and_exported_weights_hold_what_it_needs(run, here):
    model, images = vision_zoo.load(run), MNIST5k().sample("test", 7).images
    with torch.inference_mode():
        logits, scores = model.answer(images)
    for name in ("net.onnx", "net.pt2", "net.safetensors", "net.pt"):
        assert main(["export", "--ckpt_path", str(run), "--output", name]) == 0
    session = onnxruntime.InferenceSession("net.onnx")
    outputs = session.run(["logits", "known_score"], {"images": images.numpy()})
    facts = {"share": 0.9, "threshold": model.known.threshold}
    assert json.loads(session.get_modelmeta().custom_metadata_map["known"]) == facts
    for got in (map(torch.from_numpy, outputs), torch.export.load("net.pt2").module()(images)):
        for ours, theirs in zip((logits, scores), got, strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    for state in (load_file("net.safetensors"), torch.load("net.pt", weights_only=True)):
        torch.testing.assert_close(state["known.axes"], model.known.axes)
        assert state["known.threshold"].item() == model.known.threshold
    words = ["--model.weights", "net.safetensors", "--trainer.limit_train_batches", "1", "--test_after_fit", "false"]
    assert main([*QUICK, "--trainer.max_epochs", "1", *words]) == 0  # which need not know of it


@pytest.mark.parametrize(
    "change",
    [
        {"center": torch.zeros(7)},
        {"axes": torch.zeros(84, 500)},
        {"axes": torch.zeros(1).expand(84, 42)},
        {"axes": torch.full((84, 42), float("nan"))},
        {"center": torch.zeros(84, dtype=torch.float64)},
        {"center": torch.zeros(84, device="meta")},
        {"center": torch.zeros(7), "axes": torch.zeros(7, 3)},
        {"threshold": float("nan")},
        {"threshold": "0"},
        {"more": 1.0},
        {"axes": None},
    ],
    ids=str,
)
def test_a_checkpoint_with_a_foreign_threshold_is_refused(run, here, change):
    content = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    content["known"] |= change
    torch.save(content, "evil.ckpt")
    with pytest.raises(CheckpointError, match="known"):
        Classifier.load_from_checkpoint("evil.ckpt")


@pytest.mark.parametrize("value", ["0", "1", "1.5", "-0.1", "nan", "true"])
def test_a_share_that_no_threshold_gives_is_refused(value, here, capsys):
    assert main([*QUICK_KNOWN, "--known", value]) == 2
    assert "--known" in capsys.readouterr().err
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.val_split", "0"], "--known fits its threshold on validation images, and --data.val_split is 0"),
        (["--trainer.enable_checkpointing", "false"], "--known is kept in the checkpoint"),
    ],
)
def test_a_threshold_that_cannot_be_fitted_or_kept_is_refused(words, message, here, capsys):
    assert main([*QUICK_KNOWN, "--known", "0.9", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (here / "runs").exists()


def no_linear_layer(image_shape, num_classes) -> nn.Module:
    return nn.Sequential(nn.Conv2d(image_shape[0], num_classes, image_shape[1:]), nn.Flatten())


def test_a_network_without_a_last_linear_layer_goes_by_its_energy():
    model = Classifier(no_linear_layer, (1, 28, 28), "ab")
    known = Known.fit(torch.zeros(2, 0), torch.tensor([[1.0, 0], [3, 0]]), torch.zeros(2, 0), 0.5)
    model.known = Known.restore(known.stored(), model.backbone)
    logits, scores = model.answer(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    torch.testing.assert_close(scores, logits.logsumexp(1))
