"""Maps of where a network looked lie on what decides, and hang on its weights."""

import copy
import os
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import VisionTransformer
from torch import nn

from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.backbones import MLP, ConvNet
from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError
from vision_zoo.verbs.explain.maps import chosen, last_map, maps

SIDE, PATCH = 28, 8


def patched(count: int, seed: int = 0):
    """Noise with a patch of stripes somewhere, which lie (class 0) or stand (class 1), or none (2). And where it is."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (count, 1, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(3, (count,), generator=generator)
    places = torch.randint(SIDE - PATCH + 1, (count, 2), generator=generator)
    stripes = torch.zeros(PATCH, PATCH, dtype=torch.uint8)
    stripes[::2] = 255
    inside = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for n, ((top, left), label) in enumerate(zip(places.tolist(), labels.tolist(), strict=True)):
        if label == 2:  # or one of two networks would see one of them by the lack of the other
            continue
        images[n, 0, top : top + PATCH, left : left + PATCH] = stripes.T if label else stripes
        inside[n, top : top + PATCH, left : left + PATCH] = True
    return images, labels, inside


def small_vit(image_shape, num_classes) -> nn.Module:
    """A transformer whose answer hangs on its class token alone."""
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    return VisionTransformer(SIDE, 4, image_shape[0], num_classes, **sizes)


def trained(backbone, steps: int = 60) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(backbone, (1, SIDE, SIDE), ["lying", "standing", "neither"], mean=(0.25,), std=(0.25,))
    images, labels, _ = patched(1024)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        part = slice(step % 16 * 64, (step % 16 + 1) * 64)
        optimizer.zero_grad()
        F.cross_entropy(model(images[part]), labels[part]).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def network():
    model = trained(partial(ConvNet, stages=[[8], [16, 16]]))
    images, labels, _ = patched(200, seed=1)
    with torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() > 0.95
    return model


@pytest.fixture(scope="module")
def transformer():
    return trained(small_vit, 160)


@pytest.mark.parametrize("method", ["grad_cam", "layer_cam", "integrated_gradients", "occlusion"])
def test_the_highest_place_of_a_map_lies_on_what_decides(network, method):
    assert pointing_game(network, method) >= 0.8


def with_patch(values):
    return [value[values[1] < 2] for value in values]


def pointing_game(network, method) -> float:
    images, labels, inside = (values[:50] for values in with_patch(patched(90, seed=2)))
    found = maps(network, images, labels, method)
    assert found.shape == (50, SIDE, SIDE)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    near = F.max_pool2d(inside[:, None].float(), 5, 1, 2)[:, 0] > 0  # the pointing game allows a margin
    hits = [bool(n[m.argmax() // SIDE, m.argmax() % SIDE]) for m, n in zip(found, near, strict=True)]
    return sum(hits) / len(hits)


def test_the_tokens_of_a_transformer_are_a_map(transformer):
    layer = last_map(transformer)
    assert (layer.layout, layer.size, chosen(transformer)) == ("BNC", (7, 7), "layer_cam")
    assert pointing_game(transformer, "layer_cam") >= 0.8
    with pytest.raises(ConfigError, match="are tokens: take layer_cam"):
        maps(transformer, *patched(1)[:2], "grad_cam")


def test_a_map_changes_when_the_weights_are_randomised_from_the_head_down(network):
    """The sanity check of Adebayo et al. 2018, https://arxiv.org/abs/1810.03292, on images where nothing stands out."""
    images = torch.randint(0, 256, (30, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(30) % 3
    model, before = copy.deepcopy(network), maps(network, images, labels, "layer_cam")
    likeness = []
    for layer in [module for module in model.backbone.modules() if hasattr(module, "reset_parameters")][::-1]:
        layer.reset_parameters()
        now = maps(model.eval(), images, labels, "layer_cam")
        pairs = zip(before.flatten(1), now.flatten(1), strict=True)
        likeness.append(float(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).nanmean()))
    assert likeness[-1] < 0.5


def test_a_network_without_maps_of_features_is_explained_by_occlusion():
    model = Classifier(MLP, (1, SIDE, SIDE), ["a", "b", "c"]).eval()
    assert (last_map(model), chosen(model)) == (None, "occlusion")
    images, labels, _ = patched(2)
    assert maps(model, images, labels).shape == (2, SIDE, SIDE)


def test_each_image_has_its_picture(here, trained_run, capsys):
    tiny.write_image_folder(here / "scans", classes=("one", "two"), count=2)
    words = ["explain", "--ckpt_path", str(trained_run), "--images", "scans"]
    assert main([*words, "--output", "maps"]) == 0
    pictures = sorted((here / "maps").iterdir())
    assert len(pictures) == 4
    assert all(Image.open(path).size[0] > 500 for path in pictures)
    assert f"4 pictures by layer_cam in\n{here / 'maps'}" in capsys.readouterr().out


def test_no_picture_takes_the_place_of_somebody_s_file(here, trained_run):
    tiny.write_image_folder(here / "scans", classes=("one",), count=2)
    before = {path: path.read_bytes() for path in (here / "scans" / "one").iterdir()}
    words = ["explain", "--ckpt_path", str(trained_run), "--images", *map(str, before)]
    for _ in range(2):  # its own of an earlier call are replaced
        assert main([*words, "--output", "scans/one"]) == 0
        assert {path: path.read_bytes() for path in before} == before
        assert len(list((here / "scans" / "one").iterdir())) == 4


def test_predict_explains_what_it_classifies(here, trained_run, capsys):
    Image.new("L", (28, 28)).save(here / "black.png")
    (here / "broken.png").write_bytes(b"no image")
    words = ["predict", "--ckpt_path", str(trained_run), "--images", "black.png", "broken.png", "--output", "-"]
    assert main([*words, "--explain", "looks"]) == 0
    assert [path.name for path in (here / "looks").iterdir()] == ["black.png"]
    told = capsys.readouterr()
    assert "1 picture by layer_cam in" in told.err
    assert len(told.out.splitlines()) == 2
    best, last = (str(trained_run / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    assert main(["predict", "--ckpt_path", best, last, *words[3:], "--explain", "looks"]) == 2
    assert "--explain shows where one network looked" in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_refused_before_any_work(here, trained_run, capsys):
    Image.new("L", (28, 28)).save(here / "black.png")
    (here / "file").write_text("mine")
    words = ["--ckpt_path", str(trained_run), "--images", "black.png"]
    assert main(["predict", *words, "--explain", "file"]) == 2
    assert "--explain file: " in capsys.readouterr().err
    assert not (here / "predictions.csv").exists()
    assert main(["explain", *words, "--output", "file"]) == 2
    assert "--output file: " in capsys.readouterr().err


def test_a_name_of_any_bytes_has_its_picture(here, trained_run):
    Image.new("L", (28, 28)).save(os.fsdecode(b"caf\xe9.png"))
    Image.new("L", (28, 28)).save("x" * 255, "png")  # as long as names may be
    for _ in range(2):  # the second time without the pictures of the first
        assert main(["explain", "--ckpt_path", str(trained_run), "--images", ".", "--output", "maps"]) == 0
        assert [Image.open(picture).size[0] > 500 for picture in (here / "maps").iterdir()] == [True, True]


class Joined(nn.Module):
    """Has a part that is given a list of tokens."""

    class Join(nn.Module):
        def forward(self, parts):
            return torch.cat(parts, 1)

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.patches, self.join, self.head = nn.Conv2d(1, 8, 4, 4), self.Join(), nn.Linear(8, num_classes)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.join([tokens[:, :1], tokens]).mean(1))


def test_a_part_may_be_given_anything():
    model = Classifier(Joined, (1, SIDE, SIDE), ["a", "b", "c"]).eval()
    assert last_map(model).module is model.backbone.patches


def test_what_cannot_be_explained_is_told(here, trained_run, capsys, monkeypatch):
    (here / "text.png").write_text("no image")
    words = ["explain", "--ckpt_path", str(trained_run), "--images"]
    assert main([*words, "text.png"]) == 2
    assert "none can be read as an image" in capsys.readouterr().err
    assert main([*words, "text.png", "--label", "eleven"]) == 2
    assert "--label eleven: there is no such class" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "captum", None)
    tiny.write_image_folder(here / "scans", classes=("one",), count=1)
    assert main([*words, "scans"]) == 2
    assert "pip install 'vision_zoo[explain]'" in capsys.readouterr().err
