"""Images of every mode and format, decoded to the pixels that they show."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from vision_zoo.data.decode import decode_image, image_extensions, size_of
from vision_zoo.errors import DataError


def save(path: Path, picture: Image.Image, **options) -> Path:
    picture.save(path, **options)
    return path


def centre(path, channels=3):
    return decode_image(path, (channels, 8, 8))[:, 4, 4].tolist()


LAB = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")


def test_every_mode_becomes_the_same_gray(tmp_path):
    """A picture that looks mid-gray comes out mid-gray, however it is stored."""
    size = (20, 20)
    palette = Image.new("P", size, 7)
    palette.putpalette([0] * 21 + [128] * 3 + [255] * 30)
    wide = np.full(size, 128 * 257, np.uint16)
    for path in [
        save(tmp_path / "rgb.png", Image.new("RGB", size, (128,) * 3)),
        save(tmp_path / "gray.png", Image.new("L", size, 128)),
        save(tmp_path / "palette.png", palette),
        save(tmp_path / "alpha.png", Image.new("RGBA", size, (0, 0, 0, 127))),
        save(tmp_path / "gray_alpha.png", Image.new("LA", size, (0, 127))),
        save(tmp_path / "16.png", Image.fromarray(wide)),
        save(tmp_path / "16.tif", Image.fromarray(wide)),
        save(tmp_path / "32.tif", Image.fromarray(wide.astype(np.int32))),
        save(
            tmp_path / "lab.tif", ImageCms.profileToProfile(Image.new("RGB", size, (128,) * 3), *LAB, outputMode="LAB")
        ),
        save(tmp_path / "float.tif", Image.fromarray(np.full(size, 128 / 255, np.float32))),
        save(
            tmp_path / "over.tif",
            Image.fromarray(np.pad(np.full((18, 18), 128 / 255, np.float32), 1, "linear_ramp", end_values=1.01)),
        ),
        save(tmp_path / "cmyk.jpg", Image.new("CMYK", size, (0, 0, 0, 127)), quality=95),
    ]:
        assert centre(path) == pytest.approx([128] * 3, abs=2), path.name
        assert centre(path, channels=1) == pytest.approx([128], abs=2), path.name


def test_pixels_that_are_no_numbers_make_no_picture(tmp_path):
    path = save(tmp_path / "nan.tif", Image.fromarray(np.full((20, 20), np.nan, np.float32)))
    with pytest.raises(DataError, match="not numbers"):
        decode_image(path, (1, 20, 20))


def test_transparent_is_white(tmp_path):
    assert centre(save(tmp_path / "clear.png", Image.new("RGBA", (20, 20), (0, 0, 0, 0)))) == [255] * 3


def test_a_dark_16_bit_picture_stays_dark(tmp_path):
    assert centre(save(tmp_path / "dark.png", Image.fromarray(np.full((20, 20), 200, np.uint16))))[0] <= 1


def test_the_camera_s_rotation_is_undone(tmp_path):
    picture = Image.new("RGB", (40, 40))
    picture.paste((255, 255, 255), (0, 0, 40, 20))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = save(tmp_path / "turned.jpg", picture, exif=exif, quality=95)
    decoded = decode_image(path, (1, 8, 8))[0]
    assert decoded[:, 6].min() > 250
    assert decoded[:, 1].max() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    path = save(tmp_path / "turned.png", Image.fromarray(pixels), exif=exif)
    with Image.open(path) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))
    assert torch.equal(decode_image(path, (3, 8, 8)), torch.from_numpy(upright.copy()).permute(2, 0, 1))


@pytest.mark.parametrize("exif", [b"Exif\0\0broken", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_the_size_is_that_of_the_upright_picture_whatever_its_camera_wrote(exif, tmp_path):
    picture, turned = Image.new("L", (30, 20)), Image.Exif()
    turned[0x0112] = 8
    for ending in ("png", "jpg", "webp"):
        assert size_of(save(tmp_path / f"turned.{ending}", picture, exif=turned)) == (20, 30)
        assert size_of(save(tmp_path / f"broken.{ending}", picture, exif=exif)) == (30, 20)


def test_a_turned_picture_is_read_whatever_else_its_camera_wrote(tmp_path):
    picture = Image.new("L", (40, 40))
    picture.paste(255, (0, 0, 40, 20))
    # Little-endian TIFF with two entries: orientation 6, and a resolution (a fraction) that is given as the text "abc".
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    path = save(tmp_path / "turned.jpg", picture, exif=exif, quality=95)
    with Image.open(path) as opened, pytest.raises((TypeError, ValueError, struct.error)):
        ImageOps.exif_transpose(opened)
    assert decode_image(path, (1, 8, 8))[0][:, 6].min() > 250


@pytest.mark.parametrize(("resize", "left", "middle"), [("crop", 0, 0), ("squash", 255, 0), ("pad", 255, 0)])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 16, 16)])
def test_other_proportions_are_cropped_squashed_or_padded(tmp_path, resize, left, middle, shape):
    picture = Image.new("RGB", (60, 20))
    picture.paste((255, 255, 255), (0, 0, 15, 20))
    decoded = decode_image(save(tmp_path / "wide.png", picture), shape, resize)
    assert decoded.shape == shape
    assert decoded[0, 8, 0] == left
    assert decoded[0, 8, 8] == middle
    assert decoded[0, 0, 0] == (255 if resize == "squash" else 0)


@pytest.mark.parametrize("size", [(3000, 20), (20, 3000)])
def test_of_a_very_long_picture_one_line_of_pixels_stays(tmp_path, size):
    path = save(tmp_path / "long.png", Image.new("L", size, 200))
    assert decode_image(path, (1, 28, 28), "pad").unique(return_counts=True)[1].tolist() == [27 * 28, 28]


def test_padding_is_that_of_pil(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 67, 3), np.uint8))
    path = save(tmp_path / "a.png", picture)
    for size in ((28, 28), (50, 31), (90, 90)):
        expected = np.asarray(ImageOps.pad(picture, size, Image.Resampling.BILINEAR, color=0))
        assert np.array_equal(decode_image(path, (3, *size[::-1]), "pad").permute(1, 2, 0).numpy(), expected)


def test_shapes_that_are_not_square_are_possible(tmp_path):
    assert decode_image(save(tmp_path / "a.png", Image.new("RGB", (9, 9))), (3, 10, 30)).shape == (3, 10, 30)


def test_postscript_is_not_run(tmp_path, monkeypatch):
    bounds = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    (tmp_path / "a.eps").write_text(f"{bounds}{{ }} loop\n%%EOF\n")
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch '{tmp_path}/was_run'\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(DataError, match=r"a\.eps cannot be read as an image"):
        decode_image(tmp_path / "a.eps", (3, 8, 8))
    assert not (tmp_path / "was_run").exists()
    assert ".eps" not in image_extensions()


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    for name in ("a.png", "missing.png"):
        with pytest.raises(DataError, match=rf"{name} cannot be read as an image"):
            decode_image(tmp_path / name, (3, 8, 8))
    with pytest.raises(DataError, match="cannot be read as an image"):
        decode_image(tmp_path, (3, 8, 8))
