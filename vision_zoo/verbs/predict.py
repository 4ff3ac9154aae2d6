"""predict: images of any kind to labels and probabilities, decoded while the network works."""

import csv
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table
from rich.text import Text
from torch import Tensor

from vision_zoo.checkpoints import open_checkpoints
from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.decode import decode_image, decoding_threads
from vision_zoo.data.described import described_data
from vision_zoo.data.discovery import LeftOut
from vision_zoo.data.sources import pump
from vision_zoo.ensemble import classifier_of
from vision_zoo.errors import CheckpointError, ConfigError, DataError, InputError, refuse
from vision_zoo.files import expanded
from vision_zoo.known import noted_features, num_features
from vision_zoo.types import Resizing
from vision_zoo.verbs.image_files import find_images
from vision_zoo.verbs.output import output_file, output_folder, text_output

Format = Literal["csv", "json"]

Answer = tuple[tuple[str, ...], tuple[float, ...], str, float]  # labels, probabilities, answer, known score

CHUNK = 16  # images that a thread decodes at a time
SHOWN = 20  # results, and files that cannot be read, that the terminal shows
TURN = 4  # batches that are decoded at a time where decoding and network share the processor
NONE = "none of these"  # the answer for an image of none of the classes
CACHED = 64  # images of a batch; with more of them the activations leave a processor's caches
BEGINNINGS = (b"path,label,probability", b'[\n{"path": ')  # of what predict writes


class Prediction(NamedTuple):
    """What a network makes of one image."""

    path: Path
    labels: tuple[str, ...] = ()  # the most probable first; none where the file could not be read
    probabilities: tuple[float, ...] = ()  # in [0, 1], each the shortest number that is nearest to the float32
    answer: str = ""  # the most probable label, or NONE; empty of a network that cannot tell
    known_score: float = 0.0  # which the answer follows from
    brightness: float = 0.0  # mean of the pixels that the network was given, in [0, 1]
    problem: str = ""  # why the file could not be read

    def as_dict(self) -> dict[str, str | float]:
        """The row of a table: path, label, probability, label_2, probability_2, ..., and answer, known_score."""
        row: dict[str, str | float] = {"path": str(self.path)}
        for rank, (label, probability) in enumerate(zip(self.labels, self.probabilities, strict=True), start=1):
            ending = f"_{rank}" if rank > 1 else ""
            row |= {f"label{ending}": label, f"probability{ending}": probability}
        return row | ({"answer": self.answer, "known_score": self.known_score} if self.answer else {})


