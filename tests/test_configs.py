"""Every shipped recipe trains on tiny data in the real formats and leaves a checkpoint that classifies the same."""

from pathlib import Path

import pytest
import torch
import yaml

from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.classifier import Classifier
from vision_zoo.verbs.list_ import configs_folder

RECIPES = sorted(configs_folder().rglob("*.yaml"))
TUTORIALS = {
    "fc_mnist", "cnn_mnist", "small_cnn_mnist", "alexnet_cifar10", "resnet18_cifar10", "resnet34_cifar10", "mlp_mnist",
    "simple_cnn_mnist", "lenet5_mnist", "conv4_cifar10", "dnn_fashion_mnist", "cnn_fashion_mnist",
}  # fmt: skip


def test_every_system_of_the_tutorials_has_a_recipe():
    assert {path.stem for path in RECIPES} >= TUTORIALS | {"cnn_mnist5k"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_and_its_checkpoint_classifies_the_same(path, here, data_root):
    # The recipes' own validation interval and split are made for thousands of images.
    words = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
    recipe = yaml.safe_load(path.read_text())
    if isinstance(recipe["data"]["init_args"].get("val_split"), int) and recipe["data"]["init_args"]["val_split"] > 100:
        words += ["--data.val_split", "20"]
    if "val_check_interval" in recipe["trainer"]:
        words += ["--trainer.val_check_interval", "1"]
    if recipe["data"]["class_path"] == "ImageFolder":
        tiny.write_image_folder(here / "in", tuple("abcdefghij"), count=20)
        words += ["--data.root", "in", "--data.image_size", "32"]
    elif recipe["data"]["class_path"] != "MNIST5k":
        words += ["--data.root", str(data_root)]
    words += ["--data.batch_size", "4", "--trainer.limit_test_batches", "2"]
    teacher = recipe["model"].get("loss", {}).get("init_args", {}).get("teacher")
    if teacher:
        assert main(["fit", "--config", Path(teacher).parent.name, *words]) == 0
    assert main(["fit", "--config", path.stem, *words]) == 0
    run = here / "runs" / path.stem / "version_0"
    checkpoint = run / "checkpoints" / "last.ckpt"
    first, second = (Classifier.load_from_checkpoint(checkpoint) for _ in range(2))
    images = torch.randint(0, 256, (3, *first.image_shape), dtype=torch.uint8)
    with torch.no_grad():
        logits = first(images)
        assert torch.equal(logits, second(images))
        assert torch.equal(logits, first.cpu().eval()(images))
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, stored[name]) for name, value in first.state_dict().items())
    assert logits.shape == (3, 10)
    assert Path(run / "results.json").exists()
