import re
import sys
import warnings
from inspect import Parameter
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import nn
from torchvision.transforms import v2

from tests import tiny
from vision_zoo import data as datasets
from vision_zoo.data import CIFAR10, EMNIST, MNIST, ArrayFile, ImageDataModule, ImageFolder, MNIST5k
from vision_zoo.errors import ConfigError, DataError
from vision_zoo.specs import options_of
from vision_zoo.transforms import AlternatingFlip, MixUp, RandomCrop, RandomHorizontalFlip


class Model(LightningModule):
    """Notes what each stage hands over."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch)
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch)

    def predict_step(self, batch, batch_idx):
        return batch[1]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options):
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        **{"max_epochs": 1, "enable_checkpointing": False, **options},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--data.batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "--data.num_workers must be at least 0, got -1"),
        ({"image_size": 0}, "--data.image_size must be at least 1, got 0"),
        ({"image_size": (9, 0)}, r"--data.image_size must be at least 1, got \(9, 0\)"),
        ({"sampler": "uniform"}, "--data.sampler must be balanced, or null for each image once, got uniform"),
        ({"seed": -1}, "--data.seed must be at least 0, got -1"),
        ({"val_split": 1.0}, "--data.val_split must be a fraction of at least 0 and below 1"),
        ({"mean": [0.1, 0.2]}, r"--data.mean has 2 values, but the images have 3 channel\(s\)"),
        ({"std": [0.1, 0.2, 0.3, 0.4]}, "--data.std has 4 values, but the images have 3 channel"),
        ({"std": [0.0]}, "--data.std must be positive"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        CIFAR10(**options)


def test_facts_can_be_overridden_for_one_experiment():
    assert CIFAR10(image_size=(20, 64)).image_shape == (3, 20, 64)
    data = CIFAR10(mean=[0.0], std=[1.0], image_size=64)
    assert (data.mean, data.std, data.image_shape) == ((0.0,) * 3, (1.0,) * 3, (3, 64, 64))
    assert CIFAR10().mean == (0.4914, 0.4822, 0.4465)


@pytest.mark.filterwarnings("ignore")
def test_training_batches_are_augmented_and_no_others(tmp_path):
    root = str(tiny.write_mnist(tmp_path))
    data = MNIST(root, augmentation=[RandomHorizontalFlip(1.0)], shuffle=False, batch_size=180)
    model = Model()
    run = trainer()
    run.fit(model, data)
    run.test(model, data, verbose=False)
    plain = {split: data.split_images(split) for split in ("train", "val", "test")}
    assert torch.equal(model.seen["train"][0][0], plain["train"].images.flip(3))
    for split in ("val", "test"):
        assert torch.equal(
            torch.cat([images for images, _ in model.seen[split]])[-len(plain[split].labels) :], plain[split].images
        )
        assert model.seen[split][0][0].dtype == torch.uint8


@pytest.mark.filterwarnings("ignore")
def test_every_other_epoch_shows_the_other_side_of_an_image_also_after_a_resume(tmp_path):
    root = str(tiny.write_mnist(tmp_path))
    data, model = MNIST(root, augmentation=[AlternatingFlip()], shuffle=False, batch_size=180), Model()
    run = trainer(max_epochs=2)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    again = MNIST(root, augmentation=[AlternatingFlip()], shuffle=False, batch_size=180)
    trainer(max_epochs=4).fit(model, again, ckpt_path=tmp_path / "run.ckpt")
    first, *others = (images for images, _ in model.seen["train"])
    assert not torch.equal(first, first.flip(3))
    for images, expected in zip(others, [first.flip(3), first, first.flip(3)], strict=True):
        assert torch.equal(images, expected)


@pytest.mark.filterwarnings("ignore")
def test_mixed_labels_reach_the_training_as_probabilities_and_others_as_numbers(tmp_path):
    data, model = MNIST(str(tiny.write_mnist(tmp_path)), augmentation=[MixUp()], batch_size=60), Model()
    trainer().fit(model, data)
    assert {labels.shape for _, labels in model.seen["train"]} == {(60, 10)}
    assert {labels.dtype for _, labels in model.seen["train"]} == {torch.float32}
    assert {labels.dtype for _, labels in model.seen["val"]} == {torch.int64}


def test_parts_are_disjoint_and_together_the_training_files(tmp_path):
    data = MNIST(str(tiny.write_mnist(tmp_path)))
    data.setup("fit")
    train, val = data._subsets["train"].indices.tolist(), data._subsets["val"].indices.tolist()
    assert sorted(train + val) == list(range(200))
    assert train == sorted(train)


@pytest.mark.filterwarnings("ignore")
def test_without_validation_images_nothing_is_validated(tmp_path):
    data = MNIST(str(tiny.write_mnist(tmp_path)), val_split=0)
    model = Model()
    trainer().fit(model, data)
    assert data.val_dataloader() == []
    assert model.seen["val"] == []
    with pytest.raises(ConfigError, match="val_split is 0"):
        data.split_images("val")


def test_nothing_is_read_twice(tmp_path, monkeypatch):
    data = MNIST(str(tiny.write_mnist(tmp_path)))
    reads = []
    load = MNIST.load
    monkeypatch.setattr(MNIST, "load", lambda self, split: reads.append(split) or load(self, split))
    for stage in ("fit", "validate", "test", "predict", None, "fit"):
        data.setup(stage)
    assert reads == ["train", "test"]


def test_a_sample_is_spread_over_the_split(tmp_path):
    data = MNIST(str(tiny.write_mnist(tmp_path)))
    assert len(data.sample("val", 8).labels) == 8
    assert len(data.sample("val", 10_000).labels) == 20


@pytest.mark.filterwarnings("ignore")
def test_options_in_a_checkpoint_are_plain_values(tmp_path):
    flips = [RandomCrop(2, fill=3), v2.RandomHorizontalFlip(0.3), v2.RandomApply([v2.ColorJitter(0.2)])]
    data = MNIST(str(tiny.write_mnist(tmp_path)), augmentation=flips, mean=[0.5])
    run = trainer()
    run.fit(Model(), data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    kept = torch.load(tmp_path / "run.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert kept["root"] == str(tmp_path)
    assert kept["mean"] == [0.5]
    assert kept["_class_path"] == "vision_zoo.data.mnist.MNIST"
    assert kept["augmentation"][0] == {
        "class_path": "vision_zoo.transforms.geometry.RandomCrop",
        "init_args": {"padding": 2, "padding_mode": "constant", "fill": 3},
    }
    assert kept["augmentation"][1]["init_args"] == {"p": 0.3}
    [inner] = kept["augmentation"][2]["init_args"]["transforms"]
    assert inner["class_path"].endswith("ColorJitter")
    again = MNIST.load_from_checkpoint(tmp_path / "run.ckpt", augmentation=None)
    assert again.mean == (0.5,)
    with pytest.raises(ConfigError, match=r"--data\.augmentation: .*RandomCrop.* cannot be applied to images"):
        MNIST.load_from_checkpoint(tmp_path / "run.ckpt")


@pytest.mark.filterwarnings("ignore")
def test_the_command_line_keeps_the_options_as_they_were_given(tmp_path, monkeypatch):
    tiny.write_mnist(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vision_zoo"])
    cli = LightningCLI(
        Model,
        ImageDataModule,
        subclass_mode_data=True,
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
        trainer_defaults={"logger": False, "accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False},
        args=[
            *("--data=MNIST", "--data.root=.", "--data.val_split=20"),
            *("--data.augmentation+=vision_zoo.transforms.RandomCrop", "--data.augmentation.padding=2"),
        ],
    )
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.datamodule.sizes == {"train": 180, "val": 20}
    assert isinstance(cli.datamodule.augmentation[0], RandomCrop)
    cli.trainer.save_checkpoint("run.ckpt")
    kept = torch.load("run.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert kept["root"] == str(tmp_path)
    assert kept["val_split"] == 20
    assert kept["augmentation"][0]["class_path"] == "vision_zoo.transforms.RandomCrop"
    assert kept["augmentation"][0]["init_args"]["padding"] == 2


def test_too_few_training_images_for_the_processes_are_refused(tmp_path):
    data = MNIST(str(tiny.write_mnist(tmp_path, train=10)), val_split=0)
    data.trainer = type("ManyProcesses", (), {"global_rank": 0, "world_size": 11, "overfit_batches": 0})()
    with pytest.raises(ConfigError, match="10 training images are too few for 11 processes"):
        data.train_dataloader()


def test_lightning_has_nothing_to_warn_about_in_the_loaders(tmp_path):
    data = MNIST5k(batch_size=500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*log_every_n_steps.*|.*isinstance.treespec.*|.*LeafSpec.*")
        trainer(log_every_n_steps=1).fit(Model(), data)


class Own(ImageDataModule):
    """A data set of somebody's own, of the arrays that it is given."""

    class_names, image_shape, mean, std = ("a", "b"), (1, 8, 8), (0.5,), (0.5,)
    images: Any = np.zeros((20, 8, 8), np.uint8)
    labels: Any = np.arange(20) % 2

    def load(self, split):
        return self.images, self.labels


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_arrays_of_numpy_and_gray_images_without_channels_will_do(kind, monkeypatch):
    monkeypatch.setattr(Own, "labels", Own.labels.astype(kind))
    images, labels = Own().split_images("test")
    assert (images.shape, images.dtype) == ((20, 1, 8, 8), torch.uint8)
    assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 1] * 10)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (Own.images, np.zeros(20, np.float32), r"train labels of torch\.float32, where whole numbers are needed"),
        (
            np.zeros((20, 1, 8, 8), np.float32),
            Own.labels,
            r"images of torch\.float32, where uint8 .*Correct what its load gives$",
        ),
        (
            np.zeros((20, 3, 8, 8), np.uint8),
            Own.labels,
            r"3 channel\(s\), where 1 are needed.*Correct what its load gives$",
        ),
    ],
)
def test_what_a_data_set_of_ones_own_gives_wrongly_is_told(images, labels, message, monkeypatch):
    monkeypatch.setattr(Own, "images", images)
    monkeypatch.setattr(Own, "labels", labels)
    with pytest.raises(DataError, match=message):
        Own().setup("fit")


