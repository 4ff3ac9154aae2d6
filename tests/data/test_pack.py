"""A pack gives what the images in memory give, to the last bit, and is read with NumPy alone."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from tests.cli.cases import refuse
from tests.data.test_members import labelled, write_tar
from tests.training.runs import same, state
from tests.training.test_processes import DDP, ENVIRONMENT, SIGNALLED, run, vision_zoo
from vision_zoo.__main__ import main
from vision_zoo.checkpoints import open_checkpoint
from vision_zoo.data import ImageFolder, ImageTable, MNIST5k, Pack
from vision_zoo.data import pack as packing
from vision_zoo.data.sources import fingerprint
from vision_zoo.errors import DataError

SHORT = [
    "fit", "--model.backbone", "MLP", "--model.scheduler", "null", "--data.batch_size", "8",
    "--data.augmentation", "[{class_path: RandomCrop, init_args: {padding: 2}}, {class_path: MixUp}]",
    "--trainer.precision", "32-true", "--channels_last", "false", "--trainer.log_every_n_steps", "1",
    "--trainer.max_epochs", "2",
]  # fmt: skip


def write_photos(root: Path, count: int = 15, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Class folders of noise, each picture of another size."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            rng = np.random.default_rng([label, number])
            pixels = rng.integers(label * 50, 200, (20 + number, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03}.png")
    return root


@pytest.fixture
def photos(here) -> Path:
    return write_photos(here / "photos")


def pack(*words: object, output: str = "a.vz") -> Path:
    assert main(["pack", *map(str, words), "--output", output]) == 0
    return Path(output).absolute()


# --------------------------------------------------------------------------------------------------- the same results


@pytest.mark.parametrize("kind", ["folder", pytest.param("arrays", marks=pytest.mark.slow)])  # 3 s
def test_a_run_on_a_pack_is_that_on_the_same_images_in_memory(kind, photos, here):
    if kind == "folder":
        source, place = ["photos", "--image_size", "16", "24"], ["ImageFolder", "--data.root", "photos"]
        place += ["--data.image_size", "16", "24"]
    else:
        images, labels = tiny.digits(90, 3)
        np.savez("a.npz", images=images, labels=labels)  # from which the part for testing is cut, too
        source, place = ["a.npz"], ["ArrayFile", "--data.path", "a.npz"]
    pack(*source)
    for data, root in ((place, "memory"), (["Pack", "--data.path", "a.vz"], "pack")):
        assert main([*SHORT, "--data", *data, "--data.val_split", "0.2", "--trainer.default_root_dir", root]) == 0
    mine, its = (here / root / "runs/default/version_0" for root in ("memory", "pack"))
    assert (mine / "metrics.csv").read_bytes() == (its / "metrics.csv").read_bytes()
    for name in ("best.ckpt", "last.ckpt"):
        assert same(state(mine / "checkpoints" / name), state(its / "checkpoints" / name))


@pytest.mark.parametrize("options", [{}, {"fold": "2/3"}, {"val_split": 6, "seed": 4}, {"test_split": 1.0}])
def test_parts_are_cut_as_of_the_source(options, photos):
    packed, folder = (
        Pack(str(pack("photos", "--image_size", "8")), **options),
        ImageFolder("photos", image_size=8, **options),
    )
    splits = ["test"] if "test_split" in options else ["train", "val", "test"]
    for split in splits:
        for mine, its in zip(packed.split_images(split), folder.split_images(split), strict=True):
            assert torch.equal(mine, its)
    assert packed.class_names == folder.class_names
    assert (packed.mean, packed.std) == (folder.mean, folder.std)


def test_a_published_data_set_keeps_its_parts_and_its_facts(here):
    packed, published = Pack(str(pack("--data", "MNIST5k")), val_split=500), MNIST5k()
    for split in ("train", "val", "test"):
        assert torch.equal(packed.split_images(split).images, published.split_images(split).images)
    assert (packed.mean, packed.std, packed.class_names) == (published.mean, published.std, published.class_names)


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
@pytest.mark.parametrize("how", ["labels.csv", "--data ImageTable --data.path labels.csv"])
@pytest.mark.parametrize("memory", ["true", "false"])
def test_groups_stay_together_beside_files_that_cannot_be_read(how, memory, photos):
    rows = [
        f"{file.relative_to(photos.parent)},{file.parent.name},{int(file.stem) // 3}" for file in photos.glob("*/*")
    ]
    Path("labels.csv").write_text("\n".join(["file,label,group", *sorted(rows)]))
    (photos / "cat" / "004.png").write_bytes(b"no image")
    packed = Pack(str(pack(*how.split(), "--image_size", "8", "--data.in_memory", memory)), test_split=0.3)
    folder = ImageTable("labels.csv", image_size=8, test_split=0.3)
    for split in ("train", "val", "test"):
        for mine, its in zip(packed.split_images(split), folder.split_images(split), strict=True):
            assert torch.equal(mine, its)


def test_shards_of_a_pack_that_was_renamed_are_kept(photos, capsys):
    whole = pack("photos", "--image_size", "200", "--shard_mb", "1")
    whole.rename("b.vz")
    words = ["pack", "photos", "--image_size", "190", "--shard_mb", "1", "--output", "a.vz"]
    refuse(capsys, words, r"a\.vz\.00000 is there already, of a pack that was renamed or removed\. Remove such files")
    assert main(["pack", "--check", "b.vz"]) == 0
    Path("c.vz.2024-backup").touch()
    pack(*words[1:-2], output="c.vz")


def test_a_pack_is_named_as_what_is_packed(photos, capsys):
    assert main(["pack", "photos", "--image_size", "9"]) == 0
    assert main(["pack", "--data", "MNIST5k"]) == 0
    assert sorted(path.name for path in Path().glob("*.vz")) == ["MNIST5k.vz", "photos.vz"]
    refuse(capsys, ["pack", "photos", "--image_size", "9"], "is there already")
    write_tar(Path("train-0.tar").absolute(), labelled("cls", range(6)))
    words = ["pack", "--data", "WebDataset", "--image_size", "9", "--data.path"]
    assert [main([*words, pattern]) for pattern in ("train-*.tar", "*.tar")] == [0, 0]
    assert {"train.vz", "WebDataset.vz"} < {path.name for path in Path().glob("*.vz")}


def test_shards_and_encoded_images_give_the_same(photos, capsys):
    whole = Pack(str(pack("photos", "--image_size", "200"))).split_images("train")
    several = pack("photos", "--image_size", "200", "--shard_mb", "1", output="b.vz")
    shards = sorted(several.parent.glob("b.vz.*"))
    assert len(shards) > 3
    assert max(file.stat().st_size for file in shards) <= 2**20
    assert torch.equal(Pack(str(several)).split_images("train").images, whole.images)
    encoded = pack("photos", "--encoded", output="c.vz")
    assert encoded.stat().st_size > sum(file.stat().st_size for file in photos.glob("*/*"))
    for size in (200, 16):  # decoded when they are read, at any size
        images = Pack(str(encoded), image_size=size).split_images("train").images
        assert torch.equal(images, ImageFolder("photos", image_size=size).split_images("train").images)
    assert torch.equal(
        Pack(str(pack("c.vz", "--image_size", "200", output="d.vz"))).split_images("train").images, whole.images
    )
    refuse(capsys, ["pack", "d.vz", "--encoded", "--output", "e.vz"], "Pack has no image files whose bytes")


def test_a_file_that_is_gone_is_left_out_of_a_pack_of_files_too(photos, capsys):
    (photos / "cat" / "gone.png").symlink_to("nowhere.png")
    with pytest.warns(UserWarning, match=r"gone\.png cannot be decoded \(.*No such file.*\) and is left out"):
        encoded = pack("photos", "--encoded")
    (photos / "cat" / "gone.png").unlink()
    mine, its = (
        data.split_images("train").images
        for data in (Pack(str(encoded), image_size=16), ImageFolder("photos", image_size=16))
    )
    assert torch.equal(mine, its)
    refuse(capsys, ["pack", "--check", "https://127.0.0.1:1/a.vz"], "--check reads a pack on a disk: copy it first")


def test_another_size_is_had_by_resizing(photos):
    images = Pack(str(pack("photos", "--image_size", "32")), image_size=8).split_images("train").images
    assert images.shape[1:] == (3, 8, 8)
    full = ImageFolder("photos", image_size=32).split_images("train").images.float()
    assert (torch.nn.functional.avg_pool2d(full, 4) - images.float()).abs().mean() < 20


def test_the_five_lines_of_the_docstring_read_a_pack(photos):
    path = pack("photos", "--image_size", "8")
    lines = [line for line in packing.__doc__.splitlines() if line.startswith("    ")]
    assert len(lines) == 5
    got = {"path": path, "json": json, "np": np}
    exec(textwrap.dedent("\n".join(lines)), got)
    images, labels = ImageFolder("photos", image_size=8, test_split=0, val_split=0).split_images("train")
    assert np.array_equal(got["images"], images)
    assert np.array_equal(got["labels"], labels)
    assert got["parts"].tolist() == [0] * 30
    assert got["facts"]["class_names"] == ["cat", "dog"]


def test_a_pack_is_told_from_another_by_its_fingerprint(photos):
    first, second = (
        Pack(str(pack("photos", "--image_size", "8"))),
        Pack(str(pack("photos", "--image_size", "9", output="b.vz"))),
    )
    assert (
        fingerprint(first.subset("train"), first.root)["pixels"]
        != fingerprint(second.subset("train"), second.root)["pixels"]
    )


def test_a_run_on_a_pack_shows_its_images_and_predicts_without_it(photos, capsys):
    pack("photos", "--image_size", "32")
    assert main(["show", "--data", "Pack", "--data.path", "a.vz", "--count", "5", "--output", "x.png"]) == 0
    assert "Pack: 32 x 32 colour; train 22, val 4; 2 classes" in capsys.readouterr().out
    assert main(["fit", "--data", "a.vz"]) == 2
    assert "--data Pack --data.path a.vz" in capsys.readouterr().err
    assert main([*SHORT, "--data", "Pack", "--data.path", "a.vz", "--trainer.max_epochs", "1"]) == 0
    Path("a.vz").unlink()
    assert main(["predict", "--ckpt_path", "last", "--images", "photos/cat"]) == 0
    assert main(["test", "--ckpt_path", "last"]) == 2
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.parametrize("fate", ["moved", "damaged", "another"])
def test_images_are_resized_as_the_pack_of_the_run_was_whatever_lies_there_now(fate, photos):
    path = pack("photos", "--image_size", "32", "--data.resize", "pad", "--data.interpolation", "bicubic")
    assert main([*SHORT, "--data", "Pack", "--data.path", "a.vz", "--trainer.max_epochs", "1"]) == 0
    predict = ["predict", "--ckpt_path", "last", "--images", "photos/cat", "--output"]
    assert main([*predict, "before.csv"]) == 0
    content = path.read_bytes()
    path.unlink()
    if fate == "damaged":
        path.write_bytes(content[:5000])
    elif fate == "another":
        pack("photos", "--image_size", "32", "--data.resize", "squash")
    assert main([*predict, "after.csv"]) == 0
    assert Path("after.csv").read_bytes() == Path("before.csv").read_bytes()
    assert open_checkpoint("last").resizing == ("pad", "bicubic")


def test_images_are_resized_as_arrays_were_of_a_run_on_arrays(here):
    tiny.write_npz(here / "a.npz", 100, 20, (8, 8))
    assert main([*SHORT, "--data", "ArrayFile", "--data.path", "a.npz", "--trainer.max_epochs", "1"]) == 0
    assert open_checkpoint("last").resizing == ("squash", "bilinear")


@pytest.mark.slow
def test_audit_and_teach_take_a_pack(photos, capsys):
    """5 seconds."""
    (photos / "dog" / "copy.png").write_bytes((photos / "cat" / "000.png").read_bytes())
    pack("photos", "--image_size", "48")
    assert main(["audit", "a.vz", "--image_size", "32"]) == 0
    issues = Path("audit/issues.csv").read_text()
    assert "a.vz/cat/000.png" in issues
    assert "a.vz/dog/copy.png" in issues
    assert main(["teach", "a.vz", "--image_size", "32", "--curve", "false"]) == 0
    assert main(["report", "--ckpt_path", "last"]) == 0


# -------------------------------------------------------------------------------------------------------- damaged files


def refused(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Pack(str(path)).setup()


def test_what_is_wrong_with_a_pack_is_named(photos, capsys):
    path = pack("photos", "--image_size", "8", "--shard_mb", "1")
    assert main(["pack", "--check", "a.vz"]) == 0
    assert "30 images, all as they were packed" in capsys.readouterr().out
    content, shard = path.read_bytes(), Path("a.vz.00000")
    path.write_bytes(content.replace(b'"version": 1', b'"version": 2'))
    refused(path, "a.vz is of version 2 of packs, and this .* version 1")
    path.write_bytes(content[:-10])
    refused(path, "a.vz is not whole: it has .* bytes")
    path.write_bytes(content.replace(b"dog", b"fog"))
    refused(path, "a.vz is damaged: its index")
    path.write_bytes(b"something else")
    refused(path, "a.vz is none of the files that vision_zoo pack writes")
    path.write_bytes(content)
    pixels = bytearray(shard.read_bytes())
    shard.write_bytes(pixels[:-1])
    refused(path, "a.vz.00000 is not whole")
    pixels[8 * 8 * 3 * 2 + 5] ^= 1
    shard.write_bytes(pixels)
    assert main(["pack", "--check", "a.vz"]) == 2
    assert "1 of 30 images are not what was packed: cat/002.png. " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photos", "--output", "a.npz"], r"--output a\.npz must end in \.vz"),
        (["photos", "--output", "a.vz", "--shard_mb", "0"], "--shard_mb must be at least 1, got 0"),
        (["--data", "MNIST5k", "--output", "a.vz", "--encoded"], "MNIST5k has no image files whose bytes"),
        (["photos", "--encoded", "--image_size", "9"], "give --data.image_size to fit"),
        (["photos", "--encoded", "--data.channels", "1", "--data.resize", "pad"], "channels and --data.resize to fit"),
        (["--check", "a.vz"], r"there is no file .*a\.vz"),
        (["--check", "a.vz", "photos"], "--check goes with its file alone: leave out photos"),
        (["empty", "--output", "a.vz"], "none of the images can be read"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_what_cannot_be_packed_is_refused_and_leaves_nothing(words, message, photos, capsys):
    for name in ("cat", "dog"):
        Path("empty", name).mkdir(parents=True)
        Path("empty", name, "a.png").write_bytes(b"no image")
    refuse(capsys, ("pack", *words), message)
    assert {path.name for path in Path().iterdir()} == {"photos", "empty"}


# ------------------------------------------------------------------------------------------------------ kills, memory


def test_a_pack_that_was_stopped_goes_on_and_is_the_same(photos, monkeypatch, capsys):
    whole = pack("photos", "--image_size", "100", "--shard_mb", "1", output="whole/a.vz")
    from vision_zoo.data import sources
    from vision_zoo.verbs import pack as verb

    decode, seen, stop = sources.decode, [], ["cat/009.png"]

    def stops(path, *rest, **options):
        seen.append(path)
        if path.endswith(stop[0]):
            raise KeyboardInterrupt
        return decode(path, *rest, **options)

    monkeypatch.setattr(verb, "_AT_ONCE", 2)
    monkeypatch.setattr(sources, "decode", stops)
    words = ["pack", "photos", "--image_size", "100", "--shard_mb", "1", "--output", "a.vz"]
    for name in ("dog/010.png", "no more"):
        with pytest.raises(KeyboardInterrupt):
            main(words)
        assert not Path("a.vz").exists()
        stop[0] = name
    seen.clear()
    assert main(words) == 0
    assert not [path for path in seen if "/cat/" in path], "what was written is decoded again"
    for file in whole.parent.iterdir():
        assert Path(file.name).read_bytes() == file.read_bytes()
    assert not [*Path().glob(".a.vz*")]
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.slow
def test_twenty_kills_of_pack_change_nothing(here):
    """A minute."""
    write_photos(here / "photos", count=300)
    words = [sys.executable, "-m", "vision_zoo", "pack", "photos", "--image_size", "256", "--output"]
    assert run(here, *words, "whole.vz").returncode == 0
    dice, kills = random.Random(0), 0
    while kills < 20:
        process = subprocess.Popen([*words, "a.vz"], cwd=here, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        while process.poll() is None and not [*here.glob(".a.vz.*.journal")]:
            time.sleep(0.01)
        time.sleep(dice.random() / 3)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            assert (here / "a.vz").read_bytes() == (here / "whole.vz").read_bytes()
            (here / "a.vz").unlink()
        kills += process.returncode == -9
    (here / "a.vz").unlink(missing_ok=True)
    assert run(here, *words, "a.vz").returncode == 0
    assert (here / "a.vz").read_bytes() == (here / "whole.vz").read_bytes()


@pytest.mark.slow
def test_twenty_kills_of_a_run_on_a_pack_change_nothing(here):
    """Two minutes."""
    write_photos(here / "photos", count=60)  # 12 or 13 batches of 8
    pack("photos", "--image_size", "16")
    words = [*SHORT, "--data", "Pack", "--data.path", str(here / "a.vz"), "--trainer.max_epochs", "4"]
    words += ["--save_every_minutes", "0.00001"]
    whole, cut = here / "whole", here / "cut"
    whole.mkdir()
    cut.mkdir()
    assert vision_zoo(whole, *words).returncode == 0
    (cut / "sitecustomize.py").write_text(SIGNALLED)
    path, dice, step = os.pathsep.join([str(cut), ENVIRONMENT["PYTHONPATH"]]), random.Random(0), 0
    for _ in range(20):
        step += dice.randint(1, 2)
        go_on = ["fit", "--ckpt_path", "last"] if [*cut.rglob("last.ckpt")] else words
        given = {"PYTHONPATH": path, "SIGNALLED": f"all SIGKILL {step}"}
        result = run(cut, sys.executable, "-m", "vision_zoo", *go_on, **given)
        assert result.returncode == -9, result.stderr
    assert vision_zoo(cut, "fit", "--ckpt_path", "last").returncode == 0
    mine, its = (folder / "runs/default/version_0" for folder in (cut, whole))
    assert (mine / "metrics.csv").read_bytes() == (its / "metrics.csv").read_bytes()
    assert same(state(mine / "checkpoints/last.ckpt"), state(its / "checkpoints/last.ckpt"))


@pytest.mark.slow
def test_two_processes_count_every_image_of_a_pack_once(here):
    """Half a minute."""
    write_photos(here / "photos", count=53)
    pack("photos", "--image_size", "8")
    words = [*SHORT, "--data", "Pack", "--data.path", "a.vz", "--data.test_split", "37", "--trainer.max_epochs", "1"]
    figures = {}
    for devices in ("1", "2"):
        result = vision_zoo(here, *words, *DDP, devices, "--trainer.default_root_dir", devices)
        assert result.returncode == 0, result.stderr
        output = f"of {devices}"
        words_of_test = ["test", "--ckpt_path", "1/runs/default/version_0", "--output", output]
        assert vision_zoo(here, *words_of_test, *DDP, devices).returncode == 0
        figures[devices] = (here / output / "confusion_matrix.csv").read_text()
    assert figures["1"] == figures["2"]
    assert sum(map(int, re.findall(r"\b\d+\b", figures["1"]))) == 37


ANON = """
import sys, torch
from vision_zoo.data import Pack

def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1024

data = Pack(sys.argv[1], batch_size=64)
loader = data.train_dataloader()
before, count = anonymous(), 0
for images, labels in loader:
    count += len(images)
print(count, anonymous() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells RssAnon")
def test_an_epoch_takes_the_memory_of_its_batches_alone(here):
    """15 seconds: 340 MB of images, of which not a tenth may be copied into memory."""
    images, labels = np.random.default_rng(0).integers(0, 255, (2500, 3, 224, 224), np.uint8), np.arange(2500) % 5
    np.savez("a.npz", images=images, labels=labels)
    path = pack("a.npz")
    result = run(here, sys.executable, "-c", ANON, str(path))
    count, megabytes = result.stdout.split()
    assert int(count) == 2025
    assert float(megabytes) < 80 + 0.1 * path.stat().st_size / 2**20
