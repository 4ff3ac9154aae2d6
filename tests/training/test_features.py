"""What comes before the head is computed once where it stays the same, and the head alone is trained on it."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from tests import tiny
from tests.training.runs import rows, same, state, stop_at
from tests.training.test_processes import DDP, ENVIRONMENT, assert_the_same_run, last_of, signalled, vision_zoo
from vision_zoo.__main__ import main
from vision_zoo.backbones import CNN, Airbench, Torchvision
from vision_zoo.classifier import Classifier
from vision_zoo.data.sources import Files, InMemory
from vision_zoo.errors import ConfigError, DataError
from vision_zoo.known import with_features
from vision_zoo.training import features as computing
from vision_zoo.training.features import features_of
from vision_zoo.training.speed_trial import Way

FROZEN = [
    "fit", "--model.backbone", "CNN", "--model.backbone.widths", "[4, 8]", "--model.backbone.hidden", "6",
    "--model.finetune", "FineTuning", "--model.finetune.thaw_at", "null", "--model.scheduler", "null",
    "--data.batch_size", "16", "--data.augmentation", "null", "--trainer.max_epochs", "2",
]  # fmt: skip
IMAGES = torch.from_numpy(tiny.digits(40)[0])[:, None]
LABELS = torch.arange(40) % 10


class Nothing(Callback):
    """A callback of somebody's own, which may look at images."""


class AlwaysDrops(nn.Module):
    """A network whose features are random whatever is frozen."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.first, self.head = nn.Linear(28 * 28, 8), nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(F.dropout(self.first(images.flatten(1)), training=self.training))


class TwoViews(nn.Module):
    """A network that takes the plain order of pixels alone."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, num_classes)

    def forward(self, images):
        return self.head(self.first(images).view(len(images), -1))


@pytest.fixture
def digits(tmp_path) -> list[str]:
    tiny.write_npz(tmp_path / "digits.npz", train=200, shape=(28, 28))
    return [*FROZEN, "--data", "ArrayFile", "--data.path", str(tmp_path / "digits.npz")]


def classifier(mean: float = 0.5, seed: int = 0, shape: tuple[int, int, int] = (1, 28, 28)) -> Classifier:
    torch.manual_seed(seed)
    build = partial(CNN, widths=[4, 8], hidden=6)
    return Classifier(build, shape, [str(i) for i in range(10)], mean=[mean]).eval()


def said(capsys) -> str:
    """What the run says of features."""
    return " ".join(re.findall(r"^features .*", capsys.readouterr().out, re.M)).replace("features", "").strip()


def run_of(folder: Path, number: int = 0) -> Path:
    return folder / "runs" / "default" / f"version_{number}"


# ------------------------------------------------------------------------------------------------- what they depend on


def test_features_are_those_that_the_head_is_given():
    model = classifier()
    found = features_of(model, InMemory(IMAGES, LABELS), torch.tensor([7, 3, 5]))
    head = model.backbone.head[-1]
    assert found.places.tolist() == [7, 3, 5]
    torch.testing.assert_close(head(found.values), model(IMAGES[[7, 3, 5]]), rtol=1e-2, atol=1e-2)


def test_features_do_not_depend_on_what_follows_the_head():
    torch.manual_seed(0)
    model = Classifier(Airbench, (3, 32, 32), ["a", "b"]).eval()  # whose logits are those of the head, divided
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    _, expected = with_features(model.backbone, lambda: model(images))
    torch.testing.assert_close(features_of(model, InMemory(images, LABELS[:4]), exact=True).values, expected)


def test_a_network_without_a_linear_layer_at_its_end_has_none():
    model = Classifier(partial(Torchvision, name="squeezenet1_1"), (3, 32, 32), ["a", "b"])
    with pytest.raises(ConfigError, match=r"this network has none: take another --model\.backbone"):
        features_of(model, InMemory(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), LABELS[:2]))


def change_weight(model: Classifier, images: Tensor) -> Classifier:
    with torch.no_grad():
        model.backbone.features[0][0].bias[0] += 1e-3
    return model


def change_statistics(model: Classifier, images: Tensor) -> Classifier:
    model.backbone.features[0][2].running_mean[0] += 1e-3
    return model


def change_pixel(model: Classifier, images: Tensor) -> Classifier:
    images[39, 0, 27, 27] += 1
    return model


