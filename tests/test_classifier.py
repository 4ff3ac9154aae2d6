"""The Classifier: raw images in, logits out, the same for one image and for many."""

import csv
import json
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from tests.conftest import QUICK
from vision_zoo.__main__ import main
from vision_zoo.backbones import CNN, FullyConnected, LeNet5, ResNet, SmallCNN, Torchvision
from vision_zoo.classifier import Classifier
from vision_zoo.data import MNIST5k
from vision_zoo.errors import CheckpointError, ConfigError, ImageShapeError, TrainingError
from vision_zoo.specs import describe
from vision_zoo.verbs.trainer import Trainer

NAMES = [str(digit) for digit in range(10)]


def classifier(backbone=LeNet5, **options):
    torch.manual_seed(0)
    options.setdefault("optimizer", Adam)
    return Classifier(backbone, (1, 28, 28), NAMES, [0.1307], [0.3081], **options)


def images(count=8, seed=0):
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def trainer(**options):
    return Trainer(
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
    super(Trainer, run).validate(model, data, verbose=False)
    super(Trainer, run).test(model, data, verbose=False)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    super(Trainer, trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)).fit(model, data)
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items() if "running" in key)


def test_batch_norm_refuses_single_images(here):
    with pytest.raises(ConfigError, match=r"CNN has batch normalisation.*--data.batch_size"):
        super(Trainer, trainer(max_epochs=1)).fit(classifier(CNN), MNIST5k(batch_size=1))


def learning_rates(scheduler, epochs=2, steps=5):
    model = classifier(SmallCNN, scheduler=scheduler, optimizer=lambda parameters: SGD(parameters, lr=1.0))
    rates = []

    original = model.training_step

    def step(batch, batch_idx):
        rates.append(model.trainer.optimizers[0].param_groups[0]["lr"])
        return original(batch, batch_idx) * 0

    model.training_step = step
    super(Trainer, trainer(max_epochs=epochs, limit_train_batches=steps, limit_val_batches=1)).fit(model, MNIST5k())
    return rates


def test_a_cosine_without_t_max_falls_to_its_end_with_the_run(here):
    rates = learning_rates(partial(CosineAnnealingLR, T_max=0))
    expected = [0.5 * (1 + torch.cos(torch.tensor(torch.pi * i / 10)).item()) for i in range(10)]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_one_cycle_covers_the_run_step_by_step(here):
    rates = learning_rates(partial(OneCycleLR, max_lr=2.0))
    assert max(rates) == pytest.approx(2.0, rel=0.05)
    assert rates[-1] < 0.2
    assert len(set(rates)) == 10


def test_an_epoch_schedule_moves_with_epochs(here):
    assert learning_rates(partial(StepLR, step_size=1, gamma=0.1)) == pytest.approx([1.0] * 5 + [0.1] * 5)


def test_plateau_watches_the_validation_loss(here):
    # The weights do not change, so no validation is better than the first.
    rates = learning_rates(partial(ReduceLROnPlateau, patience=0, factor=0.5), epochs=3)
    assert rates == pytest.approx([1.0] * 10 + [0.5] * 5)


def test_training_without_an_optimizer_is_refused(here):
    with pytest.raises(ConfigError, match=r"set --model.optimizer"):
        super(Trainer, trainer(max_epochs=1)).fit(classifier(optimizer=None), MNIST5k())


def test_an_infinite_loss_stops_the_run_and_names_the_step(here):
    model = classifier()
    original = model.forward

    def forward(x):
        logits = original(x)
        return logits * float("inf") if model.global_step == 3 and model.training else logits

    model.forward = forward
    with pytest.raises(TrainingError, match=r"the training loss is nan at step 4 \(epoch 0\)"):
        super(Trainer, trainer(max_epochs=1, limit_train_batches=6)).fit(model, MNIST5k())


def test_a_plain_python_checkpoint_builds_the_classifier_again(here):
    model = classifier(partial(FullyConnected, n_layers=3), scheduler=partial(StepLR, step_size=1), label_smoothing=0.1)
    run = trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1)
    super(Trainer, run).fit(model, MNIST5k())
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


def test_accuracy_and_loss_of_training_are_those_of_all_its_images(here):
    """Metrics are counted for many steps at once; nothing may be lost at the epoch's end."""
    model = classifier(optimizer=lambda parameters: SGD(parameters, lr=0.0))
    data = MNIST5k(batch_size=300)
    run = trainer(max_epochs=1, log_every_n_steps=5, limit_val_batches=0)
    super(Trainer, run).fit(model, data)
    everything = data.split_images("train")
    model.eval()
    with torch.no_grad():
        logits = model(everything.images)
    loss = nn.functional.cross_entropy(logits.double(), everything.labels)
    accuracy = (logits.argmax(1) == everything.labels).double().mean()
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(loss.item(), rel=1e-6)
    assert float(run.callback_metrics["train/accuracy"]) == pytest.approx(accuracy.item(), abs=1e-7)


