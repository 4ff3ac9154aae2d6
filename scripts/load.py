"""What `vision_zoo serve` bears: many clients at once, and hostile uploads.

python scripts/load.py --ckpt_path runs/lenet5_mnist/version_0 --images scans --seconds 60
python scripts/load.py --ckpt_path runs/lenet5_mnist/version_0 --images scans --hostile 2000

It starts the server itself, and tells images per second, median and 99th percentile of a request's time, errors, and
the server's memory. Hostile uploads are bombs, halves, files with bytes changed, polyglots and forms with paths for
names; each must get an answer below 500, and the server must be there afterwards.
"""

import argparse
import http.client
import io
import random
import statistics
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Measure; 1 if a request failed that should not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", required=True)
    parser.add_argument("--images", required=True, help="a folder of image files")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--hostile", type=int, default=0, help="so many hostile uploads in place of the load")
    given = parser.parse_args()
    files = [path.read_bytes() for path in sorted(Path(given.images).rglob("*")) if path.is_file()]
    command = [sys.executable, "-m", "vision_zoo", "serve", "--ckpt_path", given.ckpt_path, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert server.stdout is not None
        place = urlsplit(server.stdout.readline().split()[0]).netloc
        before = memory(server.pid)
        failed = hostile(place, files, given.hostile) if given.hostile else load(place, files, given)
        alive = server.poll() is None
        print(f"memory {before:.0f} MB before, {memory(server.pid):.0f} MB after; {'alive' if alive else 'ENDED'}")
        return int(bool(failed) or not alive)
    finally:
        server.terminate()
        server.wait(30)


def memory(pid: int) -> float:
    """Resident megabytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def post(connection: http.client.HTTPConnection, body: bytes, kind: str = "image/any") -> int:
    """Send an image; the status of the answer."""
    connection.request("POST", "/predict", body, {"Content-Type": kind})
    response = connection.getresponse()
    response.read()
    return response.status


def load(place: str, files: list[bytes], given: argparse.Namespace) -> int:
    """Send images from many clients; how many were not answered."""
    done = time.monotonic() + given.seconds
    times: list[float] = []
    errors: list[object] = []

    def client(number: int) -> None:
        chance, connection = random.Random(number), http.client.HTTPConnection(place, timeout=60)
        while time.monotonic() < done:
            began = time.monotonic()
            try:
                status = post(connection, chance.choice(files))
            except OSError as error:
                status, connection = error, http.client.HTTPConnection(place, timeout=60)
            times.append(time.monotonic() - began)
            errors.extend([status] * (status != 200))

    threads = [threading.Thread(target=client, args=[number]) for number in range(given.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.sort()
    median, p99 = statistics.median(times), times[int(0.99 * len(times))]
    print(f"{len(times) / given.seconds:.0f} images/s of {given.clients} clients; {len(times):,} requests")
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
