"""A pack at an address gives what the file gives, over connections that fail and with a cache that is bounded."""

import contextlib
import os
import random
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import torch

from tests.cli.cases import refuse
from tests.data.test_pack import SHORT, write_photos
from tests.training.runs import same, state
from tests.training.test_processes import DDP, ENVIRONMENT, SIGNALLED, run
from vision_zoo.__main__ import main
from vision_zoo.data import Pack, remote
from vision_zoo.errors import ConfigError, DataError, DatasetNotFoundError, TrainingError

SHARDS = 8  # of 8 images or fewer
ROOM = 0.004  # GiB, which four of them take
FACTS = ["--data.mean", "[0.5, 0.5, 0.5]", "--data.std", "[0.2, 0.2, 0.2]"]  # so that no image is read for them


class Failing(SimpleHTTPRequestHandler):
    """Drops connections, sends half of a file, and answers with 500, where the dice of the server say so."""

    protocol_version = "HTTP/1.1"  # so that a length is sent and a lost connection is noticed

    def do_GET(self) -> None:
        content, name = Path(self.directory, self.path.lstrip("/")), Path(self.path).name
        how = self.server.dice.choice(["well"] * self.server.well + ["500", "drop", "half"])
        self.server.asked.append((name, how))
        if how == "500" or not content.is_file():
            return self.send_error(500 if how == "500" else 404)
        data = content.read_bytes()
        half = data[: len(data) // 2]
        self.send_response(200)
        self.send_header("Content-Length", str(len(half if how == "half" else data)))
        self.end_headers()
        self.wfile.write(data if how == "well" else half)
        self.close_connection = how == "drop"
        return None

    def log_message(self, *_) -> None: ...


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> Path:
    """A folder of the same images as a pack of shards, as one file, and as encoded files in shards."""
    folder = tmp_path_factory.mktemp("packs")
    photos = str(write_photos(folder / "photos", count=30))
    words = {"a": ["--shard_mb", "1"], "whole": [], "encoded": ["--encoded", "--shard_mb", "1"]}
    for name, options in words.items():
        size = [] if name == "encoded" else ["--image_size", "200"]
        assert main(["pack", photos, *size, *options, "--output", str(folder / f"{name}.vz")]) == 0
    return folder


@pytest.fixture
def cache(here, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.setattr(remote, "WAITS", (0.001,) * 60)
    return here / "cache" / "vision_zoo" / "packs"


@pytest.fixture
def server(packs):
    """A server of the folder, which fails in three of ten times."""
    found = ThreadingHTTPServer(("127.0.0.1", 0), partial(Failing, directory=str(packs)))
    found.dice, found.asked, found.well, found.daemon_threads = random.Random(0), [], 7, True
    found.address = f"http://127.0.0.1:{found.server_port}"
    threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def taken(cache: Path) -> int:
    found = 0
    for path in cache.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just made room for another
            found += path.stat().st_size if path.suffix in (".shard", ".part") else 0
    return found


def epoch(data: Pack, number: int = 0, start: int = 0) -> list[torch.Tensor]:
    loader = data.train_dataloader()
    loader.load_state_dict({**loader.state_dict(), "epoch": number, "batches": start})
    loader.set_epoch(number)
    return [images for images, _ in loader]


# --------------------------------------------------------------------------------------------------- the same results


@pytest.mark.parametrize("name", ["a.vz", "whole.vz", "encoded.vz"])
def test_any_pack_at_an_address_gives_what_the_file_gives(name, packs, cache):
    local = Pack(str(packs / name), image_size=20)
    files = fsspec.filesystem("memory")
    files.put(str(packs), "/bucket", recursive=True)
    for address in (f"memory://bucket/{name}", f"file://{packs}/{name}"):
        there = Pack(address, image_size=20)
        for split in ("train", "val", "test"):
            for mine, its in zip(there.split_images(split), local.split_images(split), strict=True):
                assert torch.equal(mine, its)
        assert (there.mean, there.std, there.class_names) == (local.mean, local.std, local.class_names)
    files.rm("/bucket", recursive=True)
    assert not [path for path in cache.iterdir() if path.suffix in (".part", ".lock")]


def test_a_run_over_a_failing_connection_is_that_on_the_file(packs, server, cache, capsys):
    for place in (packs, server.address):
        words = [
            "--data.path",
            f"{place}/a.vz",
            "--data.image_size",
            "16",
            *FACTS,
        ]
        assert main([*SHORT, "--data", "Pack", *words, "--trainer.max_epochs", "1"]) == 0
    (local, there), told = sorted(Path("runs/default").iterdir()), capsys.readouterr().err
    assert (local / "metrics.csv").read_bytes() == (there / "metrics.csv").read_bytes()
    for name in ("best.ckpt", "last.ckpt"):
        assert same(state(local / "checkpoints" / name), state(there / "checkpoints" / name))
    assert f"fetching {SHARDS} shards" in told
    assert {"500", "drop", "half"} <= {how for _, how in server.asked}
    lost = [how for _, how in server.asked if how != "well"]
    assert len(re.findall(rf"vision_zoo: {server.address}/a\.vz.*: again in", told)) == len(lost)
    server.asked.clear()
    assert main(["test", "--ckpt_path", "last"]) == 0
    assert {name for name, _ in server.asked} == {"a.vz"}, "what the cache has is fetched again"


# ------------------------------------------------------------------------------------------------ a cache that is small


def test_shards_that_do_not_fit_are_shuffled_in_groups_and_the_cache_stays_bounded(packs, server, cache, monkeypatch):
    options = {
        "test_split": 0,
        "val_split": 0,
        "batch_size": 4,
        "num_workers": 1,
        "mean": [0.5],
        "std": [0.2],
    }
    data, most = Pack(f"{server.address}/a.vz", cache_gb=ROOM, **options), []
    loader, before = data.train_dataloader(), remote._damaged
    monkeypatch.setattr(remote, "_damaged", lambda *given: (most.append(taken(cache)), before(*given))[1])
    numbers = loader.source.spans[:, 0]
    orders = []
    for number in range(3):
        loader.set_epoch(number)
        order = torch.cat(loader.batches())
        assert sorted(order.tolist()) == list(range(60))
        groups = [set(part.tolist()) for part in torch.split(numbers[order], 16)]  # of which the last has fewer images
        assert max(map(len, groups)) <= 4
        assert len(set(numbers[order[:12]].tolist())) == 2, "the images of a group are not mixed"
        orders.append(order.tolist())
        assert torch.equal(torch.cat(epoch(data, number)), loader.source.fetch(order).images)
    assert len({tuple(order) for order in orders}) == 3
    assert max(most) <= ROOM * 2**30
    assert len([name for name, how in server.asked if how == "well" and "a.vz." in name]) > SHARDS


def test_a_run_resumes_at_any_step_whatever_the_cache_has(packs, cache):
    options = {"batch_size": 5, "seed": 3, "num_workers": 1, "mean": [0.5], "std": [0.2], "sampler": "balanced"}
    whole = epoch(Pack(f"file://{packs}/a.vz", cache_gb=ROOM, **options), 2)
    for start in (1, 4, len(whole) - 1):
        for path in cache.iterdir():
            if start == 4 or random.Random(start).random() < 0.5:
                path.unlink()
        rest = epoch(Pack(f"file://{packs}/a.vz", cache_gb=ROOM, **options), 2, start)
        assert len(rest) == len(whole) - start
        assert all(map(torch.equal, rest, whole[start:]))
    small, large = (Pack(f"file://{packs}/a.vz", cache_gb=room, **options).train_dataloader() for room in (ROOM, 1))
    with pytest.raises(DataError, match=r"shuffled 2 shards together and now would all, .*--data\.cache_gb"):
        large.load_state_dict(small.state_dict())


def test_readers_share_what_one_has_fetched_and_make_room_for_others(packs, server, cache):
    server.well = 1_000_000
    readers = [Pack(f"{server.address}/a.vz")._shards for _ in range(3)]
    server.asked.clear()
    with ThreadPoolExecutor(6) as pool:
        for file in pool.map(lambda n: readers[n % 3].open(n % SHARDS), range(24)):
            file.close()
    assert sorted(name for name, _ in server.asked) == [f"a.vz.{number:05}" for number in range(SHARDS)]
    before = taken(cache)
    Pack(f"{server.address}/whole.vz", cache_gb=before * 1.2 / 2**30)  # for which all but one shard must go
    assert before * 0.9 < taken(cache) <= before * 1.2
    (cache / "0.9000000.part").write_bytes(bytes(9))  # of a process that was killed
    Pack(f"{server.address}/a.vz", cache_gb=before * 1.2 / 2**30).sample("train", 30)
    assert taken(cache) <= before * 1.2
    assert not (cache / "0.9000000.part").exists()


# ------------------------------------------------------------------------------------------------------ what is refused


def test_what_is_wrong_at_an_address_is_named(packs, server, cache, here, monkeypatch):
    server.well = 1_000_000
    for file in packs.glob("a.vz*"):
        (here / file.name).write_bytes(file.read_bytes())
    address, shard = f"file://{here}/a.vz", here / "a.vz.00003"
    pixels = bytearray(shard.read_bytes())
    pixels[3] ^= 1
    shard.write_bytes(pixels)
    with pytest.raises(DataError, match=r"a\.vz\.00003 is damaged: 1 of its images .*Copy it there again"):
        Pack(address).split_images("train")
    assert len([*cache.glob("*.shard")]) < SHARDS
    shard.write_bytes(pixels[:-1])
    monkeypatch.setattr(remote, "WAITS", (0.001,))
    with pytest.raises(TrainingError, match=r"a\.vz\.00003 cannot be fetched \(.* bytes came\)"):
        Pack(address).split_images("train")
    shard.unlink()
    with pytest.raises(DatasetNotFoundError, match=r"a\.vz\.00003 cannot be read"):
        Pack(address).split_images("train")
    with pytest.raises(DatasetNotFoundError, match=r"none\.vz cannot be read .*--data\.path"):
        Pack(f"{server.address}/none.vz")
    (here / "a.vz").write_bytes(b"something")
    with pytest.raises(DataError, match=r"file://.*a\.vz is none of the files"):
        Pack(address)
    for room, message in ((0.001, "holds less than two shards .* give at least"), (0, "must be positive")):
        with pytest.raises(ConfigError, match=rf"--data\.cache_gb {message}|--data\.cache_gb .*{message}"):
            Pack(f"{server.address}/a.vz", cache_gb=room)
    with pytest.raises(ConfigError, match=r"is one file of .* pack it with --shard_mb"):
        Pack(f"{server.address}/whole.vz", cache_gb=0.001)


def test_who_may_not_read_is_told_so_at_once(packs, server, cache, monkeypatch):
    server.well = 1_000_000
    monkeypatch.setattr(Failing, "do_GET", lambda handler: handler.send_error(403))
    monkeypatch.setattr(remote, "WAITS", (60,) * 3)
    with pytest.raises(DatasetNotFoundError, match=r"a\.vz cannot be read \(.*403.*who may read it"):
        Pack(f"{server.address}/a.vz")


def test_what_stands_behind_a_question_mark_goes_with_each_shard(packs, server, cache, monkeypatch):
    server.well, asked, get = 1_000_000, [], Failing.do_GET

    def signed(handler):
        handler.path, _, query = handler.path.partition("?")
        asked.append(query)
        return get(handler)

    monkeypatch.setattr(Failing, "do_GET", signed)
    monkeypatch.setattr(Failing, "do_HEAD", signed)
    Pack(f"{server.address}/a.vz?key=a/b", cache_gb=ROOM * 9).split_images("train")
    assert {name for name, _ in server.asked} == {"a.vz", *(f"a.vz.{number:05}" for number in range(SHARDS))}
    assert {*asked} == {"key=a/b"}


def test_an_index_that_the_cache_cannot_hold_is_refused(packs, server, cache):
    server.well = 1_000_000
    with pytest.raises(ConfigError, match=r"a\.vz has an index of .* more than --data\.cache_gb"):
        Pack(f"{server.address}/a.vz", cache_gb=1e-6)


def test_what_a_killed_process_began_after_this_one_makes_room(packs, server, cache):
    server.well = 1_000_000
    bound = 9.5 / 8 * sum(file.stat().st_size for file in packs.glob("a.vz.*")) / 2**30
    pack = Pack(f"{server.address}/a.vz", cache_gb=bound)
    for number in range(9):
        (cache / f"{number}.2000000.part").write_bytes(b"")
    pack.split_images("train")
    assert not [*cache.glob("?.2000000.part")]


def test_words_at_the_terminal_are_refused_in_one_line(cache, capsys, monkeypatch):
    refuse(
        capsys,
        ("fit", "--data", "Pack", "--data.path", "ssh://host/a.vz"),
        "must be a file, or begin with s3://, gs://",
    )
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    refuse(capsys, ("fit", "--data", "Pack", "--data.path", "gs://bucket/a.vz"), r"pip install 'vision_zoo\[gs\]'")


# ---------------------------------------------------------------------------------------------------------------- slow


@pytest.mark.slow
def test_five_kills_of_a_run_over_a_failing_connection_change_nothing(packs, server, here):
    """A minute."""
    words = [*SHORT, "--data", "Pack", "--data.val_split", "0.2", "--data.cache_gb", str(ROOM)]
    words += [
        *FACTS,
        "--data.image_size",
        "16",
        "--save_every_minutes",
        "0.00001",
        "--data.path",
    ]
    whole, cut, dice = here / "whole", here / "cut", random.Random(0)
    whole.mkdir()
    cut.mkdir()
    assert run(whole, sys.executable, "-m", "vision_zoo", *words, f"file://{packs}/a.vz",
               XDG_CACHE_HOME=str(here / "other")).returncode == 0  # fmt: skip
    (cut / "sitecustomize.py").write_text(
        f"{SIGNALLED}\ntry:\n    from vision_zoo.data import remote\nexcept ImportError:\n    pass\n"
        "else:\n    remote.WAITS = (0.01,) * 60\n"
    )
    path, step = os.pathsep.join([str(cut), ENVIRONMENT["PYTHONPATH"]]), 0
    given = {"PYTHONPATH": path, "XDG_CACHE_HOME": str(here / "cache")}
    for _ in range(5):
        step += dice.randint(1, 2)
        go_on = ["fit", "--ckpt_path", "last"] if [*cut.rglob("last.ckpt")] else [*words, f"{server.address}/a.vz"]
        result = run(cut, sys.executable, "-m", "vision_zoo", *go_on, **given, SIGNALLED=f"all SIGKILL {step}")
        assert result.returncode == -9, result.stderr
    result = run(cut, sys.executable, "-m", "vision_zoo", "fit", "--ckpt_path", "last", **given)
    assert result.returncode == 0, result.stderr
    mine, its = (folder / "runs/default/version_0" for folder in (cut, whole))
    assert (mine / "metrics.csv").read_bytes() == (its / "metrics.csv").read_bytes()
    assert same(state(mine / "checkpoints/last.ckpt"), state(its / "checkpoints/last.ckpt"))


@pytest.mark.slow
def test_verbs_that_need_the_images_ask_an_address_for_them(packs, server, cache, capsys):
    """20 seconds."""
    server.well = 1_000_000
    words = ["--data", "Pack", "--data.path", f"{server.address}/a.vz", *FACTS, "--data.image_size", "16"]
    words += ["--data.val_split", "20"]
    assert main([*SHORT, *words, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0
    int8 = ["export", "--ckpt_path", "last", "--int8", "--max_drop", "90", "--output"]
    assert main([*int8, "a.onnx"]) == 0
    assert main([*int8, "b.onnx", "--data_root", f"file://{packs}/a.vz"]) == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert main(["teach", f"{server.address}/a.vz", "--curve", "false"]) == 0
    capsys.readouterr()
    refuse(capsys, [*int8, "c.onnx", "--data_root", f"{server.address}/none.vz"], r"none\.vz cannot be read")
    refuse(capsys, ["teach", f"{server.address}/none.vz"], r"none\.vz cannot be read")


@pytest.mark.slow
def test_a_pack_in_an_s3_bucket(packs, cache, monkeypatch):
    """10 seconds."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{moto.get_host_and_port()[1]}")
    files = s3fs.S3FileSystem()
    files.mkdir("bucket")
    for file in packs.glob("a.vz*"):
        files.put_file(str(file), f"bucket/{file.name}")
    words = ["--data.path", "s3://bucket/a.vz", *FACTS, "--data.image_size", "16"]
    try:
        assert main([*SHORT, "--data", "Pack", *words, "--trainer.max_epochs", "1"]) == 0
        images = Pack("s3://bucket/a.vz").split_images("train").images
    finally:
        moto.stop()
    assert torch.equal(images, Pack(str(packs / "a.vz")).split_images("train").images)


@pytest.mark.slow
def test_two_processes_share_a_cache(packs, server, here):
    """Half a minute."""
    words = [
        *SHORT,
        "--data",
        "Pack",
        "--data.path",
        f"{server.address}/a.vz",
        "--data.cache_gb",
        str(ROOM),
        "--data.image_size",
        "16",
    ]
    server.well = 1_000_000
    result = run(here, sys.executable, "-m", "vision_zoo", *words, *DDP, "2", XDG_CACHE_HOME=str(here / "cache"))
    assert result.returncode == 0, result.stderr
    assert taken(here / "cache/vision_zoo/packs") <= ROOM * 2**30
