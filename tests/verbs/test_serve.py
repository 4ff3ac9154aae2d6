"""A trained network behind a page and a JSON interface: every request has its own answer, whatever others send."""

import asyncio
import csv
import io
import json
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import (  # the server is here: what the other tests may not use is replaced elsewhere
    Request,
    urlopen,
)

import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from tests.browser import draw_one, in_chromium, opened, shoot
from vision_zoo.__main__ import main
from vision_zoo.verbs.serve.app import make_app
from vision_zoo.verbs.serve.batching import Batcher, RefusedError

LIMITS = ("--max_megabytes", "1", "--max_megapixels", "5")


def start(run: Path, *words: str) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, "-m", "vision_zoo", "serve", "--ckpt_path", str(run), "--port", "0", *words]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = server.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), server.stderr.read()
    return server, line.split()[0]


@pytest.fixture(scope="module")
def address(trained_run):
    server, where = start(trained_run, *LIMITS)
    yield where
    assert server.poll() is None, server.stderr.read()  # it is still there, after everything below
    server.send_signal(signal.SIGINT)
    assert server.wait(20) == 130


@pytest.fixture(scope="module")
def address_that_reads(tmp_path_factory):
    """As above, of a network that knows what digits look like: nine of ten, after three epochs."""
    root = tmp_path_factory.mktemp("reads")
    words = ["--model.backbone", "LeNet5", "--model.optimizer", "Adam", "--model.optimizer.lr", "0.003"]
    assert main(["fit", *words, "--trainer.max_epochs", "3", "--trainer.default_root_dir", str(root)]) == 0
    server, where = start(root / "runs" / "default" / "version_0")
    yield where
    server.send_signal(signal.SIGINT)
    assert server.wait(20) == 130


def ask(address: str, body: bytes | None, kind: str = "image/png", path: str = "predict") -> tuple[int, dict]:
    request = Request(address + path, body, {"Content-Type": kind})
    try:
        with urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def digits(count: int) -> list[bytes]:
    images, _ = tiny.digits(count)
    return [png(image.squeeze()) for image in images]


def form(*files: bytes) -> tuple[bytes, str]:
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="f"; filename="{n}.png"\r\n\r\n'.encode() + file + b"\r\n"
        for n, file in enumerate(files)
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