def predict(
    ckpt_paths: list[str],
    images: list[str],
    output: str | None = None,
    format: Literal["csv", "json"] | None = None,  # noqa: A002  # the option's name
    top_k: int | None = None,
    invert: bool = False,
    explain: str | None = None,
    embeddings: str | None = None,
    batch_size: int | None = None,
    accelerator: str = "auto",
    trusted_packages: Sequence[str] = (),
) -> None:
    """Classify images of any size and kind.

    A network that was trained with --known has two columns more: answer, the label or "none of these", and known_score,
    which is lower the more foreign an image is; label is the nearest class in any case.

    Args:
        ckpt_paths: checkpoints, run folders (their best), folders or patterns of several, or best or last of the newest
            run; the probabilities of several are averaged.
        images: files, folders (with the folders in them) and patterns such as 'scans/*.png'.
        output: file to write, or - for standard output, by default predictions.csv or predictions.json here.
        format: kind of the file, by default the ending of the output decides, else csv. json is a list of objects.
        top_k: labels for each image, by default 5 or all where there are fewer; the most probable comes first.
        invert: turn dark into light first, for dark digits on white paper where training had light on black.
        explain: folder for a picture of each image that shows where the network looked; see vision_zoo explain.
        embeddings: file of numpy (.npz) for what the last layer is given of each image that can be read: features,
            float32 (N, D), beside path, label and probability, (N,) each.
        batch_size: images that the network takes at a time, by default as in training, on a CPU at most 64.
        accelerator: cpu, cuda, mps, gpu for either of these two, or auto for the fastest that there is.
        trusted_packages: packages whose classes the checkpoint may name.
    """
    kind: Format = format or ("json" if (output or "").lower().endswith(".json") else "csv")
    default = Path(f"predictions.{kind}")
    foreign = output is None and default.is_file() and not default.read_bytes().startswith(BEGINNINGS)
    output = output or str(default)
    way_out = "move it away, or give another name with --output"
    few = "predict needs images: --images with files, folders or patterns: scans/*.png"
    refuse(ConfigError, (not images, few))  # first, for words without it are taken for checkpoints
    checkpoints = open_checkpoints(ckpt_paths, trusted_packages)
    checkpoint = checkpoints[0]
    refuse(
        ConfigError,
        (explain and len(checkpoints) > 1, "--explain shows where one network looked, and several are averaged here"),
        (embeddings and len(checkpoints) > 1, "--embeddings are of one network, and several are averaged here"),
        (explain and find_spec("captum") is None, "--explain needs captum: pip install 'vision_zoo[explain]'"),
        (not format and output.endswith((".parquet", ".xlsx")), f"--output {output}: predict writes .csv and .json"),
        (foreign, f"{default.absolute()} is there and was not written by predict: {way_out}"),
    )
    if explain is not None:
        output_folder(explain, "--explain")  # which says what is wrong
    device, paths = device_of(accelerator), find_images(images)
    model, datamodule = classifier_of(checkpoints).to(device), described_data(checkpoint.data)
    none = f"--embeddings: {model.network_name} does not end in a linear layer, whose input they would be"
    refuse(ConfigError, (embeddings and not num_features(model.backbone), none))
    if batch_size is None:
        batch_size = getattr(datamodule, "batch_size", CACHED)
        batch_size = min(batch_size, CACHED) if device.type == "cpu" else batch_size
    predictions = predict_images(model, paths, top_k, checkpoint.resizing, invert, batch_size)
    console = Console(file=sys.stderr if output == "-" else sys.stdout, highlight=False, soft_wrap=True)
    bar = Progress(console=console, transient=True, refresh_per_second=2, disable=not console.is_terminal)
    start, brightness = time.monotonic(), 0.0
    shown, failures, read = list[Prediction](), list[Prediction](), list[Path]()
    with bar, text_output(output) as file, _noting(model, embeddings) as note, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")  # odd but readable files
        for prediction in bar.track(predictions, total=len(paths), description="predict"):
            if prediction.problem:
                failures.append(prediction)
                continue
            _write(file, kind, prediction.as_dict(), is_first=not shown)
            read.append(prediction.path)
            note(prediction)
            brightness += prediction.brightness
            if len(shown) < SHOWN:
                shown.append(prediction)
        which = "the file" if len(paths) == 1 else f"any of the {len(paths):,} files"
        way_out = f"give files in a common format such as PNG or JPEG\n{_list_unreadable(failures)}"
        refuse(InputError, (not shown, f"--images: cannot read {which} as an image; {way_out}"))
        file.write("\n]\n" if kind == "json" else "")
        file.flush()
    done, seconds = len(paths) - len(failures), time.monotonic() - start
    unread = f", {len(failures):,} could not be read" if failures else ""
    if failures:
        kinds = LeftOut(failure.path for failure in failures)
        sys.stderr.write(f"could not be read as images, {len(failures):,}{kinds}:\n{_list_unreadable(failures)}\n")
    sys.stderr.write(_inversion_hint(brightness / done, training_mean(model, datamodule), invert))
    if output != "-" and done <= SHOWN:
        console.print(_results_table(shown))
    what = f"{done:,} image{'s' * (done != 1)}"
    console.print(f"classified {what} in {seconds:.1f} s ({done / seconds:,.0f} images/s){unread}")
    if explain is not None:
        from vision_zoo.verbs.explain import write_pictures  # noqa: PLC0415  # which stands on this, and on an extra

        labels = labels_shown(model, top_k)
        write_pictures(model, read, explain, checkpoint.resizing, labels, invert=invert, console=console)
    if output != "-":
        console.print(str(expanded(output).absolute()), markup=False)


