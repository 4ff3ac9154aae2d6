"""export: a checkpoint as one file for other programs, compared with the module before it is handed over."""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vision_zoo.checkpoints import Checkpoint, open_checkpoint, open_checkpoints
from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.decode import resize_images
from vision_zoo.data.described import described_data
from vision_zoo.data.mnist5k import MNIST5k
from vision_zoo.ensemble import Ensemble, classifier_of
from vision_zoo.errors import ConfigError, InputError, one_line, refuse
from vision_zoo.files import expanded, is_address
from vision_zoo.hub import WEIGHTS
from vision_zoo.types import Split
from vision_zoo.verbs.formats import FORMATS, ExportError, Format, Forward, Metadata, outputs_of
from vision_zoo.verbs.hub import new_folder, upload
from vision_zoo.verbs.int8 import images_of, quantise
from vision_zoo.verbs.output import output_file
from vision_zoo.verbs.predict import training_mean
from vision_zoo.version import __version__

BATCHES = (1, 7, 8)  # images; the file must not have kept the batch size of its making
TOLERANCE = 1e-4  # of the largest logit
ONNX_LIMIT = 2**31  # bytes, of one protobuf message


class Difference(NamedTuple):
    """How far a file's outputs are from the module's: largest absolute differences, and the module's largest logit."""

    logits: float
    probabilities: float
    scale: float


def export(
    ckpt_paths: list[str],
    format: Literal["onnx", "html", "torch_export", "safetensors", "state_dict", "hub"] | None = None,  # noqa: A002
    output: str | None = None,
    int8: bool = False,
    max_drop: float | None = None,
    data_root: str | None = None,
    push: str | None = None,
    trusted_packages: Sequence[str] = (),
) -> None:
    """Write a network as one file for other programs, or for the hub.

    Args:
        ckpt_paths: checkpoints, run folders (their best), folders or patterns of several, or best or last of the newest
            run; the probabilities of several are averaged.
        format: onnx, html, torch_export, safetensors, state_dict or hub. onnx and torch_export are programs that take
            raw uint8 images (N, C, H, W) and give logits, and known_score where fit had --known; html is a page to try
            the network on, which opens from the disk and asks no server; safetensors and state_dict are the weights of
            the backbone; hub is a folder as the Hugging Face hub shows it, which --ckpt_path takes as it takes a run.
            By default, the ending of the output decides (.onnx, .html, .pt2, .safetensors, .pt, .pth), else it is onnx.
        output: file or folder to write or replace, by default the run's name, in the working directory, if it is free.
        int8: compute with integers of 8 bits, in an ONNX file of about a quarter of the size; it needs the run's data.
        max_drop: points of validation accuracy that it may cost, by default 0.2; layers stay float where that helps.
        data_root: folder, file or address of the run's data, where they have moved; for --int8.
        push: OWNER/NAME on the hub to upload the folder to, with the token of hf auth login or HF_TOKEN.
        trusted_packages: packages whose classes the checkpoint may name.
    """
    checkpoints = open_checkpoints(ckpt_paths, trusted_packages)
    checkpoint = checkpoints[0]
    endings: dict[str, Format] = {"": "onnx", ".pth": "state_dict", **{k.suffix: name for name, k in FORMATS.items()}}
    ending = Path(output or "").suffix.lower()
    kind: Format | Literal["hub"] = format or endings.get(ending, "onnx")
    name = "ensemble" if len(checkpoints) > 1 else checkpoint.run_name or checkpoint.path.stem
    path = expanded(output or f"{name}{'' if kind == 'hub' else FORMATS[kind].suffix}")
    unknown, taken = format is None and ending not in endings, not output and path.exists()
    programs = [name for name, each in FORMATS.items() if each.is_program]
    itself = {path.resolve(), path.resolve() / WEIGHTS} & {each.path for each in checkpoints}
    one = f"--format {kind} holds the weights of one network, and several are averaged"
    refuse(
        ConfigError,
        (unknown, f"--output {output}: {ending} is the ending of no format; set --format {', '.join(FORMATS)}, hub"),
        (output == "-", "--output -: export writes a file and reads it again, so it needs a name"),
        (taken, f"{path.absolute()} is there already: --output {path} replaces it, another name keeps it"),
        (len(checkpoints) > 1 and kind not in programs, f"{one}: --format {' or '.join(programs)}"),
        (itself, f"--output {path} is the checkpoint itself: choose another name"),
        (int8 and kind != "onnx", f"--int8 goes with --format onnx, not {kind}"),
        (not 0 <= (max_drop or 0) < 100, f"--max_drop is in points, from 0 to below 100, got {max_drop}"),
        (not int8 and (max_drop is not None or data_root), "--max_drop and --data_root go with --int8"),
        (push and kind != "hub", f"--push goes with --format hub, not {kind}"),
    )
    data, options = checkpoint.data, checkpoint.data.get("init_args") or {}
    if data_root:
        place = data_root if is_address(data_root) else str(expanded(data_root).absolute())
        data["init_args"] = options | {"path" if options.get("path") else "root": place}
    model, datamodule = classifier_of(checkpoints), described_data(data, ask=int8)
    images, described = sample_images(model, datamodule)
    facts = _metadata(model, datamodule, checkpoint)
    if int8:
        train, val = images_of(datamodule, model)
        with output_file(path) as file, TemporaryDirectory() as folder, _quiet():
            export_model(model, whole := Path(folder, "float.onnx"), "onnx", images, facts)
            told = quantise(whole, file, model, train, val, 0.2 if max_drop is None else max_drop)
        print(f"{path.name}, {path.stat().st_size / 1e6:,.2f} MB, {told}\n{path.resolve()}")
        return
    if kind == "hub":
        with new_folder(path, model, checkpoint, facts, push) as made:
            content = open_checkpoint(str(made), trusted_packages).content
            difference = _compare(model, partial(outputs_of, Classifier.from_checkpoint(content)), images, kind)
    else:
        difference = export_model(model, path, kind, images, facts)
    size = (path / WEIGHTS if kind == "hub" else path).stat().st_size
    print(
        f"{path.resolve().name}, {size / 1e6:,.2f} MB, gives the module's outputs for {described} in batches of "
        f"{', '.join(map(str, BATCHES[:-1]))} and {BATCHES[-1]}.\nLargest difference: {difference.logits:.1e} of "
        f"logits, which reach {difference.scale:.1f}; {difference.probabilities:.1e} of probabilities\n{path.resolve()}"
    )
    if push:
        print(upload(path, push))


