"""A network as one page: it opens from the disk, asks nobody, and answers as predict does."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from tests.browser import draw_one, in_chromium, opened, shoot
from vision_zoo.__main__ import main
from vision_zoo.backbones import SmallCNN
from vision_zoo.classifier import Classifier
from vision_zoo.data import MNIST, MNIST5k
from vision_zoo.data.decode import decode
from vision_zoo.known import Known
from vision_zoo.verbs import export as verb
from vision_zoo.verbs.page import rendered

DIGITS = tuple("0123456789")
NODE = shutil.which("node")
in_node = pytest.mark.skipif(NODE is None, reason="there is no node")
DATA = os.environ.get("VISION_ZOO_DATA", "")


@pytest.fixture(scope="module")
def page(trained_run, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "digits.html"
    assert main(["export", "--ckpt_path", str(trained_run), "--output", str(file)]) == 0
    return file


def test_it_is_one_small_file_that_asks_nobody(page):
    text = page.read_text()
    assert [path.name for path in page.parent.iterdir()] == ["digits.html"]
    assert len(text) < 6e6
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//|\bfetch\(|XMLHttp""", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    assert "Permission is hereby granted" in text  # the licence of what it holds
    inputs = set(re.findall(r'<input[^>]* id="(\w+)"', text))
    assert inputs == set(re.findall(r'<label[^>]* for="(\w+)"', text)) != set()


def test_names_of_classes_may_be_anything():
    names = (os.fsdecode(b"caf\xe9"), "</script><script>alert(1)</script>")
    for onnx in (b"", b"a network"):
        text = rendered(Classifier(SmallCNN, (1, 28, 28), names), None, onnx).decode()
        assert json.loads(re.search(r'id="facts">([^<]*)<', text)[1])["classes"] == list(names)
        assert "<script>alert" not in text


def node(page: Path, calls: list[dict]) -> list:
    command = [NODE, str(Path(__file__).with_name("page.mjs")), str(page)]
    done = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def text_of(pixels: np.ndarray | bytes) -> str:
    return base64.b64encode(bytes(pixels)).decode()


def bytes_of(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8)