CHANGES: list[Callable[[Classifier, Tensor], Classifier]] = [
    change_weight, change_statistics, change_pixel, lambda *_: classifier(mean=0.25)
]  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
def test_the_network_keeps_its_layout(last, monkeypatch):
    monkeypatch.setattr(computing, "fastest_way", lambda *_: Way(False, True))
    model = classifier()
    model.set_memory_format(last)
    logits = model(IMAGES)
    features_of(model, InMemory(IMAGES, LABELS))
    weight = next(weight for weight in model.parameters() if weight.ndim == 4 and weight.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert torch.equal(model(IMAGES), logits)


@pytest.mark.parametrize("change", CHANGES, ids=["weight", "batch norm", "pixel", "mean"])
def test_features_are_computed_anew_where_anything_before_them_changes(change):
    model, images = classifier(), IMAGES.clone()
    assert features_of(model, InMemory(images, LABELS)).seconds > 0
    assert features_of(model, InMemory(images, LABELS)).seconds == 0, "nothing has changed"
    model = change(model, images)
    changed = features_of(model, InMemory(images, LABELS))
    assert changed.seconds > 0
    assert features_of(model, InMemory(images, LABELS)).seconds == 0


def test_features_are_kept_whatever_becomes_of_head_and_labels():
    model = classifier()
    first = features_of(model, InMemory(IMAGES, LABELS))
    nn.init.normal_(model.backbone.head[-1].weight)
    again = features_of(model, InMemory(IMAGES, LABELS.flip(0)))
    assert again.seconds == 0
    assert torch.equal(first.values, again.values)


def test_features_of_files_are_computed_anew_for_another_file_or_way_to_resize(tmp_path):
    tiny.write_image_folder(tmp_path / "pets", count=3)
    paths = [str(path) for path in sorted((tmp_path / "pets").rglob("*.png"))]
    model, labels = classifier(shape=(3, 28, 28)), torch.arange(6)
    assert features_of(model, Files(paths, labels, (3, 28, 28))).seconds > 0
    assert features_of(model, Files(paths, labels, (3, 28, 28))).seconds == 0
    assert features_of(model, Files(paths, labels, (3, 28, 28), interpolation="bicubic")).seconds > 0
    os.utime(paths[4], (1, 1))
    assert features_of(model, Files(paths, labels, (3, 28, 28))).seconds > 0
    assert features_of(model, Files(paths, labels, (3, 28, 28)), exact=True).seconds > 0


def test_an_image_that_cannot_be_read_is_refused_where_that_is_wanted_also_from_the_cache(tmp_path):
    tiny.write_image_folder(tmp_path, ("pet",), count=3)
    (tmp_path / "pet/0001.png").write_bytes(b"no image")
    paths = [str(tmp_path / f"pet/000{number}.png") for number in range(3)]
    model, labels = classifier(shape=(3, 28, 28)), torch.arange(3)
    with pytest.warns(UserWarning, match=r"0001\.png cannot be decoded"):
        assert features_of(model, Files(paths, labels, (3, 28, 28))).places.tolist() == [0, 2]
    with pytest.raises(DataError, match=r"0001\.png cannot be decoded"):
        features_of(model, Files(paths, labels, (3, 28, 28), strict=True))


def test_a_broken_file_of_features_is_replaced(tmp_path):
    model, source = classifier(), InMemory(IMAGES, LABELS)
    first = features_of(model, source)
    (file,) = (tmp_path / "cache/vision_zoo/features").iterdir()
    for content in (file.read_bytes()[:-500], b"", b"no archive"):
        file.write_bytes(content)
        again = features_of(model, source)
        assert again.seconds > 0
        torch.testing.assert_close(again.values, first.values, rtol=1e-2, atol=1e-2)
        assert features_of(model, source).seconds == 0


def test_a_network_that_takes_the_plain_order_alone_has_features():
    model = Classifier(TwoViews, (3, 8, 8), ["a", "b"]).eval()
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    assert features_of(model, InMemory(images, torch.zeros(5, dtype=torch.long))).values.shape == (5, 144)


# ------------------------------------------------------------------------------------------------------ head-only runs


def test_an_epoch_on_features_equals_one_on_images(digits, here, capsys):
    words = [*digits, "--trainer.precision", "32-true"]
    assert main(words) == 0
    assert re.fullmatch(r"of 200 images: computed once in \d+\.\d s", said(capsys))
    assert main([*words, "--trainer.callbacks", "tests.training.test_features.Nothing"]) == 0
    assert said(capsys) == "", "a callback may look at images"
    mine, its = (torch.load(last_of_run(run_of(here, n)), weights_only=True)["state_dict"] for n in range(2))
    assert mine.keys() == its.keys()
    for name, weight in mine.items():
        torch.testing.assert_close(weight, its[name], rtol=0, atol=1e-4, msg=name)
    assert not torch.equal(mine["backbone.head.3.weight"], classifier().backbone.head[-1].weight), "it was trained"
    for ours, theirs in zip(rows(run_of(here)), rows(run_of(here, 1)), strict=True):
        assert {n: float(v) for n, v in ours.items() if v} == pytest.approx(
            {n: float(v) for n, v in theirs.items() if v}, abs=1e-4
        )
    tests = [(run_of(here, n) / "test.json").read_text() for n in range(2)]
    assert tests[0] == tests[1], "images are tested"


def last_of_run(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    "changed",
    [
        ["--data.augmentation", "[RandomHorizontalFlip]"],
        pytest.param(["--model.finetune.thaw_at", "0.5"], marks=pytest.mark.slow),
        ["--model.backbone", "tests.training.test_features.AlwaysDrops"],
        pytest.param(["--model.finetune.freeze", "features"], marks=pytest.mark.slow),
        pytest.param(["--model.finetune.freeze_batch_norm", "false"], marks=pytest.mark.slow),
        pytest.param(["--trainer.limit_train_batches", "2"], marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_images_are_read_where_features_would_not_stay_the_same(changed, digits, here, capsys):
    """Each a second."""
    mine = dict(zip(digits[1::2], digits[2::2], strict=True))
    mine |= dict([changed])
    if "AlwaysDrops" in changed[1]:
        mine = {word: value for word, value in mine.items() if not word.startswith("--model.backbone.")}
    words = [word for pair in mine.items() for word in pair]
    assert main(["fit", *words, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0
    assert said(capsys) == ""


@pytest.mark.parametrize("lost", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["cached", "computed anew"])
def test_a_run_on_features_resumes_exactly(lost, digits, tmp_path, monkeypatch, capsys):
    """Each two seconds."""
    words = [*digits, "--trainer.precision", "32-true", "--test_after_fit", "false", "--trainer.default_root_dir"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 15, "SIGTERM")
        assert main([*words, str(tmp_path / "stopped")]) == 143
    capsys.readouterr()
    if lost:
        shutil.rmtree(tmp_path / "cache")
    assert main(["fit", "--ckpt_path", str(run_of(tmp_path / "stopped"))]) == 0
    assert said(capsys).startswith("of 200 images: computed once" if lost else "of 200 images: read from the cache")
    mine, its = run_of(tmp_path / "stopped"), run_of(tmp_path / "whole")
    assert (mine / "metrics.csv").read_bytes() == (its / "metrics.csv").read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        assert same(state(mine / "checkpoints" / name), state(its / "checkpoints" / name)), name


def test_a_cache_that_cannot_be_written_fails_no_run(digits, here, monkeypatch, capsys):
    (here / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "file"))
    assert main([*digits, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0
    assert said(capsys).startswith("of 200 images: computed once")


def test_images_that_cannot_be_read_are_left_out_and_told_each_time(here, capsys, monkeypatch):
    tiny.write_image_folder(here / "pets", count=12)
    (here / "pets/cat/0003.png").write_bytes(b"no image")
    seen, step = [], Classifier.training_step

    def training_step(self, batch, batch_idx):
        seen.append(batch)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    words = [*FROZEN, "--data", "ImageFolder", "--data.root", "pets", "--data.image_size", "28"]
    words += ["--data.test_split", "0", "--data.val_split", "0", "--test_after_fit", "false"]
    words += ["--trainer.max_epochs", "1"]
    for how in ("computed once", "read from the cache"):
        with pytest.warns(UserWarning, match=r"0003\.png cannot be decoded"):
            assert main(words) == 0
        assert said(capsys).startswith(f"of 23 images: {how}")
    features, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert features.shape == (2 * 23, 6)
    # The colour tells the class, and the number of the image changes little.
    centres = torch.stack([features[labels == label].mean(0) for label in range(2)])
    assert torch.equal(torch.cdist(features, centres).argmin(1), labels)


def test_a_signal_while_features_are_computed_ends_at_once(digits, here, monkeypatch, capsys):
    def interrupted(*_):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the computing went on")

    with monkeypatch.context() as patch:
        patch.setattr(computing, "_features", interrupted)
        assert main(digits) == 143
    assert not (here / "runs").exists()
    assert not list((here / "cache/vision_zoo/features").iterdir()), "no lock is left, nor half a file"
    assert main([*digits, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0


@pytest.mark.slow
def test_two_processes_train_on_the_same_features_and_resume(digits, tmp_path, monkeypatch):
    """A minute."""
    monkeypatch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [*digits, *DDP, "2", "--test_after_fit", "false"]
    for name in ("computed", "read"):
        (tmp_path / name).mkdir()
        result = vision_zoo(tmp_path / name, *words)
        assert result.returncode == 0, result.stderr
        assert f"of 200 images: {name}" in " ".join(result.stdout.split())
    assert_the_same_run(tmp_path / "computed", tmp_path / "read")
    (tmp_path / "stopped").mkdir()
    assert signalled(tmp_path / "stopped", "1", "SIGTERM", "4", *words).returncode == 143
    result = vision_zoo(tmp_path, "fit", "--ckpt_path", str(last_of(tmp_path / "stopped")))
    assert result.returncode == 0, result.stderr
    assert "of 200 images: read" in " ".join(result.stdout.split())
    assert_the_same_run(tmp_path / "stopped", tmp_path / "read")
