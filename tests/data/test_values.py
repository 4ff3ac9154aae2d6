"""Images that are not 8 bits: one range of values for all images of a dataset, from training to prediction."""

import csv
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.classifier import Classifier
from vision_zoo.data import ImageFolder
from vision_zoo.data.decode import decode_image
from vision_zoo.data.values import find_range, to_8_bits
from vision_zoo.errors import ConfigError, DataError

RAMP = np.arange(4096).reshape(64, 64)  # 12 bits


def write_png(path: Path, values: np.ndarray) -> None:
    """PNG of 16 bits in colour, or in gray with alpha, which PIL does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", *values.shape[1::-1], 16, {2: 4, 3: 2, 4: 6}[values.shape[2]], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def pgm(path: Path, values: np.ndarray) -> None:
    path.write_bytes(b"P5\n64 64\n65535\n" + values.astype(">u2").tobytes())


# How the values of 12 bits lie in files of other types, each with the range that they then have.
KINDS = {
    "u16.tif": (lambda path: tiny.write_tiff(path, RAMP.astype("u2")), (0, 4095)),
    "i16.tif": (lambda path: tiny.write_tiff(path, (RAMP - 1024).astype("i2")), (-1024, 3071)),
    "i8.tif": (lambda path: tiny.write_tiff(path, (RAMP // 16 - 128).astype("i1")), (-128, 127)),
    "i32.tif": (lambda path: tiny.write_tiff(path, (RAMP - 100_000).astype("i4")), (-100_000, -95_905)),
    "u32.tif": (lambda path: tiny.write_tiff(path, (RAMP + 3_000_000_000).astype("u4")), (3e9, 3e9 + 4095)),
    "f32.tif": (lambda path: tiny.write_tiff(path, (RAMP / 4095).astype("f4")), (0, 1)),
    "f64.tif": (lambda path: tiny.write_tiff(path, RAMP / 4095 * 2 - 1), (-1, 1)),
    "deflate.tif": (lambda path: Image.fromarray(RAMP.astype("u2")).save(path, compression="tiff_deflate"), (0, 4095)),
    "colour.tif": (lambda path: tiny.write_tiff(path, np.stack([RAMP] * 3, 2).astype("u2")), (0, 4095)),
    "deflate colour.tif": (lambda path: tiny.write_tiff(path, np.stack([RAMP] * 3, 2).astype("u2"), True), (0, 4095)),
    "gray.png": (lambda path: Image.fromarray(RAMP.astype("u2")).save(path), (0, 4095)),
    "colour.png": (lambda path: write_png(path, np.stack([RAMP] * 3, 2)), (0, 4095)),
    "gray and alpha.png": (lambda path: write_png(path, np.stack([RAMP, np.full_like(RAMP, 65535)], 2)), (0, 4095)),
    "gray.pgm": (lambda path: pgm(path, RAMP), (0, 4095)),
}


@pytest.mark.parametrize("name", KINDS)
def test_12_bits_keep_their_depth_in_every_kind_of_file(name, tmp_path):
    write, value_range = KINDS[name]
    write(tmp_path / name)
    expected = torch.from_numpy(np.round(RAMP / 4095 * 255)).to(torch.uint8)
    decoded = decode_image(tmp_path / name, (3, 64, 64), value_range=value_range)
    assert (decoded.int() - expected.int()).abs().max() <= 1
    assert len(decoded.unique()) == 256


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_of_each_kind_learns_the_range_of_its_training_images(name, tmp_path, capsys):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        KINDS[name][0](tmp_path / label / name)
    data = ImageFolder(str(tmp_path), image_size=64, val_split=0, test_split=0)
    low, high = data.value_range
    least, most = KINDS[name][1]
    assert [low, high] == pytest.approx([least, most], abs=0.01 * (most - least))
    assert "2 training images looked at, 2 are not 8 bits: values from " in capsys.readouterr().err
    assert len(data.split_images("train").images.unique()) > 240


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_is_white_in_16_bits_too(channels, tmp_path):
    opacity = np.full_like(RAMP, 65535)
    opacity[:32] = 0
    write_png(tmp_path / "clear.png", np.stack([*[RAMP] * channels, opacity], 2))
    decoded = decode_image(tmp_path / "clear.png", (1, 64, 64), value_range=(0, 4095))[0]
    assert (decoded[:32] == 255).all()
    assert len(decoded[32:].unique()) == 128


def test_one_bright_pixel_decides_nothing():
    rng = np.random.default_rng(0)
    images = [rng.normal(1000, 100, (40, 40)).astype(np.int16) for _ in range(8)]
    plain = find_range(images, None)
    for image in images:
        image[0, 0] = 30_000
    assert find_range(images, None) == pytest.approx(plain, abs=30)


def test_beside_images_of_8_bits_both_kinds_look_alike():
    dark = np.linspace(0, 30_000, 10_000).astype(np.uint16)
    assert find_range([dark], None) == pytest.approx((30, 29_970), abs=1)
    assert find_range([dark, None], None) == (0, 65535)


def test_images_of_one_value_have_a_range_too():
    (low, high) = find_range([np.full((9, 9), 7, np.int32)], None)
    assert low == pytest.approx(7)
    assert low < high


def test_a_range_that_no_image_needs_is_named(tmp_path, capsys):
    data = ImageFolder(str(tiny.write_image_folder(tmp_path)), image_size=8, value_range=(0, 9))
    plain = ImageFolder(str(tmp_path), image_size=8)
    assert torch.equal(data.split_images("train").images, plain.split_images("train").images)
    assert "all are 8 bits: --data.value_range is not used" in capsys.readouterr().err
    assert plain.value_range is None
    assert not capsys.readouterr().err


@pytest.mark.parametrize("wrong", [(5, 5), (2, 1), (0, float("nan")), (0, 1, 2)])
def test_what_is_no_range_is_refused(wrong, tmp_path):
    data = ImageFolder(str(tiny.write_image_folder(tmp_path)), value_range=wrong)
    with pytest.raises(ConfigError, match=r"--data\.value_range must be two rising numbers, got "):
        data.setup()


def test_without_a_range_the_whole_one_of_the_type_is_told():
    with pytest.warns(UserWarning, match="images of int16, .*: values from -32768 to 32767 become 0 to 255"):
        assert to_8_bits(np.array([-32768, 0, 32767], np.int16), None).tolist() == [0, 128, 255]


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    """A run on slices in Hounsfield units, whose classes differ by tissue; half of the slices have one bright pixel."""
    folder = tmp_path_factory.mktemp("ct")
    rng = np.random.default_rng(0)
    for level, label in ((0, "water"), (300, "bone")):
        (folder / "slices" / label).mkdir(parents=True)
        for index in range(12):
            values = np.where(np.indices((30, 40)).sum(0) < 25, -1000, level) + rng.integers(-9, 9, (30, 40))
            values[0, 0] = 20_000 if index % 2 else -1000
            tiny.write_tiff(folder / "slices" / label / f"{index}.tif", values.astype(np.int16))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["--data.root", "slices", "--data.channels", "1", "--data.image_size", "24", "32", "--data.val_split",
                 "0.2", "--data.test_split", "0.2", "--data.batch_size", "4", "--model.backbone", "SmallCNN",
                 "--model.scheduler", "null", "--trainer.max_epochs", "1", "--trainer.logger", "false"]  # fmt: skip
        assert main(["fit", "--data", "ImageFolder", *words]) == 0
    return folder


def test_a_checkpoint_keeps_the_range_and_predict_uses_it(ct, monkeypatch):
    monkeypatch.chdir(ct)
    (path,) = ct.glob("runs/*/*/checkpoints/last.ckpt")
    model = Classifier.load_from_checkpoint(path)
    assert model.image_shape == (1, 24, 32)
    assert model.value_range == pytest.approx((-1009, 308), abs=3)
    assert main(["predict", "--ckpt_path", str(path), "--images", "slices/bone/1.tif"]) == 0
    with Path("predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    with torch.inference_mode():
        images = decode_image("slices/bone/1.tif", model.image_shape, value_range=model.value_range)
        assert np.float32(row["probability"]) == model(images).softmax(1).max().numpy()


def test_a_test_on_other_images_keeps_the_range_of_the_training(ct, monkeypatch, capsys):
    monkeypatch.chdir(ct)
    for label in ("bone", "water"):
        (ct / "others" / label).mkdir(parents=True)
        tiny.write_tiff(ct / "others" / label / "0.tif", np.full((24, 32), 300, np.int16))
    words = ["--data.root", "others", "--data.test_split", "1.0", "--data.value_range", "0", "1"]
    assert main(["test", "--ckpt_path", "last", *words]) == 0
    error = capsys.readouterr().err
    assert "--data.value_range: None -> [0.0, 1.0], ignored: the network keeps its own" in error
    assert "looked at" not in error
    assert main(["test", "--ckpt_path", "last", "--data.image_size", "24"]) == 2
    assert "set --data.image_size 24 32" in capsys.readouterr().err


def test_a_run_that_continues_keeps_size_and_range(ct, monkeypatch, capsys):
    monkeypatch.chdir(ct)
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", "--test_after_fit", "false"]) == 0
    captured = capsys.readouterr()
    assert "looked at" not in captured.err
    assert "epoch 2/2" in captured.out + captured.err
    config = yaml.safe_load(next(ct.glob("runs/*/*/config.yaml")).read_text())
    assert config["data"]["init_args"]["image_size"] == [24, 32]


def test_an_export_says_what_becomes_of_other_values(ct, monkeypatch):
    monkeypatch.chdir(ct)
    assert main(["export", "--ckpt_path", "last", "--output", "ct.safetensors"]) == 0
    header = Path("ct.safetensors").read_bytes()
    facts = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    assert json.loads(facts["value_range"]) == pytest.approx([-1009, 308], abs=3)
    assert json.loads(facts["image_shape"]) == [1, 24, 32]


# ------------------------------------------------------------------------------------------------------- large images


def test_a_jpeg_of_any_size_is_read_and_others_up_to_a_limit_that_is_named(tmp_path, monkeypatch):
    image = Image.new("RGB", (80, 80))
    image.paste((255, 255, 255), (0, 0, 80, 40))
    for name in ("a.jpg", "a.png", "a.tif"):
        image.save(tmp_path / name)
    assert Image.MAX_IMAGE_PIXELS >= 2**28  # PIL refuses twice as many
    for limit, read in ((4000, ["a.jpg", "a.png", "a.tif"]), (1000, ["a.jpg"])):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for name in read:
            for file in (tmp_path / name, io.BytesIO((tmp_path / name).read_bytes())):  # on the disk, and in a pack
                decoded = decode_image(file, (1, 4, 4))
                assert decoded[0, :, 0].tolist() == pytest.approx([255, 224, 31, 0], abs=2)
    for name in ("a.png", "a.tif"):
        message = r"\(6400 pixels\) exceeds limit of 2000 pixels: make it smaller, or save it as JPEG, which is read"
        with pytest.raises(DataError, match=message):
            decode_image(tmp_path / name, (1, 4, 4))


def test_a_png_with_a_long_colour_profile_is_read(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (8, 8), 128).save(path, icc_profile=np.random.default_rng(0).bytes(1_300_000))
    assert decode_image(path, (1, 8, 8)).unique().tolist() == [128]
