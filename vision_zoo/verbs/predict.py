"""predict: pictures of any kind to labels and probabilities, decoded while the network works."""

import contextlib
import csv
import glob
import json
import os
import re
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor

from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.decode import Resize, decode_image, decoding_threads, picture_extensions, unreadable_extensions
from vision_zoo.errors import CheckpointError, ConfigError, DataError, InputError, TrainingError
from vision_zoo.files import expanded, new_file
from vision_zoo.types import ImageShape

Format = Literal["csv", "json"]

CHUNK = 16  # pictures that a thread decodes at a time
SHOWN = 20  # results, and files that cannot be read, that the terminal shows
TURN = 4  # batches that are decoded at a time where decoding and network share the processor
CACHED = 64  # images of a batch; with more of them the activations leave a processor's caches
REFRESH_SECONDS = 0.2
BEGINNINGS: dict[Format, bytes] = {"csv": b"path,label,probability", "json": b'[\n{"path": '}  # of what predict writes


class Decoded(NamedTuple):
    """Pictures of a few files.

    Attributes:
        paths: the files that were read.
        images: uint8 (C, H, W) in [0, 255], one for each of these.
        failures: the other files, each with a reason.
    """

    paths: list[Path]
    images: list[Tensor]
    failures: list[tuple[Path, str]]


def predict_pictures(
    model: Classifier,
    images: Sequence[str] | None,
    *,
    datamodule: ImageDataModule | None = None,
    device: torch.device | str = "cpu",
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    output: str | None = None,
    file_format: Format | None = None,
    top_k: int | None = None,
    invert: bool = False,
) -> None:
    """Classify pictures and write a table of the results.

    Args:
        model: the classifier, with its weights.
        images: files, folders and patterns.
        datamodule: tells the batch size and how pictures are brought to the network's shape; its files are not needed.
        device: where the network runs.
        context: entered around each batch, for the precision.
        output: file to write, "-" for standard output; by default predictions.csv or .json in the working directory.
        file_format: by default what the output's ending says, else csv.
        top_k: labels per picture; by default five, or as many as there are.
        invert: turn dark into light before classifying.

    Raises:
        InputError: if an option or a path cannot be used, or no picture can be read.
        TrainingError: if the output cannot be written.
    """
    if not images:
        raise ConfigError(
            "predict needs pictures: --images with files, folders or patterns, such as --images scans/*.png"
        )
    classes = len(model.class_names)
    if top_k is None:
        top_k = min(5, classes)
    if not 1 <= top_k <= classes:
        raise ConfigError(f"--top_k must be between 1 and the number of classes, {classes}, got {top_k}")
    if file_format is None:
        file_format = "json" if output is not None and output.lower().endswith(".json") else "csv"
    if output is None:
        output = f"predictions.{file_format}"
        _refuse_foreign(Path(output), file_format)
    if output in ("/dev/stdout", "/dev/fd/1"):
        output = "-"
    paths = find_pictures(images)

    console = Console(file=sys.stderr if output == "-" else sys.stdout, highlight=False, soft_wrap=True)
    model = model.to(device).eval()
    resize: Resize = getattr(datamodule, "resize", "crop")
    batch_size = datamodule.batch_size if datamodule is not None else CACHED
    overlap = torch.device(device).type != "cpu"
    if not overlap:
        batch_size = min(batch_size, CACHED)
    start, done, failures = time.monotonic(), 0, list[tuple[Path, str]]()
    first: list[tuple[str, ...]] = []
    hint = ""
    try:
        with _bar(console) as advance, _open_output(output) as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")  # odd but readable files
            writer = _Writer(file, file_format, top_k)
            decoded = decode_all(paths, model.image_shape, resize, invert, batch_size, overlap)
            for batch in _batches(decoded, batch_size):
                failures += batch.failures
                if batch.images:
                    pixels = torch.stack(batch.images)
                    hint = hint if done else _inversion_hint(pixels, training_mean(model, datamodule), invert)
                    rows = _classify(model, batch.paths, pixels.to(device), top_k, context)
                    writer.write(rows)
                    first += rows[: SHOWN - len(first)]
                    done += len(rows)
                advance(done + len(failures), len(paths))
            if not done:
                raise InputError(_nothing_read(failures))
            writer.end()
    except BrokenPipeError:  # whoever reads standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    _report_unreadable(failures)
    if hint:
        sys.stderr.write(hint)
    seconds = time.monotonic() - start
    if output != "-" and done <= SHOWN:
        console.print(_results_table(first))
    unread = f", {len(failures):,} could not be read" if failures else ""
    console.print(f"classified {done:,} pictures in {seconds:.1f} s ({done / seconds:,.0f} images/s){unread}")
    if output != "-":
        console.print(str(expanded(output).absolute()), markup=False)