@pytest.mark.slow  # 5 s for the server that they share
def test_it_answers_as_predict_does(address, trained_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = digits(20)
    for n, file in enumerate(files):
        (tmp_path / f"{n:02}.png").write_bytes(file)
    assert main(["predict", "--ckpt_path", str(trained_run), "--images", "*.png"]) == 0
    said = list(csv.DictReader(io.StringIO(Path("predictions.csv").read_text())))
    for file, row in zip(files, said, strict=True):
        status, answer = ask(address, file)
        assert status == 200
        found = answer["predictions"][0]
        assert (found["label"], found["top"][1]["label"]) == (row["label"], row["label_2"])
        assert found["probability"] == pytest.approx(float(row["probability"]), abs=1e-6)


def test_a_bad_image_of_a_form_has_an_error_and_fails_no_other(address):
    good = digits(2)
    status, answer = ask(address, *form(good[0], b"no image", good[1]))
    first, bad, last = answer["predictions"]
    assert (status, first["file"], bad["file"]) == (200, "0.png", "1.png")
    assert "cannot be read as an image" in bad["error"]
    assert {"label", "top"} <= first.keys() & last.keys()


def test_it_draws_where_it_looked(address):
    one, other = digits(2)
    for content in (one, other):
        with urlopen(Request(address + "explain", content, {"Content-Type": "image/png"}), timeout=60) as response:
            assert response.headers["Content-Type"] == "image/png"
            drawn = Image.open(io.BytesIO(response.read()))
        assert (drawn.size, drawn.mode) == ((28, 28), "RGB")
    assert ask(address, b"hello", path="explain")[0] == 415
    status, answer = ask(address, *form(one, other), path="explain")
    assert (status, answer["error"][:22]) == (400, "several images came: s")


BLACK = png(np.zeros((3000, 3000), np.uint8))
# The head of a PNG that says 60,000 x 60,000 pixels.
HUGE = png(np.zeros((1, 1), np.uint8)).replace(struct.pack(">II", 1, 1), struct.pack(">II", 60_000, 60_000), 1)
HUGE = HUGE[:29] + struct.pack(">I", zlib.crc32(HUGE[12:29])) + HUGE[33:]
CASES = {
    "no image": (b"hello", "image/png", 415, "cannot be read"),
    "nothing": (b"", "image/png", 400, "no image came"),
    "an empty form": (b"--edge--\r\n", "multipart/form-data; boundary=edge", 400, "no image came"),
    "a form without its edge": (b"x", "multipart/form-data", 400, "form cannot be read"),
    "more bytes than the limit": (bytes(2**20 + 1), "image/png", 413, "more than 1 MB"),
    "a form of more bytes": (*form(bytes(2**20)), 413, "more than 1 MB"),
    "a bomb": (BLACK, "image/png", 413, "3000 x 3000 pixels, and 5 megapixels are the limit"),
    "a bomb that no image can be": (HUGE, "image/png", 413, "decompression bomb"),
    "half an image": (digits(1)[0][:200], "image/png", 415, "cannot be read"),
    "too many files": (*form(*[b"x"] * 65), 413, "more than 64 images came"),
}


@pytest.mark.slow  # 5 s for the server that they share
@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_classified_is_told_by_its_status(address, case):
    body, kind, status, words = CASES[case]
    found, answer = ask(address, body, kind)
    assert (found, words in answer["error"]) == (status, True), answer


@pytest.mark.slow  # 5 s for the server that they share
def test_hostile_uploads_do_not_end_it(address):
    chance, good = random.Random(0), digits(1)[0]
    kinds = ("image/png", "multipart/form-data; boundary=edge", "application/json", "../../etc/passwd")
    for _ in range(60):
        body = bytearray(good[: chance.randint(0, len(good))])
        for _ in range(chance.randint(0, 20)):
            body.insert(chance.randint(0, len(body)), chance.randint(0, 255))
        assert ask(address, bytes(body), chance.choice(kinds))[0] in (200, 400, 413, 415)
    assert ask(address, good)[0] == 200


@pytest.mark.slow  # 5 s for the server that they share
def test_images_that_come_together_are_computed_together_and_each_has_its_answer(address):
    files = digits(40)
    alone = [ask(address, file)[1]["predictions"][0] for file in files]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda file: ask(address, file)[1]["predictions"][0], files))
    for one, other in zip(alone, together, strict=True):
        assert one["label"] == other["label"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


@pytest.mark.slow  # 5 s for the server that they share
def test_its_state_and_its_counts_can_be_asked_for(address):
    ask(address, digits(1)[0])
    status, health = ask(address, None, path="health")
    assert (status, health["status"], health["image_shape"]) == (200, "ok", [1, 28, 28])
    text = urlopen(address + "metrics").read().decode()
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(counts['vision_zoo_requests_total{status="200"}']) >= 1
    assert int(counts["vision_zoo_images_total"]) >= int(counts["vision_zoo_batches_total"]) >= 1


@pytest.mark.slow  # 5 s for the server that they share
def test_the_page_loads_nothing_from_elsewhere_and_every_input_has_a_label(address):
    with urlopen(address) as response:
        page, policy = response.read().decode(), response.headers["Content-Security-Policy"]
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page)
    assert "default-src 'none'" in policy
    inputs = set(re.findall(r'<input[^>]* id="(\w+)"', page))
    assert inputs == set(re.findall(r'<label[^>]* for="(\w+)"', page)) != set()
    assert "Drawing board" in page


def test_one_image_more_than_may_wait_is_turned_away():
    async def ask_all():
        batcher = Batcher([lambda pixels: [{}] * len(pixels)], lambda _: torch.zeros(1, 2, 2), 4, 3, 1e6)
        worker = asyncio.create_task(batcher.work())
        found = await asyncio.gather(*(batcher.row(digits(1)[0]) for _ in range(5)), return_exceptions=True)
        worker.cancel()
        return found

    found = asyncio.run(ask_all())
    assert [error.status for error in found if isinstance(error, RefusedError)] == [503, 503]
    assert found.count({}) == 3


def test_each_thread_has_its_share_and_each_image_its_own_row():
    sizes = {"a": [], "b": []}

    def classifier(name):
        def classify(pixels):
            sizes[name].append((len(pixels), torch.get_num_threads()))
            return [{"value": int(value)} for value in pixels[:, 0, 0, 0]]

        return classify

    def read(file):
        return torch.full((1, 2, 2), file.getvalue()[-1])

    async def ask_all():
        batcher = Batcher([classifier("a"), classifier("b")], read, 4, 99, 1e6)
        worker = asyncio.create_task(batcher.work())
        image = digits(1)[0]
        alone = await batcher.row(image + b"\x63")
        found = await asyncio.gather(*(batcher.row(image + bytes([n])) for n in range(9)))
        worker.cancel()
        return alone, found

    threads = torch.get_num_threads()
    assert asyncio.run(ask_all()) == ({"value": 99}, [{"value": n} for n in range(9)])
    assert sizes["a"][0] == (1, threads)  # alone, with all processors
    shares = [*sizes["a"][1:], *sizes["b"]]
    assert shares == [(size, 1) for size, _ in shares]
    assert [size for size, _ in shares] == [3, 3, 3]  # two threads have a share each, and as many images wait