def test_describe_is_plain_data():
    assert describe(None) is None
    assert describe(Adam) == {"class_path": "torch.optim.adam.Adam"}
    assert describe(partial(Adam, lr=0.1, betas=(0.9, 0.95))) == {
        "class_path": "torch.optim.adam.Adam",
        "init_args": {"lr": 0.1, "betas": [0.9, 0.95]},
    }


def test_weights_of_another_network_are_refused_by_name(here):
    torch.save(SmallCNN((1, 28, 28), 10).state_dict(), "small.pth")
    with pytest.raises(CheckpointError, match=r"small.pth does not fit LeNet5: lacks .*head"):
        classifier(weights="small.pth")
    torch.save(LeNet5((1, 28, 28), 5).state_dict(), "five.pth")
    with pytest.raises(
        CheckpointError, match=r"five.pth does not fit LeNet5: head.2.weight \(5, 84\) instead of \(10, 84\)"
    ):
        classifier(weights="five.pth")
    own = LeNet5((1, 28, 28), 10)
    torch.save(own.state_dict(), "own.pth")
    model = classifier(weights="own.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.backbone.parameters(), own.parameters(), strict=True))
    assert "weights" not in model.hparams


def test_losses_are_summed_exactly_where_the_network_is_of_half_precision(trained_run, here):
    words = ["--trainer.precision", "bf16-true", "--output", "out"]
    assert main(["test", "--ckpt_path", str(trained_run), *words]) == 0
    found = json.loads((here / "out" / "test.json").read_text())["test/nll"]
    model = Classifier.load_from_checkpoint(trained_run / "checkpoints" / "best.ckpt").to(torch.bfloat16).eval()
    data = MNIST5k()
    data.prepare_data()
    data.setup("test")
    losses = []
    with torch.no_grad():
        for images, labels in data.test_dataloader():
            losses.append(F.cross_entropy(model(images).float(), labels, reduction="none").double())
    assert found == pytest.approx(torch.cat(losses).mean().item(), rel=1e-6)


def test_a_classifier_moves_to_a_device_without_float64(trained_run):
    """As Apple's GPUs are: there it classifies; back on another device its sums are exact again."""

    def converted(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        return tensor.clone()

    model = Classifier.load_from_checkpoint(trained_run / "checkpoints" / "best.ckpt")
    images = MNIST5k().sample("test", 4).images
    before = model(images)
    assert torch.equal(model._apply(converted)(images), before)
    assert model.val_metrics["loss"].mean_value.dtype == torch.float32
    assert model.to("cpu").val_metrics["loss"].mean_value.dtype == torch.float64


def test_a_batch_that_is_evaluated_many_times_is_counted_once(here):
    words = ["--model.optimizer", "LBFGS", "--model.scheduler", "null", "--trainer.max_epochs", "1"]
    assert main([*QUICK, *words, "--data.batch_size", "7", "--trainer.limit_train_batches", "1"]) == 0
    metrics = json.loads((here / "runs/default/version_0/results.json").read_text())["metrics"]
    assert 7 * metrics["train/accuracy"] == pytest.approx(round(7 * metrics["train/accuracy"]))
    assert 2.2 < metrics["train/loss"] < 2.5  # of the weights before the step


def test_the_metrics_of_a_step_are_those_of_a_batch_that_is_evaluated_many_times_too(here):
    words = ["--model.optimizer", "LBFGS", "--model.scheduler", "null", "--trainer.max_epochs", "1"]
    words += ["--data.batch_size", "7", "--trainer.limit_train_batches", "3", "--trainer.log_every_n_steps", "1"]
    assert main([*QUICK, *words, "--test_after_fit", "false"]) == 0
    with (here / "runs/default/version_0/metrics.csv").open(newline="") as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["train/loss_step"]]
    assert steps == ["1", "2", "3"]


class Logging(Classifier):
    """Logs something of its own in each step, for the epoch's mean."""

    def training_step(self, batch, batch_idx):
        self.log("own", float(batch_idx), on_step=False, on_epoch=True, batch_size=1)
        return super().training_step(batch, batch_idx)


def test_what_a_subclass_logs_keeps_its_mean_over_the_epoch():
    run = pl.Trainer(
        max_epochs=1, limit_train_batches=6, limit_val_batches=0, log_every_n_steps=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
    )  # fmt: skip
    run.fit(Logging(LeNet5, (1, 28, 28), NAMES, optimizer=Adam), datamodule=MNIST5k())
    assert float(run.callback_metrics["own"]) == 2.5
