import io
import os
import struct
import warnings
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image
from torch import nn

from tests import tiny
from vision_zoo.data import ImageFolder
from vision_zoo.errors import ConfigError, DataError, DatasetNotFoundError


def folder(root, **options):
    return ImageFolder(str(root), **{"image_size": 16, "val_split": 2, "test_split": 4, **options})


@pytest.fixture
def pictures(tmp_path):
    return tiny.write_image_folder(tmp_path / "pictures")


def test_class_folders_are_cut_into_three_stratified_parts(pictures, ready):
    data = ready(folder(pictures))
    assert data.class_names == ("cat", "dog")
    assert data.image_shape == (3, 16, 16)
    assert data.sizes == {"train": 14, "val": 2, "test": 4}
    for split in ("train", "val", "test"):
        images, labels = data.split_images(split)
        assert images.dtype == torch.uint8
        assert torch.equal(images[:, 0, 8, 8], (labels * 60 + 20).to(torch.uint8))
        assert labels.bincount().unique().numel() == 1
    shades = [data.split_images(split).images[:, :2, 8, 8].tolist() for split in ("train", "val", "test")]
    assert len({tuple(shade) for part in shades for shade in part}) == 20


def test_pictures_that_are_added_or_taken_away_bring_none_of_the_training_into_the_test(pictures):
    def parts():
        data = folder(pictures, val_split=0.2, test_split=0.2)
        return {
            split: {f"{path.parent.name}/{path.name}" for path in data._splits[split][0]}
            for split in ("train", "val", "test")
        }

    tiny.write_image_folder(pictures, count=40)
    before = parts()
    for count in (45, 200):
        tiny.write_image_folder(pictures, ("cat",), count=count)
        more = parts()
        assert all(len(more[split]) >= len(before[split]) for split in more)
        assert not before["train"] & (more["test"] | more["val"])
        assert not before["val"] & more["test"]
    for path in sorted(pictures.glob("dog/*"))[:3]:
        path.unlink()
    assert not before["train"] & parts()["test"]


def test_a_fraction_cuts_about_as_much_from_many_pictures(pictures):
    tiny.write_image_folder(pictures, count=300)
    parts = folder(pictures, val_split=0.1, test_split=0.2)._splits
    sizes = {split: len(paths) for split, (paths, _) in parts.items()}
    assert sum(sizes.values()) == 600
    assert sizes["test"] == pytest.approx(120, abs=30)
    assert sizes["val"] == pytest.approx(48, abs=20)


def test_pictures_of_kinds_that_cannot_be_read_are_counted(pictures):
    for name in ("a.heic", "b.HEIC", "notes.txt"):
        (pictures / "cat" / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"left out: 2 \.heic \(a\.heic, \.\.\.\), 1 \.txt .*\. Convert images"):
        folder(pictures).class_names  # noqa: B018  # reading it warns


def test_ready_split_folders_are_used(tmp_path, ready):
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        tiny.write_image_folder(tmp_path / split, count=count)
    assert ready(folder(tmp_path, val_split=0.5)).sizes == {"train": 12, "val": 6, "test": 4}


def test_pictures_that_are_only_scored_need_no_others(tmp_path):
    tiny.write_image_folder(tmp_path / "only/test", count=5)
    only = folder(tmp_path / "only")
    only.setup("test")
    assert only.sizes == {"test": 10}
    tiny.write_image_folder(tmp_path / "all", count=5)
    everything = folder(tmp_path / "all", test_split=1.0)
    everything.setup("test")
    assert everything.sizes == {"test": 10}
    for data, why in (
        (only, "there is no folder train"),
        (everything, "all are for the test, by --data.test_split 1.0"),
    ):
        with pytest.raises(ConfigError, match=f"no train images in .*: {why}"):
            data.setup("fit")


@pytest.mark.parametrize("strict", [False, True])
def test_a_link_to_a_picture_that_is_not_there_is_named(pictures, strict):
    (pictures / "cat/gone.png").symlink_to("/nowhere/gone.png")
    data = folder(pictures, strict=strict, test_split=0, val_split=0)
    if not strict:
        with pytest.warns(UserWarning, match=r"gone\.png cannot be decoded"):
            assert len(data.mean) == 3
        data = folder(pictures, strict=strict, test_split=0, val_split=0)
    if strict:
        with pytest.raises(DataError, match=r"gone\.png cannot be decoded"):
            data.split_images("train")
    else:
        with pytest.warns(UserWarning, match=r"gone\.png cannot be decoded"):
            assert len(data.split_images("train").labels) == 20


def test_without_a_test_folder_one_is_cut_from_train(tmp_path, ready):
    tiny.write_image_folder(tmp_path / "train", count=10)
    tiny.write_image_folder(tmp_path / "val", count=3)
    assert ready(folder(tmp_path)).sizes == {"train": 16, "val": 6, "test": 4}