def test_names_that_are_no_text_are_sent_all_the_same():
    """As of a folder from an archive in Latin-1; it is written as Python writes such a name."""

    async def state():
        batcher = Batcher([lambda pixels: [{}] * len(pixels)], lambda _: torch.zeros(1, 2, 2), 4, 3, 1e6)
        app, sent = make_app(batcher, None, b"", {"classes": ["caf\udce9"]}, 100, 1.0), []
        about = {"type": "http", "method": "GET", "path": "/health", "headers": [], "query_string": b""}
        await app(about, None, lambda message: asyncio.sleep(0, sent.append(message)))
        return sent

    start, body = asyncio.run(state())
    assert start["status"] == 200
    assert (b"content-type", b"application/json") in start["headers"]
    assert json.loads(body["body"]) == {"status": "ok", "classes": ["caf\udce9"]}


def test_a_network_that_fails_fails_the_images_of_its_batch_alone():
    def classify(pixels):
        if pixels.max() > 100:
            raise RuntimeError("too bright")
        return [{}] * len(pixels)

    async def ask_all():
        values = iter((200, 0))
        batcher = Batcher([classify], lambda _: torch.full((1, 2, 2), next(values)), 1, 9, 1e6)
        worker = asyncio.create_task(batcher.work())
        first = (await asyncio.gather(batcher.row(digits(1)[0]), return_exceptions=True))[0]
        second = await batcher.row(digits(1)[0])
        worker.cancel()
        return first, second

    first, second = asyncio.run(ask_all())
    assert (first.status, second) == (500, {})


def test_a_port_that_is_taken_is_told(trained_run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["--port", str(taken.getsockname()[1])]
        assert main(["serve", "--ckpt_path", str(trained_run), *words]) == 2
    assert "nothing can listen there" in capsys.readouterr().err


def test_a_limit_of_nothing_and_a_missing_package_are_told(trained_run, capsys, monkeypatch):
    assert main(["serve", "--ckpt_path", str(trained_run), "--max_waiting", "0"]) == 2
    assert "--max_waiting must be above 0, got 0" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--ckpt_path", str(trained_run)]) == 2
    assert "pip install 'vision_zoo[serve]'" in capsys.readouterr().err


@pytest.mark.slow  # 12 s
@in_chromium
@pytest.mark.parametrize("width", [1000, 360], ids=["desktop", "phone"])
def test_one_draws_a_digit_and_drops_a_picture_in_a_browser(address_that_reads, width, tmp_path):
    from playwright.sync_api import expect

    (tmp_path / "digit.png").write_bytes(digits(1)[0])
    with opened(address_that_reads, viewport={"width": width, "height": 900}) as tab:
        draw_one(tab)
        # The beginning of the stroke has been answered too, and may have been something else. (wait_for_function would
        # evaluate a text in the page, which its content security policy forbids.)
        expect(tab.locator("#drawn .bars li span").first).to_have_text("1", timeout=20_000)
        tab.set_input_files("#files", str(tmp_path / "digit.png"))
        tab.wait_for_selector("#results .bars li")
        assert "digit.png" in tab.inner_text("#results")
        for place in ("#drawn", "#results"):
            tab.click(f"{place} button")
            tab.wait_for_selector(f"{place} img.look")
        shoot(tab, f"serve_{width}.png", tmp_path)
        tab.click("#clear")
        keys = [*["ArrowUp"] * 8, "Space", *["ArrowDown"] * 16]  # the same by keyboard
        for key in keys:
            tab.locator("#canvas").press(key)
        expect(tab.locator("#drawn .bars li span").first).to_have_text("1", timeout=20_000)


@pytest.mark.slow  # 5 s for the server that they share
def test_a_form_of_too_many_images_is_told_the_limit_whatever_it_holds(address):
    body, kind = form(*[b"x" * 5000] * 150)
    status, answer = ask(address, body, kind.replace("multipart/form", "Multipart/Form"))
    assert (status, answer["error"]) == (413, "more than 64 images came, which are the limit of a request")
    for count in (65, 66, 100):
        began = time.monotonic()
        assert ask(address, *form(*[b"x" * 100] * count))[0] == 413
        assert ask(address, b"--edge\r\nbad header\r\n\r\n", "multipart/form-data; boundary=edge")[0] == 400
        assert time.monotonic() - began < 10  # and waits for nothing that does not come


@pytest.mark.slow  # 9 s
def test_a_request_that_the_end_overtakes_has_an_answer_and_no_traceback(trained_run):
    server, where = start(trained_run)
    port = int(where.rsplit(":", 1)[1].strip("/"))
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nabc")
        assert ask(where, None, path="health")[0] == 200  # so that the other is on its way
        server.terminate()
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))  # until it closes
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"the server ends" in answer
    _, errors = server.communicate(timeout=20)
    assert "Traceback" not in errors
