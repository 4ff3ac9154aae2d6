"""ImageTable, driven with tables as people have them."""

import csv
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests import tiny
from tests.cli.cases import FIT, refuse
from vision_zoo.__main__ import main
from vision_zoo.data import ImageTable
from vision_zoo.errors import ConfigError, DataError


def images(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> list[tuple[str, str]]:
    """root/CLASS_0.png, ...; their names and labels. The red of an image is 60 times its label and 20."""
    rows = []
    tiny.write_image_folder(root / "source", classes, count)
    for path in sorted((root / "source").glob("*/*")):
        path.rename(root / (name := f"{path.parent.name}_{int(path.stem)}.png"))
        rows.append((name, path.parent.name))
    return rows


def write(path: Path, rows, header: tuple[str, ...] = ("file", "label"), delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def table(path: Path, **options) -> ImageTable:
    return ImageTable(str(path), **{"image_size": 16, "val_split": 4, "test_split": 4, **options})


def files(data: ImageTable) -> dict[str, set[str]]:
    return {split: {path.name for path in paths} for split, (paths, _) in data._splits.items()}


@pytest.mark.parametrize(
    ("ending", "delimiter", "header"),
    [
        ("csv", ",", ("file", "label")),
        ("tsv", "\t", ("Image Name", "Class")),
        ("csv", ";", ("image_id", "diagnosis")),
        ("TXT", "|", ("\ufeffid", "species")),
    ],
)
def test_names_and_labels_come_from_the_columns_whatever_they_are_called(tmp_path, ready, ending, delimiter, header):
    data = ready(table(write(tmp_path / f"labels.{ending}", images(tmp_path), header, delimiter)))
    assert data.class_names == ("cat", "dog")
    assert data.sizes == {"train": 12, "val": 4, "test": 4}
    for split in data.sizes:
        pixels, labels = data.split_images(split)
        assert pixels[:, 0, 8, 8].tolist() == (labels * 60 + 20).tolist()
        assert labels.bincount().tolist() == [len(labels) // 2] * 2


def test_labels_may_be_numbers_and_are_in_their_order(tmp_path):
    rows = images(tmp_path, tuple("abcd"))
    numbers = dict(zip("abcd", ("10", "2.5", "-1", "07.0"), strict=True))
    data = table(
        write(tmp_path / "labels.csv", [(name, numbers[label]) for name, label in rows]), val_split=0, test_split=0.2
    )
    assert data.class_names == ("-1", "2.5", "07", "10")
    pixels, labels = data.split_images("test")
    assert [data.class_names[i] for i in labels] == [
        numbers["abcd"[red]].removesuffix(".0") for red in ((pixels[:, 0, 8, 8].long() - 20) // 60).tolist()
    ]


@pytest.mark.parametrize("part", [0.2, 0.05, 12])
@pytest.mark.parametrize("seed", range(5))
def test_images_of_one_group_are_never_in_two_splits(tmp_path, part, seed):
    rows = images(tmp_path, count=30)
    groups = [(name, label, f"patient {i % 7}") for i, (name, label) in enumerate(rows)]
    groups[0] = (*rows[0], "")  # alone
    data = table(
        write(tmp_path / "labels.csv", groups, ("file", "label", "group")), test_split=part, val_split=part, seed=seed
    )
    of = {name: group for name, _, group in groups}
    dealt = [{of[name] for name in names} for names in files(data).values()]
    assert len(dealt) == 3
    assert all(dealt)
    assert sum(map(len, dealt)) == len(set.union(*dealt)) == 8
    assert all(len(labels.unique()) == 2 for _, labels in data._splits.values())
    if part == 12:
        assert 1 <= len(files(data)["test"]) <= 17


def test_groups_of_several_classes_are_in_one_fold_each(tmp_path):
    """Where a patient has at most one image of a class, a class has as many groups as images."""
    rows = [
        (name, label, f"patient {i - 20 * (label == 'dog')}")
        for i, (name, label) in enumerate(images(tmp_path, count=30))
    ]
    of = {name: group for name, _, group in rows}
    path, validated = write(tmp_path / "labels.csv", rows, ("file", "label", "group")), list[str]()
    for number in range(1, 6):
        data = table(path, val_split=0, test_split=0, fold=f"{number}/5")
        data.setup("fit")
        train, val = files(data)["train"], files(data)["val"]
        assert not {of[name] for name in train} & {of[name] for name in val}
        validated += val
    assert sorted(validated) == sorted(of)


def test_a_class_of_one_group_cannot_be_cut(tmp_path):
    rows = [(name, label, label) for name, label in images(tmp_path)]
    data = table(write(tmp_path / "labels.csv", rows, ("file", "label", "group")), test_split=0.2)
    with pytest.raises(ConfigError, match=r"smallest class has 1 to deal \(images of one group count as one\)"):
        data.setup("fit")


def test_images_that_are_added_bring_none_of_the_training_into_the_test(tmp_path):
    rows = images(tmp_path, count=40)
    before = files(table(write(tmp_path / "a.csv", rows[:30] + rows[40:70]), test_split=0.2, val_split=0.2))
    after = files(table(write(tmp_path / "b.csv", reversed(rows)), test_split=0.2, val_split=0.2))
    assert not before["train"] & (after["test"] | after["val"])
    assert len(after["train"]) > len(before["train"])


def test_a_column_may_name_the_splits(tmp_path, ready):
    rows = [(*row, ("Training", "dev", "test", "train")[i % 4]) for i, row in enumerate(images(tmp_path))]
    data = ready(table(write(tmp_path / "labels.csv", rows, ("file", "label", "split"))))
    assert data.sizes == {"train": 10, "val": 5, "test": 5}
    no_val = [row for row in rows if row[2] != "dev"]
    data = ready(table(write(tmp_path / "labels.csv", no_val, ("file", "label", "split"))))
    assert data.sizes == {"train": 6, "val": 4, "test": 5}


def test_names_lead_to_files_without_their_endings_and_in_folders(tmp_path, ready):
    rows = images(tmp_path)
    accent = tmp_path / "deep" / unicodedata.normalize("NFD", "é")
    accent.mkdir(parents=True)
    for name, _ in rows[:5]:
        (tmp_path / name).rename(accent / name)
    rows[0] = ("deep\\é\\cat_0", "cat")
    rows = [(name.removesuffix(".png") if i % 2 else name, label) for i, (name, label) in enumerate(rows)]
    (tmp_path / "cat_1.txt").write_text("no image")
    assert sum(ready(table(write(tmp_path / "labels.csv", rows))).sizes.values()) == 20
    (tmp_path / "elsewhere").mkdir()
    moved = write(tmp_path / "elsewhere/labels.csv", rows)
    assert sum(ready(table(moved, root=str(tmp_path))).sizes.values()) == 20
    with pytest.raises(DataError, match=r"is in .*elsewhere; left out: 20 names without one file .* Set --data\.root"):
        ready(table(moved))


def test_names_without_a_file_and_rows_without_a_label_are_counted(tmp_path, ready):
    rows = [*images(tmp_path), ("gone.png", "cat"), ("cat_0.png", "cat"), ("x.png", ""), ("dog_3.png", None)]
    rows.remove(("dog_3.png", "dog"))
    data = table(write(tmp_path / "labels.csv", rows))
    counts = r"1 names without one file \(gone\.png\), 2 rows without a label \(x\.png, \.\.\.\)$"
    with pytest.warns(UserWarning, match=rf"labels\.csv; left out: {counts}"):
        ready(data)
    assert sum(data.sizes.values()) == 19
    with pytest.raises(DataError, match=r"row 21: there is no one file gone\.png in"):
        ready(table(write(tmp_path / "labels.csv", rows), strict=True))


def test_images_that_are_only_scored_may_lack_a_class(tmp_path):
    rows = [*images(tmp_path), ("", "ant")]
    data = table(write(tmp_path / "labels.csv", rows), test_split=1.0)
    assert data.class_names == ("ant", "cat", "dog")
    assert data.split_images("test").labels.bincount().tolist() == [0, 10, 10]
    with pytest.raises(DataError, match="has no images to train with of the label ant"):
        table(write(tmp_path / "labels.csv", rows)).setup("fit")


def test_parquet_is_read_where_pyarrow_is(tmp_path, monkeypatch, ready):
    rows = [{"image": name, "label": 1.0 * (label == "dog")} for name, label in images(tmp_path)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labels.parquet")
    data = ready(table(tmp_path / "labels.parquet"))
    assert data.class_names == ("0", "1")
    assert sum(data.sizes.values()) == 20
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"to read .*labels\.parquet, pip install 'vision_zoo\[parquet\]'"):
        ready(table(tmp_path / "labels.parquet"))


GOOD = [("cat_0.png", "cat"), ("dog_0.png", "dog")]
SPLIT, GROUP = ("file", "label", "split"), ("file", "label", "group", "split")


@pytest.mark.parametrize(
    ("rows", "header", "options", "message"),
    [
        (GOOD, ("picture of", "label"), {}, r"columns picture of, label\. Name that of the images with .*\.image"),
        (GOOD, ("file", "kind"), {}, r"columns file, kind\. Name that of the labels with --data\.columns\.label"),
        (GOOD, ("file", "label"), {"columns": {"group": "patient"}}, r"Name that of the groups with .*columns\.group"),
        (GOOD[:1], ("file", "label"), {}, "has the one label cat, where two or more are needed"),
        ([], ("file", "label"), {}, r"labels\.csv has no rows"),
        ([("cat_0.png", "cat", "x")], ("file", "label", "label"), {}, "has two columns of one name"),
        ([("cat_0.png", ""), ("dog_0.png", "")], ("file", "label"), {}, "left out: 2 rows without a label"),
        ([*GOOD, ("cat_1.png", "cat", "x")], ("file", "label"), {}, "row 4 has more values than there are columns"),
        ([(*GOOD[0], "fold 3")], SPLIT, {}, "row 2: the split 'fold 3' is none of train, val and test"),
        ([*GOOD, ("cat_0.png", "dog")], ("file", "label"), {}, r"row 4: cat_0\.png stands above with another label"),
        ([*GOOD, ("twice", "dog")], ("file", "label"), {"strict": True}, r"row 4: there is no one file twice in "),
        (
            [(*GOOD[0], "a", "train"), (*GOOD[1], "a", "test")],
            GROUP,
            {},
            "row 3: group a stands above in another split",
        ),
    ],
)
def test_other_tables_are_refused_with_the_row(tmp_path, rows, header, options, message):
    images(tmp_path)
    for name in ("a/twice.png", "b/twice.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    with pytest.raises((ConfigError, DataError), match=message):
        table(write(tmp_path / "labels.csv", rows, header), **options).class_names  # noqa: B018  # reading it raises


@pytest.mark.parametrize("content", [b"file,label\n\xff\xfe,cat\n", "file,label\na,b\n".encode("utf-16")])
def test_a_table_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "labels.csv").write_bytes(content)
    way_out = r"Correct the table \(CSV in UTF-8, or Parquet\), or give another with --data\.path"
    with pytest.raises(DataError, match=rf"labels\.csv is broken .*{way_out}"):
        table(tmp_path / "labels.csv").class_names  # noqa: B018  # reading it raises


def test_one_file_is_one_image_however_it_is_spelled(tmp_path):
    rows = [(name, label, "train") for name, label in images(tmp_path)]
    rows.append((f"../{tmp_path.name}/{rows[0][0]}", rows[0][1], "test"))
    data = table(write(tmp_path / "labels.csv", rows, ("file", "label", "split")))
    with pytest.raises(DataError, match="stands above with another label, split or group"):
        data.setup()


def test_blanks_before_quotation_marks_are_no_part_of_a_label(tmp_path):
    lines = [f'{name}, "{label}"' if n % 2 else f"{name}, {label}" for n, (name, label) in enumerate(images(tmp_path))]
    (tmp_path / "labels.csv").write_text("\n".join(["file, label", *lines]))
    assert table(tmp_path / "labels.csv").class_names == ("cat", "dog")


def test_a_quotation_mark_that_nothing_ends_loses_no_rows_in_silence(tmp_path):
    lines = [f"{name},{label},{chr(34) * (n == 7)}big one" for n, (name, label) in enumerate(images(tmp_path))]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,notes", *lines]))
    with pytest.raises(DataError, match=r"labels\.csv"):
        table(tmp_path / "labels.csv").setup()


def test_a_word_that_ends_like_a_number_stays(tmp_path):
    names = [name for name, _ in images(tmp_path)]
    labels = ["v1", "v1.0"] * (len(names) // 2)
    assert table(write(tmp_path / "a.csv", zip(names, labels, strict=True))).class_names == ("v1", "v1.0")


def test_a_table_is_all_that_fit_test_and_predict_need(here, capsys):
    rows = images(here)
    write(here / "labels.csv", [(name, "x", label) for name, label in rows], ("id", "label", "animal"))
    words = ["--data", "ImageTable", "--data.path", "labels.csv", "--data.columns.label", "animal"]
    assert main([*FIT, *words, "--data.image_size", "32", "--data.resize", "pad"]) == 0, capsys.readouterr().err
    (here / "other").mkdir()
    for path in here.glob("*.png"):
        path.rename(here / "other" / path.name)
    (here / "labels.csv").rename(here / "other/table.csv")
    moved = ["--ckpt_path", "best", "--data.path", "other/table.csv"]
    assert main(["test", *moved]) == 0, capsys.readouterr().err
    with (here / "runs/default/version_0/test/per_class.csv").open() as file:
        assert 2 <= sum(int(row["images"]) for row in csv.DictReader(file)) < 10
    assert main(["predict", "--ckpt_path", "best", "--images", "other"]) == 0
    refuse(capsys, ("test", "--ckpt_path", "best"), r"there is no file .*labels\.csv\. Set --data\.path")


def test_tables_given_elsewhere_lead_here(here, capsys):
    write(here / "labels.csv", images(here))
    hint = r"--data ImageTable --data\.path .*labels\.csv"
    for words in (("--data", "labels.csv"), ("--data", "ArrayFile", "--data.path", "labels.csv"),
                  ("--data", "ImageFolder", "--data.root", ".")):  # fmt: skip
        refuse(capsys, (*FIT, *words), hint)
    pixels = np.zeros((3, 785), int).tolist()
    write(here / "digits.csv", pixels, ("label", *(f"pixel{i}" for i in range(784))))
    wrong = ("--data", "ImageTable", "--data.path", "digits.csv", "--data.columns.labl", "kind")
    refuse(capsys, (*FIT, *wrong), r"--data\.columns: labl is none of image, label, split, group")
    message = r"has the columns label, pixel0, .*pixel18, \.\.\.\. Name that of the images"
    refuse(capsys, (*FIT, "--data", "ImageTable", "--data.path", "digits.csv"), message)
