import re
import urllib.error
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from vision_zoo.backbones import Torchvision
from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError, ImageShapeError


class WithoutMemory(TorchFunctionMode):
    """Networks built inside have shapes but no values, as on the meta device; numbers that building needs are computed.

    The meta device alone would fail for RegNet, which reads its widths from a tensor.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func in (torch.empty, torch.ones, torch.zeros) and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


@pytest.fixture
def no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are none on the meta device, and to set them takes half of the time of building a network there."""
    for name, value in vars(nn.init).items():
        if name.endswith("_") and not name.startswith("_") and callable(value):
            monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


# One of each kind by default; the others take 15 s.
FEW = ("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "mobilenet_v3_small", "resnet18", "vit_b_16")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FEW)) for n in models.list_models(module=models)]
)
def test_every_network_is_fitted_to_seven_classes_of_gray_images(name: str, no_values: None) -> None:
    with WithoutMemory():
        backbone = Torchvision((1, 224, 224), 7, name=name).to("meta").eval()
        assert backbone(torch.empty(2, 1, 224, 224)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "size"), [("mobilenet_v3_small", 32), ("resnet18", 28), ("squeezenet1_1", 32), ("inception_v3", 75)]
)
def test_networks_train_on_gray_images(name: str, size: int) -> None:
    torch.manual_seed(0)
    backbone = Torchvision((1, size, size), 5, name=name)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01)
    images, labels = torch.randn(4, 1, size, size), torch.tensor([0, 1, 2, 3])
    before = backbone.network.state_dict()[_first_weight(backbone)].clone()
    logits = backbone(images)
    assert logits.shape == (4, 5)
    F.cross_entropy(logits, labels).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    optimizer.step()
    assert not torch.equal(backbone.network.state_dict()[_first_weight(backbone)], before)


def test_an_unknown_network_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ConfigError, match=r"no network is named 'resnet81'; did you mean resnet18.*backbone\.name"):
        Torchvision((3, 32, 32), 10, name="resnet81")


def test_a_name_like_no_network_is_refused_with_all_names() -> None:
    with pytest.raises(ConfigError, match=r"no network is named '##'; there are alexnet, .*wide_resnet50_2\."):
        Torchvision((3, 32, 32), 10, name="##")


def test_a_detection_network_is_no_classifier() -> None:
    with pytest.raises(ConfigError, match="no network is named 'fasterrcnn_resnet50_fpn'"):
        Torchvision((3, 32, 32), 10, name="fasterrcnn_resnet50_fpn")


def test_unknown_weights_are_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"resnet50 has no weights named 'V1'.*IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        Torchvision((3, 32, 32), 10, name="resnet50", weights="V1")


@pytest.mark.parametrize(
    ("name", "shape", "answer"),
    [
        ("alexnet", (3, 32, 32), "too small"),
        ("inception_v3", (3, 64, 64), "greater than actual input size|too small"),
        ("vgg11", (1, 28, 28), "too small"),
    ],
)
def test_shapes_that_a_network_cannot_take_are_refused_with_its_answer_before_training(
    name: str, shape: tuple[int, int, int], answer: str, no_values: None
) -> None:
    message = rf"{name} cannot classify images of shape {re.escape(str(shape))}: .*({answer}).*set --data.image_size"
    model = Classifier(partial(Torchvision, name=name), shape, ["cat", "dog"])
    with pytest.raises(ConfigError, match=message):
        model.check()


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", (28, 28)), ("maxvit_t", (32, 32)), ("vit_b_16", (32, 48))])
def test_a_network_that_is_built_for_one_size_names_a_size_that_works(
    name: str, size: tuple[int, int], no_values: None
) -> None:
    message = rf"{name} cannot take images of shape {re.escape(str((1, *size)))} \(.*to 224"
    with pytest.raises(ImageShapeError, match=message):
        Torchvision((1, *size), 10, name=name)


def test_building_draws_the_same_numbers_as_the_network_alone() -> None:
    torch.manual_seed(3)
    ours = Torchvision((3, 32, 32), 10, name="squeezenet1_1").network.state_dict()
    torch.manual_seed(3)
    theirs = models.squeezenet1_1(num_classes=10).state_dict()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# Weights: the download is replaced by the network's own random weights, in the form that torchvision publishes.


