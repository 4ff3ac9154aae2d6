"""What every network promises, and the facts of each."""

import itertools
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vision_zoo import backbones
from vision_zoo.backbones import (
    CNN,
    DNN,
    MLP,
    Airbench,
    AlexNet,
    Conv4,
    ConvNet,
    EfficientNetLite,
    FashionCNN,
    FullyConnected,
    LeNet5,
    ResNet,
    SimpleCNN,
    SmallCNN,
    Timm,
    Torchvision,
)
from vision_zoo.errors import ConfigError, ImageShapeError
from vision_zoo.types import ImageShape

MNIST = (1, 28, 28)
CIFAR = (3, 32, 32)

# network, options, native image shape, parameters with ten classes
NETWORKS = [
    pytest.param(Airbench, {"temperature": 16.0}, CIFAR, 1_972_792, id="Airbench"),
    pytest.param(AlexNet, {}, CIFAR, 4_617_546, id="AlexNet"),
    pytest.param(CNN, {}, MNIST, 4_741_876, id="CNN"),
    pytest.param(Conv4, {}, (3, 64, 64), 51_238, id="Conv4"),
    pytest.param(ConvNet, {}, MNIST, 288_170, id="ConvNet"),
    pytest.param(ConvNet, {"stages": [[8, 8], [12, 16], [16, 14]]}, MNIST, 7_858, id="ConvNet-tiny"),
    pytest.param(DNN, {}, MNIST, 235_146, id="DNN"),
    pytest.param(EfficientNetLite, {}, (3, 64, 64), 3_383_818, id="EfficientNetLite-0"),
    pytest.param(EfficientNetLite, {"size": 1}, (3, 64, 64), 4_148_490, id="EfficientNetLite-1"),
    pytest.param(EfficientNetLite, {"size": 2}, (3, 64, 64), 4_823_882, id="EfficientNetLite-2"),
    pytest.param(FashionCNN, {}, MNIST, 1_475_338, id="FashionCNN"),
    pytest.param(FullyConnected, {}, MNIST, 1_007_646, id="FullyConnected"),
    pytest.param(FullyConnected, {"norm": "dropout"}, MNIST, 1_004_454, id="FullyConnected-dropout"),
    pytest.param(FullyConnected, {"norm": "none", "n_layers": 1}, MNIST, 7_850, id="FullyConnected-linear"),
    pytest.param(LeNet5, {}, MNIST, 61_706, id="LeNet5"),
    pytest.param(MLP, {}, MNIST, 623_290, id="MLP"),
    pytest.param(ResNet, {}, CIFAR, 11_173_962, id="ResNet-18"),
    pytest.param(ResNet, {"depth": 34}, CIFAR, 21_282_122, id="ResNet-34"),
    pytest.param(SimpleCNN, {}, MNIST, 934_798, id="SimpleCNN"),
    pytest.param(SmallCNN, {}, MNIST, 5_142, id="SmallCNN"),
    pytest.param(Timm, {"name": "test_resnet"}, CIFAR, 373_658, id="Timm-test_resnet"),
    pytest.param(Torchvision, {"name": "shufflenet_v2_x0_5"}, CIFAR, 352_042, id="Torchvision-shufflenet_v2_x0_5"),
]
all_networks = pytest.mark.parametrize(("network", "options", "shape", "parameters"), NETWORKS)
Network = Callable[..., nn.Module]


