"""What `vision_zoo serve` bears: many clients at once, many requests, and hostile uploads.

python scripts/load.py --ckpt_path runs/lenet5_mnist/version_0 --images scans --seconds 60
python scripts/load.py --ckpt_path runs/lenet5_mnist/version_0 --images scans --seconds 60 --each 8
python scripts/load.py --ckpt_path runs/lenet5_mnist/version_0 --images scans --requests 100000
python scripts/load.py --ckpt_path runs/lenet5_mnist/version_0 --images scans --hostile 2000
python scripts/load.py --ckpt_path runs/lenet5_mnist/version_0 --images scans --litserve LITSERVE/bin/python

It starts the server itself, and tells images per second, beside those of `vision_zoo predict` on the same files, median
and 99th percentile of a request's time, errors, and the server's memory at every tenth. A request has one image, or as
many as --each says in a form. The clients compute on the same machine: what a request costs them and the server is
told. Hostile uploads are bombs, halves, files with bytes changed, polyglots and forms with paths for names; each must
get an answer below 500, and the server must be there afterwards. --litserve loads the server of
scripts/peer_litserve.py instead, for which images are base64 in JSON.
"""

import argparse
import base64
import contextlib
import http.client
import io
import itertools
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
OURS = [sys.executable, "-m", "vision_zoo"]


def main() -> int:
    """Measure; 1 if a request failed that should not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", required=True)
    parser.add_argument("--images", required=True, help="a folder of image files")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--each", type=int, default=1, help="images of a request")
    parser.add_argument("--requests", type=int, default=0, help="so many requests in place of the seconds")
    parser.add_argument("--hostile", type=int, default=0, help="so many hostile uploads in place of the load")
    parser.add_argument("--litserve", help="Python of an environment that has LitServe, to load its server instead")
    given = parser.parse_args()
    if given.each > 1 and given.litserve:
        parser.error("--each sends a form, and LitServe's server takes JSON: leave one of them out")
    files = [path.read_bytes() for path in sorted(Path(given.images).rglob("*")) if path.is_file()]
    predicted = 0.0 if given.hostile or given.requests else predict(given)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    own = [*OURS, "serve", "--ckpt_path", given.ckpt_path, "--port", port]
    peer = [given.litserve, str(ROOT / "scripts/peer_litserve.py"), given.ckpt_path, port]
    words = peer if given.litserve else own
    # In a group of its own, which ends as one: LitServe leaves processes that go on working.
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment(), start_new_session=True)
    try:
        place = f"127.0.0.1:{port}"
        wait_for(place, server)
        failed = hostile(place, files, given.hostile) if given.hostile else load(place, files, given, server, predicted)
        alive = server.poll() is None
        print(f"memory {used(server.pid)[0]:.0f} MB at the end; {'alive' if alive else 'ENDED'}")
        return int(bool(failed) or not alive)
    finally:
        server.terminate()
        server.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    """For programs that are to find the vision_zoo of this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def predict(given: argparse.Namespace) -> float:
    """Images per second of `vision_zoo predict`, by its own clock."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--ckpt_path", given.ckpt_path, "--images", given.images, "--output", f"{folder}/said.csv"]
        told = subprocess.run([*OURS, "predict", *words], capture_output=True, text=True, check=True, env=environment())
    found = re.search(r"\(([\d,]+) images/s\)", told.stdout)
    assert found is not None, told.stdout
    return float(found[1].replace(",", ""))


def wait_for(place: str, server: subprocess.Popen[bytes]) -> None:
    """Return when the server answers."""
    while server.poll() is None:
        try:
            connection = http.client.HTTPConnection(place, timeout=60)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server ended before it began")


def used(pid: int) -> tuple[float, float]:
    """Resident megabytes, and seconds of processors so far, of a process and of those that it started."""
    folder = Path(f"/proc/{pid}")
    megabytes = int((folder / "status").read_text().partition("VmRSS:")[2].split()[0]) / 1024
    ticks = sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:13]))
    children = [int(child) for path in folder.glob("task/*/children") for child in path.read_text().split()]
    parts = [(megabytes, ticks / os.sysconf("SC_CLK_TCK")), *map(used, children)]
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def post(connection: http.client.HTTPConnection, body: bytes, kind: str = "image/any") -> int:
    """Send an image; the status of the answer."""
    connection.request("POST", "/predict", body, {"Content-Type": kind})
    response = connection.getresponse()
    response.read()
    return response.status


class Client:
    """Sends requests that are made beforehand over one connection: what it costs is not the server's."""

    def __init__(self, place: str) -> None:
        host, _, port = place.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)

    def send(self, request: bytes) -> int:
        """The status of the answer."""
        self.socket.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._more()
        head, _, body = answer.partition(b"\r\n\r\n")
        left = int(head.lower().partition(b"content-length:")[2].split()[0]) - len(body)
        while left > 0:
            left -= len(self._more())
        return int(head.split(maxsplit=2)[1])

    def _more(self) -> bytes:
        part = self.socket.recv(1 << 16)
        if not part:
            raise ConnectionError("the server closed the connection")
        return part


