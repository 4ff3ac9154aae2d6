import re

import numpy as np
import pytest
import torch

from tests import tiny
from vision_zoo.__main__ import main
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
            {"images": IMAGES * 1j, "labels": LABELS},
            r"images in .* is complex128 of shape .*, but numbers of shape .* are needed",
        ),
        (
            {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES / 255, "y_test": LABELS},
            r"x_test in .* is float64, but the images to train with are 8 bits. Save both alike",
        ),
        (
            {"images": np.array([None] * 8), "labels": LABELS},
            r"is broken \(its objects are not all numbers, texts or plain arrays",
        ),
        ({"images": IMAGES, "labels": np.arange(8).astype("M8[s]")}, r"datetime64\[s\] of shape .* but one word"),
        ({"images": IMAGES, "labels": LABELS * 1j}, r"complex128 of shape .* but one word"),
        ({"images": IMAGES, "labels": np.full(8, np.nan)}, r"float64 of shape .* but one word"),
        ({"images": IMAGES, "labels": np.ones((8, 2))}, r"of shape \(8, 2\), but one word, or one whole number"),
        (
            {
                "x_train": IMAGES,
                "y_train": np.array(["a", "b"])[LABELS],
                "x_test": IMAGES,
                "y_test": np.array(["c"] * 8),
            },
            r"y_test in .* has c, of which there are no training images. Leave those out, or name all",
        ),
        ({"images": IMAGES[:, 0], "labels": LABELS}, r"is uint8 of shape \(8, 4\), but"),
        ({"images": np.zeros((8, 4, 4, 5), np.uint8), "labels": LABELS}, "with 1 or 3 channels are needed"),
        (
            {"images": IMAGES, "labels": np.zeros((8, 3), int)},
            r"labels in .* is int64 of shape \(8, 3\), but one word, or one whole number",
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
        ({"photos": IMAGES}, "has no train images with labels; it has photos. Name them train_images and train_labels"),
        (
            {"images": IMAGES, "labels": LABELS, "class_names": np.array(["one"])},
            "labels from 0 to 1, but the 1 classes",
        ),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.array(["a", "b", "a"])}, "has a more than once"),
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


def test_nothing_is_cut_from_all_images_where_some_are_to_train_with(tmp_path):
    path = save(tmp_path / "a.npz", x=IMAGES, y=LABELS, x_train=IMAGES[:6], y_train=LABELS[:6])
    with pytest.raises(DataError, match="has no test images with labels"):
        ArrayFile(path).load("test")


@pytest.mark.parametrize("other", ["density", "identity", "index", "quality"])
def test_a_key_that_only_ends_like_one_of_labels_or_images_is_none(tmp_path, other):
    arrays = {other: np.zeros(len(LABELS), np.int64), "images": IMAGES, "labels": LABELS}
    data = ArrayFile(save(tmp_path / "a.npz", **arrays), test_split=2)
    assert torch.cat([data.load(split).labels for split in ("train", "test")]).bincount().tolist() == [4, 4]


@pytest.mark.parametrize("name", ["x_valid y_valid", "validation_images validation_labels", "X_val y_val"])
def test_validation_images_are_found_under_their_names(tmp_path, name):
    keys = dict(zip(name.split(), (IMAGES[:2], LABELS[:2]), strict=True))
    data = ArrayFile(save(tmp_path / "a.npz", x_train=IMAGES, y_train=LABELS, **keys))
    data.setup("fit")
    assert data.sizes == {"train": 8, "val": 2}


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
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)  # of which none is what is asked for
    with pytest.raises(
        DataError, match=r"a\.npy has no train images with labels; with it are a, images, labels\. Name them"
    ):
        ArrayFile(str(tmp_path / "a.npy")).class_names  # noqa: B018  # reading it raises
    with pytest.raises(DatasetNotFoundError, match=r"there is no file .*b\.npz. Set --data.path"):
        ArrayFile(str(tmp_path / "b.npz")).class_names  # noqa: B018  # reading it raises


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    assert ArrayFile(str(tmp_path / "missing.npz")).hparams["path"] == str(tmp_path / "missing.npz")


# ------------------------------------------------------------------------------ arrays as other programs save them

