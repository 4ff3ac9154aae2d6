"""Files made to do harm by being read: none of their payloads runs, and each is refused by name."""

import copy
import gzip
import io
import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests import tiny
from tests.hostile.helpers import COMMAND, Calls, refused, save
from vision_zoo.__main__ import main
from vision_zoo.backbones import LeNet5
from vision_zoo.classifier import Classifier
from vision_zoo.data import ArrayFile
from vision_zoo.data.mnist import read_idx
from vision_zoo.errors import CheckpointError, DataError

# ------------------------------------------------------------------------------------------------------------- pickles

GADGETS = {
    "os.system": Calls(os.system, COMMAND),
    "builtins.eval": Calls(eval, f"__import__('os').system({COMMAND!r})"),
    "builtins.exec": Calls(exec, "open('MARKER', 'w')"),
    "subprocess.Popen": Calls(subprocess.Popen, ["touch", "MARKER"]),
    "getattr chain": Calls(getattr, Calls(__import__, "evil_package"), "Net"),
    "pickle in pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, COMMAND))),
    "torch.load": Calls(torch.load, "inner.pt"),
    "torch.hub.load": Calls(torch.hub.load, ".", "evil", "local"),
    "importlib": Calls(__import__, "evil_package"),
    "a module with hooks": nn.Linear(2, 2),
}


@pytest.mark.parametrize("name", GADGETS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_that_calls_something_is_not_run(name, legacy, good, here, capsys, evil_package):
    torch.save(Calls(os.system, COMMAND), "inner.pt")
    good["hyper_parameters"]["mean"] = GADGETS[name]
    torch.save(good, "evil.ckpt", _use_new_zipfile_serialization=not legacy)
    assert "evil.ckpt is not a checkpoint that can be loaded safely" in refused(
        capsys, ["test", "--ckpt_path", "evil.ckpt"]
    )
    with pytest.raises(CheckpointError, match="can be loaded safely"):
        Classifier.load_from_checkpoint("evil.ckpt")
    torch.save({"head.2.weight": GADGETS[name]}, "evil.pth", _use_new_zipfile_serialization=not legacy)
    words = ["fit", "--model.backbone", "LeNet5", "--model.weights", "evil.pth"]
    assert "evil.pth is not a checkpoint that can be loaded safely" in refused(capsys, words)


def test_what_stands_beside_weights_of_others_is_not_made(here, capsys):
    state = {"model": LeNet5((1, 28, 28), 10).state_dict(), "best": Calls(np.savetxt, "MARKER", [0.9])}
    torch.save(state, "evil.pth")
    assert main(["summary", "--model.backbone", "LeNet5", "--model.weights", "evil.pth"]) == 0
    assert not Path("MARKER").exists()


@pytest.mark.parametrize("name", GADGETS)
def test_a_cifar_batch_that_calls_something_is_not_run(name, here, capsys, evil_package):
    tiny.write_cifar10(here / "data", 50, 20)
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], "more": GADGETS[name]}
    (here / "data/cifar-10-batches-py/data_batch_3").write_bytes(pickle.dumps(batch))
    error = refused(capsys, ["fit", "--data", "CIFAR10", "--model.backbone", "SmallCNN"])
    assert "data_batch_3 is broken (it names " in error
    assert "which has no place in this dataset" in error


def test_a_bare_pickle_is_not_run(here, capsys):
    Path("evil.ckpt").write_bytes(pickle.dumps(Calls(os.system, COMMAND)))
    assert "can be loaded safely" in refused(capsys, ["predict", "--ckpt_path", "evil.ckpt", "--images", "."])


# ------------------------------------------------------------------------------------- bombs: small files, huge content


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(good, here, capsys):
    torch.save(good, "plain.ckpt")
    with zipfile.ZipFile("plain.ckpt") as plain, zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in plain.namelist():
            bomb.writestr(entry, plain.read(entry))
        bomb.writestr("plain/data/999", bytes(20_000_000))
    assert "a compressed archive of 2" in refused(capsys, ["test", "--ckpt_path", "bomb.ckpt"])


def test_a_tensor_that_claims_to_be_huge_is_refused(good, here, capsys):
    good["state_dict"]["backbone.head.2.weight"] = torch.zeros(1).expand(10**6, 10**6)
    assert "do not fit" in refused(capsys, ["test", "--ckpt_path", save(good)])
    with pytest.raises(CheckpointError, match="do not fit"):
        Classifier.load_from_checkpoint("run/checkpoints/evil.ckpt")


def array_file(**headers: tuple[int, ...]) -> None:
    with zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in headers.items():
            stream = io.BytesIO()
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", stream.getvalue() + bytes(100))