def predict_images(
    model: Classifier,
    paths: Sequence[Path],
    top_k: int | None = None,  # labels for each image; by default 5, or as many as there are
    resize: Resizing = ("crop", "bilinear"),  # see `decode_image`
    invert: bool = False,
    batch_size: int = CACHED,
) -> Iterator[Prediction]:
    """Classify image files, in order; a file that cannot be read gives a prediction without labels.

    Raises:
        ConfigError: if there cannot be as many labels, or such batches.
        CheckpointError: if the weights give no numbers.
    """
    top_k = labels_shown(model, top_k)
    refuse(ConfigError, (batch_size < 1, f"--batch_size must be at least 1, got {batch_size}"))
    model.eval()
    files = _decoded(paths, model, resize, invert, batch_size)
    for batch in iter(lambda: list(islice(files, batch_size)), []):
        good, found = {path: image for path, image in batch if isinstance(image, Tensor)}, dict[Path, Prediction]()
        if good:
            pixels = torch.stack(list(good.values())).to(model.device)  # uint8 (B, C, H, W)
            means = (pixels.flatten(1).float().mean(1) / 255).tolist()
            columns = zip(good, answered(model, pixels, top_k), means, strict=True)
            found = {path: Prediction(path, *answer, mean) for path, answer, mean in columns}
        for path, image in batch:
            yield found[path] if isinstance(image, Tensor) else Prediction(path, problem=image)


@contextmanager
def _noting(model: Classifier, output: str | None) -> Iterator[Callable[[Prediction], None]]:
    """Write features of the predictions that are handed over in order, with what was predicted, to a file of numpy."""
    if output is None:
        yield lambda _: None
        return
    rows, features = list[tuple[str, str, float]](), list[Tensor]()
    with output_file(output, "--embeddings") as place, noted_features(model.backbone) as given:

        def note(found: Prediction) -> None:
            rows.append((str(found.path), found.labels[0], found.probabilities[0]))
            features.extend(batch.float().cpu() for batch in given)
            given.clear()

        yield note
        vectors, odd = torch.cat(features), "--embeddings: the last layer is not given one vector for each image"
        refuse(ConfigError, (vectors.ndim != 2 or len(vectors) != len(rows), odd))
        path, label, probability = map(np.array, zip(*rows, strict=True))
        with place.open("wb") as file:
            np.savez(file, path=path, label=label, probability=probability, features=vectors.numpy())


def labels_shown(model: Classifier, top_k: int | None) -> int:
    """How many labels an image gets: `top_k`, by default 5 or all where there are fewer."""
    classes = len(model.class_names)
    most = f"--top_k must be between 1 and the number of classes, {classes}, got {top_k}"
    refuse(ConfigError, (top_k is not None and not 1 <= top_k <= classes, most))
    return min(5, classes) if top_k is None else top_k


def answered(model: Classifier, pixels: Tensor, top_k: int) -> list[Answer]:
    """What a network makes of images, uint8 (B, C, H, W): for each labels, probabilities, answer, known score.

    Raises:
        CheckpointError: if the weights give no numbers.
    """
    with torch.inference_mode():
        logits, scores = model.answer(pixels)
        probabilities = logits.softmax(1).float()  # (B, K)
    broken = "the network's output is not finite: the checkpoint's weights cannot be used"
    refuse(CheckpointError, (not probabilities.isfinite().all(), broken))
    top, order = (part.cpu().numpy() for part in probabilities.topk(top_k))  # (B, top_k)
    shortest = top.astype(str).astype(float).tolist()  # with the digits that tell a float32 from its neighbours
    labels = np.asarray(model.class_names, dtype=object)[order].tolist()
    answers, rated = [""] * len(pixels), [0.0] * len(pixels)
    if model.known is not None and scores is not None:
        rated = scores.cpu().numpy().astype(str).astype(float).tolist()
        passes = (scores >= model.known.threshold).tolist()
        answers = [first[0] if passed else NONE for first, passed in zip(labels, passes, strict=True)]
    columns = zip(labels, shortest, answers, rated, strict=True)
    return [(tuple(own), tuple(p), answer, score) for own, p, answer, score in columns]


