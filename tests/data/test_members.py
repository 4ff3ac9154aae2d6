"""Images in tar shards and in Parquet files: what others write is read, whole, in the splits that the names tell."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.cli.cases import refuse
from vision_zoo.__main__ import main
from vision_zoo.data import Pack, Parquet, WebDataset
from vision_zoo.data.sources import Files
from vision_zoo.errors import ConfigError, DataError, DatasetNotFoundError

NAMES = ["wolf", "cat", "dog"]


def picture(number: int) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
    return content.getvalue(), pixels.transpose(2, 0, 1)


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def labelled(kind: str, numbers: range) -> dict[str, bytes]:
    found = {}
    for number in numbers:
        label = number % 3
        text = {"cls": str(label), "json": json.dumps({"label": label, "caption": "a.b"}), "txt": f"{NAMES[label]}\n"}[
            kind
        ]
        found |= {f"./shot/{number:04}.png": picture(number)[0], f"./shot/{number:04}.{kind}": text.encode()}
    return found


@pytest.mark.parametrize("kind", ["cls", "json", "txt"])
def test_tar_shards_are_read(kind, here):
    for number in range(2):
        write_tar(here / f"shards/train-{number:06}.tar", labelled(kind, range(number * 15, number * 15 + 15)))
    write_tar(here / "shards/val-000000.tar", labelled(kind, range(30, 36)))
    data = WebDataset("shards/*.tar", image_size=16, test_split=6)
    data.setup()
    assert data.class_names == (("cat", "dog", "wolf") if kind == "txt" else ("0", "1", "2"))
    assert data.sizes == {"train": 24, "val": 6, "test": 6}
    order = [2, 0, 1] if kind == "txt" else [0, 1, 2]
    images, labels = data.split_images("val")
    assert labels.tolist() == [order[number % 3] for number in range(30, 36)]
    assert np.array_equal(images, [picture(number)[1] for number in range(30, 36)])


@pytest.mark.parametrize("names", ["train_a train_b val_a test_a", "x-train-0-of-2 x-train-1-of-2 x-dev-of-2 x_test.1"])
def test_words_in_the_names_of_shards_tell_the_split(names, here):
    for number, name in enumerate(names.split()):
        write_tar(here / f"{name}.tar", labelled("cls", range(number * 6, number * 6 + 6)))
    data = WebDataset("*.tar", image_size=16)
    data.setup()
    assert data.sizes == {"train": 12, "val": 6, "test": 6}


@pytest.mark.parametrize(
    ("names", "test_split", "sizes"),
    [
        (["d/train/cat-0", "d/train/dev_board-1", "d/test/training_shoes-0"], 0, (12, 6)),  # folders count before words
        (["d/crash_test_dummies", "d/dev_kit", "d/b"], 3, (15, 3)),  # alone they tell nothing
    ],
)
def test_a_word_in_the_name_of_a_shard_may_be_a_name_as_any_other(names, test_split, sizes, here):
    for number, name in enumerate(names):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(here / f"{name}.tar", labelled("cls", range(number * 6, number * 6 + 6)))
    data = WebDataset("d/**/*.tar", image_size=16, val_split=0, test_split=test_split)
    data.setup()
    assert (data.sizes["train"], data.sizes["test"]) == sizes


def test_of_several_images_of_a_key_the_one_without_a_further_name_counts(here):
    members = {}
    for name, content in labelled("cls", range(12)).items():
        mask = {name.replace(".png", ".depth.png"): picture(99)[0]} if name.endswith(".png") else {}
        members |= mask | {name: content}
    write_tar(here / "a.tar", members)
    data = WebDataset("a.tar", image_size=16, val_split=0, test_split=0)
    with pytest.warns(UserWarning, match=r"left out: 12 further images of a key \(shot/0000\.depth\.png, \.\.\.\)"):
        images, _ = data.split_images("train")
    assert np.array_equal(images, [picture(number)[1] for number in range(12)])


def test_tars_that_cannot_be_used_are_named(here):
    with pytest.raises(DatasetNotFoundError, match=r"there is no file .*shards/\*.tar"):
        WebDataset("shards/*.tar").setup()
    write_tar(here / "a.tar.gz", labelled("cls", range(6)), "w:gz")
    with pytest.raises(DataError, match=r"a\.tar\.gz is broken"):
        WebDataset("a.tar.gz").setup()
    write_tar(
        here / "b.tar", {**labelled("cls", range(30)), "x.png": b"", "y.cls": b"1", "z.txt": b"2", "z.jpg": b"no"}
    )
    data = WebDataset("b.tar", image_size=16)
    left_out = r"left out: 1 keys without a label \(x\), 1 keys without an image \(y\)"
    with pytest.warns(UserWarning, match=left_out), pytest.warns(UserWarning, match=r"b\.tar/z\.jpg cannot be decoded"):
        data.setup()


def test_a_shard_that_is_cut_off_or_damaged_is_named(here):
    write_tar(here / "whole.tar", labelled("cls", range(8)))
    whole = (here / "whole.tar").read_bytes()
    with tarfile.open(here / "whole.tar") as tar:
        headers = [info.offset for info in tar]
        end = tar.offset
    for cut in (headers[3], headers[3] + 100, headers[4] + 700, end):
        (here / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut\.tar is broken"):
            WebDataset("cut.tar").setup()
    damaged = bytearray(whole)
    damaged[headers[9] + 20] ^= 1
    (here / "flipped.tar").write_bytes(damaged)
    with pytest.raises(DataError, match=r"flipped\.tar is broken"):
        WebDataset("flipped.tar").setup()


def test_images_of_one_name_in_a_shard_are_counted(here):
    members = [*labelled("cls", range(30)).items()]
    with tarfile.open(here / "a.tar", "w") as tar:
        for name, content in [*members, *members[:4]]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data = WebDataset("a.tar", image_size=16, val_split=6, test_split=6)
    with pytest.warns(UserWarning, match="left out: 4 names that come twice, of which the last counts"):
        data.setup()
    assert sum(data.sizes.values()) == 30


def write_parquet(path: Path, numbers: range, names: list | None = NAMES, **columns: list) -> None:
    images = [{"bytes": picture(number)[0], "path": None} for number in numbers]
    table = pa.table({"image": images, "label": [number % 3 for number in numbers], **columns})
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if names else None
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata(about), path, row_group_size=7)


def test_parquet_files_of_hugging_face_are_read_and_packed(here):
    write_parquet(here / "x/train-00000-of-00002-0a1b.parquet", range(15))
    write_parquet(here / "x/train-00001-of-00002.parquet", range(15, 30))
    write_parquet(here / "x/test-00000-of-00001.parquet", range(30, 36))
    options = {"image_size": 16, "val_split": 6, "in_memory": False}
    data = Parquet("x/*.parquet", **options)
    data.setup()
    assert isinstance(data.subset("train").source, Files)
    assert data.class_names == tuple(NAMES)
    assert data.sizes == {"train": 24, "val": 6, "test": 6}
    images, labels = data.split_images("test")
    assert labels.tolist() == [number % 3 for number in range(30, 36)]
    assert np.array_equal(images, [picture(number)[1] for number in range(30, 36)])
    words = ["pack", "--data", "Parquet", "--data.path", "x/*.parquet", "--output"]
    for name, more in (("a.vz", ["--image_size", "16"]), ("b.vz", ["--encoded"])):
        assert main([*words, name, *more]) == 0
        packed = Pack(name, image_size=16, val_split=6)
        for split in ("train", "val", "test"):
            for mine, its in zip(packed.split_images(split), data.split_images(split), strict=True):
                assert torch.equal(mine, its)


@pytest.mark.parametrize(("kind", "ending"), [(WebDataset, "tar"), (Parquet, "parquet")])
def test_a_folder_stands_for_the_files_in_it(here, kind, ending):
    (here / "data").mkdir()
    for name, numbers in (("train-0", range(12)), ("train-1", range(12, 24)), ("test-0", range(24, 30))):
        if kind is WebDataset:
            write_tar(here / f"data/{name}.tar", labelled("cls", numbers))
        else:
            write_parquet(here / f"data/{name}.parquet", numbers)
    (here / "data").rename(here / "val [1]")  # which says nothing of the files in it
    data = kind("val [1]", image_size=16, val_split=6)
    data.setup()
    assert data.sizes == {"train": 18, "val": 6, "test": 6}
    for name in ("train", "test"):
        (here / name).mkdir()
        for file in (here / "val [1]").glob(f"{name}-*"):
            (here / name / f"{file.stem[-1]}.{ending}").write_bytes(file.read_bytes())
    shutil.rmtree(here / "val [1]")
    data = kind(".", image_size=16, val_split=6)
    data.setup()
    assert data.sizes == {"train": 18, "val": 6, "test": 6}
    (here / "empty").mkdir()
    with pytest.raises(DatasetNotFoundError, match=rf"there is no \.{ending} file in .*empty\."):
        kind("empty").setup()


def test_several_labels_of_an_image_and_names_of_files_are_refused_in_words(here, capsys):
    write_parquet(here / "several.parquet", range(12), None, label=[[n % 3, 1] for n in range(12)])
    with pytest.raises(DataError, match=r"several\.parquet: label holds list.*and one label for each image is needed"):
        Parquet("several.parquet", image_size=16).setup()
    pairs = pa.array([[n % 3, 1] for n in range(12)], pa.list_(pa.int64(), 2))
    write_parquet(here / "pairs.parquet", range(12), None, label=pairs)
    with pytest.raises(DataError, match=r"pairs\.parquet: label holds fixed_size_list"):
        Parquet("pairs.parquet", image_size=16).setup()
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "label": [0, 1]}), "names.parquet")
    with pytest.raises(ConfigError, match=r"of a table of file names: --data ImageTable"):
        Parquet("names.parquet", image_size=16).setup()
    write_parquet(here / "images.parquet", range(12))
    refuse(capsys, ["show", "--data", "ImageTable", "--data.path", "images.parquet"], "themselves: --data Parquet")


def test_labels_of_one_class_are_one_however_they_are_stored(here):
    write_parquet(here / "train.parquet", range(24), None)
    missing = [float(number % 3) if number % 4 else None for number in range(24)]
    write_parquet(here / "test.parquet", range(24), None, label=missing)
    data = Parquet("*.parquet", image_size=16)
    with pytest.warns(UserWarning, match="left out: 6 rows without a label"):
        data.setup()
    assert (data.class_names, data.sizes["test"]) == (("0", "1", "2"), 18)


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (None, [0, 1, 2], "name different classes: 0, 1, 2"),
        (None, ["eel", "cat", "dog"], "name different classes: eel"),
        (["wolf", "cat", "eel"], [0, 1, 1], "name different classes: dog, eel"),
        (NAMES, [-2, 0, 1], r"val\.parquet, row 0: -2 is the label of no class"),
    ],
)
def test_classes_that_nothing_is_trained_for_are_refused(here, names, labels, message):
    write_parquet(here / "train.parquet", range(24))
    write_parquet(here / "val.parquet", range(3), names, label=labels)
    with pytest.raises(DataError, match=message):
        Parquet("*.parquet", image_size=16).setup()


def test_columns_of_other_names_and_rows_without_labels(here):
    words = ["a", "b", None, ""] * 6
    write_parquet(here / "x.parquet", range(24), None, kind=words)
    data = Parquet("x.parquet", columns={"label": "kind"}, image_size=16)
    with pytest.warns(UserWarning, match="left out: 12 rows without a label"):
        assert data.class_names == ("a", "b")
    assert Parquet("x.parquet").class_names == ("0", "1", "2")
    with pytest.raises(ConfigError, match=r"has the columns image, label, kind\. Name that of the labels with"):
        Parquet("x.parquet", columns={"label": "sort"}).setup()
    (here / "y.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"y\.parquet is broken"):
        Parquet("y.parquet").setup()