def test_a_data_set_of_ones_own_needs_load(monkeypatch):
    monkeypatch.delattr(Own, "load")
    with pytest.raises(ConfigError, match=r"Own must define load\(split\)"):
        Own().setup("fit")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["MNIST5k", "MNIST", "ArrayFile", "kept folder", "streamed folder"])
def test_every_stage_runs_with_a_plain_trainer_and_a_module_of_any_kind(kind, tmp_path):
    data = {
        "MNIST5k": lambda: MNIST5k(batch_size=500),
        "MNIST": lambda: MNIST(str(tiny.write_mnist(tmp_path))),
        "ArrayFile": lambda: ArrayFile(str(tiny.write_npz(tmp_path / "a.npz"))),
        "kept folder": lambda: ImageFolder(str(tiny.write_image_folder(tmp_path)), image_size=8),
        "streamed folder": lambda: ImageFolder(str(tiny.write_image_folder(tmp_path)), image_size=8, in_memory=False),
    }[kind]()
    model, run = Model(), trainer(max_epochs=2)
    run.fit(model, data)
    run.validate(model, data, verbose=False)
    run.test(model, data, verbose=False)
    run.predict(model, data)
    seen = {split: torch.cat([labels for _, labels in batches]) for split, batches in model.seen.items()}
    assert len(seen["train"]) == 2 * data.sizes["train"]
    assert len(seen["val"]) % data.sizes["val"] == 0
    assert sorted(seen["test"].tolist()) == sorted(data.split_images("test").labels.tolist())
    run.save_checkpoint(tmp_path / "run.ckpt")
    again = type(data).load_from_checkpoint(tmp_path / "run.ckpt")
    assert dict(again.hparams) == dict(data.hparams)
    assert options_of(type(data)).keys() <= data.hparams.keys()


