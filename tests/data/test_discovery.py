"""Nothing that lies in a folder of images is ignored silently."""

import os
import shutil
import unicodedata
import warnings
from pathlib import Path

import pytest
from PIL import Image

from tests import tiny
from tests.cli.cases import FOLDER
from vision_zoo.__main__ import main
from vision_zoo.data import ImageFolder
from vision_zoo.data.splits import part_of, places_by_name
from vision_zoo.errors import DataError
from vision_zoo.verbs.image_files import find_images


def folder(root: Path, **options) -> ImageFolder:
    return ImageFolder(str(root), **{"image_size": 16, "val_split": 2, "test_split": 4, **options})


def told(act) -> list[str]:
    """Our warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(warning.message) for warning in caught if "vision_zoo" in warning.filename]


NAMES = {
    "train": "train Training TRAIN trn train2017 trainset train_images training-set trainval seg_train my.train",
    "val": "val valid Validation dev devel eval evaluation val2017 dev_set seg_val validation-data",
    "test": "test Testing tests tst holdout hold-out held_out test_set testimages unseen seg_test test1",
    None: "cat contest latest testimony trainer valley devil medieval developer evaluator test_tube train_station",
}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in NAMES.items() for name in names.split()])
def test_a_name_of_a_split_is_known_by_its_words(split, name):
    assert part_of(name) == split


@pytest.mark.parametrize(
    "names",
    [
        ("train", None, "testing"),
        ("Training", None, "Testing"),
        ("train", "dev", "holdout"),
        ("seg_train", "seg_val", "seg_test"),
        (None, "valid", "Test"),
    ],
)
def test_folders_of_splits_are_taken_for_what_they_are_whatever_they_are_called(tmp_path, names):
    count = {"train": 6, "val": 3, "test": 2}
    called = {split: name for split, name in zip(count, names, strict=True) if name}
    for split, name in called.items():
        tiny.write_image_folder(tmp_path / name, count=count[split])
    data = folder(tmp_path)
    (line,) = told(lambda: data.class_names)
    assert all(f"{name} is taken for {split}" in line for split, name in called.items() if name != split)
    sizes = {split: 2 * count[split] for split in called}
    if sizes.get("train") and not called.get("val"):
        sizes |= {"train": 10, "val": 2}
    for split, size in sizes.items():
        data.setup({"train": "fit", "val": "validate"}.get(split, split))
        assert data.sizes[split] == size


def flat(path: Path) -> None:
    path.mkdir()
    Image.new("RGB", (20, 20)).save(path / "a.png")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            lambda root: tiny.write_image_folder(root / "dev"),
            "dev and val are all for val. Rename or move all but one",
        ),
        (
            lambda root: flat(root / "Testing"),
            "Testing has no folders, but two classes or more are needed",
        ),
    ],
)
def test_a_folder_of_a_split_that_cannot_be_taken_is_refused(tmp_path, prepare, message):
    for split in ("train", "val"):
        tiny.write_image_folder(tmp_path / split)
    prepare(tmp_path)
    with pytest.raises(DataError, match=message):
        folder(tmp_path).class_names  # noqa: B018  # reading it raises


@pytest.mark.parametrize("name", ["testing", "holdout", "valid"])
def test_a_split_among_the_classes_is_refused(tmp_path, name):
    tiny.write_image_folder(tmp_path)
    flat(tmp_path / name)
    with pytest.raises(DataError, match=rf"has the folders cat, dog, {name}, which are not classes"):
        folder(tmp_path).class_names  # noqa: B018  # reading it raises


def test_what_lies_beside_the_splits_is_counted(tmp_path):
    for name in ("train", "test", "masks", ".git"):
        tiny.write_image_folder(tmp_path / name)
    shutil.copy(tmp_path / "train/cat/0000.png", tmp_path / "cover.png")
    (tmp_path / "labels.csv").write_text("a,b\n")
    (line,) = told(lambda: folder(tmp_path).class_names)
    for part in ("1 hidden (.git)", "1 .csv (labels.csv)", "2 beside the parts (cover.png, ...)"):
        assert part in line


def test_every_file_that_is_left_out_is_counted_by_kind_in_one_line(here):
    root = tiny.write_image_folder(here / "pictures", count=20)
    for path in sorted(root.glob("*/*"))[::2]:
        path.rename(path.with_suffix(".jxl" if path.parent.name == "cat" else ".dcm"))
    (root / "cat/.hidden").mkdir()
    (root / "dog/thumbs").mkdir()
    (root / "note").write_text("no image")
    kinds = {"1 without ending (note)", "1 hidden (.hidden)", "10 .jxl (0000.jxl, ...)", "10 .dcm (0000.dcm, ...)"}
    for words in (FOLDER, ("test", "--ckpt_path", "best")):
        lines = told(lambda words=words: main(list(words)))
        (line,) = (x for x in lines if x.startswith(f"ImageFolder: {root}; left out: "))
        assert all(kind in line for kind in {*kinds, "1 inside of class folders (thumbs)"}), line
        assert ". Convert images of other kinds to PNG or JPEG" in line
        assert line.endswith(". Images must lie directly in the folder of their class")
    (found,) = told(lambda: main(["predict", "--ckpt_path", "best", "--images", "pictures/cat", "pictures/dog/*"]))
    assert found.startswith("--images; left out: 1 hidden (.hidden), 10 .jxl (0000.jxl, ...), 10 .dcm (0000.dcm, ...)")
    assert len((here / "predictions.csv").read_text().splitlines()) == 21


def test_files_without_an_ending_are_tried(tmp_path):
    root = tiny.write_image_folder(tmp_path / "in")
    for number, path in enumerate(sorted(root.glob("cat/*"))):
        path.rename(path.with_name(f"{number}" if number % 2 else f"1.2.840.{number}"))
    (root / "cat/LICENSE").write_text("no image")
    os.mkfifo(root / "cat/pipe")
    (root / "cat/loop").symlink_to("loop")
    data = folder(root, test_split=0, val_split=0)
    (line,) = told(lambda: data.class_names)
    assert line.endswith("; left out: 3 without ending (LICENSE, ...)")
    assert data.split_images("train").labels.bincount().tolist() == [10, 10]
    assert len(find_images([str(root)])) == len(find_images([str(root / "*/*")])) == 20


@pytest.mark.parametrize("in_memory", [True, False])
def test_many_files_that_cannot_be_decoded_are_counted(tmp_path, in_memory):
    root = tiny.write_image_folder(tmp_path, count=30)
    tiny.write_image_folder(root, ("cat",), count=3, suffix=".bmp")
    for path in [*root.glob("cat/001*"), *root.glob("cat/*.bmp")]:
        path.write_bytes(b"broken")
    data = folder(root, test_split=0, val_split=0, in_memory=in_memory, mean=[0.5], std=[0.5])
    lines = told(lambda: [list(data.train_dataloader()) for _ in range(2)])
    assert sum("cannot be decoded (" in line for line in lines) == 10
    (count,) = (line for line in lines if line.startswith("files that cannot be decoded, 13"))
    assert "10 .png (" in count
    assert "3 .bmp (" in count


def accents(form: str) -> tuple[str, str]:
    return unicodedata.normalize(form, "café"), unicodedata.normalize(form, "müsli")


def test_letters_that_are_stored_in_two_ways_are_the_same(tmp_path, ready):
    for split, form in (("train", "NFC"), ("val", "NFD"), ("test", "NFD")):
        tiny.write_image_folder(tmp_path / split, accents(form), count=3)
    data = ready(folder(tmp_path))
    assert data.class_names == accents("NFC")
    assert data.sizes == {"train": 6, "val": 6, "test": 6}
    first, second = (places_by_name([f"{name}/é.png" for name in accents(form)], 0) for form in ("NFC", "NFD"))
    assert first.equal(second)
    tiny.write_image_folder(tmp_path / "train", accents("NFD"))
    with pytest.raises(DataError, match="two folders of the same name, whose letters are stored differently"):
        folder(tmp_path).class_names  # noqa: B018  # reading it raises


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("scan[1].png", ["scan[1].png"]),
        ("scan[1]*.png", ["scan[1].png", "scan[1]b.png", "scan1.png"]),
        ("scan[0-9].png", ["scan1.png"]),
        ("[2024]/*.png", ["[2024]/a.png"]),
        ("[2024]/[ab].png", ["[2024]/a.png"]),
        ("*/*.png", ["2/c.png", "[2024]/a.png"]),
    ],
)
def test_brackets_of_a_name_are_no_pattern(here, pattern, found):
    for name in ("scan1.png", "scan[1].png", "scan[1]b.png", "[2024]/a.png", "2/c.png"):
        (here / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(here / name)
    for base in ("", f"{here}/"):
        assert sorted(map(str, find_images([base + pattern]))) == sorted(base + name for name in found)
