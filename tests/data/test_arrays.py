import numpy as np
import pytest
import torch

from tests import tiny
from vision_zoo.data import ArrayFile
from vision_zoo.errors import ConfigError, DataError, DatasetNotFoundError


def parts(train=40, test=20, shape=(12, 10, 3), classes=4):
    return (*tiny.digits(train, classes, shape), *tiny.digits(test, classes, shape, seed=1))


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    "names",
    [("train_images", "train_labels", "test_images", "test_labels"), ("x_train", "y_train", "x_test", "y_test")],
)
@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 1), (1, 12, 10), (12, 10, 3), (3, 12, 10)])
def test_both_conventions_and_every_order_of_axes_are_read(tmp_path, ready, names, shape):
    arrays = dict(zip(names, parts(shape=shape), strict=True))
    arrays[names[1]] = arrays[names[1]][:, None]
    data = ready(ArrayFile(save(tmp_path / "a.npz", **arrays), val_split=8))
    assert data.image_shape == (3 if 3 in shape else 1, 12, 10)
    assert data.class_names == ("0", "1", "2", "3")
    assert data.sizes == {"train": 32, "val": 8, "test": 20}
    images, labels = data.split_images("test")
    assert images.dtype == torch.uint8
    assert (images.float().mean((1, 2, 3)) - labels * 57 - 9.5).abs().max() < 4


def test_a_ready_validation_part_is_used(tmp_path, ready):
    images, labels, *_ = parts()
    path = save(
        tmp_path / "a.npz",
        **{
            f"{split}_{name}": array
            for split in ("train", "val", "test")
            for name, array in (("images", images), ("labels", labels))
        },
    )
    assert ready(ArrayFile(path, val_split=0.5)).sizes == {"train": 40, "val": 40, "test": 40}


