"""Networks of timm: built, fitted, with weights of files and folders, told in words where something is missing."""

import json
import math
import re
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import _hub
from torch import nn

from tests.hostile.helpers import refused_everywhere, save
from tests.tiny import write_image_folder
from vision_zoo.__main__ import main
from vision_zoo.backbones import Timm
from vision_zoo.checkpoints import read_checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.errors import CheckpointError, ConfigError, ImageShapeError
from vision_zoo.known import with_features
from vision_zoo.training.features import follows_from_features
from vision_zoo.types import Preprocessing

# What does not give logits of gray images, though timm lists it.
REFUSED = {
    **dict.fromkeys(("gemma4_vit_167m_enc", "gemma4_vit_570m_enc"), "a feature of each patch"),
    **dict.fromkeys(("qwen3_vit_88m_enc", "qwen3_vit_306m_enc", "qwen3_vit_416m_enc"), "a feature of each patch"),
    **dict.fromkeys(("csatv2", "csatv2_21m"), "colour images alone, for it turns red, green and blue into luma"),
}
# Files of timm whose networks have no single linear layer that gives the logits.
NO_LINEAR_HEAD = {
    "crossvit": "mean of two heads",
    "dla": "convolution",
    "dpn": "convolution",
    "efficientformer": "mean of two heads",
    "efficientformer_v2": "mean of two heads",
    "efficientvim": "weighted sum of four heads",
    "levit": "mean of two heads",
    "repvit": "mean of two heads",
    "resnetv2": "convolution",
    "swiftformer": "mean of two heads",
    "volo": "sum of two heads",
}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    """No network, and no files of a person's own cache."""

    def refuse(*_args, **_kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))


@pytest.fixture
def no_values(monkeypatch):
    """There are none on the meta device, and to set them takes half of the time of building a network there."""
    for name, value in vars(nn.init).items():
        if name.endswith("_") and not name.startswith("_") and callable(value):
            monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def names_by_file() -> dict[str, list[str]]:
    return {file: timm.list_models(module=file) for file in timm.list_modules() if timm.list_models(module=file)}


@pytest.mark.slow
@pytest.mark.parametrize("file", names_by_file())
def test_every_classifier_is_fitted_to_seven_classes_of_gray_images(file, no_values):
    """Eight minutes for 1,371 networks on the meta device; the smallest of each file gives its logits there."""
    smallest, size = None, math.inf
    for name in names_by_file()[file]:
        side = timm.get_pretrained_cfg(name).input_size[1:]
        with torch.device("meta"):
            backbone = Timm((1, *side), 7, name=name).eval()
        if name in REFUSED:
            assert not gives_logits(backbone, (2, 1, *side)), f"{name} gives logits now: take it out of REFUSED"
        elif (own := sum(value.numel() for value in backbone.parameters())) < size:
            smallest, size, shape = backbone, own, (2, 1, *side)
    assert smallest is None or gives_logits(smallest, shape)


def gives_logits(backbone: nn.Module, shape: tuple[int, ...]) -> bool:
    with torch.device("meta"), torch.no_grad(), suppress(RuntimeError):
        return backbone(torch.empty(shape)).shape == (2, 7)
    return False


def test_the_table_of_refused_networks_names_those_that_there_are():
    assert set(timm.list_models()) >= REFUSED.keys()


def classifier(name: str, shape: tuple[int, int, int], options: dict[str, object] | None = None) -> Classifier:
    return Classifier(partial(Timm, name=name, options=options), shape, list("abcdefg"))


@pytest.mark.slow
@pytest.mark.parametrize("file", names_by_file())
def test_features_beside_logits_leave_the_logits_as_they_are(file):
    """Five minutes; of each file, the network with the shortest name of those that say they are small."""
    names = [name for name in names_by_file()[file] if name not in REFUSED or name.startswith("csat")]
    small = [name for name in names if re.search(r"atto|pico|nano|tiny|_t\b|_s\b|small|18|xxs|_0", name)]
    name = min(small or names, key=len)
    model = classifier(name, (3, *timm.get_pretrained_cfg(name).input_size[1:]))
    backbone = model.backbone.eval()
    images = torch.randn(1, 3, *timm.get_pretrained_cfg(name).input_size[1:])
    with torch.no_grad():
        expected = backbone(images)
        if file in NO_LINEAR_HEAD:
            assert not follows_from_features(model, backbone)
        else:
            assert follows_from_features(model, backbone)
            logits, features = with_features(backbone, lambda: backbone(images))
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
            assert features.shape[0] == 1


