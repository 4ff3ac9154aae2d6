"""The layer table: exact counts, order of execution, and a network that stays as it was."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from vision_zoo.__main__ import main
from vision_zoo.backbones import CNN, AlexNet, FullyConnected, LeNet5, ResNet, SmallCNN, Torchvision
from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError
from vision_zoo.verbs.summary import layer_table, summarise

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
DIGITS = tuple("0123456789")


def classifier(backbone, shape=MNIST) -> Classifier:
    torch.manual_seed(0)
    return Classifier(backbone, shape, DIGITS)


# output pixels x output channels x weights of one output, layer by layer
MULTIPLY_ADDS = [
    pytest.param(SmallCNN, MNIST, 5_142, 24 * 24 * 6 * 25 + 8 * 8 * 16 * 6 * 25 + 256 * 10, id="SmallCNN"),
    pytest.param(
        LeNet5, MNIST, 61_706,
        28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25 + 120 * 16 * 25 + 120 * 84 + 84 * 10, id="LeNet5",
    ),
    pytest.param(
        AlexNet, CIFAR, 4_617_546,
        30 * 30 * 64 * 3 * 9 + 15 * 15 * 192 * 64 * 9 + 7 * 7 * (384 * 192 * 9 + 256 * 384 * 9 + 256 * 256)
        + 2304 * 1024 + 1024 * 512 + 512 * 10, id="AlexNet",
    ),
    pytest.param(
        FullyConnected, MNIST, 1_007_646,
        784 * 630 + 630 * 476 + 476 * 322 + 322 * 168 + 168 * 10, id="FullyConnected",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("backbone", "shape", "parameters", "multiply_adds"), MULTIPLY_ADDS)
def test_totals_are_exact(backbone, shape, parameters, multiply_adds):
    total = summarise(classifier(backbone, shape)).total
    assert (total.parameters, total.multiply_adds) == (parameters, multiply_adds)
    assert total.parameter_bytes == 4 * parameters


def test_layers_come_in_order_with_their_shapes_and_own_counts():
    rows = summarise(classifier(SmallCNN)).rows()
    assert [(r.name, r.kind, r.output_shape, r.parameters, r.multiply_adds) for r in rows] == [
        ("features.0", "Conv2d", (1, 6, 24, 24), 156, 86_400),
        ("features.1", "ReLU", (1, 6, 24, 24), 0, 0),
        ("features.2", "MaxPool2d", (1, 6, 12, 12), 0, 0),
        ("features.3", "Conv2d", (1, 16, 8, 8), 2_416, 153_600),
        ("features.4", "ReLU", (1, 16, 8, 8), 0, 0),
        ("features.5", "MaxPool2d", (1, 16, 4, 4), 0, 0),
        ("head", "Linear", (1, 10), 2_570, 2_560),
    ]
    assert rows[0].memory == 4 * (156 + 6 * 24 * 24)


@pytest.mark.parametrize("backbone", [CNN, ResNet, partial(Torchvision, name="vit_b_32")])
def test_rows_add_up_to_the_total_at_every_depth(backbone):
    summary = summarise(classifier(backbone, CIFAR))
    total = summary.total
    for depth in (None, 1, 2, 3, 9):
        rows = summary.rows(depth)
        for count in ("parameters", "parameter_bytes", "multiply_adds", "output_bytes"):
            assert sum(getattr(row, count) for row in rows) == getattr(total, count)


def test_attention_is_counted_as_its_matrix_products():
    model = classifier(partial(Torchvision, name="vit_b_32"), CIFAR)
    summary = summarise(model)
    # One patch and the class token, through twelve layers of width 768.
    tokens, width = 2, 768
    layer = tokens * (4 * width * width + 2 * 4 * width * width) + 2 * tokens * tokens * width
    assert summary.total.multiply_adds == 32 * 32 * 3 * width + 12 * layer + width * 10
    assert summary.total.parameters == summary.trainable == sum(p.numel() for p in model.parameters())


class Odd(nn.Module):
    """One layer used twice, one never, a tensor of its own, and random numbers in eval mode too."""

    def __init__(self, image_shape, num_classes) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.twice = nn.Linear(784, 784)
        self.never = nn.Linear(3, 5)
        self.bias = nn.Parameter(torch.zeros(784))
        self.flat = nn.Flatten()
        self.head = nn.Linear(784, num_classes).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.flat(self.norm(images)) + self.bias + torch.rand(())
        return self.head(self.twice(self.twice(x)))


def test_every_parameter_is_counted_once_and_every_call_shown():
    summary = summarise(classifier(Odd))
    rows = {}
    for row in summary.rows():
        rows.setdefault(row.name, []).append(row)
    assert [row.parameters for row in rows["twice"]] == [784 * 785, 0]
    assert [row.multiply_adds for row in rows["twice"]] == [784 * 784, 784 * 784]
    assert [row.parameters for row in rows["(itself)"]] == [784]
    assert [row.parameters for row in rows["(in no layer)"]] == [20]
    assert rows["flat"][0].output_bytes == 0
    assert summary.total.parameters - summary.trainable == 7850
    table = layer_table(classifier(Odd))
    assert "7,850 frozen" in str(table.caption)


def test_looking_changes_nothing():
    model = classifier(Odd)
    model.backbone.train()
    model.backbone.norm.eval()  # its statistics are frozen
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    layer_table(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.backbone.state_dict().items())
    assert model.backbone.training
    assert model.backbone.twice.training
    assert not model.backbone.norm.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


class Token(nn.Module):
    """Gives a part of it a view of a weight, as networks do with a class token."""

    def __init__(self, image_shape, num_classes) -> None:
        super().__init__()
        self.token, self.norm, self.head = (
            nn.Parameter(torch.ones(1, 784)),
            nn.LayerNorm(784),
            nn.Linear(784, num_classes),
        )
        self.head.bias.requires_grad_(False)

    def forward(self, images):
        return self.head(images.flatten(1) + self.norm(self.token.expand(len(images), -1)))


def test_a_part_may_be_given_a_view_of_a_weight():
    model = classifier(Token)
    found = summarise(model)
    assert (found.total.parameters, found.trainable) == (784 * 3 + 7850, 784 * 3 + 7840)
    assert [name for name, weight in model.backbone.named_parameters() if not weight.requires_grad] == ["head.bias"]


def test_long_tables_are_shortened_to_blocks():
    model = classifier(ResNet, CIFAR)
    summary = summarise(model)
    assert len(summary.rows()) > 40
    assert len(summary.rows(max_rows=40)) == 20
    assert len(summary.rows(max_rows=3)) == 3
    assert "vision_zoo summary" in str(layer_table(model, max_rows=40).caption)
    assert "vision_zoo summary" not in str(layer_table(model).caption)


class Broken(nn.Module):
    def __init__(self, image_shape, num_classes) -> None:
        super().__init__()
        self.layer = nn.Linear(5, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images)


def test_a_network_that_cannot_take_the_images_is_refused_by_name():
    model = classifier(Broken)
    with pytest.raises(ConfigError, match=r"backbone Broken cannot classify images of shape \(1, 28, 28\)"):
        summarise(model)
    assert all(not module._forward_hooks for module in model.modules())


def test_the_command_needs_no_data_files(here, capsys):
    assert main(["summary", "--model.backbone", "AlexNet", "--data", "CIFAR10"]) == 0
    out = capsys.readouterr().out
    assert "AlexNet, one image of 3 x 32 x 32" in out
    assert "4,617,546 parameters (all trainable), 108,404,480 multiply-adds per image" in out
    assert list(here.iterdir()) == []


def test_the_command_knows_recipes_and_depth(here, capsys):
    assert main(["summary", "--config", "cnn_mnist", "--depth", "1"]) == 0
    out = capsys.readouterr().out
    assert "4,741,876 parameters" in out
    assert "features.0" not in out
    assert main(["summary", "--depth", "0"]) == 2
    assert "--depth must be at least 1, got 0" in capsys.readouterr().err


def test_the_command_reads_a_checkpoint(here, trained_run, capsys):
    assert main(["summary", "--ckpt_path", str(trained_run)]) == 0
    out = capsys.readouterr().out
    assert "LeNet5, one image of 1 x 28 x 28" in out
    assert "61,706 parameters" in out