def _publish(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> None:
    state = network.state_dict()
    monkeypatch.setattr(models._api, "load_state_dict_from_url", lambda *_args, **_options: dict(state))


def _first_weight(backbone: Torchvision) -> str:
    return next(f"{key}.weight" for key, layer in backbone.network.named_modules() if isinstance(layer, nn.Conv2d))


def test_gray_images_get_the_answers_of_pretrained_colour_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(monkeypatch, models.squeezenet1_1())
    gray = torch.randn(2, 1, 32, 32)
    answers = []
    for channels in (1, 2, 3, 6):
        torch.manual_seed(0)  # the same head
        backbone = Torchvision((channels, 32, 32), 4, name="squeezenet1_1", weights="DEFAULT").eval()
        with torch.no_grad():
            answers.append(backbone(gray.expand(-1, channels, -1, -1)))
    torch.testing.assert_close(answers[0], answers[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answers[3], answers[2], rtol=1e-4, atol=1e-5)
    assert answers[1].shape == (2, 4)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 32), ("inception_v3", 75)])
def test_auxiliary_heads_of_pretrained_networks_are_left_out(
    monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    published = models.get_model(name, weights=None, aux_logits=True, init_weights=False)
    _publish(monkeypatch, published)
    backbone = Torchvision((1, size, size), 4, name=name, weights="DEFAULT").train()
    assert backbone(torch.randn(2, 1, size, size)).shape == (2, 4)
    assert not [key for key, _ in backbone.named_parameters() if "aux" in key.lower()]
    torch.testing.assert_close(
        backbone.network.state_dict()[
            "Mixed_7c.branch_pool.conv.weight" if size == 75 else "inception5b.branch4.1.conv.weight"
        ],
        published.state_dict()[
            "Mixed_7c.branch_pool.conv.weight" if size == 75 else "inception5b.branch4.1.conv.weight"
        ],
    )


@pytest.mark.parametrize(("name", "size"), [("googlenet", 32), ("inception_v3", 75), ("mobilenet_v3_small", 32)])
def test_a_network_is_the_same_without_the_pretrained_weights_once_it_has_its_own(
    monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    _publish(monkeypatch, models.get_model(name, **extra))
    pretrained = Torchvision((3, size, size), 4, name=name, weights="DEFAULT").eval()
    again = Torchvision((3, size, size), 4, name=name).eval()
    again.load_state_dict(pretrained.state_dict())
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(pretrained(images), again(images))
    momenta = [[m.momentum for m in n.modules() if isinstance(m, nn.BatchNorm2d)] for n in (pretrained, again)]
    assert momenta[0] == momenta[1]


def test_names_of_an_old_release_in_pretrained_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    network = models.densenet121()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in network.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    monkeypatch.setattr(models._api, "load_state_dict_from_url", lambda *_args, **_options: old)
    backbone = Torchvision((3, 32, 32), 4, name="densenet121", weights="IMAGENET1K_V1")
    key = "features.denseblock1.denselayer1.conv2.weight"
    torch.testing.assert_close(backbone.network.state_dict()[key], network.state_dict()[key])


def test_position_embeddings_are_interpolated_to_the_image_size(monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(monkeypatch, models.vit_b_32())
    backbone = Torchvision((1, 64, 64), 4, name="vit_b_32", weights="DEFAULT").eval()
    assert backbone.network.state_dict()["encoder.pos_embedding"].shape == (1, 5, 768)
    with torch.no_grad():
        assert backbone(torch.randn(1, 1, 64, 64)).shape == (1, 4)


@pytest.mark.parametrize("reason", [urllib.error.URLError("no route to host"), RuntimeError("invalid hash value")])
def test_weights_that_cannot_be_fetched_are_a_clear_refusal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reason: Exception
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise reason

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(models._api, "load_state_dict_from_url", fail)
    message = (
        rf"IMAGENET1K_V1 of resnet18 could not be fetched from https://.*/resnet18-f37072fd\.pth to {tmp_path}.*"
        rf"{reason}.*Put the file resnet18-f37072fd\.pth there, or leave out --model\.backbone\.weights"
    )
    with pytest.raises(ConfigError, match=message):
        Torchvision((3, 32, 32), 10, name="resnet18", weights="IMAGENET1K_V1")


@pytest.mark.parametrize(("options", "momentum"), [({}, 0.1), ({"batch_norm_momentum": None}, 0.01)])
def test_running_statistics_keep_up_with_small_datasets_unless_asked_otherwise(
    options: dict[str, Any], momentum: float
) -> None:
    network = Torchvision((3, 64, 64), 5, "mobilenet_v3_small", **options)  # torchvision's own momentum is .01
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {momentum}