def build(network: Network, options: dict[str, object], shape: ImageShape, num_classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return network(shape, num_classes, **options)


def random_images(n: int, shape: ImageShape) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


def test_every_exported_network_is_under_contract() -> None:
    assert {param.values[0].__name__ for param in NETWORKS} == set(backbones.__all__)


@all_networks
def test_parameters_are_as_many_as_the_source_says(
    network: Network, options: dict[str, object], shape: ImageShape, parameters: int
) -> None:
    assert sum(p.numel() for p in build(network, options, shape).parameters()) == parameters


@all_networks
def test_every_parameter_gets_a_finite_gradient(
    network: Network, options: dict[str, object], shape: ImageShape, parameters: int
) -> None:
    backbone = build(network, options, shape, num_classes=7)
    logits = backbone(random_images(4, shape))
    assert logits.shape == (4, 7)
    F.cross_entropy(logits, torch.arange(4)).backward()
    trained = [(name, p) for name, p in backbone.named_parameters() if p.requires_grad]  # some of Airbench are fixed
    without = [name for name, p in trained if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@all_networks
def test_one_image_is_classified_like_the_same_image_in_a_batch(
    network: Network, options: dict[str, object], shape: ImageShape, parameters: int
) -> None:
    backbone = build(network, options, shape).eval()
    images = random_images(3, shape)
    with torch.no_grad():
        one, batch = backbone(images[:1]), backbone(images)
    assert one.shape == (1, 10)
    torch.testing.assert_close(one, batch[:1], rtol=1e-4, atol=1e-5)


@all_networks
def test_the_forward_pass_returns_logits_that_are_not_normalised(
    network: Network, options: dict[str, object], shape: ImageShape, parameters: int
) -> None:
    backbone = build(network, options, shape).eval()
    with torch.no_grad():
        logits = backbone(random_images(2, shape))
    assert not torch.allclose(logits.exp().sum(dim=1), torch.ones(2))  # of log-probabilities
    assert not torch.allclose(logits.sum(dim=1), torch.ones(2))  # of probabilities


LARGE = ("AlexNet", "CNN", "ResNet-34", "EfficientNetLite-1", "EfficientNetLite-2")  # which take 6 to 20 s each


@pytest.mark.parametrize(
    ("network", "options", "shape", "parameters"),
    [pytest.param(*p.values, id=p.id, marks=[pytest.mark.slow] * (p.id in LARGE)) for p in NETWORKS],
)
def test_sixteen_images_can_be_learnt_by_heart(
    network: Network, options: dict[str, object], shape: ImageShape, parameters: int
) -> None:
    """AlexNet takes 10 seconds."""
    backbone = build(network, options, shape)
    for layer in backbone.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    images, labels = random_images(16, shape), torch.arange(16) % 10
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-3 if parameters > 100_000 else 5e-3)
    for _ in range(100):
        logits = backbone(images)
        loss = F.cross_entropy(logits, labels)
        if loss < 0.1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert (logits.argmax(dim=1) == labels).all()


TOO_SMALL = [
    pytest.param(ConvNet, 4, id="ConvNet"),
    pytest.param(Airbench, 9, id="Airbench"),
    pytest.param(AlexNet, 10, id="AlexNet"),
    pytest.param(Conv4, 46, id="Conv4"),
    pytest.param(FashionCNN, 8, id="FashionCNN"),
    pytest.param(LeNet5, 28, id="LeNet5"),
    pytest.param(SimpleCNN, 2, id="SimpleCNN"),
    pytest.param(SmallCNN, 16, id="SmallCNN"),
]


@pytest.mark.parametrize(("network", "least"), TOO_SMALL)
def test_images_below_the_size_that_the_docstring_names_are_refused(network: Network, least: int) -> None:
    small = (3, least, least - 1)
    assert f"height and width at least {least}." in (network.__doc__ or "")
    message = (
        rf"{network.__name__}: images of shape {re.escape(str(small))} are too small .*: set --data.image_size higher$"
    )
    with pytest.raises(ImageShapeError, match=message):
        network(small, 10)
    assert network((3, least, least), 10).eval()(torch.zeros(1, 3, least, least)).shape == (1, 10)


SMALL_NETWORKS = (
    CNN,
    DNN,
    MLP,
    Airbench,
    AlexNet,
    ConvNet,
    FashionCNN,
    FullyConnected,
    LeNet5,
    ResNet,
    SimpleCNN,
    SmallCNN,
)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        *itertools.product(SMALL_NETWORKS, [(3, 32, 32), (1, 28, 28), (2, 30, 41)]),
        *itertools.product((CNN, AlexNet, Conv4, FashionCNN, ResNet), [(3, 64, 64), (1, 46, 60)]),
    ],
)
def test_networks_adapt_to_the_shape_of_the_images(network: Network, shape: ImageShape) -> None:
    with torch.device("meta"):
        assert network(shape, 5)(torch.empty(2, *shape)).shape == (2, 5)