def test_streamed_and_kept_images_are_the_same(pictures, ready):
    kept, streamed = (ready(folder(pictures, in_memory=x, batch_size=5, num_workers=2)) for x in (True, False))
    for split in ("train", "val", "test"):
        one, other = ([*getattr(data, f"{split}_dataloader")()] for data in (kept, streamed))
        assert len(one) == len(other)
        for (images, labels), (images_too, labels_too) in zip(one, other, strict=True):
            assert torch.equal(images, images_too)
            assert torch.equal(labels, labels_too)
    assert len(streamed.sample("train", 3).labels) == 3


def test_mean_and_std_come_from_the_training_part(pictures):
    data = folder(pictures)
    images = data.split_images("train").images.double() / 255
    torch.testing.assert_close(data.mean, tuple(images.mean((0, 2, 3)).tolist()), atol=1e-4, rtol=0)
    torch.testing.assert_close(data.std[1:2], tuple(images.std((0, 2, 3)).tolist())[1:2], atol=2e-4, rtol=0)
    assert data.std[2] == 1.0  # one colour everywhere


def test_given_mean_and_std_are_not_computed(tmp_path):
    data = ImageFolder(str(tmp_path / "missing"), mean=[0.5], std=[0.25])
    assert (data.mean, data.std) == ((0.5,) * 3, (0.25,) * 3)
    assert data.image_shape == (3, 224, 224)


def without_palette() -> bytes:
    """A PNG of palette colours that lacks the palette."""
    file = io.BytesIO()
    Image.new("P", (20, 20)).save(file, "PNG")
    content = file.getvalue()
    start = content.index(b"PLTE") - 4  # length, name, data, checksum
    return content[:start] + content[start + 12 + struct.unpack(">I", content[start : start + 4])[0] :]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("content", [b"", b"no picture", without_palette(), None])
def test_a_broken_file_is_named_once_and_left_out(pictures, in_memory, content):
    path = pictures / "cat" / "0003.png"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    data = folder(pictures, val_split=0, test_split=0, batch_size=4, in_memory=in_memory, mean=[0.5], std=[0.5])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader = data.train_dataloader()
        for epoch in range(2):
            loader.set_epoch(epoch)
            batches = list(loader)
            assert [len(labels) for _, labels in batches][:4] == [4] * 4
            assert len(batches) == len(loader)
    named = [str(warning.message) for warning in caught if "0003.png" in str(warning.message)]
    assert len(named) == 1
    assert "cannot be decoded" in named[0]


def test_evaluation_leaves_a_broken_file_out_and_counts_nothing_twice(pictures):
    (pictures / "cat" / "0003.png").write_bytes(b"")
    data = folder(pictures, test_split=18, val_split=0, batch_size=1, in_memory=False)
    data.setup("test")
    broken = any("0003.png" in data._subsets["test"].source.paths[index] for index in data._subsets["test"].indices)
    with pytest.warns(UserWarning, match=r"0003\.png cannot be decoded"):
        assert sum(len(labels) for _, labels in data.test_dataloader()) == 18 - broken


@pytest.mark.filterwarnings("ignore")
def test_lightning_runs_through_a_streamed_folder_with_broken_files(pictures):
    for name in ("cat/0003.png", "cat/0008.png", "dog/0005.png", "dog/0000.png", "dog/0001.png"):
        (pictures / name).write_bytes(b"")
    data = folder(
        pictures, in_memory=False, batch_size=1, val_split=6, test_split=8, num_workers=1, mean=[0.5], std=[0.5]
    )
    counts = {"train": 0, "val": 0, "test": 0}

    class Counter(LightningModule):
        layer = nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            counts["train"] += len(batch[1])
            return self.layer(torch.ones(1, 1)).sum()

        def validation_step(self, batch, batch_idx):
            counts["val"] += len(batch[1])

        def test_step(self, batch, batch_idx):
            counts["test"] += len(batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.layer.parameters(), lr=0.1)

    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Counter(), data)
    trainer.test(Counter(), data, verbose=False)
    assert counts["train"] == 12
    broken = {
        split: sum(not Path(subset.source.paths[index]).stat().st_size for index in subset.indices)
        for split, subset in data._subsets.items()
    }
    assert sum(broken.values()) == 5
    assert counts["val"] == 2 * (6 - broken["val"])
    assert counts["test"] == 8 - broken["test"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_streamed_epoch_continues_at_the_next_batch(pictures, num_workers):
    data = folder(pictures, in_memory=False, batch_size=3, num_workers=num_workers)
    loader, resumed = data.train_dataloader(), data.train_dataloader()
    loader.set_epoch(2)
    batches = iter(loader)
    next(batches)
    next(batches)
    resumed.load_state_dict(loader.state_dict())  # workers have read further ahead, which must not count
    resumed.set_epoch(2)
    rest = list(batches)
    assert len(rest) == len(loader) - 2
    for (images, labels), (images_too, labels_too) in zip(rest, resumed, strict=True):
        assert torch.equal(images, images_too)
        assert torch.equal(labels, labels_too)
    resumed.set_epoch(3)
    assert len(list(resumed)) == len(resumed)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_files_leaves_the_random_numbers_of_the_run_alone(pictures, num_workers):
    loader = folder(pictures, in_memory=False, num_workers=num_workers).train_dataloader()
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("in_memory", [True, False])
def test_strict_stops_at_a_broken_file(pictures, in_memory):
    for path in pictures.glob("cat/*"):
        path.write_bytes(b"")
    data = folder(pictures, strict=True, in_memory=in_memory)
    with pytest.raises(DataError, match=r"\.png cannot be decoded .*--data.strict false"):
        list(data.train_dataloader())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_without_any_readable_file_is_refused(pictures, in_memory):
    for path in pictures.glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="can be decoded"):
        list(folder(pictures, in_memory=in_memory).train_dataloader())


