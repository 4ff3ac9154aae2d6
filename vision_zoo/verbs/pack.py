"""pack: any data set as one file, or as shards, that is read as memory is; the format stands in data/pack.py."""

import copy
import glob
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.decode import decoding_threads
from vision_zoo.data.folder import ImageFolder
from vision_zoo.data.own import OwnImages
from vision_zoo.data.pack import FORMAT, HEAD, VERSION, Mapped, PackFile
from vision_zoo.data.sources import Files, Members, Source, Subset, fingerprint, pump
from vision_zoo.data.values import Numbers
from vision_zoo.errors import ConfigError, DataError, TrainingError, lack, one_line, refuse
from vision_zoo.files import expanded, flush, is_address, lock_file, release
from vision_zoo.types import Split
from vision_zoo.verbs.audit.findings import all_of

_RECORD = np.dtype([("place", "<i8"), ("span", "<i8", 4)])  # of the journal: an image's place in the source, its span
_AT_ONCE = 64  # images that a thread reads
_PARTS = get_args(Split)


def pack(
    datamodule: ImageDataModule | None,
    output: str | None = None,
    shard_mb: int | None = None,
    encoded: bool = False,
    check: str | None = None,
) -> None:
    """Write any data set into one file that is read as memory is.

    What is killed and started again goes on where it was.

    Args:
        datamodule: the data.
        output: file to write, NAME.vz, by default named as what is packed; it appears when it is whole.
        shard_mb: put the images into files beside it of so many MiB.
        encoded: keep the bytes of the image files, to decode them when they are read.
        check: compare this pack with its checksums, and do nothing else.
    """
    if datamodule is None:
        refuse(ConfigError, (is_address(check or ""), "--check reads a pack on a disk: copy it first"))
        return _check(expanded(check or "").absolute())
    place = datamodule.hparams.get("path") or datamodule.root if isinstance(datamodule, OwnImages) else ""
    output = output or f"{Path(place).stem.partition('*')[0].strip('-_.') or type(datamodule).__name__}.vz"
    path, limit = expanded(output).absolute(), (shard_mb or 0) * 2**20
    refuse(
        ConfigError,
        (path.suffix != ".vz", f"--output {output} must end in .vz"),
        (path.exists(), f"--output {path} is there already. Remove it, or give another name"),
        (shard_mb is not None and shard_mb < 1, f"--shard_mb must be at least 1, got {shard_mb}"),
    )
    datamodule.prepare_data()
    audited = all_of(datamodule)
    source, every = audited.source, torch.arange(len(audited.names))
    bare = f"{type(datamodule).__name__} has no image files whose bytes could be kept. Leave out --encoded"
    decoding = ("image_size", "channels", "resize", "interpolation", "value_range")
    given = [name for name in decoding if datamodule.hparams.get(name) not in (None, "crop", 3)]  # the defaults
    refuse(
        ConfigError,
        (encoded and (isinstance(source, Mapped) or not isinstance(source, Files)), bare),
        (encoded and given, f"--encoded keeps files as they are: give --data.{' and --data.'.join(given)} to fit"),
    )
    keys = [*filter(None, datamodule.split_names)] if isinstance(datamodule, ImageFolder) else []
    facts: dict[str, Any] = {x: getattr(datamodule, x) for x in ("class_names", "interpolation", "value_range")}
    # What is not given is computed when they are read.
    facts |= datamodule.given if isinstance(datamodule, OwnImages) else {"mean": datamodule.mean, "std": datamodule.std}
    decoded = None if encoded else datamodule.image_shape
    facts |= {"image_shape": decoded, "resize": getattr(datamodule, "resize", "crop")}
    stamps = source.stamps(every) if isinstance(source, Files) else fingerprint(Subset(source, every), path)
    about = repr((VERSION, facts, limit, stamps, audited.names, keys, audited.splits, source.labels.tolist()))
    digest = hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()[:16]
    part, log = (path.with_name(f".{path.name}.{ending}") for ending in ("part", f"{digest}.journal"))

    def file(number: int) -> Path:
        return path.with_name(f"{path.name}.{number:05}") if limit else part

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_file(path.with_name(f".{path.name}.lock"), wait=False)
    refuse(ConfigError, (lock is None, f"another process is writing {path}. Give another name with --output"))
    try:
        journals = {*path.parent.glob(f".{glob.escape(path.name)}.*.journal")}
        left = [] if journals or not limit else sorted(path.parent.glob(f"{glob.escape(path.name)}.{'[0-9]' * 5}"))
        what = f"{', '.join(x.name for x in left[:1])} is there already, of a pack that was renamed or removed"
        refuse(ConfigError, (left, f"--output {path}: {what}. Remove such files, or give another name"))
        for other in journals - {log}:  # of other images
            other.unlink()
        records = _write_images(source, file, log, limit, encoded)
        places, spans = records["place"].tolist(), records["span"]
        files = [file(number) for number in range(spans[-1, 0] + 1)]
        shards = [(x.name, x.stat().st_size) for x in files] if limit else []
        names = [[texts[place] for place in places] if texts else [] for texts in (audited.names, keys)]
        arrays = {
            "labels": source.labels.numpy()[places],
            "parts": np.array([_PARTS.index(audited.splits[place]) for place in places], np.uint8),
            "spans": spans,
            "names": np.frombuffer(json.dumps(names).encode(), np.uint8),
            "facts": np.frombuffer(json.dumps({**facts, "shards": shards}).encode(), np.uint8),
        }
        shape = None if encoded or limit else [len(places), *datamodule.image_shape]
        _write_index(part, HEAD if limit else sum(spans[-1, 1:3].tolist()), arrays, shape)
        for written in {*files, part}:
            flush(written)
        part.replace(path)
        log.unlink()
    finally:
        release(cast(Any, lock))
    print(f"{len(places):,} images of {len(audited.classes)} classes\n{path}")
    return None