FAMILIES = [  # test_... are the smallest ones of timm, whose layers are those of their family
    ("resnet10t", 32, {"channels": [8, 16, 16, 16]}),
    ("test_convnext", 32, {}),
    ("test_vit", 32, {}),
    ("swin_tiny_patch4_window7_224", 56, {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 16}),
    ("mobilenetv3_small_050", 32, {}),
    ("test_efficientnet", 32, {}),
    ("regnetx_002", 32, {}),
    ("test_maxvit", 64, {}),
]


@pytest.mark.parametrize(("name", "size", "options"), FAMILIES)
def test_families_train_on_gray_images_and_give_features_beside_the_same_logits(name, size, options):
    torch.manual_seed(0)
    backbone = Timm((1, size, size), 5, name=name, options=options or None)
    images = torch.randn(2, 1, size, size)
    F.cross_entropy(backbone(images), torch.tensor([0, 1])).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    with torch.no_grad():
        expected = backbone.eval()(images)
        logits, features = with_features(backbone, lambda: backbone(images))
    assert expected.shape == (2, 5)
    torch.testing.assert_close(logits, expected)
    head = backbone.network.get_classifier()
    torch.testing.assert_close(head(features), expected)


@pytest.mark.parametrize("zero", [False, True])
def test_a_network_with_two_heads_has_no_features_that_decide_alone(zero):
    model = classifier("deit_tiny_distilled_patch16_224", (3, 32, 32), {"depth": 1})
    if zero:  # so that both give the same
        nn.init.zeros_(model.backbone.network.head.weight)
        nn.init.zeros_(model.backbone.network.head_dist.weight)
    assert not follows_from_features(model, model.backbone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet19"}, r"no network is named 'resnet19'; did you mean resnet18.*list networks timm$"),
        ({"name": "resnet18.foo"}, r"no network is named 'resnet18\.foo'; did you mean resnet18"),
        (
            {"options": {"wide": 2}},
            r"resnet18: .* argument 'wide'.*change --model\.backbone\.options",
        ),
        ({"options": {"pretrained": True}}, r"options: leave out pretrained, which are set here"),
        ({"options": {"checkpoint_path": "a", "num_classes": 3}}, r"options: leave out checkpoint_path, num_classes"),
        ({"weights": "none.pth"}, r"weights .*none\.pth of resnet18 could not be read \(.*No such file"),
        ({"name": "hf-hub:timm/a"}, r"name stands for weights, and weights is None: set --model\.backbone\.weights to"),
        ({"name": "local-dir:none", "weights": "DEFAULT"}, r"config\.json of local-dir:none could not be read"),
        (
            {"name": "lcnet_035", "weights": "DEFAULT"},
            r"there are no weights of lcnet_035: leave out weights",
        ),
    ],
)
def test_what_timm_has_not_is_told_with_the_way_out(options, message):
    with pytest.raises(ConfigError, match=message):
        Timm((3, 32, 32), 10, **options)


def test_a_size_that_a_network_cannot_be_built_for_names_one_that_works():
    message = r"nest_tiny cannot take images of shape \(1, 24, 24\) \(.*set --data\.image_size to 224"
    with pytest.raises(ImageShapeError, match=message):
        Timm((1, 24, 24), 10, name="nest_tiny")


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch, capsys, here):
    monkeypatch.delitem(__import__("sys").modules, "timm")
    monkeypatch.setattr("vision_zoo.backbones.timm.is_package", lambda name: False)
    for words in (["fit", "--model.backbone", "Timm"], ["list", "networks", "timm", "resnet"]):
        assert main(words) == 2
        assert capsys.readouterr().err.splitlines()[-1].endswith("is missing: pip install 'vision_zoo[timm]'")