def test_one_set_is_cut_into_three_disjoint_parts(tmp_path, ready):
    images = np.arange(60, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    path = save(tmp_path / "a.npz", images=images, labels=np.arange(60) % 3, class_names=np.array(["a", "b", "c"]))
    data = ready(ArrayFile(path, val_split=6, test_split=12))
    assert data.class_names == ("a", "b", "c")
    found = [data.split_images(split).images[:, 0, 0, 0].tolist() for split in ("train", "val", "test")]
    assert [len(part) for part in found] == [42, 6, 12]
    assert sorted(sum(found[1:], found[0])) == list(range(60))


def test_names_of_classes_may_be_stored_as_bytes(tmp_path):
    path = save(tmp_path / "a.npz", images=IMAGES, labels=LABELS, class_names=np.array([b"cat", "Bär".encode()]))
    assert ArrayFile(path, test_split=2, val_split=2).class_names == ("cat", "Bär")


def test_facts_are_those_of_the_training_part(tmp_path):
    path = save(tmp_path / "a.npz", **dict(zip(("x_train", "y_train", "x_test", "y_test"), parts(), strict=True)))
    data = ArrayFile(path, val_split=0)
    images = data.split_images("train").images.double() / 255
    torch.testing.assert_close(data.mean, tuple(images.mean((0, 2, 3)).tolist()), atol=1e-4, rtol=0)


def test_images_can_be_resized_and_statistics_given(tmp_path, ready):
    path = save(tmp_path / "a.npz", **dict(zip(("x_train", "y_train", "x_test", "y_test"), parts(), strict=True)))
    data = ready(ArrayFile(path, image_size=8, mean=[0.5], std=[0.5, 0.4, 0.3]))
    assert data.image_shape == (3, 8, 8)
    assert data.split_images("train").images.shape[1:] == (3, 8, 8)
    assert (data.mean, data.std) == ((0.5,) * 3, (0.5, 0.4, 0.3))
    with pytest.raises(ConfigError, match=r"--data\.mean has 2 values"):
        ArrayFile(path, mean=[0.5, 0.5]).mean  # noqa: B018  # reading it raises


IMAGES = np.zeros((8, 4, 4), np.uint8)
LABELS = np.arange(8) % 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": IMAGES / 255, "labels": LABELS},
            r"images in .* is float64 of shape .*, but uint8 in \[0, 255\] .* is needed. Save .*round",
        ),
        ({"images": IMAGES[:, 0], "labels": LABELS}, r"is uint8 of shape \(8, 4\), but"),
        ({"images": np.zeros((8, 4, 4, 5), np.uint8), "labels": LABELS}, "with 1 or 3 channels is needed"),
        (
            {"images": IMAGES, "labels": np.zeros((8, 3), int)},
            r"labels in .* is int64 of shape \(8, 3\), but one whole number",
        ),
        ({"images": IMAGES, "labels": LABELS / 2}, "is float64 of shape"),
        ({"images": IMAGES, "labels": np.int64(3)}, r"labels in .* is int64 of shape \(\), but"),
        (
            {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[..., None].repeat(3, 3), "y_test": LABELS},
            r"x_test in .*a\.npz has images of .* \(3, 4, 4\), but those to train with are \(1, 4, 4\). Save both",
        ),
        (
            {"x_train": IMAGES, "y_train": LABELS, "x_test": np.zeros((8, 5, 4), np.uint8), "y_test": LABELS},
            r"x_test in .*a\.npz has images of .* \(1, 5, 4\), but .* \(1, 4, 4\). .*--data.image_size resizes all",
        ),
        (
            {"images": IMAGES, "labels": LABELS[:5]},
            r"labels .* of shape \(5,\), but .* is needed for each of images, which is of shape \(8, 4, 4\)",
        ),
        ({"images": IMAGES, "labels": LABELS - 1}, "one whole number, 0 or more, is needed"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"images .* is uint8 of shape \(0, 4, 4\), but"),
        (
            {"images": IMAGES, "labels": LABELS + 10**12},
            r"labels .* go up to 1000000000001, far beyond the classes",
        ),
        ({"photos": IMAGES}, "has no train images; it has photos. Name them train_images and train_labels"),
        ({"images": np.array([None] * 8), "labels": LABELS}, "is broken .*allow_pickle"),
        (
            {"images": IMAGES, "labels": LABELS, "class_names": np.array(["one"])},
            "labels from 0 to 1, but the 1 classes",
        ),
    ],
)
def test_other_contents_are_refused_with_the_way_out(tmp_path, arrays, message):
    path = save(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        ArrayFile(path, test_split=2, val_split=2).mean  # noqa: B018  # reading it raises


def test_arrays_may_all_be_there_to_be_scored(tmp_path):
    path = save(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    data = ArrayFile(path, test_split=1.0)
    assert data.class_names == ("0", "1")
    data.setup("test")
    assert data.sizes == {"test": 8}
    message = r"no train images in .*a\.npz: all are for the test, by --data\.test_split 1\.0"
    with pytest.raises(ConfigError, match=message):
        data.setup("fit")


def test_a_file_may_have_test_images_and_nothing_else(tmp_path):
    data = ArrayFile(save(tmp_path / "a.npz", x_test=IMAGES, y_test=LABELS))
    assert (data.class_names, data.image_shape) == (("0", "1"), (1, 4, 4))
    data.setup("test")
    assert data.sizes == {"test": 8}


def test_few_test_images_may_be_of_many_classes_beside_images_of_which_none_are_cut_then(tmp_path):
    images = np.zeros((40, 4, 4), np.uint8)
    few = {"x_test": images[:2], "y_test": np.array([19, 19])}
    data = ArrayFile(save(tmp_path / "a.npz", images=images, labels=np.arange(40) % 20, **few), val_split=20)
    data.setup()
    assert (data.num_classes, data.sizes) == (20, {"test": 2, "train": 20, "val": 20})


def test_labels_that_do_not_count_from_zero_are_told(tmp_path):
    path = save(tmp_path / "a.npz", images=IMAGES, labels=LABELS + 1)
    with pytest.warns(UserWarning, match=r"no train images of 1 of its 3 classes \(0\), which the"):
        assert ArrayFile(path, test_split=2, val_split=2).num_classes == 3


def test_parts_of_several_sizes_are_resized_to_a_given_one(tmp_path):
    large = np.zeros((8, 9, 7, 1), np.uint8)
    path = save(tmp_path / "a.npz", x_train=IMAGES, y_train=LABELS, x_test=large, y_test=LABELS)
    assert ArrayFile(path, image_size=(6, 9), val_split=2).split_images("train").images.shape[1:] == (1, 6, 9)
    data = ArrayFile(path, image_size=6, val_split=2)
    assert data.split_images("train").images.shape[1:] == data.split_images("test").images.shape[1:] == (1, 6, 6)


def test_labels_beyond_the_classes_of_training_are_refused(tmp_path):
    path = save(tmp_path / "a.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=LABELS + 1)
    message = r"y_test in .*a\.npz go up to 2, but the classes are the 2 of training, 0 to 1"
    with pytest.raises(DataError, match=message):  # before training, not after it
        ArrayFile(path, val_split=2).class_names  # noqa: B018  # reading it raises


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04broken"])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz is broken .*--data.path"):
        ArrayFile(str(tmp_path / "a.npz")).class_names  # noqa: B018  # reading it raises


def test_a_truncated_file_is_named(tmp_path):
    path = tiny.write_npz(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"a\.npz is broken"):
        ArrayFile(str(path)).class_names  # noqa: B018  # reading it raises


def test_a_damaged_array_is_named(tmp_path):
    path = tiny.write_npz(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    content[5000] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz is broken .*CRC"):
        ArrayFile(str(path)).class_names  # noqa: B018  # reading it raises


def test_one_array_alone_and_a_missing_file_are_named(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    with pytest.raises(DataError, match=r"a\.npy is broken .File is not a zip file"):
        ArrayFile(str(tmp_path / "a.npy")).class_names  # noqa: B018  # reading it raises
    with pytest.raises(DatasetNotFoundError, match=r"there is no file .*b\.npz. Set --data.path"):
        ArrayFile(str(tmp_path / "b.npz")).class_names  # noqa: B018  # reading it raises


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    assert ArrayFile(str(tmp_path / "missing.npz")).hparams["path"] == str(tmp_path / "missing.npz")