def test_options_are_stated_once_and_known_of_every_dataset():
    shared = options_of(ImageDataModule)
    for kind in vars(datasets).values():
        if isinstance(kind, type) and issubclass(kind, ImageDataModule):
            assert shared.keys() <= options_of(kind).keys(), kind
    assert (options_of(MNIST5k)["val_split"], options_of(ImageFolder)["test_split"]) == (500, 0.1)
    assert ImageFolder(root="anywhere").image_shape == (3, 224, 224)
    assert (shared["val_split"], shared["image_size"]) == (0.1, None)


@pytest.mark.parametrize("kind", [EMNIST, MNIST5k, ArrayFile, ImageFolder])
def test_help_lists_every_option_of_a_dataset_with_its_text_and_default(kind):
    parser = LightningArgumentParser()
    parser.add_class_arguments(kind, "data")
    text = " ".join(parser.format_help().split()).split("Path to a configuration file.")[1]
    for name, default in options_of(kind).items():
        described = re.search(rf"--data\.{name} \S+ (.+?)(?= --data\.|$)", text)
        assert described, name
        assert len(described[1]) > 30, described[1]
        if default is not Parameter.empty:
            shown = {None: "null", True: "true", False: "false"}.get(default, default) if default != 0 else default
            assert f"default: {shown}".lower() in described[1].lower()