def test_names_of_any_script_are_sorted_and_hidden_files_ignored(tmp_path):
    tiny.write_image_folder(tmp_path, ("ねこ", "Äpfel", "собака", "zebra"))
    (tmp_path / ".git").mkdir()
    (tmp_path / "ねこ" / "._0001.png").write_bytes(b"")
    (tmp_path / "ねこ" / "notes.txt").write_text("no picture")
    data = folder(tmp_path, test_split=0, val_split=4)
    assert data.class_names == ("zebra", "Äpfel", "собака", "ねこ")
    data.setup("fit")
    assert sum(data.sizes.values()) == 40


@pytest.mark.parametrize("layout", ["", "test", "val"])
def test_pictures_that_are_only_scored_may_lack_a_class_that_has_an_empty_folder(tmp_path, layout):
    tiny.write_image_folder(tmp_path / layout)
    (tmp_path / layout / "ant").mkdir()
    if layout == "val":
        tiny.write_image_folder(tmp_path / "train", ("ant", "cat", "dog"))
    data = folder(tmp_path, test_split=1.0)
    assert data.class_names == ("ant", "cat", "dog")
    split = layout or "test"
    assert data.split_images(split).labels.bincount().tolist() == [0, 10, 10]


@pytest.mark.parametrize("trains", [True, False])
def test_to_validate_reads_nothing_but_a_folder_of_validation_pictures(tmp_path, trains, monkeypatch):
    tiny.write_image_folder(tmp_path / "val")
    if trains:
        tiny.write_image_folder(tmp_path / "train")
    reads = []
    load = ImageFolder.load
    monkeypatch.setattr(ImageFolder, "load", lambda self, split: reads.append(split) or load(self, split))
    data = folder(tmp_path)
    data.setup("validate")
    assert (data.sizes, reads) == ({"val": 20}, ["val"])
    if trains:
        data.setup("fit")
        assert (data.sizes, reads) == ({"val": 20, "train": 16}, ["val", "train"])


def nested(root):
    tiny.write_image_folder(root / "dog" / "inside")
    tiny.write_image_folder(root / "cat" / "inside")


def different(root):
    tiny.write_image_folder(root / "train", ("cat", "dog"))
    tiny.write_image_folder(root / "val", ("cat", "wolf"))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: root.mkdir(), "has no folders, but two classes or more are needed"),
        (lambda root: tiny.write_image_folder(root, ("cat",)), "has only one folder, cat, but two classes"),
        (
            lambda root: (tiny.write_image_folder(root), (root / "wolf").mkdir()),
            "wolf has no images. Images must lie",
        ),
        (
            nested,
            r"cat has no images; left out: 1 inside of class folders \(inside\)\. Images must lie directly",
        ),
        (different, r"must have the same class folders; only one of them has dog, wolf\. An empty folder stands for"),
        (
            lambda root: [(root / f"test/{name}").mkdir(parents=True) for name in "ab"],
            "class folders .* have no im",
        ),
        (
            lambda root: tiny.write_image_folder(root, ("test", "train")),
            "has the folders test, train, which are not classes. Parts are named train, val and test",
        ),
    ],
)
def test_other_layouts_are_refused_with_the_way_out(tmp_path, prepare, message):
    prepare(tmp_path / "root")
    with pytest.raises(DataError, match=message):
        folder(tmp_path / "root").class_names  # noqa: B018  # reading it raises


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"there is no folder .*nowhere. Set --data.root"):
        folder(tmp_path / "nowhere").setup()


def test_testing_without_test_pictures_is_refused(pictures):
    with pytest.raises(ConfigError, match=r"there is no folder test and --data.test_split is 0"):
        folder(pictures, test_split=0).setup("test")


real = pytest.mark.skipif(
    "VISION_ZOO_DATA" not in os.environ, reason="VISION_ZOO_DATA does not name a folder of real data"
)


@real
def test_real_photos_are_read(ready):
    if not (root := Path(os.environ["VISION_ZOO_DATA"]) / "flowers5").is_dir():
        pytest.skip("flowers5 is not in VISION_ZOO_DATA")
    data = ready(ImageFolder(str(root), image_size=32))
    assert data.num_classes == 5
    assert sum(data.sizes.values()) == 4317