def request(place: str, body: bytes, kind: str) -> bytes:
    """A request to classify images, as it goes over the line."""
    head = f"POST /predict HTTP/1.1\r\nHost: {place}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def form(files: list[bytes]) -> bytes:
    """Several files as the parts of a form."""
    head = b'--e\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
    return b"".join(head + file + b"\r\n" for file in files) + b"--e--\r\n"


def load(
    place: str, files: list[bytes], given: argparse.Namespace, server: subprocess.Popen[bytes], predicted: float
) -> int:
    """Send images from many clients; how many were not answered."""
    kind = "application/json" if given.litserve else "image/any"
    kind = "multipart/form-data; boundary=e" if given.each > 1 else kind
    if given.litserve:
        files = [json.dumps({"image": base64.b64encode(file).decode()}).encode() for file in files]
    began, own, theirs = time.monotonic(), time.process_time(), used(server.pid)[1]
    done = float("inf") if given.requests else began + given.seconds
    numbers, most = itertools.count(), given.requests or float("inf")
    times: list[float] = []
    errors: list[object] = []

    def client(number: int) -> None:
        chance, connection = random.Random(number), Client(place)
        while time.monotonic() < done and next(numbers) < most:
            chosen = chance.choices(files, k=given.each)
            sending = request(place, form(chosen) if given.each > 1 else chosen[0], kind)
            sent = time.monotonic()
            try:
                status: object = connection.send(sending)
            except OSError as error:
                status, connection = error, Client(place)
            times.append(time.monotonic() - sent)
            errors.extend([status] * (status != 200))

    def gone() -> float:
        return len(times) / given.requests if given.requests else (time.monotonic() - began) / given.seconds

    threads = [threading.Thread(target=client, args=[number]) for number in range(given.clients)]
    for thread in threads:
        thread.start()
    for tenth in range(1, 11):
        while any(thread.is_alive() for thread in threads) and gone() < tenth / 10:
            time.sleep(0.05)
        print(f"{len(times):>9,} requests, memory {used(server.pid)[0]:.0f} MB")
    for thread in threads:
        thread.join()
    seconds, own, theirs = time.monotonic() - began, time.process_time() - own, used(server.pid)[1] - theirs
    times.sort()
    rate, median, p99 = given.each * len(times) / seconds, statistics.median(times), times[int(0.99 * len(times))]
    cost, own_cost = 1e3 * theirs / len(times), 1e3 * own / len(times)
    print(f"{rate:.0f} images/s of {given.clients} clients")
    print(f"a request took {cost:.2f} ms of a processor in the server, {own_cost:.2f} ms in its client")
    if predicted:
        print(f"{rate / predicted:.2f} of the {predicted:.0f} images/s of predict")
    print(f"median {1e3 * median:.1f} ms, p99 {1e3 * p99:.1f} ms ({p99 / median:.2f} times); {len(errors)} errors")
    return len(errors)


def hostile(place: str, files: list[bytes], count: int) -> int:
    """Send what nobody should; how many answers are of the server's own failure, or none."""
    chance, wrong = random.Random(0), 0
    bomb = io.BytesIO()
    Image.new("L", (9_000, 9_000)).save(bomb, "png")
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\0\0\0\0"
    huge = header + zlib.crc32(header[12:]).to_bytes(4, "big")
    for number in range(count):
        good = bytearray(chance.choice(files))
        for _ in range(chance.randint(1, 30)):
            good[chance.randrange(len(good))] = chance.randrange(256)
        name = chance.choice(("../../etc/passwd", "a" * 5_000, "\\\\host\\share", "x\0.png"))
        part = f'--e\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'.encode()
        bodies = (
            (bytes(good), "image/png"),
            (bytes(good[: chance.randrange(len(good))]), "image/png"),
            (bomb.getvalue(), "image/png"),
            (huge, "image/png"),
            (b"GIF89a<script>alert(1)</script>" + bytes(good), "text/html"),
            (b"PK\x03\x04" + bytes(good), "application/zip"),
            (part + bytes(good) + b"\r\n--e--\r\n", "multipart/form-data; boundary=e"),
            (part * 200, "multipart/form-data; boundary=e"),
            (b"", "image/png"),
        )
        connection = http.client.HTTPConnection(place, timeout=60)
        try:
            status = post(connection, *bodies[number % len(bodies)])
        except OSError as error:
            status = 599
            print(f"no answer to kind {number % len(bodies)}: {error}")
        wrong += status >= 500
        connection.close()
    print(f"{count:,} hostile uploads, {wrong} of them answered by 500 or more, or not at all")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