PIXELS, DIGITS = tiny.digits(40, 2, (6, 6))  # the second class is brighter than the first
PIXELS[:, 0, 0], PIXELS[:, 0, 1] = 0, 255
WORDS = np.array(["cat", "dog"])[DIGITS]
PHOTOS = np.empty(40, dtype=object)
PHOTOS[:] = list(PIXELS)
FORMS = {
    "uint16": (PIXELS.astype(np.uint16) * 257, DIGITS),
    "12 bits": ((PIXELS / 255 * 4095).astype(np.uint16), DIGITS),
    "int64": (PIXELS.astype(np.int64) * 2, DIGITS),
    "float in [0, 1]": (PIXELS / 255, DIGITS),
    "float16 in [-1, 1]": ((PIXELS / 127.5 - 1).astype(np.float16), DIGITS),
    "float in [0, 255]": (PIXELS.astype(np.float32), DIGITS),
    "truth values": (PIXELS > 57, DIGITS.astype(bool)),
    "(N, 1)": (PIXELS, DIGITS[:, None].astype(float)),
    "(1, N)": (PIXELS, DIGITS[None].astype(">i8")),
    "one-hot": (PIXELS, np.eye(2)[DIGITS]),
    "one-hot of truth values": (PIXELS, np.eye(2, dtype=bool)[DIGITS]),
    "words": (PIXELS, WORDS),
    "bytes": (PIXELS, WORDS.astype("S")[:, None]),
    "objects": (PIXELS, WORDS.astype(object)),
    "objects that are numbers": (PIXELS, np.array([*map(np.int64, DIGITS), None], dtype=object)[:-1]),
    "objects that are arrays": (PHOTOS, DIGITS),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", ["pair", "parts"])
def test_images_and_labels_of_every_kind_are_those_that_were_saved(form, split, tmp_path, ready, capsys):
    images, labels = FORMS[form]
    pairs = {"images": images, "labels": labels}
    if split == "parts":
        pairs = {"X_train": images, "y_train": labels, "X_val": images, "y_val": labels}
        pairs |= {"X_test": images[:10], "y_test": labels.reshape(-1)[:10] if labels.shape[0] == 1 else labels[:10]}
    data = ready(ArrayFile(save(tmp_path / "a.npz", **pairs), val_split=0, test_split=10, mean=[0.0], std=[1.0]))
    assert data.class_names == (("cat", "dog") if labels.dtype.kind in "USO" and "cat" in str(labels) else ("0", "1"))
    found, kept = data.split_images("test")
    dim, bright = (found[kept == k][:, :, 1:].float().mean() for k in (0, 1))
    scaled = (0.0, 255.0) if form == "truth values" else (9.5, 124.5)
    assert abs(dim - scaled[0]) < 3
    assert abs(bright - scaled[1]) < 3
    told = capsys.readouterr().err.count("become 0 to 255")
    assert told == (images.dtype.kind in "iuf" and images.dtype != np.uint8)


def test_one_range_serves_all_images_whatever_the_test_holds(tmp_path, ready):
    dark = {"x_train": PIXELS / 255, "y_train": DIGITS, "x_test": PIXELS[:4] / 2550, "y_test": DIGITS[:4]}
    images, _ = ready(ArrayFile(save(tmp_path / "a.npz", **dark))).split_images("test")
    assert (images[:, 0] - torch.from_numpy(PIXELS[:4] / 10).round()).abs().max() <= 1


@pytest.mark.parametrize(
    ("images", "labels", "given"),
    [
        ("images", "labels", "images"),
        ("X", "y", "X"),
        ("digits_images", "digits_labels", "digits_images"),
        ("x_train", "y_train", "y_train"),
    ],
)
def test_npy_files_beside_each_other_are_one_dataset(images, labels, given, tmp_path):
    np.save(tmp_path / f"{images}.npy", PIXELS)
    np.save(tmp_path / f"{labels}.npy", WORDS.astype(object))
    np.save(tmp_path / "letters_images.npy", PIXELS[:3])  # another one
    np.save(tmp_path / "letters_labels.npy", WORDS[:3])
    data = ArrayFile(str(tmp_path / f"{given}.npy"), val_split=4)
    assert (data.class_names, len(data.split_images("train").labels)) == (
        ("cat", "dog"),
        32 if "train" not in images else 36,
    )


def test_words_are_in_the_order_of_class_names(tmp_path):
    names = np.array(["dog", "cat", "eel"], dtype=object)
    data = ArrayFile(save(tmp_path / "a.npz", images=PIXELS, labels=WORDS, class_names=names), test_split=0)
    with pytest.warns(UserWarning, match=r"no train images of 1 of its 3 classes"):
        assert data.class_names == ("dog", "cat", "eel")
    assert data.load("train").labels.tolist() == (1 - DIGITS.astype(int)).tolist()


@pytest.mark.parametrize("form", ["rows", "opacity", "nan", "alone", "names"])
def test_the_advice_of_each_message_works(form, here, capsys):
    images = {
        "rows": PIXELS.reshape(40, 36),
        "opacity": np.repeat(PIXELS[..., None], 4, axis=3),
        "nan": np.where(PIXELS > 130, np.nan, PIXELS / 255),
    }.get(form, PIXELS)
    keys = ("photos", "kinds") if form == "names" else ("images", "labels")
    if form == "alone":
        np.save("plain.npy", PIXELS)
    else:
        np.savez("a.npz", **dict(zip(keys, (images, DIGITS), strict=True)))
    words = ["show", "--output", "a.png", "--data", "ArrayFile", "--data.path"]
    assert main([*words, "plain.npy" if form == "alone" else "a.npz"]) == 2
    error = capsys.readouterr().err
    if form in ("alone", "names"):
        keys = re.search(r"or just (\w+) and (\w+)", error).groups()
        for key, array in zip(keys, (images, DIGITS), strict=True) if form == "alone" else ():
            np.save(f"{key}.npy", array)
    else:
        images = eval(re.search(r" as (.*)", error)[1], {"images": images, "np": np})
    if form != "alone":
        np.savez("a.npz", **dict(zip(keys, (images, DIGITS), strict=True)))
    assert main([*words, f"{keys[0]}.npy" if form == "alone" else "a.npz"]) == 0


def test_the_images_of_a_run_are_read_from_the_file_once(here, monkeypatch):
    images, labels = tiny.digits(40, 2)
    np.savez("a.npz", images=images, labels=labels)
    data, sizes, read = ArrayFile("a.npz", val_split=4), [], np.lib.format.read_array
    monkeypatch.setattr(np.lib.format, "read_array", lambda *a, **k: [sizes.append((x := read(*a, **k)).size), x][1])
    assert data.image_shape[1:] == images.shape[1:3]
    data.setup("fit")
    assert sizes.count(images.size) == 1
    assert torch.equal(data.split_images("test").images, ArrayFile("a.npz").load("test").images)