@pytest.mark.parametrize("address", ["DEFAULT", "hf-hub:someone/resnet"])
def test_weights_that_cannot_be_fetched_are_refused_at_once_with_a_way_out(address, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waits for a network"))
    way = {
        "DEFAULT": r"Fetch https://huggingface\.co/timm/resnet10t\.c3_in1k/resolve/main/model\.safetensors "
        r"and name the file: --model\.backbone\.weights FILE",
        "hf-hub:someone/resnet": r"folder with its config\.json and model\.safetensors .*local-dir:FOLDER",
    }[address]
    with pytest.raises(ConfigError, match=way):
        Timm((3, 32, 32), 10, name="resnet10t", weights=address)


# Weights of files and folders, written by timm itself.


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, nn.Module]:
    """A folder in the layout of the hub, and its network: a small vision transformer for 11 classes."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(1)
    network = timm.create_model(
        "test_vit", num_classes=11, img_size=48, class_token=False, global_pool="avg", drop_path_rate=0.1
    ).eval()
    how = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "random", "input_size": (3, 48, 48)}
    _hub.save_for_hf(network, folder, model_config={"pretrained_cfg": how})
    return folder, network


def test_a_model_in_a_local_folder_keeps_its_weights_but_for_the_last_layer(published):
    folder, network = published
    same = Timm((3, 48, 48), 11, name=f"local-dir:{folder}", weights="DEFAULT").eval()
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(same(images), network(images))
    fitted = Timm((1, 32, 32), 4, name="test_vit", weights=f"local-dir:{folder}", options=same.options).eval()
    assert (same.name, same.options) == ("test_vit", fitted.options)
    assert fitted(torch.randn(2, 1, 32, 32)).shape == (2, 4)
    key = "blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(fitted.network.state_dict()[key], network.state_dict()[key])
    assert Timm.preprocessing(f"local-dir:{folder}", "DEFAULT") == Preprocessing(
        (0.5,) * 3, (0.25,) * 3, 48, "bilinear"
    )


def test_a_folder_of_another_network_is_refused_by_name(published):
    with pytest.raises(ConfigError, match=r"is a test_vit: set --model\.backbone\.name to that"):
        Timm((3, 48, 48), 11, name="resnet18", weights=f"local-dir:{published[0]}")


@pytest.mark.parametrize(("kind", "classes"), [("safetensors", 1000), ("pth", 6)])
def test_a_file_of_weights_is_loaded_whatever_its_number_of_classes(kind, classes, tmp_path):
    network = timm.create_model("test_resnet", num_classes=classes).eval()
    file = tmp_path / f"own.{kind}"
    save_file(network.state_dict(), file) if kind == "safetensors" else torch.save(network.state_dict(), file)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        own = Timm((3, 32, 32), classes, name="test_resnet", weights=str(file)).eval()
        torch.testing.assert_close(own(images), network(images))
        fitted = Timm((3, 32, 32), 3, name="test_resnet", weights=str(file)).eval()
        torch.testing.assert_close(fitted.network.forward_features(images), network.forward_features(images))
    assert (
        Timm.preprocessing("test_resnet", str(file)).image_size == timm.get_pretrained_cfg("test_resnet").input_size[1]
    )


def test_a_file_of_another_network_or_with_code_is_refused(tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "other.pth")
    torch.save({"state_dict": partial(print, "run")}, tmp_path / "evil.pth")
    for file, reason in (("other.pth", "Missing key"), ("evil.pth", "weights_only")):
        with pytest.raises(ConfigError, match=rf"{file} of test_resnet could not be read \(.*{reason}"):
            Timm((3, 32, 32), 3, name="test_resnet", weights=str(tmp_path / file))


def test_gray_images_get_the_answers_of_pretrained_colour_filters(tmp_path):
    network = timm.create_model("test_resnet", num_classes=4).eval()
    torch.save(network.state_dict(), tmp_path / "own.pth")
    gray = torch.randn(2, 1, 32, 32)
    own = Timm((1, 32, 32), 4, name="test_resnet", weights=str(tmp_path / "own.pth")).eval()
    with torch.no_grad():
        torch.testing.assert_close(own(gray), network(gray.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


# The command line and checkpoints


@pytest.mark.slow  # 2 s
def test_a_checkpoint_of_a_model_from_a_folder_is_read_without_the_folder(published, here, monkeypatch, capfd):
    moved = here / "model"
    moved.symlink_to(published[0])
    write_image_folder(here / "pictures", size=(48, 48), count=6)
    words = [
        "fit",
        "--data",
        "ImageFolder",
        "--data.root",
        "pictures",
        "--data.val_split",
        "2",
        "--data.test_split",
        "2",
    ]
    words += ["--model.backbone", "Timm", "--model.backbone.name", "local-dir:model"]
    words += ["--model.backbone.weights", "DEFAULT", "--trainer.max_epochs", "1", "--test_after_fit", "false"]
    assert main([*words, "--model.scheduler", "null"]) == 0
    assert "prepared as for the pretrained weights: mean 0.5 0.5 0.5" in capfd.readouterr().err
    moved.unlink()
    run = here / "runs" / "default" / "version_0"
    checkpoint = read_checkpoint(run / "checkpoints" / "best.ckpt")
    for described in (checkpoint["hyper_parameters"], checkpoint["vision_zoo"]["config"]["model"]):
        options = described["backbone"]["init_args"]
        assert options["name"] == "test_vit"
        assert options["options"]["global_pool"] == "avg"
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", "--test_after_fit", "false"]) == 0
    model = Classifier.load_from_checkpoint(run)
    assert isinstance(model.backbone, Timm)
    assert model.network_name == "test_vit"


def test_a_checkpoint_made_in_python_from_a_folder_describes_the_network_itself(published):
    backbone = partial(Timm, name=f"local-dir:{published[0]}", weights="DEFAULT")
    options = Classifier(backbone, (3, 48, 48), ["a", "b"]).hparams["backbone"]["init_args"]
    assert (options["name"], options["weights"]) == ("test_vit", None)


@pytest.fixture
def nothing_is_read(monkeypatch, here):
    (here / "folder").mkdir()
    (here / "folder" / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    monkeypatch.setattr("socket.socket.connect", lambda *_: Path("MARKER").touch())
    for reader in ("load_cfg_from_json", "download_from_hf", "load_state_dict_from_path"):
        monkeypatch.setattr(_hub, reader, lambda *_: Path("MARKER").touch())


def checkpoint_of(init_args) -> dict:
    model = Classifier(partial(Timm, name="test_resnet"), (3, 32, 32), ["a", "b"])
    spec = {"class_path": "vision_zoo.backbones.Timm", "init_args": init_args}
    config = {"model": {"backbone": spec}, "data": {"class_path": "vision_zoo.data.MNIST5k"}}
    facts = {"hyper_parameters": {**model.hparams, "backbone": spec}, "vision_zoo": {"config": config, "name": "run"}}
    return {**facts, "state_dict": model.state_dict()}


def test_a_hostile_checkpoint_is_refused_everywhere_if_its_name_is_an_address(nothing_is_read, capsys):
    path = save(checkpoint_of({"name": "local-dir:folder", "weights": "DEFAULT"}))
    refused_everywhere(capsys, path, "has 'local-dir:folder' as model.backbone.name, which timm would fetch or read")


@pytest.mark.parametrize("name", ["hf-hub:evil/model", "HF_hub:evil/model", "Local-Dir:folder", "folder", "evil/model"])
@pytest.mark.parametrize("weights", ["DEFAULT", None, 1])
def test_no_name_in_a_checkpoint_has_a_model_fetched_or_a_folder_read(name, weights, nothing_is_read):
    with pytest.raises((CheckpointError, ConfigError)):
        Classifier.load_from_checkpoint(save(checkpoint_of({"name": name, "weights": weights})))
    assert not Path("MARKER").exists()


@pytest.mark.parametrize("weights", ["hf-hub:evil/model", "local-dir:folder", "DEFAULT", "folder/config.json"])
def test_weights_that_a_checkpoint_names_are_neither_fetched_nor_read(weights, nothing_is_read):
    checkpoint = checkpoint_of({"name": "test_resnet", "weights": weights})
    assert isinstance(Classifier.load_from_checkpoint(save(checkpoint)).backbone, Timm)
    assert not Path("MARKER").exists()


@pytest.mark.parametrize("option", ["pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_options_in_a_checkpoint_have_nothing_read(option, nothing_is_read):
    with pytest.raises((CheckpointError, ConfigError)):
        Classifier.load_from_checkpoint(save(checkpoint_of({"name": "test_resnet", "options": {option: "folder"}})))
    assert not Path("MARKER").exists()


# vision_zoo list networks


def test_networks_are_found_by_parts_of_their_names(capsys):
    assert main(["list", "networks", "timm", "resnet", "10T"]) == 0
    title, header, *rows = capsys.readouterr().out.split("\n")
    assert (title, header.split()) == ("NETWORKS", ["name", "weights", "image", "size"])
    assert rows[0].split() == ["resnet10t.c3_in1k", "timm/resnet10t.c3_in1k", "176"]
    assert main(["list", "networks", "torchvision", "vit", "16"]) == 0
    assert re.findall(r"^\S*16\b", capsys.readouterr().out, re.M) == ["vit_b_16", "vit_l_16"]
    assert main(["list", "networks", "timm", "no-such-network"]) == 0
    assert "networks: none has timm and no-such-network in its name" in capsys.readouterr().out


def test_networks_of_the_zoo_come_with_a_hint_to_the_many_others(capsys):
    assert main(["list", "networks", "lite"]) == 0
    out = capsys.readouterr().out
    assert "EfficientNetLite" in out
    assert "LeNet5" not in out
    assert "vision_zoo list networks timm" in out
    assert main(["list", "runs", "timm"]) == 2
    assert "unrecognized arguments: timm" in capsys.readouterr().err