@pytest.mark.parametrize("network", [CNN, ResNet])
@pytest.mark.parametrize("size", [1, 8])
def test_networks_that_pad_take_the_smallest_images(network: Network, size: int) -> None:
    assert network((1, size, size), 3).eval()(torch.zeros(1, 1, size, size)).shape == (1, 3)


def test_linear_layers_of_the_fully_connected_network_fall_by_equal_steps() -> None:
    widths = [layer.out_features for layer in FullyConnected(MNIST, 10).modules() if isinstance(layer, nn.Linear)]
    assert widths == [630, 476, 322, 168, 10]


@pytest.mark.parametrize(("norm", "kind"), [("batch_norm", nn.BatchNorm1d), ("dropout", nn.Dropout)])
def test_a_norm_follows_each_hidden_layer_and_no_other(norm: str, kind: type[nn.Module]) -> None:
    layers = list(FullyConnected(MNIST, 10, norm=norm, drop_rate=0.3).modules())  # type: ignore[arg-type]  # norm is any word here
    assert sum(isinstance(layer, nn.BatchNorm1d | nn.Dropout) for layer in layers) == 4
    assert sum(isinstance(layer, kind) for layer in layers) == 4
    assert all(layer.p == 0.3 for layer in layers if isinstance(layer, nn.Dropout))


def test_the_hidden_layer_of_the_mlp_is_as_wide_as_the_image_unless_told() -> None:
    assert MLP((3, 8, 8), 10).head.in_features == 192
    assert MLP((3, 8, 8), 10, hidden=20).head.in_features == 20


@pytest.mark.parametrize("network", [AlexNet, Conv4, DNN, FashionCNN, FullyConnected, SimpleCNN])
@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_drop_rate_that_drops_everything_or_less_than_nothing_is_refused(network: Network, rate: float) -> None:
    with pytest.raises(ConfigError, match=f"{network.__name__}: drop_rate is .*set --model.backbone.drop_rate to"):
        network((3, 64, 64), 10, drop_rate=rate)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Airbench, {"widths": (8, -1)}, "Airbench: widths is -1, set --model.backbone.widths to at least 1"),
        (
            Airbench,
            {"temperature": 0.0},
            "Airbench: temperature is 0.0, set --model.backbone.temperature above 0",
        ),
        (CNN, {"widths": ()}, "CNN: widths is 0, set --model.backbone.widths to at least 1"),
        (CNN, {"hidden": 0}, "CNN: hidden is 0, set --model.backbone.hidden to at least 1"),
        (
            Conv4,
            {"initial_filters": 0},
            "Conv4: initial_filters is 0, set --model.backbone.initial_filters to at least 1",
        ),
        (Conv4, {"num_fc1": -1}, "Conv4: num_fc1 is -1, set --model.backbone.num_fc1 to at least 1"),
        (FullyConnected, {"n_layers": 0}, "FullyConnected: n_layers is 0, set --model.backbone.n_layers to at least 1"),
        (MLP, {"hidden": 0}, "MLP: hidden is 0, set --model.backbone.hidden to at least 1"),
        (ResNet, {"depth": 50}, "ResNet: depth is 50, set --model.backbone.depth to 18 or 34"),
    ],
)
def test_options_that_make_no_network_are_refused(network: Network, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        network((3, 64, 64), 10, **options)