# ------------------------------------------------------------------------------------------------- finding pictures


def find_pictures(given: Sequence[str]) -> list[Path]:
    """Every picture that is meant, once, in the order given; folders are searched to the bottom and sorted.

    A file that is named itself is taken whatever it is called; folders and patterns give what has a picture's ending
    and is not hidden.

    Raises:
        InputError: naming what is missing or has no pictures.
    """
    found: dict[str, Path] = {}
    for word in given:
        try:
            pictures = _expand(word)
        except OSError as error:
            where = f"{error.filename}: " if error.filename not in (None, word) else ""
            raise InputError(f"--images {word}: {where}{error.strerror or error}") from error
        for path in pictures:
            found.setdefault(str(path.absolute()), path)
    return list(found.values())


def _expand(word: str) -> list[Path]:
    path = expanded(word)
    endings = picture_extensions() | unreadable_extensions()  # those are named as unread, not passed over
    if path.is_dir():
        pictures = list(_walk(path, endings))
        if not pictures:
            raise InputError(f"--images {word}: no pictures in {path.absolute()} or the folders in it")
        return pictures
    if path.exists():
        return [path]
    if not set("*?[") & set(word):
        raise InputError(f"--images {word}: {path.absolute()} not found")
    pictures = []
    for match in map(Path, sorted(glob.glob(str(path), recursive=True))):  # noqa: PTH207  # takes absolute patterns
        if match.is_dir():
            pictures += _walk(match, endings)
        elif match.suffix.lower() in endings:
            pictures.append(match)
    if not pictures:
        raise InputError(f"--images {word}: no pictures match this pattern in {Path.cwd()}")
    return pictures


