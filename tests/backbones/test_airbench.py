"""The network that starts from training images."""

import torch

from tests.cli.runs import newest
from vision_zoo.__main__ import main
from vision_zoo.backbones import Airbench
from vision_zoo.classifier import Classifier
from vision_zoo.data import MNIST5k

FIT = ("fit", "--model.backbone", "Airbench", "--model.backbone.widths", "[8, 8, 8]", "--model.scheduler", "null")
FIT += ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--test_after_fit", "false")


def test_patches_have_the_variance_of_one_and_no_correlation() -> None:
    images = torch.nn.functional.avg_pool2d(torch.randn(200, 3, 34, 34), 3, 1, 0)  # neighbours are alike
    network = Airbench((3, 32, 32), 10)
    network.start_from(images)
    with torch.no_grad():
        whitened = network.whiten(images)[:, :12].transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.cov(whitened), torch.eye(12), rtol=0.05, atol=0.05)
    filters = network.whiten.weight
    assert torch.equal(filters[:12], -filters[12:])
    assert not filters.requires_grad


def test_groups_begin_as_the_identity_of_their_first_channels() -> None:
    convolution = Airbench((3, 32, 32), 10).features[0][0]
    x = torch.randn(1, 24, 8, 8)
    torch.testing.assert_close(convolution(x)[:, :24], x)


def test_a_run_starts_from_its_training_images_and_goes_on_from_its_weights(here) -> None:
    assert main([*FIT]) == 0
    run = newest(here)
    first = Classifier.load_from_checkpoint(run)
    data = MNIST5k()
    expected = Airbench((1, 28, 28), 10, widths=[8, 8, 8])
    expected.start_from(data.sample("train", 5000).images * first.scale + first.shift)
    torch.testing.assert_close(first.backbone.whiten.weight, expected.whiten.weight)
    weights = str(run / "checkpoints" / "last.ckpt")
    assert main([*FIT, "--data.seed", "1", "--model.weights", weights, "--model.optimizer.lr", "1e-9"]) == 0
    again = Classifier.load_from_checkpoint(newest(here))
    assert torch.equal(again.backbone.whiten.weight, first.backbone.whiten.weight)
