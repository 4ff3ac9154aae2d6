"""The Classifier: raw images in, logits out, the same for one image and for many."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR

from vision_zoo.__main__ import main
from vision_zoo.backbones import CNN, FullyConnected, LeNet5, ResNet, SmallCNN, Torchvision
from vision_zoo.classifier import Classifier
from vision_zoo.data import MNIST5k
from vision_zoo.errors import CheckpointError, ConfigError, ImageShapeError
from vision_zoo.specs import describe

NAMES = [str(digit) for digit in range(10)]


def classifier(backbone=LeNet5, **options):
    torch.manual_seed(0)
    options.setdefault("optimizer", Adam)
    return Classifier(backbone, (1, 28, 28), NAMES, [0.1307], [0.3081], **options)


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
    model = classifier(partial(FullyConnected, n_layers=3), scheduler=partial(StepLR, step_size=1), label_smoothing=0.1)
    run = trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1)
    run.fit(model, MNIST5k())
    run.save_checkpoint("model.ckpt")
    again = Classifier.load_from_checkpoint("model.ckpt")
    assert not again.training
    assert again.class_names == tuple(NAMES)
    with torch.no_grad():
        assert torch.equal(again(images()), model.eval()(images()))
    assert again.label_smoothing == 0.1
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
    torch.save(LeNet5((1, 28, 28), 5).state_dict(), "five.pth")
    mismatch = r"five.pth does not fit LeNet5: size mismatch for head.2.weight: .*\[5, 84\].*\[10, 84\]"
    with pytest.raises(CheckpointError, match=mismatch):
        classifier(weights="five.pth")
    own = LeNet5((1, 28, 28), 10)
    torch.save(own.state_dict(), "own.pth")
    model = classifier(weights="own.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.backbone.parameters(), own.parameters(), strict=True))
    assert "weights" not in model.hparams