def export_model(
    model: Classifier, path: str | Path, format_: Format, images: Tensor, facts: Metadata | None = None
) -> Difference:
    """Write a classifier into one file, load the file again and compare its outputs with the module's.

    The classifier is left in eval mode, on the CPU; images are uint8 (16, C, H, W) in [0, 255].

    Raises:
        ConfigError: if packages are missing or the file cannot be written there.
        ExportError: if the network cannot be exported or the outputs differ. No file is left then.
    """
    kind, size = FORMATS[format_], sum(p.nbytes for p in model.backbone.parameters())
    missing = [package for package in kind.packages if find_spec(package) is None]
    too_large = f"an ONNX file holds less than 2 GiB, the network has {size / 2**30:.1f}: --format torch_export"
    refuse(
        ConfigError,
        (missing, f"{format_} needs {', '.join(missing)}. Run: pip install 'vision_zoo[export]'"),
        (format_ in ("onnx", "html") and size >= ONNX_LIMIT, too_large),
    )
    model.cpu().eval().set_memory_format(channels_last=False)
    with output_file(path) as file:
        try:
            with _quiet():
                content = kind.make(model, facts or {})
        except Exception as error:  # the exporters raise whatever they meet in a network that they cannot follow
            cannot = f"{model.network_name} cannot be exported as {format_}: {one_line(error)}"
            way_out = "VISION_ZOO_DEBUG=1 shows the traceback; --format safetensors and state_dict take any network"
            raise ExportError(f"{cannot}. {way_out}") from error
        file.write_bytes(content)
        return _compare(model, kind.load(file, model), images, format_)


