"""The Classifier: raw images in, logits out, the same for one image and for many."""

import argparse
import re
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR

from vision_zoo.__main__ import main
from vision_zoo.backbones import CNN, FullyConnected, LeNet5, ResNet, SmallCNN, Torchvision
from vision_zoo.classifier import Classifier
from vision_zoo.data import MNIST5k
from vision_zoo.errors import CheckpointError, ConfigError, ImageShapeError
from vision_zoo.losses import CrossEntropy
from vision_zoo.specs import describe

NAMES = [str(digit) for digit in range(10)]


def classifier(backbone=LeNet5, kind=Classifier, **options):
    torch.manual_seed(0)
    options.setdefault("optimizer", Adam)
    return kind(backbone, (1, 28, 28), NAMES, [0.1307], [0.3081], **options)


def images(count=8, seed=0):
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def trainer(**options):
    return pl.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options
    )


def test_a_class_of_many_networks_is_called_by_the_one_it_holds():
    networks = LeNet5, partial(ResNet, depth=34), partial(Torchvision, name="squeezenet1_1")
    assert [classifier(network).network_name for network in networks] == ["LeNet5", "ResNet-34", "squeezenet1_1"]


class Returns(nn.Module):
    def __init__(self, image_shape, num_classes, what="flat"):
        super().__init__()
        self.linear = nn.Linear(784, 3)
        self.what = what

    def forward(self, images):
        return self.linear(images.flatten(1)) if self.what == "flat" else [images]


def plain_function(image_shape, num_classes):
    return nn.Identity()


def annotated(image_shape, num_classes) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))


@pytest.mark.parametrize("backbone", [LeNet5, CNN, FullyConnected])
def test_one_image_scores_like_the_same_image_among_others(backbone):
    model = classifier(backbone).eval()
    batch = images()
    with torch.no_grad():
        torch.testing.assert_close(model(batch[:1]), model(batch)[:1])


def test_an_image_without_a_batch_and_gray_images_without_a_channel_are_accepted():
    model = classifier().eval()
    batch = images()
    with torch.no_grad():
        torch.testing.assert_close(model(batch[0]), model(batch[:1]))
        torch.testing.assert_close(model(batch[:, 0]), model(batch))


def test_normalisation_is_inside():
    model = classifier(annotated)
    batch = images()
    expected = model.backbone((batch / 255 - 0.1307) / 0.3081)
    torch.testing.assert_close(model(batch), expected)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 1, 28, 28), "raw uint8 images"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), r"expected images of shape \(1, 28, 28\)"),
        (torch.zeros(2, 3, 28, 28, dtype=torch.uint8), r"got \(3, 28, 28\)"),
    ],
)
def test_images_of_another_kind_are_refused(bad, message):
    with pytest.raises(ImageShapeError, match=message):
        classifier()(bad)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (nn.Linear, "first two parameters are the image shape"),
        (nn.ReLU, "first two parameters are the image shape"),
        (dict, "must be an nn.Module class"),
        (plain_function, "annotated '-> nn.Module'"),
    ],
)
def test_a_backbone_of_another_kind_is_refused_by_name(backbone, message):
    with pytest.raises(ConfigError, match=message):
        classifier(backbone)


@pytest.mark.parametrize("what", ["flat", "list"])
def test_a_backbone_that_gives_no_logits_is_refused_before_training(what):
    model = classifier(Returns)
    model.backbone.what = what
    with pytest.raises(ConfigError, match=r"must return logits of shape \(images, classes\) = \(1, 10\)"):
        model.check()


def test_an_annotated_function_is_a_backbone(tmp_path):
    model = classifier(annotated)
    assert model(images()).shape == (8, 10)


def test_running_statistics_do_not_move_in_validation_and_test(here):
    model = classifier(CNN)
    data = MNIST5k()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run = trainer(limit_val_batches=2, limit_test_batches=2)
    run.validate(model, data, verbose=False)
    run.test(model, data, verbose=False)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(model, data)
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items() if "running" in key)


