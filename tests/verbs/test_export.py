"""Exported files: the module's outputs, the names of the classes, and nothing left behind when something is wrong."""

import json
import os
import shutil
import sys
from pathlib import Path

import lightning.pytorch as pl
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tests import tiny
from vision_zoo import __version__, backbones
from vision_zoo.__main__ import main
from vision_zoo.backbones import LeNet5, SmallCNN
from vision_zoo.classifier import Classifier
from vision_zoo.data import CIFAR10, ImageFolder, MNIST5k
from vision_zoo.errors import CheckpointError
from vision_zoo.verbs import export as verb
from vision_zoo.verbs import formats
from vision_zoo.verbs.page import onnx_of

DIGITS = tuple("0123456789")
FORMATS = ("onnx", "torch_export", "safetensors", "state_dict", "html")


@pytest.fixture(scope="module")
def checkpoint(trained_run) -> Path:
    return trained_run / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory) -> dict[str, Path]:
    """One file of each format, written far from the run's folder."""
    folder = tmp_path_factory.mktemp("exported")
    copy = shutil.copy(checkpoint, folder / "mine.ckpt")
    files = {name: folder / f"file.{name}" for name in FORMATS}
    for name, file in files.items():
        assert main(["export", "--ckpt_path", str(copy), "--format", name, "--output", str(file)]) == 0
    assert sorted(folder.iterdir()) == sorted([copy, *files.values()])
    return files


@pytest.fixture(scope="module")
def model(checkpoint) -> Classifier:
    return Classifier.load_from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return MNIST5k().sample("test", 7).images


def check_facts(facts: dict[str, str], model: Classifier) -> None:
    assert json.loads(facts["class_names"]) == list(DIGITS)
    assert json.loads(facts["image_shape"]) == [1, 28, 28]
    assert [json.loads(facts["mean"]), json.loads(facts["std"])] == [model.hparams["mean"], model.hparams["std"]]
    assert 0.1 < json.loads(facts["mean"])[0] < 0.2
    assert json.loads(facts["backbone"])["class_path"].endswith("LeNet5")
    assert facts["resize"] == "crop"
    assert facts["checkpoint"] == "mine.ckpt"
    assert facts["run"] == "default"
    assert facts["vision_zoo_version"] == __version__


@pytest.mark.parametrize("size", [1, 7])
def test_onnx_runtime_gives_the_modules_logits(exported, model, images, size):
    session = onnxruntime.InferenceSession(str(exported["onnx"]))
    (logits,) = session.run(["logits"], {"images": images[:size].numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(images[:size]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 7])
def test_a_torch_export_program_gives_the_modules_logits(exported, model, images, size):
    with exported["torch_export"].open("rb") as file:
        program = torch.export.load(file).module()
    with torch.no_grad():
        torch.testing.assert_close(program(images[:size]), model(images[:size]))


@pytest.mark.parametrize("format_", ["onnx", "html"])
def test_an_onnx_file_describes_itself(exported, model, format_):
    content = exported[format_].read_bytes()
    file = onnx.load_from_string(content if format_ == "onnx" else onnx_of(content))
    check_facts({entry.key: entry.value for entry in file.metadata_props}, model)
    (given,), (result,) = file.graph.input, file.graph.output
    assert (given.name, result.name) == ("images", "logits")
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sizes = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert sizes == ["batch", 1, 28, 28]
    assert str(Path(verb.__file__).parent).encode() not in exported["onnx"].read_bytes()  # no path of who made it


def test_a_torch_export_program_describes_itself(exported, model):
    extra = {"metadata.json": ""}
    with exported["torch_export"].open("rb") as file:
        torch.export.load(file, extra_files=extra)
    check_facts(json.loads(extra["metadata.json"]), model)


def test_safetensors_hold_the_backbones_own_keys_and_the_facts(exported, model):
    with safe_open(exported["safetensors"], "pt") as file:
        check_facts(file.metadata(), model)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    own = model.backbone.state_dict()
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[name], own[name]) for name in own)


def test_a_state_dict_starts_another_classifier(exported, model, images):
    state = torch.load(exported["state_dict"], weights_only=True)
    assert list(state) == list(model.backbone.state_dict())
    facts = model.hparams["mean"], model.hparams["std"]
    other = Classifier(LeNet5, (1, 28, 28), DIGITS, *facts, weights=str(exported["state_dict"])).eval()
    with torch.no_grad():
        assert torch.equal(other(images), model(images))


def test_a_state_dict_is_where_a_fit_starts_from(exported, here, model):
    words = ["fit", "--config", "lenet5_mnist", "--data", "MNIST5k", "--model.weights", str(exported["state_dict"])]
    standing = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--model.optimizer.lr", "1e-30"]
    assert main([*words, *standing, "--test_after_fit", "false"]) == 0
    other = Classifier.load_from_checkpoint(here / "runs/lenet5_mnist/version_0/checkpoints/last.ckpt")
    own = model.backbone.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in other.backbone.state_dict().items())


