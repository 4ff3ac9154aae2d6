"""Downloads from a server of our own: what is fetched is complete and checked, or nothing is there."""

import gzip
import hashlib
import http.server
import io
import multiprocessing
import shutil
import socket
import socketserver
import tarfile
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from torchvision import datasets

from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.data import CIFAR10, MNIST
from vision_zoo.data import fetch as fetching
from vision_zoo.errors import DatasetNotFoundError

real_urlopen = urllib.request.urlopen
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Server(socketserver.ThreadingTCPServer):
    """Serves what `files` holds: bytes, a status, or a way to answer."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, object] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.lstrip("/")
        self.server.asked.append(name)
        answer = self.server.files.get(name, 404)
        if callable(answer):
            answer(self)
        elif isinstance(answer, int):
            self.send_error(answer)
        else:
            self.send(answer)

    def send(self, content, announced=None):
        self.send_response(200)
        self.send_header("Content-Length", str(announced or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    def loopback_only(request, *rest, **options):
        address = request if isinstance(request, str) else request.full_url
        if not address.startswith("http://127.0.0.1:"):
            raise OSError(f"no network in tests: {address}")
        return real_urlopen(request, *rest, **options)

    monkeypatch.setattr("urllib.request.urlopen", loopback_only)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def mnist(server, tmp_path, monkeypatch):
    """MNIST's four files on the server, with torchvision's list of addresses and checksums pointing at them."""
    folder = tiny.write_mnist(tmp_path / "original", 40, 20, compress=True) / "MNIST/raw"
    server.files = {f"{name}.gz": (folder / f"{name}.gz").read_bytes() for name in NAMES}
    monkeypatch.setattr(datasets.MNIST, "mirrors", [server.url])
    checksums = [(name, md5(content)) for name, content in server.files.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", checksums)
    return server


def below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")} if root.exists() else set()


def refused(root: Path, kind=MNIST) -> str:
    """Try to download, and give the message; nothing may be left."""
    before = {name: (root / name).stat().st_mtime_ns for name in below(root)}
    with pytest.raises(DatasetNotFoundError) as caught:
        kind(str(root)).prepare_data()
    message = str(caught.value)
    assert message.startswith(f"{kind.__name__}: ")
    assert "and the download failed (" in message
    assert message.endswith("or use the images that need no network: --data MNIST5k")
    assert {name: (root / name).stat().st_mtime_ns for name in below(root)}.keys() == before.keys()
    return message


def test_validate_downloads_as_test_does(mnist, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--data", "MNIST", "--data.root", "data", "--data.val_split", "10", "--model.backbone", "SmallCNN"]
    assert main(["fit", *words, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0
    shutil.rmtree("data")
    assert main(["validate", "--ckpt_path", "best"]) == 0
    assert (tmp_path / "data/MNIST/raw" / NAMES[0]).is_file()


def test_the_correct_files_are_fetched_once_and_used(mnist, tmp_path):
    data = MNIST(str(tmp_path / "data"), val_split=10)
    data.prepare_data()
    data.setup()
    assert data.sizes == {"train": 30, "val": 10, "test": 20}
    assert {f"MNIST/raw/{name}" for name in NAMES} <= below(tmp_path / "data")
    assert not [name for name in below(tmp_path / "data") if Path(name).name.startswith(".")]
    asked = list(mnist.asked)
    assert set(asked) == {f"{name}.gz" for name in NAMES}
    MNIST(str(tmp_path / "data")).prepare_data()
    assert mnist.asked == asked


def cut_short(handler):
    content = handler.server.whole
    handler.send(content[: len(content) // 2], announced=len(content))


def stalled(handler):
    handler.send(handler.server.whole[:100], announced=10**6)
    time.sleep(1.5)


def hangs_up(handler):
    handler.connection.close()


PAGE = b"<!DOCTYPE html><html>The site has moved</html>"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (PAGE, "corrupted"),
        (gzip.compress(PAGE), "corrupted"),
        (b"", "corrupted"),
        (404, "404"),
        (500, "500"),
        (cut_short, "corrupted"),
        (stalled, "timed out"),
        (hangs_up, "closed|reset|Bad file"),
    ],
    ids=["page", "packed page", "empty", "missing", "server error", "cut short", "stalled", "hangs up"],
)
@pytest.mark.parametrize("which", [0, 3], ids=["first", "last"])
def test_what_is_not_the_published_file_is_refused_and_leaves_nothing(
    mnist, tmp_path, monkeypatch, answer, reason, which
):
    if answer is stalled:
        monkeypatch.setattr(fetching, "SILENCE_SECONDS", 0.3)
    name = f"{NAMES[which]}.gz"
    mnist.whole = mnist.files[name]
    good, mnist.files[name] = mnist.files[name], answer
    message = refused(tmp_path / "data")
    assert any(word in message for word in reason.split("|")), message
    assert NAMES[which] in message
    assert not below(tmp_path / "data")
    mnist.files[name] = good  # the next attempt starts clean
    MNIST(str(tmp_path / "data")).prepare_data()
    assert (tmp_path / "data/MNIST/raw" / NAMES[which]).is_file()


def test_files_that_are_there_are_never_touched(mnist, tmp_path):
    root = tiny.write_mnist(tmp_path / "data", 30, 20)
    (root / "MNIST/raw" / NAMES[3]).unlink()
    kept = {name: (root / "MNIST/raw" / name).read_bytes() for name in NAMES[:3]}
    mnist.files[f"{NAMES[0]}.gz"] = PAGE
    refused(root)
    mnist.files[f"{NAMES[0]}.gz"] = (tmp_path / "original/MNIST/raw" / f"{NAMES[0]}.gz").read_bytes()
    MNIST(str(root)).prepare_data()
    assert kept == {name: (root / "MNIST/raw" / name).read_bytes() for name in NAMES[:3]}
    assert (root / "MNIST/raw" / NAMES[3]).is_file()


def test_what_a_killed_process_left_is_cleared_away(mnist, tmp_path):
    leftover = tmp_path / "data" / f"{fetching.TEMPORARY}{socket.gethostname()}-99999999-abc" / "MNIST/raw"
    leftover.mkdir(parents=True)
    (leftover / NAMES[0]).write_bytes(b"half")
    MNIST(str(tmp_path / "data")).prepare_data()
    assert not leftover.exists()
    assert (tmp_path / "data/MNIST/raw" / NAMES[0]).stat().st_size > 1000


def download_at(root: str, start) -> None:
    start.wait()
    data = MNIST(root, val_split=10)
    data.prepare_data()
    data.setup()
    assert data.sizes == {"train": 30, "val": 10, "test": 20}


def test_several_processes_at_once_fetch_every_file_once(mnist, tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Event()
    several = [context.Process(target=download_at, args=(str(tmp_path / "data"), start)) for _ in range(4)]
    for process in several:
        process.start()
    start.set()
    for process in several:
        process.join(30)
    assert [process.exitcode for process in several] == [0] * 4
    assert sorted(mnist.asked) == sorted([f"{name}.gz" for name in NAMES] * 2)  # torchvision asks for redirects first
    assert not [name for name in below(tmp_path / "data") if Path(name).name.startswith(".")]


def test_a_root_that_cannot_be_written_is_refused(mnist, tmp_path):
    (tmp_path / "file").write_text("")
    assert "[Errno" in refused(tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""


def test_a_full_disk_leaves_nothing(mnist, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", full)
    assert "No space left on device" in refused(tmp_path / "data")
    assert not below(tmp_path / "data")


@pytest.mark.parametrize("name", ["../escaped", "{absolute}", "cifar-10-batches-py/../../../escaped", "link"])
def test_an_archive_that_would_write_elsewhere_is_refused(server, tmp_path, monkeypatch, name):
    """Even with the right checksum."""
    before_all = dict(vars(tarfile.TarFile))
    target = tmp_path / "elsewhere"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        if name == "link":
            entry = tarfile.TarInfo("cifar-10-batches-py")
            entry.type, entry.linkname = tarfile.SYMTYPE, str(tmp_path)
            archive.addfile(entry)
            name = "cifar-10-batches-py/escaped"
        entry = tarfile.TarInfo(name.format(absolute=target))
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    server.files["cifar.tar.gz"] = stream.getvalue()
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server.url}cifar.tar.gz")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(stream.getvalue()))
    before = below(tmp_path)
    message = refused(tmp_path / "data", CIFAR10)
    assert any(word in message for word in ("outside", "link", "corrupted")), message  # or the file stays inside
    assert below(tmp_path) == before | {"data"}
    assert dict(vars(tarfile.TarFile)) == before_all, "given back"


def test_archives_are_unpacked_whole(tmp_path):
    tiny.write_cifar10(tmp_path / "original")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "original/cifar-10-batches-py", "cifar-10-batches-py")
    with fetching._careful(), tarfile.open(tmp_path / "a.tar") as archive:
        archive.extractall(tmp_path / "copy")  # as torchvision does
    assert below(tmp_path / "copy") == below(tmp_path / "original")