def test_batch_norm_refuses_single_images(here):
    with pytest.raises(ConfigError, match=r"CNN has batch normalisation.*--data.batch_size"):
        trainer(max_epochs=1).fit(classifier(CNN), MNIST5k(batch_size=1))


def test_training_without_an_optimizer_is_refused(here):
    with pytest.raises(ConfigError, match=r"set --model.optimizer"):
        trainer(max_epochs=1).fit(classifier(optimizer=None), MNIST5k())


def test_a_plain_python_checkpoint_builds_the_classifier_again(here):
    loss = partial(CrossEntropy, label_smoothing=0.1)
    model = classifier(partial(FullyConnected, n_layers=3), scheduler=partial(StepLR, step_size=1), loss=loss)
    run = trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1)
    run.fit(model, MNIST5k())
    run.save_checkpoint("model.ckpt")
    again = Classifier.load_from_checkpoint("model.ckpt")
    assert not again.training
    assert again.class_names == tuple(NAMES)
    with torch.no_grad():
        assert torch.equal(again(images()), model.eval()(images()))
    assert again.loss.describe() == "CrossEntropy: label_smoothing 0.1"
    assert torch.load("model.ckpt", weights_only=True)["hyper_parameters"]["backbone"] == {
        "class_path": "vision_zoo.backbones.fully_connected.FullyConnected",
        "init_args": {"n_layers": 3},
    }


class Options(nn.Module):
    """A network whose own option has a name that torchvision's networks have."""

    def __init__(self, shape, classes, weights: list[int]):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, weights[0]), nn.Linear(weights[0], classes))

    def forward(self, images):
        return self.layers(images)


def test_an_option_of_a_network_may_be_called_weights(here):
    words = ["--model.backbone", "tests.test_classifier.Options", "--model.backbone.weights", "[8]"]
    assert main(["fit", *words, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]) == 0
    assert main(["test", "--ckpt_path", "best", "--trusted_packages", "tests"]) == 0


def test_lightning_s_own_predict_takes_the_data_module(here):
    model = classifier(SmallCNN)
    predicted = pl.Trainer(logger=False, enable_progress_bar=False).predict(model, MNIST5k())
    probabilities = torch.cat(predicted)
    assert probabilities.shape == (1000, 10)
    with torch.no_grad():
        expected = model.eval()(MNIST5k().split_images("test").images[:7]).softmax(1)
    torch.testing.assert_close(probabilities[:7], expected, rtol=1e-4, atol=1e-6)


def test_describe_is_plain_data():
    assert describe(None) is None
    assert describe(Adam) == {"class_path": "torch.optim.adam.Adam"}
    assert describe(partial(Adam, lr=0.1, betas=(0.9, 0.95))) == {
        "class_path": "torch.optim.adam.Adam",
        "init_args": {"lr": 0.1, "betas": [0.9, 0.95]},
    }


