"""The networks that the shipped recipes name, built as the recipes say."""

import re
from pathlib import Path

import pytest
import yaml

from vision_zoo import backbones

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPES = {"MNIST": (1, 28, 28), "MNIST5k": (1, 28, 28), "FashionMNIST": (1, 28, 28), "CIFAR10": (3, 32, 32)}
PARAMETERS = {
    "ablation_cifar10": 98_970,
    "airbench_cifar10": 1_972_792,
    "record_fashion": 426_602,
    "record_mnist": 292_666,
    "tiny_mnist": 7_858,
    "alexnet_cifar10": 4_617_546,
    "cnn_fashion_mnist": 1_475_338,
    "cnn_mnist": 4_741_876,
    "cnn_mnist5k": 4_741_876,
    "conv4_cifar10": 51_238,
    "distilled_mnist": 61_706,
    "dnn_fashion_mnist": 235_146,
    "fc_mnist": 1_007_646,
    "lenet5_mnist": 61_706,
    "mlp_mnist": 623_290,
    "resnet18_cifar10": 11_173_962,
    "resnet34_cifar10": 21_282_122,
    "simple_cnn_mnist": 934_798,
    "small_cnn_mnist": 5_142,
}
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if "class_path: ImageFolder" not in path.read_text())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_the_network_of_its_source(name: str) -> None:
    recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    backbone, data = recipe["model"]["backbone"], recipe["data"]
    channels, height, width = SHAPES[data["class_path"]]
    size = data["init_args"].get("image_size")
    options = {} if isinstance(backbone, str) else backbone["init_args"]
    network = getattr(backbones, backbone["class_path"] if options else backbone)
    built = network((channels, size or height, size or width), 10, **options)
    assert sum(p.numel() for p in built.parameters()) == PARAMETERS[re.sub("_(fast|best)$", "", name)]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_its_source_its_result_and_its_command(name: str) -> None:
    what, accuracy, command = (CONFIGS / f"{name}.yaml").read_text().splitlines()[:3]
    assert re.fullmatch(r"# .+ on .+ \(.+\).*\.", what)
    published, target = r"published (none \(|[\d.]+ %).*", r"target >= [\d.]+ %.*"
    assert re.fullmatch(rf"# Test accuracy: ({published}|{target}); measured .+\.", accuracy)
    assert command == f"# vision_zoo fit --config configs/{name}.yaml"
    assert max(map(len, (what, accuracy, command))) <= 140