def file_of(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@in_node
def test_images_are_resized_as_predict_resizes_them(page, tmp_path):
    copy, chance = shutil.copy(page, tmp_path), np.random.default_rng(0)
    calls, expected = [], []
    sizes = [(28, 28), (29, 28), (61, 47), (17, 17), (300, 3), (120, 90), (5, 90)]
    ways = product(sizes, ("crop", "pad", "squash"), ("bilinear", "bicubic"), [(1, 28, 28), (3, 32, 20)])
    for (width, height), resize, interpolation, shape in ways:
        rgb = chance.integers(0, 2, (height, width, 3), np.uint8) * 255  # whose edges a cubic filter overshoots
        facts = {"image_shape": shape, "resize": resize, "interpolation": interpolation}
        rgba = np.dstack([rgb, np.full((height, width, 1), 255, np.uint8)])
        calls.append({"pixels": text_of(rgba), "width": width, "height": height, "facts": facts})
        file = io.BytesIO(file_of(Image.fromarray(rgb)))
        expected.append(text_of(decode(file, shape, resize, interpolation=interpolation)))
    found = [bytes_of(text).astype(int) for text in node(copy, calls)]
    off = [int(abs(own - bytes_of(text)).max()) for own, text in zip(found, expected, strict=True)]
    # Pillow 13 may go down before it goes across, as where the last image is widened: another rounding, and where cubic
    # values are cut off at black and white between the two, more than that.
    linear = [n for n, call in enumerate(calls) if call["facts"]["interpolation"] == "bilinear"]
    assert max(off[n] for n in linear) <= 1
    assert max(off[: 12 * (len(sizes) - 1)]) == 0


@pytest.mark.slow  # 3 s
@in_node
def test_none_of_these_is_answered_where_the_score_is_below_the_threshold(tmp_path):
    torch.manual_seed(0)
    model = Classifier(SmallCNN, (1, 28, 28), DIGITS).eval()
    images = MNIST5k().sample("test", 16).images
    energy = model(images).logsumexp(1).detach()
    model.known = Known(torch.zeros(0), torch.zeros(0, 0), 0.0, float(energy.median()), 0.5)
    verb.export_model(model, tmp_path / "page.html", "html", images)
    rows = node(tmp_path / "page.html", [{"pixels": text_of(image.numpy())} for image in images])
    labels = [DIGITS[place] for place in model(images).argmax(1)]
    passes = (energy >= energy.median()).tolist()
    assert [row["top"][0]["label"] for row in rows] == labels
    answers = [label if passed else "none of these" for label, passed in zip(labels, passes, strict=True)]
    assert [row["answer"] for row in rows] == answers
    assert 4 < answers.count("none of these") < 12


def mnist(count: int) -> torch.Tensor:
    """Test images of MNIST, uint8 (N, 1, 28, 28): the embedded ones where the others are not here."""
    data = MNIST(root=DATA) if (Path(DATA) / "MNIST").is_dir() and DATA else MNIST5k()
    return data.load("test").images[:count]


@pytest.mark.slow  # 15 s
@in_node
def test_all_test_images_have_the_label_of_test(page, trained_run, tmp_path):
    copy, images = shutil.copy(page, tmp_path), mnist(10_000)
    rows = node(copy, [{"pixels": text_of(image.numpy())} for image in images])
    with torch.inference_mode():
        probabilities = Classifier.load_from_checkpoint(trained_run)(images).softmax(1)
    assert [row["top"][0]["label"] for row in rows] == [DIGITS[place] for place in probabilities.argmax(1)]
    assert [row["top"][0]["probability"] for row in rows] == pytest.approx(probabilities.amax(1).tolist(), abs=1e-4)


# Keeps the bytes of each image that the page classifies, with its answer.
RECORD = """() => {
    window.seen = [];
    const right = classify;
    window.classify = async (blob) => {
        const row = await right(blob), bytes = new Uint8Array(await blob.arrayBuffer());
        window.seen.push([btoa(String.fromCharCode(...bytes)), row]);
        return row;
    };
}"""


@pytest.mark.slow  # 5 s each
@in_chromium
@pytest.mark.parametrize("width", [1000, 360], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_one_draws_a_digit_and_drops_a_picture_in_a_browser(page, trained_run, width, scheme, tmp_path):
    (tmp_path / "digit.png").write_bytes(file_of(Image.fromarray(tiny.digits(1)[0][0])))
    (tmp_path / "note.png").write_text("no image")
    with opened(page.as_uri(), viewport={"width": width, "height": 900}, color_scheme=scheme) as tab:
        tab.evaluate(RECORD)
        draw_one(tab)
        tab.wait_for_selector("#drawn .bars li")
        tab.set_input_files("#files", [str(tmp_path / "digit.png"), str(tmp_path / "note.png")])
        tab.wait_for_selector("#results .bars li")
        tab.wait_for_selector("#results .error")
        assert "digit.png" in tab.inner_text("#results")
        assert "cannot be read as an image" in tab.inner_text("#results .error")
        assert re.search(r"\d\.\d ms", tab.inner_text("#drawn"))
        shoot(tab, f"html_{width}_{scheme}.png", tmp_path)
        drawn = [(blob, row) for blob, row in tab.evaluate("window.seen") if "top" in row]
        tab.focus("#clear")
        tab.keyboard.press("Enter")
        assert tab.locator("#drawn .bars").count() == 0
    model = Classifier.load_from_checkpoint(trained_run)
    for blob, row in drawn:
        pixels = torch.from_numpy(decode(io.BytesIO(base64.b64decode(blob)), (1, 28, 28), "crop").copy())
        assert pixels.max() > 0
        assert row["top"][0]["label"] == DIGITS[int(model(pixels).argmax())]


@pytest.mark.slow  # 3 s
@in_chromium
def test_one_draws_by_keyboard(page, tmp_path):
    from playwright.sync_api import expect

    inked = """() => { const { data } = canvas.getContext("2d").getImageData(0, 0, 280, 280), found = [];
        for (let i = 0; i < 280 * 280; i++) if (data[4 * i] > 128) found.push([i % 280, Math.floor(i / 280)]);
        return found; }"""
    with opened(page.as_uri()) as tab:
        assert "arrow keys: space" in tab.locator("#canvas").get_attribute("aria-label")
        tab.locator("body").press("Tab")
        expect(tab.locator("#canvas")).to_be_focused()
        expect(tab.locator("#canvas + i")).to_be_visible()
        for key in ("ArrowUp",) * 8:
            tab.keyboard.press(key)
        assert tab.evaluate(inked) == []  # the pen is up
        tab.keyboard.press("Space")
        expect(tab.locator("#keys")).to_have_text("The pen is down.")
        for key in ("ArrowDown",) * 16:
            tab.keyboard.press(key)
        tab.keyboard.press("Space")
        expect(tab.locator("#keys")).to_have_text("The pen is up.")
        for key in ("ArrowRight",) * 40:
            tab.keyboard.press(key)
        across, down = zip(*tab.evaluate(inked), strict=True)
        assert (min(across), max(across), min(down), max(down)) == pytest.approx((130, 149, 50, 229), abs=1)
        expect(tab.locator("#drawn .bars li")).to_have_count(5)
        tab.screenshot(path=Path(os.environ.get("VISION_ZOO_SHOTS", tmp_path)) / "html_keyboard.png")
        tab.locator("#canvas").press("Tab")  # to the button
        tab.keyboard.press("Enter")
        assert (tab.locator("#drawn .bars").count(), tab.evaluate(inked)) == (0, [])


def in_page(tab, call: str, files: list[bytes]) -> list:
    """What a function of the page makes of image files."""
    bytes_of = "file => new Blob([Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0))])"
    return tab.evaluate(
        f"files => Promise.all(files.map(async (file) => {call}(({bytes_of})(file))))", list(map(text_of, files))
    )


@pytest.mark.slow  # 10 s
@in_chromium
def test_its_labels_are_those_of_predict(page, trained_run, here):
    files = {f"{n:03}.png": file_of(Image.fromarray(image[0].numpy())) for n, image in enumerate(mnist(500))}
    for name, content in files.items():
        (here / name).write_bytes(content)
    assert main(["predict", "--ckpt_path", str(trained_run), "--images", "*.png", "--output", "said.json"]) == 0
    said = json.loads(Path("said.json").read_text())
    with opened(page.as_uri()) as tab:
        rows = in_page(tab, "classify", list(files.values()))
    assert [row["top"][0]["label"] for row in rows] == [each["label"] for each in said]
    for row, each in zip(rows, said, strict=True):
        assert row["top"][0]["probability"] == pytest.approx(each["probability"], abs=1e-4)


def kinds_of_files() -> dict[str, bytes]:
    """Image files of many kinds, of a smooth picture, as they come from cameras and other programs."""
    down, across = np.mgrid[0:300, 0:200]
    rgb = np.dstack([across, 255 - down // 2, (down * across) // 240]).astype(np.uint8)
    image, turned = Image.fromarray(rgb), Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    translucent = image.copy()
    translucent.putalpha(Image.fromarray((across * 1.2).astype(np.uint8)))
    palette = image.quantize(64)
    return {
        "colour": file_of(image),
        "gray": file_of(image.convert("L")),
        "translucent": file_of(translucent),
        "palette": file_of(palette),
        "one transparent colour": file_of(palette, transparency=3),
        "gif": file_of(palette, "gif"),
        "webp": file_of(image, "webp", lossless=True),
        "bmp": file_of(image, "bmp"),
        "16 bits": file_of(Image.fromarray(rgb[..., 0].astype(np.uint16) * 256 + 99)),
        "jpeg": file_of(image, "jpeg", quality=95),
        "jpeg on its side": file_of(image, "jpeg", quality=95, exif=turned),
        "cmyk": file_of(image.convert("CMYK"), "jpeg", quality=95),
    }


def differences(page: Path, shape: tuple[int, int, int], files: list[bytes]) -> list[int]:
    """The largest difference of pixels of each file, as the page and as predict read it."""
    with opened(page.as_uri()) as tab:
        tab.evaluate("shape => { facts.image_shape = shape; }", shape)
        found = in_page(tab, "(async (blob) => btoa(String.fromCharCode(...(await pixels(blob)))))", files)
    expected = [decode(io.BytesIO(file), shape, "crop").astype(int).ravel() for file in files]
    return [int(abs(bytes_of(own) - theirs).max()) for own, theirs in zip(found, expected, strict=True)]


@pytest.mark.slow  # 3 s each
@in_chromium
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64)], ids=["gray", "colour"])
def test_pictures_of_many_kinds_become_the_pixels_of_predict(page, shape):
    kinds = kinds_of_files()
    found = dict(zip(kinds, differences(page, shape, list(kinds.values())), strict=True))
    lossy = {"jpeg", "jpeg on its side", "cmyk"}
    assert {kind: off for kind, off in found.items() if kind not in lossy} == dict.fromkeys(kinds.keys() - lossy, 0)
    assert max(found.values()) <= 1


@pytest.mark.slow  # 3 s
@in_chromium
def test_an_image_of_16_bits_is_refused_where_training_had_a_range_of_values(page):
    files = kinds_of_files()
    with opened(page.as_uri()) as tab:
        tab.evaluate("() => { facts.value_range = [0, 1000]; }")
        refused, taken = in_page(tab, "classify", [files["16 bits"], files["gray"]])
    assert "16 bits, of which a browser gives 8: vision_zoo predict reads it" in refused["error"]
    assert taken["top"]


@pytest.mark.slow  # 10 s
@in_chromium
@pytest.mark.skipif(not (Path(DATA) / "flowers5").is_dir() or not DATA, reason="flowers5 is not in VISION_ZOO_DATA")
def test_photos_become_the_pixels_of_predict(page):
    photos = [photo.read_bytes() for photo in sorted((Path(DATA) / "flowers5").rglob("*.jpg"))[::100]]
    assert max(differences(page, (3, 128, 128), photos)) <= 1
    assert max(differences(page, (3, 32, 32), photos)) <= 6  # of JPEGs that predict decodes at a reduced size
