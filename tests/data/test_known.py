"""The published data sets, read from tiny files in their own formats."""

import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny
from vision_zoo.data import CIFAR10, CIFAR100, EMNIST, KMNIST, MNIST, QMNIST, STL10, SVHN, USPS, FashionMNIST, MNIST5k
from vision_zoo.data import __all__ as data_sets
from vision_zoo.data.cifar import _read_batch
from vision_zoo.errors import ConfigError, DataError, DatasetNotFoundError

SETS = [
    (MNIST, tiny.write_mnist),
    (FashionMNIST, tiny.write_fashion_mnist),
    (KMNIST, tiny.write_kmnist),
    (QMNIST, tiny.write_qmnist),
    (EMNIST, tiny.write_emnist),
    (USPS, tiny.write_usps),
    (CIFAR10, tiny.write_cifar10),
    (CIFAR100, tiny.write_cifar100),
    (SVHN, tiny.write_svhn),
    (STL10, tiny.write_stl10),
]
every_set = pytest.mark.parametrize(("kind", "write"), SETS, ids=[kind.__name__ for kind, _ in SETS])


@every_set
def test_files_give_the_images_and_labels_that_were_written(kind, write, tmp_path, ready):
    data = ready(kind(str(write(tmp_path)), val_split=0.25))
    count = tiny.PER_CLASS * data.num_classes
    assert data.sizes == {"train": count * 3 // 4, "val": count // 4, "test": count // 4}
    for split in ("train", "val", "test"):
        images, labels = data.split_images(split)
        assert images.dtype == torch.uint8
        assert images.shape[1:] == data.image_shape
        assert labels.dtype == torch.int64
        assert labels.bincount(minlength=data.num_classes).unique().tolist() == [len(labels) // data.num_classes]
        brightness = images[:, :, 1:].float().mean((1, 2, 3))  # the writers paint a class in its own gray
        step = 230 // data.num_classes
        assert (brightness - labels * step - 9.5).abs().max() < 4
    assert len(data.mean) == len(data.std) == data.image_shape[0]
    assert len(set(data.class_names)) == data.num_classes


def test_every_data_set_of_a_known_format_is_tested_here():
    of_ones_own = {"ArrayFile", "ImageFolder", "ImageTable", "ImageDataModule", "Pack", "Parquet", "WebDataset"}
    assert {kind.__name__ for kind, _ in SETS} | {"MNIST5k"} == set(data_sets) - of_ones_own


class Photos(CIFAR10):
    """Somebody's own, with another name."""


@pytest.mark.filterwarnings("ignore:Photos. the")
def test_a_data_set_made_from_another_one_reads_the_same_files(tmp_path, ready):
    photos = ready(Photos(str(tiny.write_cifar10(tmp_path))))
    assert photos.num_classes == 10
    assert photos.note


def test_class_names_are_those_that_the_readme_promises():
    assert MNIST.class_names == MNIST5k.class_names == QMNIST.class_names == tuple("0123456789")
    assert FashionMNIST.class_names[0] == "T-Shirt"
    assert FashionMNIST.class_names[9] == "Ankle Boot"
    assert CIFAR10.class_names[3] == "cat"
    assert len(CIFAR100.class_names) == 100
    assert EMNIST(split_name="byclass").class_names[35:37] == ("Z", "a")
    assert EMNIST().class_names[36:] == tuple("abdefghnqrt")
    assert EMNIST(split_name="letters").class_names == tuple("abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize("split_name", ["byclass", "bymerge", "balanced", "letters", "digits", "mnist"])
def test_emnist_is_upright_and_counted_from_zero(split_name, tmp_path, ready):
    data = ready(EMNIST(str(tiny.write_emnist(tmp_path, split_name)), split_name=split_name))
    images, labels = data.split_images("test")
    assert (images[:, 0, 0] == 255).all()
    assert not (images[:, 0, :, 0] == 255).all()
    assert labels.unique().tolist() == list(range(data.num_classes))


def test_stl10_is_upright(tmp_path, ready):
    images, _ = ready(STL10(str(tiny.write_stl10(tmp_path)))).split_images("test")
    assert (images[:, :, 0] == 255).all()


def test_gzipped_files_do_as_well(tmp_path, ready):
    plain = ready(MNIST(str(tiny.write_mnist(tmp_path / "a")))).split_images("train")
    packed = ready(MNIST(str(tiny.write_mnist(tmp_path / "b", compress=True)))).split_images("train")
    assert torch.equal(plain.images, packed.images)


def test_images_can_be_resized(tmp_path, ready):
    data = ready(MNIST(str(tiny.write_mnist(tmp_path)), image_size=14))
    assert data.image_shape == (1, 14, 14)
    assert data.split_images("val").images.shape[1:] == (1, 14, 14)
    assert data.split_images("val").images.dtype == torch.uint8


@every_set
def test_the_constructor_touches_no_file(kind, write, tmp_path):
    data = kind(str(tmp_path / "nowhere"))
    assert data.num_classes == len(kind.class_names)
    assert not (tmp_path / "nowhere").exists()


@every_set
def test_missing_files_are_named_with_the_way_out(kind, write, tmp_path):
    with pytest.raises(DatasetNotFoundError) as caught:
        kind(str(tmp_path)).prepare_data()
    message = str(caught.value)
    assert message.startswith(f"{kind.__name__}: ")
    assert f"not found under {tmp_path}" in message
    assert "and the download failed (" in message
    assert "no network in tests" in message
    place = f"Put them there, or set --data.root to the folder that holds {kind.folder or 'them'}"
    assert message.endswith(f"{place}, or use the images that need no network: --data MNIST5k")


def test_only_what_is_missing_is_named(tmp_path):
    root = tiny.write_mnist(tmp_path)
    (root / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"^MNIST: t10k-labels-idx1-ubyte not found"):
        MNIST(str(root)).prepare_data()


def test_fit_never_reads_the_test_files(tmp_path):
    root = tiny.write_mnist(tmp_path)
    (root / "MNIST/raw/t10k-images-idx3-ubyte").write_bytes(b"broken")
    data = MNIST(str(root))
    data.prepare_data()
    data.setup("fit")
    data.setup("validate")
    assert set(data.sizes) == {"train", "val"}
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte is broken"):
        data.setup("test")


IMAGES = "MNIST/raw/train-images-idx3-ubyte"
LABELS = "MNIST/raw/train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (IMAGES, lambda old: b"", "is broken .the file is empty"),
        (IMAGES, lambda old: old[:-9], r"is broken .*array of size 156791 into shape \(200,\s?28,\s?28\)"),
        (IMAGES, lambda old: old + b"x", "array of size 156801 into shape"),
        (IMAGES, lambda old: b"<html>" + old, "not an IDX file of 3 dimension.*: it starts with 3c68746d"),
        (IMAGES, lambda old: old[:7], "is broken .*buffer is smaller than requested size"),
        (
            IMAGES,
            lambda old: b"\0\0\x08\x03" + np.array([200, 14, 56], ">u4").tobytes() + old[16:],
            "14x56 instead of 28x28",
        ),
        (LABELS, lambda old: old[:8] + b"\x0a" * 200, "labels from 10 to 10, but the 10 classes have 0 to 9"),
        (
            LABELS,
            lambda old: b"\0\0\x08\x01" + np.array([5], ">u4").tobytes() + old[8:13],
            "200 train images but 5 labels",
        ),
    ],
)
def test_a_broken_idx_file_is_named_with_what_is_wrong(name, damage, message, tmp_path):
    root = tiny.write_mnist(tmp_path)
    path = root / name
    path.write_bytes(damage(path.read_bytes()))
    data = MNIST(str(root))
    data.prepare_data()
    with pytest.raises(DataError, match=message) as caught:
        data.setup("fit")
    assert "--data MNIST5k" in str(caught.value)


@pytest.mark.parametrize("content", [b"no gzip at all", gzip.compress(bytes(1000), mtime=0)[:-12]])
def test_a_broken_gzip_file_is_named(content, tmp_path):
    root = tiny.write_mnist(tmp_path, compress=True)
    (root / f"{IMAGES}.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is broken"):
        MNIST(str(root)).setup("fit")


class Evil:
    def __reduce__(self):
        return (os.system, ("echo executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is broken"),
        (b"\x80\x02}q\x00(X", "is broken"),
        (b"<html>not found</html>", "is broken"),
        (pickle.dumps(Evil()), "system, which has no place in this dataset"),
        (pickle.dumps([1, 2]), "no pickled dictionary with data and labels"),
        (pickle.dumps({"data": np.zeros((2, 9), np.uint8), "labels": [0, 1]}), "not a table of 3072 bytes per image"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}), "2 images but labels of shape"),
    ],
)
def test_a_broken_cifar_file_is_named_and_never_executed(content, message, tmp_path, capfd):
    root = tiny.write_cifar10(tmp_path)
    (root / "cifar-10-batches-py/data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=f"data_batch_2 is broken .*{message}|{message}"):
        CIFAR10(str(root)).setup("fit")
    assert "executed" not in capfd.readouterr().out


def test_cifar_pickled_by_the_oldest_numpy_is_read(tmp_path):
    """The published files name numpy.core.multiarray, whatever numpy calls it today."""
    root = tiny.write_cifar10(tmp_path)
    path = root / "cifar-10-batches-py/test_batch"
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    data = CIFAR10(str(root))
    data.setup("test")
    assert data.sizes == {"test": 50}


def test_images_that_are_not_the_published_ones_are_used_with_a_notice(tmp_path):
    with pytest.warns(UserWarning, match="the train images in .* are not the published ones") as notices:
        CIFAR10(str(tiny.write_cifar10(tmp_path))).setup("fit")
    assert len(notices) == 1


@pytest.mark.parametrize(
    ("kind", "write", "name"),
    [
        (SVHN, tiny.write_svhn, "train_32x32.mat"),
        (STL10, tiny.write_stl10, "stl10_binary/train_X.bin"),
        (USPS, tiny.write_usps, "usps.bz2"),
    ],
)
def test_other_truncated_files_are_named(kind, write, name, tmp_path):
    path = write(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=f"{path.name} is broken"):
        kind(str(tmp_path)).setup("fit")


def test_mnist5k_needs_no_files_and_has_the_promised_parts(tmp_path, ready):
    parts = {seed: ready(MNIST5k(str(tmp_path / "none"), seed=seed)) for seed in (0, 1)}
    for data in parts.values():
        assert data.sizes == {"train": 3500, "val": 500, "test": 1000}
        for split, each in (("train", 350), ("val", 50), ("test", 100)):
            assert data.split_images(split).labels.bincount().tolist() == [each] * 10
    for split, same in (("train", False), ("val", False), ("test", True)):
        assert torch.equal(parts[0].split_images(split).images, parts[1].split_images(split).images) is same
    everything = torch.cat([parts[0].split_images(split).images for split in ("train", "val", "test")])
    assert len(everything) == 5000
    assert abs(everything.float().mean() / 255 - parts[0].mean[0]) < 0.002


def test_a_val_split_that_leaves_a_class_out_is_refused(tmp_path):
    data = MNIST(str(tiny.write_mnist(tmp_path)), val_split=3)
    with pytest.raises(ConfigError, match=r"--data\.val_split 3 would cut 3 of 200 images"):
        data.setup("fit")


real = pytest.mark.skipif(
    "VISION_ZOO_DATA" not in os.environ, reason="VISION_ZOO_DATA does not name a folder of real data"
)


@real
@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_real_files_have_the_published_numbers(kind, ready):
    if not (Path(os.environ["VISION_ZOO_DATA"]) / kind.folder).is_dir():
        pytest.skip(f"{kind.__name__} is not in VISION_ZOO_DATA")
    data = ready(kind(os.environ["VISION_ZOO_DATA"], val_split=0))
    assert data.sizes == {"train": 60_000, "val": 0, "test": 10_000}
    images = data.split_images("train").images.double() / 255
    assert abs(images.mean() - data.mean[0]) < 1e-4
    assert abs(images.std() - data.std[0]) < 1e-4


def test_batches_as_python_2_pickled_them_are_read(tmp_path):
    """The published files hold the bytes of the pixels as a text."""
    pixels = bytes(range(256)) * 24
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01K\x02M\0\x0c\x86"
    kind = b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    batch = b"\x80\x02}(U\x04data" + array + kind + b"\x89T\0\x18\0\0" + pixels + b"tbU\x06labels](K\x03K\x05eu."
    (tmp_path / "data_batch_1").write_bytes(batch)
    (images, labels), _ = _read_batch(tmp_path / "data_batch_1", ("labels",))
    assert images.numpy().tobytes() == pixels
    assert labels.tolist() == [3, 5]
