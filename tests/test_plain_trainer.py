"""Classifier and data modules with Lightning's own Trainer, in a script and in a notebook."""

import copy
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from torch import nn
from torch.optim import SGD, Adam
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

import vision_zoo
from tests.test_classifier import NAMES, classifier
from vision_zoo.backbones import LeNet5, ResNet, SmallCNN, Torchvision
from vision_zoo.checkpoints import read_checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.data import MNIST5k
from vision_zoo.errors import ConfigError
from vision_zoo.schedules import CosineAnnealingLR, OneCycleLR

NOTEBOOK = Path(__file__).parent / "plain_trainer.ipynb"


def plain(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    batches = {f"limit_{part}_batches": 2 for part in ("train", "val", "test", "predict")}
    return Trainer(**{**quiet, **batches, "max_epochs": 1, **options})


def loaders(count=2):
    images = MNIST5k().sample("test", 32)
    pairs = list(zip(images.images, images.labels, strict=True))
    return [DataLoader(pairs, batch_size=16) for _ in range(count)]


def test_every_verb_takes_a_data_module(here):
    model, data = classifier(), MNIST5k()
    run = plain(enable_checkpointing=False)
    run.fit(model, datamodule=data)
    assert run.callback_metrics.keys() >= {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}
    (validated,) = run.validate(model, datamodule=data, verbose=False)
    (tested,) = run.test(model, datamodule=data, verbose=False)
    assert validated.keys() == {"val/loss", "val/accuracy", "val/top5_accuracy", "val/macro_accuracy"}
    assert tested.keys() >= {"test/loss", "test/accuracy", "test/f1", "test/calibration_error"}
    assert model.confusion_matrix.shape == (10, 10)
    probabilities = torch.cat(run.predict(model, datamodule=data))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(probabilities)))


def test_every_verb_takes_loaders(here):
    model = classifier(scheduler=OneCycleLR)
    run = plain(enable_checkpointing=False)
    training, scoring = loaders()
    run.fit(model, training, scoring)
    assert len(run.validate(model, scoring, verbose=False)) == 1
    assert "test/accuracy" in run.test(model, scoring, verbose=False)[0]
    assert sum(map(len, run.predict(model, scoring))) == 32


def test_training_without_validation_lets_a_schedule_watch_the_training(here):
    model = classifier(scheduler=partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0))
    run = plain(enable_checkpointing=False)
    run.fit(model, loaders(1)[0])
    assert run.lr_scheduler_configs[0].scheduler.best == pytest.approx(float(run.callback_metrics["train/loss"]))


@pytest.mark.parametrize("schedule", [partial(OneCycleLR, warmup=2), CosineAnnealingLR, None])
def test_a_run_goes_on_exactly_from_its_checkpoint(schedule, here):
    ends = []
    for resumed in (False, True):
        model = classifier(SmallCNN, scheduler=schedule, optimizer=partial(SGD, lr=0.1, momentum=0.9))
        saving = ModelCheckpoint(dirpath=here, filename="{epoch}", save_top_k=-1)
        run = plain(max_epochs=2, callbacks=[saving])
        run.fit(model, datamodule=MNIST5k(), ckpt_path=here / "epoch=0.ckpt" if resumed else None)
        assert run.global_step == 4
        ends.append((model.state_dict(), float(run.callback_metrics["train/loss"])))
    (weights, loss), (again, loss_again) = ends
    assert loss == loss_again
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_file_and_a_run_folder_are_loaded(trained_run):
    from_file = Classifier.load_from_checkpoint(trained_run / "checkpoints/best.ckpt")
    from_folder = Classifier.load_from_checkpoint(trained_run)
    assert not from_folder.training
    for name, weight in from_file.state_dict().items():
        assert torch.equal(weight, from_folder.state_dict()[name])
    (tested,) = plain().test(from_folder, datamodule=MNIST5k(), verbose=False)
    assert tested["test/accuracy"] > 0


# --------------------------------------------------------------------------------------- networks that wait for weights


class Draws(TorchDispatchMode):
    """Counts the random numbers that are drawn."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "nondeterministic_seeded" in str(func.tags):
            self.count += 1
        return func(*args, **(kwargs or {}))


class Custom(nn.Module):
    """Initialises its weights in the ways that torch has."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.linear = nn.Linear(784, 16)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        self.head = nn.Linear(16, num_classes)
        nn.init.orthogonal_(self.head.weight)
        self.token = nn.Parameter(torch.randn(16))
        self.register_buffer("fixed", torch.rand(16, generator=torch.Generator().manual_seed(3)), persistent=False)

    def forward(self, images):
        return self.head(self.linear(images.flatten(1)) * self.fixed + self.token)