def _decoded(
    paths: Sequence[Path], model: Classifier, resize: Resizing, invert: bool, batch_size: int
) -> Iterator[tuple[Path, Tensor | str]]:
    """Each file with its pixels, uint8 (C, H, W), or the reason why it cannot be read; decoded ahead by threads."""
    how, interpolation = resize

    def pixels(path: Path) -> tuple[Path, Tensor | str]:
        try:
            return path, decode_image(path, model.image_shape, how, invert, model.value_range, interpolation)
        except DataError as error:
            cause = error.__cause__ or error
            reason = getattr(cause, "strerror", None) or str(cause).replace(f" {str(path)!r}", "")
            return path, reason or type(cause).__name__

    threads, size, shared = decoding_threads(), min(CHUNK, batch_size), model.device.type == "cpu"
    ahead = TURN * batch_size // size if shared else 2 * threads + batch_size // size
    chunks = (paths[start : start + size] for start in range(0, len(paths), size))
    return chain.from_iterable(pump(lambda chunk: list(map(pixels, chunk)), chunks, threads, ahead, take_turns=shared))


def device_of(accelerator: str) -> torch.device:
    """The device of an accelerator's name: auto, cpu, gpu, cuda or mps."""
    devices = {"cpu": torch.device("cpu"), "auto": torch.device("cpu")}
    if torch.accelerator.is_available() and (found := torch.accelerator.current_accelerator()):
        devices |= {"gpu": found, found.type: found, "auto": found}
    there_is = f"--accelerator {accelerator}: there is none here; there is {', '.join(devices)}"
    refuse(ConfigError, (accelerator not in devices, there_is))
    return devices[accelerator]


def training_mean(model: Classifier, datamodule: ImageDataModule | None) -> float | None:
    """Mean brightness of gray training images in [0, 1]; None where it is not known, and for colour.

    The dataset's published mean goes first: recipes that scale to [0, 1] have 0 in the checkpoint. If its classes
    differ, the dataset is only a placeholder and is ignored.
    """
    published = getattr(type(datamodule), "mean", None)  # no tuple where it is computed from the user's files
    mean = tuple(model.hparams["mean"])
    if datamodule is not None and isinstance(published, tuple) and datamodule.class_names == model.class_names:
        mean = published
    return float(mean[0]) if model.image_shape[0] == 1 and mean[0] > 0 else None


def _inversion_hint(brightness: float, mean: float | None, invert: bool) -> str:
    """Advice for images whose brightness fits the negatives of the training images far better than these."""
    if mean is None or abs(1 - 2 * mean) < 0.3 or 2 * abs(brightness - (1 - mean)) >= abs(brightness - mean):
        return ""  # not known, too near to the middle to tell, or no nearer to the negatives
    kind, trained = ("light", "dark") if brightness > 0.5 else ("dark", "light")
    after, advice = (" after --invert", "leave out --invert") if invert else ("", "try --invert")
    return (
        f"hint: the images{after} are {kind} on average ({brightness:.2f} of full brightness) and the training images "
        f"were {trained} ({mean:.2f}). If yours are their negatives, {advice}\n"
    )


def _write(file: TextIO, kind: Format, row: dict[str, str | float], *, is_first: bool) -> None:
    """Write a row of a table, or an object of a list that is still open."""
    if kind == "json":
        file.write(("[\n" if is_first else ",\n") + json.dumps(row))
        return
    table = csv.DictWriter(file, row, lineterminator="\n")
    if is_first:
        table.writeheader()
    table.writerow(row)


def _results_table(predictions: Sequence[Prediction]) -> Table:
    table = Table(Column("image", overflow="fold"), "label", Column("probability", justify="right"))  # whole paths
    for path, labels, probabilities, answer, *_ in predictions:
        label = f"{NONE}, nearest {labels[0]}" if answer == NONE else labels[0]
        table.add_row(Text(str(path)), Text(label), f"{100 * probabilities[0]:.2f} %")
    return table


def _list_unreadable(failures: Sequence[Prediction]) -> str:
    lines = [f"  {failure.path}: {failure.problem}" for failure in failures[:SHOWN]]
    return "\n".join(lines + [f"  ... and {len(failures) - SHOWN:,} more"] * (len(failures) > SHOWN))