def _metadata(model: Classifier, datamodule: ImageDataModule | None, checkpoint: Checkpoint) -> Metadata:
    """What a program needs besides the weights; lists as JSON."""
    values = {name: model.hparams[name] for name in ("class_names", "image_shape", "backbone")}
    values |= {"known": model.known.facts} if model.known is not None else {}
    values |= {"value_range": model.value_range} if model.value_range else {}
    for name in ("mean", "std"):  # of which one value serves all channels
        values[name] = torch.tensor(model.hparams[name], dtype=torch.float64).expand(model.image_shape[0]).tolist()
    values |= {"members": model.members} if isinstance(model, Ensemble) else {}
    values |= {"training_mean": training_mean(model, datamodule)}
    texts = {"checkpoint": checkpoint.path.name, "run": checkpoint.run_name or "", "vision_zoo_version": __version__}
    texts |= dict(zip(("resize", "interpolation"), checkpoint.resizing, strict=True))
    texts = {name: text.encode(errors="replace").decode() for name, text in texts.items()}  # names may be any bytes
    return {**{name: json.dumps(value) for name, value in values.items()}, **texts}


def sample_images(model: Classifier, datamodule: ImageDataModule | None) -> tuple[Tensor, str]:
    """Images to compare on, uint8 (16, C, H, W), as real as there are without a download, and what they are."""
    count, shape = sum(BATCHES), model.image_shape
    if datamodule is not None:
        # Whatever is wrong with the data (not here, moved, changed) is no reason not to export.
        with contextlib.suppress(InputError, OSError):
            datamodule.in_memory = False  # decode what is compared, not the whole folder
            split: Split = "test" if datamodule.has_test else "train"
            images = datamodule.sample(split, count).images
            if tuple(images.shape[1:]) == shape:
                what = f"{len(images)} {split} images of {type(datamodule).__name__}"
                return images[torch.arange(count) % len(images)], what
    images = MNIST5k().sample("test", count).images.expand(-1, shape[0], -1, -1)
    changed = "" if shape == MNIST5k.image_shape else f" brought to {' x '.join(map(str, shape))}"
    return resize_images(images, shape), f"{count} embedded MNIST images{changed} (none of the run's are here)"


def _compare(model: Classifier, forward: Forward, images: Tensor, format_: str) -> Difference:
    """Compare what a written file computes with the module, batch by batch."""
    with torch.no_grad():
        batches = torch.split(images, list(BATCHES))
        expected, *scores = map(torch.cat, zip(*(outputs_of(model, batch) for batch in batches), strict=True))
        try:
            got, *others = map(torch.cat, zip(*(forward(batch) for batch in batches), strict=True))
            if got.shape != expected.shape:
                raise ValueError(f"it gives {tuple(got.shape)}, not {tuple(expected.shape)}")
        except Exception as error:  # each runtime has its own kinds
            cannot = f"the {format_} file cannot classify batches of {BATCHES} images and was removed"
            raise ExportError(f"{cannot}: {one_line(error)}") from error
    probabilities = (got.softmax(1) - expected.softmax(1)).abs().max()
    difference = Difference(float((got - expected).abs().max()), float(probabilities), float(expected.abs().max()))
    unlike = not all(torch.allclose(*pair, TOLERANCE, TOLERANCE) for pair in zip(scores, others, strict=True))
    wrong = not difference.logits <= TOLERANCE * difference.scale + 1e-6  # not a number is a failure too
    what = f"its logits differ by up to {difference.logits:.1e} from the module's, which reach {difference.scale:.1e}"
    way_out = "Another --format may do better"
    refuse(
        ExportError,
        (wrong, f"the {format_} file was removed: {what}. {way_out}"),
        (unlike, f"the {format_} file was removed: its known_score is not the module's. {way_out}"),
    )
    return difference


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, whose notices are about their own making."""
    with warnings.catch_warnings(action="ignore"), contextlib.ExitStack() as stack:
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.ERROR)
        yield