def _renamed(state):
    return {f"{name}.inner": tensor for name, tensor in state.items()}


def _shortened(state):
    return dict(list(state.items())[:-1])


def _reshaped(state):
    return {**state, "head.0.bias": torch.zeros(3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed, r"does not fit LeNet5: Missing key.* Unexpected key.* \"\S+\.inner\""),
        (_shortened, r"does not fit LeNet5: Missing key\S+ in state_dict: \"head\.\d\.bias\"\. Weights"),
        (_reshaped, r"does not fit LeNet5: size mismatch for head\.0\.bias: .*\[3\].*\[84\]"),
        (lambda state: list(state.values()), r"is neither a state dict \(names with tensors\) nor a checkpoint"),
        (lambda state: {"state_dict": 3}, r"is neither a state dict \(names with tensors\) nor a checkpoint"),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused_by_name(exported, here, change, message):
    torch.save(change(torch.load(exported["state_dict"], weights_only=True)), here / "other.pt")
    with pytest.raises(CheckpointError, match=message):
        Classifier(LeNet5, (1, 28, 28), DIGITS, weights=str(here / "other.pt"))


def test_a_checkpoint_gives_the_weights_to_start_from_like_its_state_dict(checkpoint, exported):
    from_checkpoint, from_state = (
        Classifier(LeNet5, (1, 28, 28), DIGITS, weights=str(path)) for path in (checkpoint, exported["state_dict"])
    )
    assert all(map(torch.equal, from_checkpoint.parameters(), from_state.parameters()))


def test_the_ending_of_the_output_says_the_format(checkpoint, here, capsys):
    for name in ("net.safetensors", "net.pt", "net.pt2"):
        assert main(["export", "--ckpt_path", str(checkpoint), "--output", name]) == 0
    assert main(["export", "--ckpt_path", str(checkpoint), "--output", "net.bin"]) == 2
    assert ".bin is the ending of no format; set --format onnx, html, torch_export" in capsys.readouterr().err
    assert load_file("net.safetensors").keys() == torch.load("net.pt", weights_only=True).keys()
    assert torch.export.load("net.pt2").module()(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)).shape == (1, 10)


@pytest.mark.parametrize("format_", FORMATS[:3])
def test_names_of_classes_may_be_any_bytes_of_a_folders_name(format_, checkpoint, here):
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["class_names"][0] = name = os.fsdecode(b"caf\xe9")
    torch.save(content, "any.ckpt")
    assert main(["export", "--ckpt_path", "any.ckpt", "--format", format_, "--output", "file"]) == 0
    if format_ == "onnx":
        facts = {entry.key: entry.value for entry in onnx.load("file").metadata_props}
    elif format_ == "safetensors":
        with safe_open("file", "pt") as file:
            facts = file.metadata()
    else:
        extra = {"metadata.json": ""}
        torch.export.load("file", extra_files=extra)
        facts = json.loads(extra["metadata.json"])
    assert json.loads(facts["class_names"])[0] == name