def test_an_array_that_announces_more_than_it_holds_is_refused(here, capsys):
    array_file(images=(10**6, 1000, 1000), labels=(100,))
    words = ["fit", "--data", "ArrayFile", "--data.path", "a.npz"]
    assert "a.npz is broken (" in refused(capsys, words)


def test_an_array_that_unpacks_to_more_than_the_memory_is_refused(here, monkeypatch):
    array_file(images=(10, 28, 28), labels=(10,))
    original = zipfile.ZipFile.getinfo

    def huge(self, name):
        entry = copy.copy(original(self, name))
        entry.file_size = 2**40
        return entry

    monkeypatch.setattr(zipfile.ZipFile, "getinfo", huge)
    with pytest.raises(DataError, match=r"a\.npz is broken .*would unpack from .* bytes to 1,099,511,627,776"):
        ArrayFile("a.npz").class_names  # noqa: B018  # reading it raises


def test_an_array_of_objects_is_not_unpickled(here, capsys):
    np.savez("a.npz", images=np.array([Calls(os.system, COMMAND)] * 4, dtype=object), labels=np.arange(4))
    words = ["fit", "--data", "ArrayFile", "--data.path", "a.npz"]
    assert "which has no place in this dataset" in refused(capsys, words)


def test_an_array_that_lies_about_its_memory_is_not_believed(here, capsys):
    """numpy takes the bytes of an object array for addresses, if its dtype says that they are no objects."""

    class Lies:
        def __reduce__(self):
            kind = Calls(np.dtype, "O", False, True)
            kind.call = (*kind.call, (3, "|", None, None, None, -1, -1, 0))
            rebuild, arguments, _ = np.empty(0).__reduce__()
            return rebuild, arguments, (1, (2,), kind, False, b"A" * 16)

    tiny.write_cifar10(here / "data", 50, 20)
    batch = pickle.dumps({"data": Lies(), "labels": [0, 1]})
    (here / "data/cifar-10-batches-py/data_batch_3").write_bytes(batch)
    assert "data_batch_3 is broken" in refused(capsys, ["fit", "--data", "CIFAR10", "--model.backbone", "SmallCNN"])


def test_packed_files_are_not_unpacked_without_an_end(here, monkeypatch):
    monkeypatch.setattr("vision_zoo.data.mnist.MOST_BYTES", 10**6)
    Path("a-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(2 * 10**6)))
    with pytest.raises(ValueError, match="more than 1,000,000 bytes"):
        read_idx(Path("a-idx3-ubyte.gz"), 3)


def picture_bomb(path: str) -> None:
    """A PNG of 60,000 x 60,000 pixels in its header, in a hundred bytes."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    Path(path).write_bytes(content)


def test_a_picture_bomb_is_refused_by_predict_and_left_out_of_a_folder(trained_run, here, capsys):
    picture_bomb("bomb.png")
    words = ["predict", "--ckpt_path", str(trained_run), "--images", "bomb.png"]
    error = refused(capsys, words)
    assert "bomb.png: Image size (3600000000 pixels) exceeds limit" in error
    tiny.write_image_folder(here / "pictures", count=4)
    picture_bomb("pictures/cat/bomb.png")
    words = ["fit", "--data", "ImageFolder", "--data.root", "pictures", "--data.image_size", "32", "--data.strict",
             "true", "--model.backbone", "SmallCNN", "--data.val_split", "2", "--data.test_split", "0"]  # fmt: skip
    assert "bomb.png cannot be decoded (Image size (3600000000 pixels) exceeds limit" in refused(capsys, words)


def test_a_large_picture_is_only_warned_about(trained_run, here, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("L", (40, 40)).save("large.png")  # between once and twice the limit
    assert main(["predict", "--ckpt_path", str(trained_run), "--images", "large.png"]) == 0


# ---------------------------------------------------------------------------------------------------------------- YAML

TAGS = [
    "!!python/object/apply:os.system ['touch MARKER']",
    "!!python/object/new:subprocess.Popen [['touch', 'MARKER']]",
    "!!python/name:os.system ''",
    "!!python/module:evil_package ''",
    "!!python/object/apply:builtins.exec [\"open('MARKER', 'w')\"]",
]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_tags_are_not_run(tag, here, capsys, evil_package):
    Path("evil.yaml").write_text(f"model: {{backbone: {tag}}}\ndata: MNIST5k\n")
    assert "evil.yaml is not valid YAML" in refused(capsys, ["fit", "--config", "evil.yaml"])
    refused(capsys, ["fit", "--model.backbone", f"{{class_path: {tag}}}"])
    refused(capsys, ["fit", "--data.augmentation", f"[{tag}]"])