def _walk(folder: Path, endings: frozenset[str], above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link back to a folder that holds it
        return
    with os.scandir(folder) as entries:
        listing = sorted((entry.name, entry.is_dir()) for entry in entries)
    for name, is_folder in listing:
        if name.startswith((".", "__MACOSX")):
            continue
        if is_folder:
            yield from _walk(folder / name, endings, above | {real})
        elif os.path.splitext(name)[1].lower() in endings:  # noqa: PTH122  # a Path for every file is slow
            yield folder / name


# ---------------------------------------------------------------------------------------------------- decoding


def decode_all(
    paths: Sequence[Path], image_shape: ImageShape, resize: Resize, invert: bool, batch_size: int, overlap: bool
) -> Iterator[Decoded]:
    """Decode files in order by threads.

    Args:
        paths: the files.
        image_shape: of the pictures, see ``decode_image``.
        resize: see ``decode_image``.
        invert: see ``decode_image``.
        batch_size: pictures that are taken at a time.
        overlap: keep about one batch ahead of whoever takes the results. Where the network runs on the same processor,
            its threads and these would wait for each other; then they take turns, some batches each.
    """
    threads = decoding_threads()
    chunk = min(CHUNK, batch_size)
    ahead = 2 * threads + batch_size // chunk if overlap else TURN * batch_size // chunk
    pending: deque[Future[Decoded]] = deque()
    pool = ThreadPoolExecutor(threads, "decode")
    try:
        for place in range(0, len(paths), chunk):
            pending.append(pool.submit(_decode, paths[place : place + chunk], image_shape, resize, invert))
            if len(pending) >= ahead:
                yield from [pending.popleft().result() for _ in range(1 if overlap else len(pending))]
        yield from [pending.popleft().result() for _ in range(len(pending))]
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(paths: Sequence[Path], image_shape: ImageShape, resize: Resize, invert: bool) -> Decoded:
    result = Decoded([], [], [])
    for path in paths:
        try:
            result.images.append(decode_image(path, image_shape, resize, invert))
        except DataError as error:
            cause = error.__cause__ or error
            reason = getattr(cause, "strerror", None) or str(cause).replace(f" {str(path)!r}", "")
            result.failures.append((path, reason or type(cause).__name__))
        else:
            result.paths.append(path)
    return result


def _batches(parts: Iterator[Decoded], batch_size: int) -> Iterator[Decoded]:
    """The same pictures in batches of one size; the last one may be smaller."""
    paths: list[Path] = []
    images: list[Tensor] = []
    failures: list[tuple[Path, str]] = []
    for part in parts:
        paths += part.paths
        images += part.images
        failures += part.failures
        while len(images) >= batch_size:
            yield Decoded(paths[:batch_size], images[:batch_size], failures)
            paths, images, failures = paths[batch_size:], images[batch_size:], []
    if images or failures:
        yield Decoded(paths, images, failures)


# --------------------------------------------------------------------------------------------------- classifying


def _classify(
    model: Classifier,
    paths: Sequence[Path],
    images: Tensor,
    top_k: int,
    context: Callable[[], contextlib.AbstractContextManager[Any]],
) -> list[tuple[str, ...]]:
    """One row for each picture: path, label, probability, label, probability, ..."""
    with torch.inference_mode(), context():
        probabilities = model.predict_step(images, 0).float()  # (B, K)
    if not probabilities.isfinite().all():
        raise CheckpointError("the network's output is not finite: the checkpoint's weights cannot be used")
    top, classes = (part.cpu().numpy() for part in probabilities.topk(top_k))  # (B, top_k)
    table = np.empty((len(paths), 1 + 2 * top_k), dtype=object)
    table[:, 0] = [str(path) for path in paths]
    table[:, 1::2] = np.asarray(model.class_names, dtype=object)[classes]
    table[:, 2::2] = top.astype(str)  # as many digits as tell a float32 from its neighbours
    return [tuple(row) for row in table.tolist()]


def training_mean(model: Classifier, datamodule: ImageDataModule | None) -> float | None:
    """Mean brightness of gray training images in [0, 1]; None where nobody knows it, and for colour.

    The data set's published mean goes first: recipes that scale to [0, 1] have 0 in the checkpoint. If its classes
    differ, the data set is only a placeholder and is ignored.
    """
    if model.image_shape[0] != 1:
        return None
    published = getattr(type(datamodule), "mean", None)  # no tuple where it is computed from the user's files
    mean = tuple(model.hparams["mean"])
    if datamodule is not None and isinstance(published, tuple) and datamodule.class_names == model.class_names:
        mean = published
    return float(mean[0]) if mean[0] > 0 else None


def _inversion_hint(images: Tensor, mean: float | None, invert: bool) -> str:
    """Advice for pictures whose brightness fits the negatives of the training images far better than these."""
    if mean is None or abs(1 - 2 * mean) < 0.3:  # too near to the middle to tell
        return ""
    brightness = float(images.float().mean()) / 255
    if 2 * abs(brightness - (1 - mean)) >= abs(brightness - mean):
        return ""
    kind, trained = ("light", "dark") if brightness > 0.5 else ("dark", "light")
    advice = "leave out --invert" if invert else "try --invert"
    return (
        f"hint: the pictures{' after --invert' if invert else ''} are {kind} on average ({brightness:.2f} of full "
        f"brightness) and the training images were {trained} ({mean:.2f}). If yours are their negatives, {advice}\n"
    )


# ------------------------------------------------------------------------------------------------------- output


class _Writer:
    """Rows as a table or as a list of objects, written one by one; nothing before the first."""

    def __init__(self, file: TextIO, file_format: Format, top_k: int) -> None:
        ranks = ("", *(f"_{rank}" for rank in range(2, top_k + 1)))
        self.columns = ["path", *(f"{name}{rank}" for rank in ranks for name in ("label", "probability"))]
        self.file = file
        self.format = file_format
        self.table = csv.writer(file, lineterminator="\n")
        self.begun = False

    def write(self, rows: Sequence[tuple[str, ...]]) -> None:
        if self.format == "csv":
            self.table.writerows(rows if self.begun else [self.columns, *rows])
        else:
            for number, row in enumerate(rows):
                values = {
                    name: float(value) if name.startswith("probability") else value
                    for name, value in zip(self.columns, row, strict=True)
                }
                self.file.write((",\n" if self.begun or number else "[\n") + json.dumps(values))
        self.begun = True

    def end(self) -> None:
        if self.format == "json":
            self.file.write("\n]\n")
        self.file.flush()


def _refuse_foreign(path: Path, file_format: Format) -> None:
    """Refuse to replace, under a name that the user did not give, what predict did not write."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        beginning = file.read(len(BEGINNINGS[file_format]))
    if beginning and beginning != BEGINNINGS[file_format]:
        raise ConfigError(
            f"{path.absolute()} is there and was not written by predict: move it away, or give another name with "
            "--output"
        )


@contextlib.contextmanager
def _open_output(output: str) -> Iterator[TextIO]:
    """A file that takes its name only when it is complete, or standard output."""
    if output == "-":
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # as in a file; names may be any bytes
        try:
            yield sys.stdout
        except BrokenPipeError:
            raise
        except OSError as error:
            raise TrainingError(f"standard output could not be written ({error.strerror or error})") from error
        return
    path = expanded(output)
    if path.is_dir():
        raise ConfigError(f"--output {output} is a folder: give the name of a file in it")
    # An open file, a pipe or a device must not be replaced; what was written to an open file so far stays in it.
    opened = re.fullmatch(r"/dev/(fd/(\d+)|stderr)", output)
    special = path.exists() and not path.is_file()
    path = path if opened or special else path.resolve()
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with contextlib.ExitStack() as stack:
        try:
            if opened:
                file: TextIO = os.fdopen(os.dup(int(opened[2] or 2)), "w", **how)
            else:
                place = path
                if not special:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    place = stack.enter_context(new_file(path))
                file = place.open("w", **how)
        except OSError as error:
            raise ConfigError(f"--output {output}: {path} cannot be written ({error.strerror})") from error
        try:
            with stack.pop_all(), file:
                yield file
        except OSError as error:
            raise TrainingError(
                f"--output {output}: {path} could not be written ({error.strerror or error})"
            ) from error


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, on a terminal only; drawn by hand, since a drawing thread would compete with the work."""
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (
        TextColumn("predict"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[speed]}"),
    )
    started = drawn = time.monotonic()
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("predict", total=None, speed="")

        def advance(done: int, total: int) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn >= REFRESH_SECONDS:
                drawn = now
                speed = f"{done / (now - started):,.0f} images/s"
                progress.update(task, completed=done, total=total, speed=speed, refresh=True)

        yield advance


def _results_table(rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table("picture", "label", "probability")
    table.columns[0].overflow = "fold"  # the end of a path tells it from others
    table.columns[2].justify = "right"
    for path, label, probability, *_ in rows:
        table.add_row(Text(path), Text(label), f"{100 * float(probability):.2f} %")
    return table


def _list_unreadable(failures: Sequence[tuple[Path, str]]) -> str:
    lines = [f"  {path}: {reason}" for path, reason in failures[:SHOWN]]
    if len(failures) > SHOWN:
        lines.append(f"  ... and {len(failures) - SHOWN:,} more")
    return "\n".join(lines)


def _nothing_read(failures: Sequence[tuple[Path, str]]) -> str:
    what = "the file" if len(failures) == 1 else f"any of the {len(failures):,} files"
    return f"--images: cannot read {what} as a picture; give files in a common format such as PNG or JPEG\n" + (
        _list_unreadable(failures)
    )


def _report_unreadable(failures: Sequence[tuple[Path, str]]) -> None:
    if failures:
        text = f"could not be read as pictures, {len(failures):,}:\n{_list_unreadable(failures)}\n"
        sys.stderr.write(text.encode(errors="backslashreplace").decode())