def test_the_output_says_what_was_compared_and_where_the_file_is(checkpoint, here, capfd):
    assert main(["export", "--ckpt_path", str(checkpoint), "--format", "onnx"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "default.onnx" in out
    assert "16 test images of MNIST5k in batches of 1, 7 and 8" in out
    assert "of logits" in out
    assert out.splitlines()[-1] == str(here / "default.onnx")
    assert [path.name for path in here.iterdir()] == ["default.onnx"]


def test_a_wrong_export_is_a_failure_and_keeps_the_file_of_before(checkpoint, here, monkeypatch, capsys):
    right = formats.Images.forward
    monkeypatch.setattr(formats.Images, "forward", lambda self, images: right(self, images) + 0.01)
    Path("net.pt2").write_text("the one of yesterday")
    words = ["export", "--ckpt_path", str(checkpoint), "--format", "torch_export", "--output", "net.pt2"]
    assert main(words) == 1
    assert "its logits differ by up to 1.0e-02 from the module's" in capsys.readouterr().err
    assert [path.read_text() for path in here.iterdir()] == ["the one of yesterday"]


def test_weights_that_were_not_written_are_a_failure(checkpoint, here, monkeypatch, capsys):
    def forgetful(model):
        return {name: torch.zeros_like(tensor) for name, tensor in model.backbone.state_dict().items()}

    monkeypatch.setattr(formats, "_own_tensors", forgetful)
    assert main(["export", "--ckpt_path", str(checkpoint), "--format", "safetensors"]) == 1
    assert "the safetensors file was removed" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(checkpoint, here, monkeypatch, capsys):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["export", "--ckpt_path", str(checkpoint), "--format", "state_dict"]) == 1
    assert "default.pt could not be written: No space left on device" in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (".", "--output . cannot be written: it is a folder"),
        ("/proc/nowhere/net.onnx", "--output /proc/nowhere/net.onnx cannot be written: No such file or directory"),
        ("/dev/null/net.onnx", "--output /dev/null/net.onnx cannot be written: it is not a regular file"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(checkpoint, here, capsys, output, message):
    assert main(["export", "--ckpt_path", str(checkpoint), "--output", output]) == 2
    assert message in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_a_device_is_never_replaced_by_a_file(checkpoint, here, capsys):
    os.mkfifo(here / "device")  # for a device that the tests have the right to replace
    for output in ("device", "/dev/stdout", "/dev/fd/1"):
        assert main(["export", "--ckpt_path", str(checkpoint), "--format", "state_dict", "--output", output]) == 2
        assert f"--output {output} cannot be written: it is not a regular file" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["device"]
    assert (here / "device").is_fifo()


def test_a_file_of_the_default_name_is_kept_and_a_link_stays_one(checkpoint, here, capsys):
    words = ["export", "--ckpt_path", str(checkpoint), "--format", "state_dict"]
    (here / "default.pt").write_bytes(b"of another origin")
    assert main(words) == 2
    assert "default.pt is there already: --output default.pt replaces it" in capsys.readouterr().err
    assert main([*words, "--output", ""]) == 2  # as of a variable that is not set
    assert main([*words, "--output", "-"]) == 2
    assert (here / "default.pt").read_bytes() == b"of another origin"
    (here / "link.pt").symlink_to("default.pt")
    assert main([*words, "--output", "link.pt"]) == 0
    assert (here / "link.pt").is_symlink()
    assert len((here / "default.pt").read_bytes()) > 1000


def test_the_checkpoint_is_never_overwritten(checkpoint, here, capsys):
    shutil.copy(checkpoint, here / "a.ckpt")
    words = ["export", "--ckpt_path", "a.ckpt", "--format", "state_dict", "--output", "a.ckpt"]
    assert main(words) == 2
    assert "is the checkpoint itself" in capsys.readouterr().err
    assert (here / "a.ckpt").read_bytes() == checkpoint.read_bytes()


@pytest.mark.parametrize("format_", ["onnx", "html"])
def test_missing_packages_are_named_with_the_way_to_get_them(checkpoint, here, monkeypatch, capsys, format_):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", "--ckpt_path", str(checkpoint), "--format", format_]) == 2
    assert f"{format_} needs onnxscript. Run: pip install 'vision_zoo[export]'" in capsys.readouterr().err


def test_an_export_without_a_checkpoint_is_refused(here, capsys):
    assert main(["export", "--format", "onnx"]) == 2
    assert "export needs a trained network: --ckpt_path" in capsys.readouterr().err


def test_the_data_set_may_be_gone(here, capsys):
    data = tiny.write_npz(here / "data.npz", 20, 10, (32, 32, 3))
    quick = ["--trainer.max_epochs", "1", "--data.val_split", "0", "--test_after_fit", "false"]
    assert main(["fit", "--model.backbone", "SmallCNN", "--data", "ArrayFile", "--data.path", str(data), *quick]) == 0
    capsys.readouterr()
    assert main(["export", "--ckpt_path", "best", "--format", "state_dict"]) == 0
    assert "10 test images of ArrayFile" in capsys.readouterr().out
    data.unlink()
    assert main(["export", "--ckpt_path", "best", "--format", "torch_export"]) == 0
    assert "16 embedded MNIST images brought to 3 x 32 x 32 (none of the run's are here)" in capsys.readouterr().out


def test_a_checkpoint_of_plain_python_is_exported_and_summarised(here, capsys):
    model = Classifier(SmallCNN, (1, 28, 28), DIGITS, [0.5], [0.5])
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, "own.ckpt")
    assert main(["export", "--ckpt_path", "own.ckpt", "--format", "safetensors"]) == 0
    assert (here / "own.safetensors").is_file()
    assert main(["summary", "--ckpt_path", "own.ckpt"]) == 0
    assert "5,142 parameters" in capsys.readouterr().out


def test_the_data_may_be_in_a_folder_that_cannot_be_entered(monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(CIFAR10, "sample", refuse)
    images, described = verb.sample_images(Classifier(SmallCNN, (3, 32, 32), DIGITS), CIFAR10())
    assert described.startswith("16 embedded MNIST images brought to 3 x 32 x 32")
    assert images.shape == (16, 3, 32, 32)


def test_outputs_are_compared_on_the_most_real_images_there_are(tmp_path):
    colour = Classifier(SmallCNN, (3, 32, 32), DIGITS)
    images, described = verb.sample_images(colour, CIFAR10(root=str(tmp_path)))
    assert described == "16 embedded MNIST images brought to 3 x 32 x 32 (none of the run's are here)"
    assert (images.shape, images.dtype) == ((16, 3, 32, 32), torch.uint8)
    assert images.float().std() > 20
    tiny.write_image_folder(tmp_path / "photos", count=4)
    photos = ImageFolder(root=str(tmp_path / "photos"), image_size=32, test_split=0, val_split=0)
    assert verb.sample_images(colour, photos)[1] == "8 train images of ImageFolder", "those that it has"
    tiny.write_cifar10(tmp_path, 10, 3)
    images, described = verb.sample_images(colour, CIFAR10(root=str(tmp_path)))
    assert described == "3 test images of CIFAR10"
    assert images.shape == (16, 3, 32, 32)
    images, described = verb.sample_images(Classifier(SmallCNN, (2, 32, 32), DIGITS), None)
    assert described == "16 embedded MNIST images brought to 2 x 32 x 32 (none of the run's are here)"
    assert images.shape == (16, 2, 32, 32)


NETWORKS = {
    "Airbench": (3, 32, 32),
    "AlexNet": (3, 32, 32),
    "CNN": (1, 28, 28),
    "Conv4": (3, 64, 64),
    "ConvNet": (1, 28, 28),
    "DNN": (1, 28, 28),
    "EfficientNetLite": (3, 32, 32),
    "FashionCNN": (1, 28, 28),
    "FullyConnected": (1, 28, 28),
    "LeNet5": (1, 28, 28),
    "MLP": (1, 28, 28),
    "ResNet": (3, 32, 32),
    "SimpleCNN": (1, 28, 28),
    "SmallCNN": (1, 28, 28),
    "Timm": (3, 32, 32),
    "Torchvision": (3, 32, 32),
}


def test_every_network_is_exported_in_a_test():
    assert NETWORKS.keys() == set(backbones.__all__)


@pytest.mark.slow  # 40 s
@pytest.mark.parametrize("format_", ["onnx", "torch_export"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_exported(tmp_path, name, format_):
    torch.manual_seed(0)
    model = Classifier(getattr(backbones, name), NETWORKS[name], DIGITS)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # statistics of training mode would show
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    model.train()
    result = verb.export_model(model, tmp_path / "network", format_, verb.sample_images(model, None)[0])
    assert result.logits <= 1e-5 * max(1, result.scale)
    assert [path.name for path in tmp_path.iterdir()] == ["network"]  # one file, nothing beside it


class Unfollowable(nn.Module):
    """What it computes depends on the values of the pixels."""

    def __init__(self, image_shape, num_classes) -> None:
        super().__init__()
        self.layer = nn.Linear(784, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.layer(images.flatten(1))
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_followed_is_a_failure_with_a_way_out(tmp_path):
    model = Classifier(Unfollowable, (1, 28, 28), DIGITS)
    images, _ = verb.sample_images(model, None)
    for format_ in ("onnx", "torch_export"):
        with pytest.raises(verb.ExportError, match=r"Unfollowable cannot be exported as .*--format safetensors"):
            verb.export_model(model, tmp_path / "network", format_, images)
    assert list(tmp_path.iterdir()) == []


def test_compiled_networks_keep_clean_keys(tmp_path):
    plain = list(Classifier(SmallCNN, (1, 28, 28), DIGITS).state_dict())
    model = Classifier(SmallCNN, (1, 28, 28), DIGITS)
    model.backbone.compile()
    assert list(model.state_dict()) == plain
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with torch.compiler.set_stance("force_eager"):  # what compilers do takes minutes and is not the question
        for compiled in (model, torch.compile(Classifier(SmallCNN, (1, 28, 28), DIGITS))):
            compiled.optimizer = torch.optim.Adam
            trainer = pl.Trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, accelerator="cpu", **quiet)
            trainer.fit(compiled, MNIST5k())
            trainer.save_checkpoint(tmp_path / "compiled.ckpt")
            assert list(torch.load(tmp_path / "compiled.ckpt", weights_only=True)["state_dict"]) == plain
    assert not any("_orig_mod" in name for name in plain)


def test_a_checkpoint_whose_name_is_any_bytes_is_exported(checkpoint, here):
    named = os.fsdecode(b"caf\xe9.ckpt")
    shutil.copy(checkpoint, named)
    assert main(["export", "--ckpt_path", named, "--output", "net.safetensors"]) == 0
    with safe_open("net.safetensors", "pt") as file:
        assert file.metadata()["checkpoint"] == "caf?.ckpt"