@pytest.mark.parametrize("backbone", [LeNet5, ResNet, partial(Torchvision, name="squeezenet1_1"), Custom])
def test_a_network_is_loaded_without_random_weights(backbone, here):
    model = Classifier(backbone, (3, 32, 32) if backbone is ResNet else (1, 28, 28), NAMES)
    run = plain()
    run.strategy.connect(model)
    run.save_checkpoint("model.ckpt")
    checkpoint = read_checkpoint("model.ckpt", (__name__.partition(".")[0],))
    before, draws = torch.random.get_rng_state(), Draws()
    with draws:
        again = Classifier.from_checkpoint(checkpoint)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert draws.count == 0 or backbone is Custom
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    images = torch.randint(0, 256, (2, *model.image_shape), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again(images), model.eval()(images))


# --------------------------------------------------------------------------------------------------------- a notebook


def test_the_cells_of_a_notebook_run(here):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict[str, object] = {"__name__": "__main__"}
    for source in sources:
        exec(compile(source, NOTEBOOK.name, "exec"), names)
    assert names["model"].num_classes == 10
    assert (here / "digits.ckpt").is_file()


def test_the_optimizer_of_a_script_may_be_any_function(here):
    model = classifier(optimizer=lambda parameters: Adam(parameters, lr=0.01))
    trainer = plain(enable_checkpointing=False)
    trainer.fit(model, datamodule=MNIST5k())
    trainer.save_checkpoint(here / "one.ckpt")
    loaded = Classifier.load_from_checkpoint(here / "one.ckpt")
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    with pytest.raises(ConfigError, match="training needs an optimizer"):  # which no name leads to
        plain(enable_checkpointing=False).fit(loaded, datamodule=MNIST5k())


def test_a_network_that_a_script_has_trained_is_loaded_by_others(here):
    (here / "script.py").write_text(
        "import torch\nfrom tests.test_plain_trainer import MNIST5k, classifier, plain\n"
        "def make(parameters):\n    return torch.optim.Adam(parameters, lr=0.01)\n"
        "trainer = plain(enable_checkpointing=False)\n"
        "trainer.fit(classifier(optimizer=make), datamodule=MNIST5k())\ntrainer.save_checkpoint('one.ckpt')\n"
    )
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "script.py"], env=place, check=True, timeout=300)
    assert not vision_zoo.load(here / "one.ckpt").training


def test_a_loss_is_given_as_a_class(here):
    model = classifier(loss=torch.nn.CrossEntropyLoss())
    with pytest.raises(ConfigError, match=r"give a class, or partial\(CLASS, option=value\)"):
        plain(enable_checkpointing=False).fit(model, datamodule=MNIST5k())


def test_a_loaded_network_trains_in_training_mode(here):
    run = plain(enable_checkpointing=False)
    run.fit(classifier(SmallCNN), datamodule=MNIST5k())
    run.save_checkpoint(here / "one.ckpt")
    model, modes = vision_zoo.load(here / "one.ckpt"), list[bool]()
    assert not model.training
    model.backbone.register_forward_pre_hook(lambda network, _: modes.append(network.training))
    plain(enable_checkpointing=False, limit_val_batches=0).fit(model, datamodule=MNIST5k())
    assert set(modes[-2:]) == {True}


class Watching(Classifier):
    """With a schedule of its own, which watches the accuracy."""

    def configure_optimizers(self):
        optimizer = SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val/accuracy"}}


def test_a_schedule_of_a_subclass_watches_what_it_names(here):
    model, run = classifier(kind=Watching), plain(enable_checkpointing=False)
    run.fit(model, datamodule=MNIST5k())
    assert run.lr_scheduler_configs[0].scheduler.best == pytest.approx(float(run.callback_metrics["val/accuracy"]))


class Counted(Classifier):
    """With a step of its own, which counts nothing."""

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])


def test_a_step_of_ones_own_logs_no_figures_of_nothing(here):
    run = plain(enable_checkpointing=False)
    run.fit(classifier(kind=Counted), datamodule=MNIST5k())
    assert "val/loss" in run.callback_metrics
    assert not [name for name in run.callback_metrics if name.startswith("train/")]


def fall_over(*_):
    raise OSError("the machine fell over")


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end"])
def test_a_fit_that_broke_off_leaves_nothing_in_the_next_one(hook, here):
    breaks_off = LambdaCallback(**{hook: fall_over})
    torch.manual_seed(0)
    model = classifier()
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(OSError, match="fell over"):
        plain(enable_checkpointing=False, callbacks=[breaks_off], num_sanity_val_steps=0).fit(
            model, datamodule=MNIST5k()
        )
    found = []
    for network in (model, classifier()):
        network.load_state_dict(weights)
        run = plain(enable_checkpointing=False, num_sanity_val_steps=0)
        run.fit(network, datamodule=MNIST5k())
        found.append([float(run.callback_metrics[f"{split}/loss"]) for split in ("train", "val")])
    assert found[0] == found[1]
