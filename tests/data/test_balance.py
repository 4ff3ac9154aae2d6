"""Classes of unlike sizes: a warning, a sampler that draws each equally often, and metrics that count them alike."""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from tests import tiny
from tests.training.test_features import FROZEN
from vision_zoo.__main__ import main
from vision_zoo.data import ArrayFile, MNIST5k

SIZES = {"cat": 300, "dog": 60, "owl": 12}
WARNING = (
    "the largest class, cat with 240 training images, has 24 times those of the smallest, owl with 10: "
    "--data.sampler balanced draws each class equally often, or --model.loss CrossEntropy --model.loss.class_weights "
    "balanced weighs them"
)


@pytest.fixture
def pets(here):
    """A file with classes of unlike sizes."""
    labels = np.repeat(np.arange(3), list(SIZES.values()))
    pixels = np.random.default_rng(0).integers(0, 60, (len(labels), 28, 28)) + 90 * labels[:, None, None]
    arrays = {"train_images": pixels.astype(np.uint8), "train_labels": labels, "class_names": np.array(list(SIZES))}
    np.savez(here / "pets.npz", test_images=arrays["train_images"][::4], test_labels=labels[::4], **arrays)
    return ["--data", "ArrayFile", "--data.path", "pets.npz", "--data.val_split", "0.2"]


UNTESTED = ["--test_after_fit", "false"]
PETS = ["fit", "--model.backbone", "LeNet5", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]


class Counter(Callback):
    """Counts the labels that the network is trained with, by epoch."""

    drawn: ClassVar[list[list[int]]] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.drawn.append([0] * 3)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.drawn[-1] = (torch.tensor(self.drawn[-1]) + batch[1].bincount(minlength=3)).tolist()


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.setattr(Counter, "drawn", [])
    return Counter.drawn


def counting(*words):
    name = f"{__name__}.Counter"
    return [*words, "--trainer.callbacks", f"[{name}]", "--trusted_packages", __name__.split(".")[0]]


def test_class_counts_are_those_of_the_training_part(pets):
    counts = ArrayFile(path="pets.npz", val_split=0.2).class_counts
    assert counts.dtype == torch.int64
    assert counts.tolist() == [240, 48, 10]
    assert MNIST5k(val_split=0).class_counts.tolist() == [400] * 10


def test_classes_of_very_unlike_sizes_are_warned_of_in_one_line_with_what_helps(pets, recwarn):
    assert main([*PETS, *UNTESTED, *pets]) == 0
    assert [str(warning.message) for warning in recwarn if "largest" in str(warning.message)] == [WARNING]


def test_nothing_is_warned_of_where_sampler_or_weights_help_already_or_classes_are_alike(pets, recwarn):
    assert main([*PETS, *UNTESTED, *pets, "--data.sampler", "balanced"]) == 0
    weights = ["--model.loss", "CrossEntropy", "--model.loss.class_weights", "balanced"]
    assert main([*PETS, *UNTESTED, *pets, *weights]) == 0
    assert main([*PETS, *UNTESTED]) == 0
    assert not [warning for warning in recwarn if "largest class" in str(warning.message)]


def test_a_balanced_fit_trains_with_as_many_images_of_each_class(pets, drawn):
    words = ["fit", "--model.backbone", "LeNet5", "--trainer.max_epochs", "3", *UNTESTED, *pets]
    assert main(counting(*words, "--data.batch_size", "16", "--data.sampler", "balanced")) == 0
    assert [sum(epoch) for epoch in drawn] == [298] * 3, "as many images as without"
    assert all(max(epoch) - min(epoch) == 1 for epoch in drawn)


def test_another_sampler_is_refused_when_a_run_goes_on(pets, capsys):
    assert main([*PETS, *UNTESTED, *pets, "--data.sampler", "balanced"]) == 0
    assert main(["fit", "--ckpt_path", "last", "--data.sampler", "null"]) == 2
    assert "--data.sampler: balanced -> None" in capsys.readouterr().err


def test_macro_metrics_stand_beside_micro_and_choose_the_checkpoint_that_is_asked_for(pets, capsys):
    monitor = "{class_path: ModelCheckpoint, init_args: {monitor: val/macro_accuracy, mode: max}}"
    assert main([*PETS, *pets, "--trainer.callbacks", f"[{monitor}]"]) == 0
    assert "macro_accuracy" in capsys.readouterr().out
    metrics = json.loads(Path("runs/default/version_0/results.json").read_text())["metrics"]
    assert {"val/macro_accuracy", "test/macro_accuracy"} <= metrics.keys()
    rows = Path("runs/default/version_0/per_class.csv").read_text().splitlines()[1:]
    recalls = [float(row.split(",")[2]) for row in rows]
    assert metrics["test/macro_accuracy"] == pytest.approx(sum(recalls) / 3)
    assert metrics["test/macro_accuracy"] != pytest.approx(metrics["test/accuracy"])


def test_a_head_that_is_trained_on_features_is_given_each_class_equally_often(pets, capsys, monkeypatch):
    """The same images in the same order as without features: the weights agree but for rounding."""
    words = [*FROZEN, *UNTESTED, "--data.sampler", "balanced", *pets, "--trainer.precision", "32-true"]
    assert main(words) == 0
    assert "of 372 images: computed once" in capsys.readouterr().out
    monkeypatch.setattr("vision_zoo.training.head_only.HeadOnly._all_stays", lambda *_: False)
    assert main(words) == 0
    assert "computed once" not in capsys.readouterr().out
    with_features, without = (
        torch.load(f"runs/default/version_{n}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for n in (0, 1)
    )
    for name, weight in without.items():
        torch.testing.assert_close(with_features[name], weight, rtol=1e-3, atol=1e-4)


def test_teach_refuses_a_sampler_for_it_takes_all_images_at_once(here, capsys):
    tiny.write_image_folder(here / "photos")
    assert main(["teach", "photos", "--image_size", "32", "--data.sampler", "balanced"]) == 2
    assert "teach fits its layer to all training images at once: leave out --data.sampler" in capsys.readouterr().err