def test_weights_of_another_network_are_refused_by_name(here):
    torch.save(SmallCNN((1, 28, 28), 10).state_dict(), "small.pth")
    with pytest.raises(CheckpointError, match=r"small.pth does not fit LeNet5: Missing key.*head"):
        classifier(weights="small.pth")
    torch.save(LeNet5((3, 28, 28), 10).state_dict(), "colour.pth")
    mismatch = r"colour.pth does not fit LeNet5: size mismatch for features.0.weight: .*\[6, 3, 5, 5\].*\[6, 1, 5, 5\]"
    with pytest.raises(CheckpointError, match=mismatch):
        classifier(weights="colour.pth")
    own = LeNet5((1, 28, 28), 10)
    torch.save(own.state_dict(), "own.pth")
    model = classifier(weights="own.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.backbone.parameters(), own.parameters(), strict=True))
    assert "weights" not in model.hparams


def _prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def _within(state):
    """Names that torch.compile put into the middle."""
    return {name.replace("features.", "features._orig_mod."): value for name, value in state.items()}


FILES = {  # what other programs save, of a state dict
    "DataParallel": lambda state: _prefixed("module.", state),
    "torch.compile": lambda state: _prefixed("_orig_mod.", state),
    "torch.compile of a part": _within,
    "a module of Lightning": lambda state: {"state_dict": _prefixed("model.", state), "epoch": 3},
    "a module with a loss": lambda state: {"state_dict": {**_prefixed("net.", state), "loss.weight": torch.ones(10)}},
    "two wrappers": lambda state: {"state_dict": _prefixed("backbone.module._orig_mod.", state)},
    "timm": lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
    "torchvision, with an average": lambda state: {"model": state, "model_ema": _prefixed("module.", _zeros(state))},
    "nested twice": lambda state: {"trainer": {"model_state": _prefixed("student.encoder.", state)}},
    "beside other objects": lambda state: {
        "model": state,
        "best": np.float64(0.9),
        "history": np.arange(3.0),
        "args": argparse.Namespace(output=Path("runs")),
    },
    "half precision": lambda state: {name: value.half() for name, value in state.items()},
}


def _zeros(state):
    return {name: torch.zeros_like(value) for name, value in state.items()}


@pytest.mark.parametrize(
    ("kind", "network"),
    [*((kind, "LeNet5") for kind in FILES), ("timm", "squeezenet1_1"), ("two wrappers", "squeezenet1_1")],
)
def test_weights_are_found_under_whatever_names_a_program_gives_them(kind, network, here, capsys):
    if network == "squeezenet1_1":  # whose names begin with "network." here
        shape, backbone = (3, 32, 32), partial(Torchvision, name=network)
        own = torchvision.models.squeezenet1_1(num_classes=10)
    else:
        shape, backbone = (1, 28, 28), LeNet5
        own = LeNet5(shape, 10)
    state = own.state_dict()
    torch.save(FILES[kind](state), "own.pth")
    found = Classifier(backbone, shape, NAMES, weights="own.pth").backbone.state_dict()
    for (name, value), expected in zip(found.items(), state.values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4, msg=name)
    assert ("1 of the file do not begin with net." in capsys.readouterr().err) == (kind == "a module with a loss")


@pytest.mark.parametrize("save", [torch.save, save_file])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state, "8 of the network's 10 tensors are taken; the last layer, head.2, starts anew, .* 5 cl"),
        (lambda state: _prefixed("module.", state), "8 of the network's 10 tensors are taken"),
        (
            lambda state: {name: value for name, value in state.items() if "head.2" not in name},
            "the last layer, head.2, starts anew, for the file has none",
        ),
    ],
    ids=["other classes", "behind a prefix", "no last layer"],
)
def test_the_last_layer_of_other_classes_is_left_out_and_told(save, change, told, here, capsys):
    state = LeNet5((1, 28, 28), 5).state_dict()
    save(change(state), "five.pth")
    fresh = classifier().backbone.state_dict()
    found = classifier(weights="five.pth").backbone.state_dict()
    for name, value in found.items():
        assert torch.equal(value, (fresh if name.startswith("head.2") else state)[name]), name
    assert re.search(told, error := capsys.readouterr().err)
    assert error.count("\n") == 1


def test_a_whole_network_is_refused_with_advice_that_works(here, capsys):
    torch.save(LeNet5((1, 28, 28), 10), "whole.pth")
    words = ["summary", "--model.backbone", "LeNet5", "--model.weights"]
    assert main([*words, "whole.pth"]) == 2
    error = capsys.readouterr().err
    assert "it names vision_zoo.backbones.lenet.LeNet5, and no code is run" in error
    advice = re.search(r"save its weights alone: (.*\))$", error.strip())[1]
    eval(advice, {"torch": torch, "network": torch.load("whole.pth", weights_only=False), "FILE": "alone.pth"})
    assert main([*words, "alone.pth"]) == 0