def _write_images(source: Source, file: Callable[[int], Path], log: Path, limit: int, encoded: bool) -> Numbers:
    """Append the images that the journal lacks, to the last of the files; the records of all."""

    def read(batch: Tensor) -> tuple[list[tuple[int, bytes]], Sequence[tuple[str, str]]]:
        if encoded:
            files, found, unread = cast(Files, source), list[tuple[int, bytes]](), list[tuple[str, str]]()
            for place in batch.tolist():
                try:
                    found.append((place, files.raw(place)))
                except OSError as error:
                    refuse(TrainingError, (what := lack(error), what))
                    unread.append((files.paths[place], one_line(error)))
            return found, unread
        images, places, failures = numbered.fetch(batch)
        pairs = zip(places.tolist(), images.numpy(), strict=True)
        return [(place, image.tobytes()) for place, image in pairs], failures

    def opened(number: int, end: int) -> Any:
        file(number).touch()
        found = file(number).open("r+b")
        found.truncate(found.seek(end))
        return found

    numbered, everything = copy.copy(source), torch.arange(len(source))
    numbered.labels = everything
    log.touch()
    begun = np.fromfile(log, _RECORD)
    begun = begun if len(begun) else np.array([(-1, (0, 0 if limit else HEAD, 0, 0))], _RECORD)  # of no image
    spans = torch.from_numpy(begun["span"].copy())
    files = [str(file(number)) for number in range(int(spans[:, 0].amax()) + 1)]
    for name in files:
        Path(name).touch()
    lost = Members((), spans[:, 0], (3, 1, 1), files=files, spans=spans).damaged(torch.arange(len(spans)))
    begun = begun[: min(lost)] if lost else begun  # as after a crash of the machine
    log.write_bytes(begun.tobytes())
    place, (number, offset, length, _) = begun[-1].tolist()
    end, batches = offset + length, torch.split(everything[place + 1 :], _AT_ONCE)
    data = opened(number, end)
    with log.open("ab") as journal, _bar() as bar:
        task, threads = bar.add_task("pack", total=len(source), completed=place + 1), decoding_threads()
        for images, failures in pump(read, filter(len, batches), threads, threads + 2):
            source.report(failures)
            for place, pixels in images:
                if limit and end and end + len(pixels) > limit:
                    data.close()
                    number, end = number + 1, 0
                    data = opened(number, end)
                data.write(pixels)
                journal.write(np.array((place, (number, end, len(pixels), zlib.crc32(pixels))), _RECORD).tobytes())
                end += len(pixels)
            data.flush()
            journal.flush()
            bar.advance(task, _AT_ONCE)
    data.close()
    source.report((), last=True)
    records = np.fromfile(log, _RECORD)[1:]
    for empty in () if len(records) else (log, file(0)):
        empty.unlink()
    none = "none of the images can be read: give files in a common format, PNG or JPEG"
    refuse(DataError, (not len(records), none))
    return records


def _write_index(path: Path, end: int, arrays: dict[str, Any], shape: list[int] | None) -> None:
    """Put the arrays behind the images, which end there, and the head before them."""
    start, index = end + -end % 64, bytearray()
    head: dict[str, Any] = {"format": FORMAT, "version": VERSION} | ({"images": ("|u1", HEAD, shape)} if shape else {})
    for name, array in arrays.items():
        head[name] = (array.dtype.str, start + len(index), array.shape)
        index += array.tobytes() + bytes(-array.nbytes % 64)
    head |= {"bytes": start + len(index), "index": (start, zlib.crc32(index))}
    path.touch()
    with path.open("r+b") as file:
        file.write(json.dumps(head).ljust(HEAD - 1).encode() + b"\n")
        file.seek(start)
        file.write(index)
        file.truncate()


def _check(path: Path) -> None:
    """Compare the images of a pack with their checksums."""
    index = PackFile(path)
    spans, names = torch.from_numpy(index.array("spans").copy()), json.loads(index.array("names").tobytes())[0]
    source = Members(names, spans[:, 0], (3, 1, 1), files=index.files, spans=spans)
    batches, threads, found = torch.split(torch.arange(len(spans)), _AT_ONCE), decoding_threads(), list[int]()
    with _bar() as bar:
        checked = pump(source.damaged, batches, threads, threads + 2)
        for damaged in bar.track(checked, len(batches), description="check"):
            found += damaged
    told = f"{path}: {len(found):,} of {len(spans):,} images are not what was packed: "
    way_out = "Copy it again, or pack the images again"
    refuse(DataError, (found, f"{told}{', '.join(names[place] for place in found[:5])}. {way_out}"))
    print(f"{path}: {len(spans):,} images, all as they were packed")


def _bar() -> Progress:
    console = Console(file=sys.stderr)
    return Progress(console=console, transient=True, refresh_per_second=2, disable=not console.is_terminal)
