"""export: a checkpoint as one file for other programs, compared with the module before it is handed over."""

import contextlib
import copy
import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from vision_zoo import __version__
from vision_zoo.checkpoints import Checkpoint, open_checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.data import ImageFolder
from vision_zoo.data.base import ImageDataModule, described_data, resize_images
from vision_zoo.data.mnist5k import MNIST5k
from vision_zoo.errors import ConfigError, InputError, VisionZooError, refuse
from vision_zoo.types import ImageShape
from vision_zoo.verbs.output import output_file

Format = Literal["onnx", "torch_export", "safetensors", "state_dict"]
Metadata = dict[str, str]
Forward = Callable[[Tensor], Tensor]

BATCHES = (1, 7, 8)  # images; the file must not have kept the batch size of its making
TOLERANCE = 1e-4  # of the largest logit
ONNX_LIMIT = 2**31  # bytes, of one protobuf message
METADATA_FILE = "metadata.json"  # inside a torch.export archive


class ExportError(VisionZooError):
    """A network cannot be exported, or the written file does not give the module's outputs."""


class Difference(NamedTuple):
    """How far the outputs of a written file are from the module's.

    Attributes:
        logits: largest absolute difference of a logit.
        probabilities: largest absolute difference of a probability.
        scale: largest absolute logit of the module.
    """

    logits: float
    probabilities: float
    scale: float


def export(
    ckpt_path: str,
    format: Format | None = None,  # noqa: A002  # the option's name
    output: str | None = None,
    trusted_packages: Sequence[str] = (),
) -> None:
    """Write a checkpoint's network as one file for other programs, and compare it with the original.

    Args:
        ckpt_path: a checkpoint, a run folder (its best), or best or last of the newest run.
        format: onnx and torch_export are programs that take raw uint8 images (N, C, H, W) and give logits;
            safetensors and state_dict are the weights of the backbone; by default what the ending of the output
            says (.onnx, .pt2, .safetensors, .pt, .pth), else onnx.
        output: the file to write or replace; default: the run's name, in the working directory, if it is free.
        trusted_packages: packages whose classes the checkpoint may name.
    """
    checkpoint = open_checkpoint(ckpt_path, trusted_packages)
    kind = format or _format_of(output)
    path = Path(output or f"{checkpoint.run_name or checkpoint.path.stem}{FORMATS[kind].suffix}")
    taken = output is None and path.exists()
    refuse(
        ConfigError,
        (taken, f"{path.absolute()} is there already: --output {path} replaces it, another name keeps it"),
        (path.resolve() == checkpoint.path, f"--output {path} is the checkpoint itself: choose another file"),
    )
    model, datamodule = Classifier.from_checkpoint(checkpoint.content), described_data(checkpoint.config)
    images, described = sample_images(model, datamodule)
    difference = export_model(model, path, kind, images, metadata(model, datamodule, checkpoint))
    print(
        f"{path.name}, {path.stat().st_size / 1e6:,.2f} MB, gives the module's outputs for {described} in batches of "
        f"{', '.join(map(str, BATCHES[:-1]))} and {BATCHES[-1]}.\nLargest difference: {difference.logits:.1e} of "
        f"logits, which reach {difference.scale:.1f}; {difference.probabilities:.1e} of probabilities"
    )
    print(path.resolve())


def export_model(
    model: Classifier, path: str | Path, format_: Format, images: Tensor, facts: Metadata | None = None
) -> Difference:
    """Write a classifier into one file, load the file again and compare its outputs with the module's.

    Args:
        model: the classifier with its weights; left in eval mode, on the CPU.
        path: the file to write or replace.
        format_: kind of the file.
        images: to compare on, uint8 (16, C, H, W) in [0, 255].
        facts: written into the file, where its format has a place for them.

    Raises:
        ConfigError: if packages are missing or the file cannot be written there.
        ExportError: if the network cannot be exported or the outputs differ. No file is left then.
    """
    kind = FORMATS[format_]
    _require(kind.packages)
    model.cpu().eval()
    with output_file(path) as file:
        file.write_bytes(_made(kind.make, model, facts or {}, format_))
        return compare(model, kind.load(file, model), images, format_)


def metadata(model: Classifier, datamodule: ImageDataModule | None, checkpoint: Checkpoint) -> Metadata:
    """What a program needs besides the weights; lists as JSON."""
    channels = model.image_shape[0]
    plain = {name: list(model.hparams[name]) for name in ("mean", "std")}
    values = {
        "class_names": list(model.class_names),
        "image_shape": list(model.image_shape),
        **{name: values * (channels if len(values) == 1 else 1) for name, values in plain.items()},
        "backbone": model.hparams["backbone"],
    }
    return {
        **{name: json.dumps(value) for name, value in values.items()},
        "resize": getattr(datamodule, "resize", "crop"),
        "checkpoint": checkpoint.path.name,
        "run": checkpoint.run_name or "",
        "vision_zoo_version": __version__,
    }


# ------------------------------------------------------------------------------------------------------- comparison


def sample_images(model: Classifier, datamodule: ImageDataModule | None) -> tuple[Tensor, str]:
    """Images to compare outputs on, as real as they can be had without any download.

    Returns:
        uint8 (N, C, H, W) in [0, 255], as many as the batches need, and what they are.
    """
    count, shape = sum(BATCHES), model.image_shape
    if datamodule is not None:
        # Whatever is wrong with the data (not here, moved, changed) is no reason not to export.
        with contextlib.suppress(InputError, OSError):
            if isinstance(datamodule, ImageFolder):
                datamodule.in_memory = False  # decode what is compared, not the whole folder
            images = datamodule.sample("test", count).images
            if tuple(images.shape[1:]) == shape:
                images = images[torch.arange(count) % len(images)]
                return images, f"{count} test images of {type(datamodule).__name__}"
    missing = "; the run's data is not here"
    if shape[0] in (1, 3):
        with contextlib.suppress(InputError):
            images = MNIST5k().sample("test", count).images
            changed = "" if shape == MNIST5k.image_shape else f" brought to {' x '.join(map(str, shape))}"
            images = resize_images(images.expand(-1, shape[0], -1, -1), shape)
            return images, f"{count} embedded MNIST images{changed}{missing}"
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    return images, f"{count} random images{missing}"


def compare(model: Classifier, forward: Forward, images: Tensor, format_: str) -> Difference:
    """Compare what a written file computes with the module, batch by batch.

    Raises:
        ExportError: if the file cannot compute, or a difference is above the tolerance.
    """
    with torch.no_grad():
        batches = torch.split(images, list(BATCHES))
        expected = torch.cat([model(batch) for batch in batches])
        try:
            got = torch.cat([forward(batch) for batch in batches])
            if got.shape != expected.shape:
                raise ValueError(f"it gives {tuple(got.shape)}, not {tuple(expected.shape)}")
        except Exception as error:  # each runtime has its own kinds
            raise ExportError(
                f"the {format_} file cannot classify batches of {BATCHES} images and was removed: {_first_line(error)}"
            ) from error
    probabilities = (got.softmax(1) - expected.softmax(1)).abs().max()
    difference = Difference(float((got - expected).abs().max()), float(probabilities), float(expected.abs().max()))
    if not difference.logits <= TOLERANCE * difference.scale + 1e-6:  # not a number is a failure too
        raise ExportError(
            f"the {format_} file was removed: its logits differ by up to {difference.logits:.1e} from the module's, "
            f"which reach {difference.scale:.1e}; probabilities differ by {difference.probabilities:.1e}. Another "
            "--format may do better"
        )
    return difference


# ---------------------------------------------------------------------------------------------------------- formats


class Images(nn.Module):
    """The part of a classifier that is exported: raw images in, logits out, nothing of training."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.register_buffer("scale", model.scale)
        self.register_buffer("shift", model.shift)
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float (B, K), of raw images, uint8 (B, C, H, W) in [0, 255]."""
        logits: Tensor = self.backbone(images * self.scale + self.shift)
        return logits


def _graph_arguments(model: Classifier) -> tuple[nn.Module, tuple[Tensor], dict[str, Any]]:
    images = torch.zeros(2, *model.image_shape, dtype=torch.uint8)  # sizes 0 and 1 would be taken for constants
    return Images(model).eval(), (images,), {"images": {0: Dim("batch")}}


def _make_onnx(model: Classifier, facts: Metadata) -> bytes:
    size = sum(p.numel() * p.element_size() for p in model.backbone.parameters())
    if size >= ONNX_LIMIT:
        raise ConfigError(
            f"an ONNX file holds less than 2 GiB, the network has {size / 2**30:.1f}: --format torch_export"
        )
    module, images, shapes = _graph_arguments(model)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    program = torch.onnx.export(module, images, dynamo=True, dynamic_shapes=shapes, **names, verbose=False)
    assert program is not None  # as it is where a file is named
    program.model.metadata_props.update(facts)
    content: bytes = program.model_proto.SerializeToString()
    return content


def _load_onnx(path: Path, model: Classifier) -> Forward:
    import onnxruntime  # noqa: PLC0415  of an extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _make_torch_export(model: Classifier, facts: Metadata) -> bytes:
    module, images, shapes = _graph_arguments(model)
    program = torch.export.export(module, images, dynamic_shapes=shapes, strict=False)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(facts)})
    return file.getvalue()


def _load_torch_export(path: Path, model: Classifier) -> Forward:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _make_safetensors(model: Classifier, facts: Metadata) -> bytes:
    from safetensors.torch import save  # noqa: PLC0415  of an extra

    content: bytes = save(_own_tensors(model), {"format": "pt", **facts})
    return content


def _make_state_dict(model: Classifier, facts: Metadata) -> bytes:
    file = io.BytesIO()
    torch.save(_own_tensors(model), file)
    return file.getvalue()


def _own_tensors(model: Classifier) -> dict[str, Tensor]:
    # Copies: neither format should keep the memory that a view is cut from, and safetensors takes no shared tensors.
    return {name: tensor.detach().clone().contiguous() for name, tensor in model.backbone.state_dict().items()}


def _load_weights(path: Path, model: Classifier) -> Forward:
    """A second classifier, whose weights are not numbers until those of the file are loaded, so that a lack shows."""

    def backbone(image_shape: ImageShape, num_classes: int) -> nn.Module:
        empty = copy.deepcopy(model.backbone)
        for tensor in empty.state_dict().values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
        return empty

    hparams = model.hparams
    return Classifier(
        backbone, model.image_shape, model.class_names, hparams["mean"], hparams["std"], weights=str(path)
    ).eval()


class _Kind(NamedTuple):
    suffix: str
    packages: tuple[str, ...]
    make: Callable[[Classifier, Metadata], bytes]
    load: Callable[[Path, Classifier], Forward]


FORMATS: Mapping[Format, _Kind] = {
    "onnx": _Kind(".onnx", ("onnx", "onnxscript", "onnxruntime"), _make_onnx, _load_onnx),
    "torch_export": _Kind(".pt2", (), _make_torch_export, _load_torch_export),
    "safetensors": _Kind(".safetensors", ("safetensors",), _make_safetensors, _load_weights),
    "state_dict": _Kind(".pt", (), _make_state_dict, _load_weights),
}


# ----------------------------------------------------------------------------------------------------------- inside


def _format_of(output: str | None) -> Format:
    ending = Path(output or "").suffix.lower()
    endings: dict[str, Format] = {"": "onnx", ".pth": "state_dict"}
    endings |= {kind.suffix: name for name, kind in FORMATS.items()}
    if ending not in endings:
        raise ConfigError(f"--output {output}: {ending} is the ending of no format; set --format {', '.join(FORMATS)}")
    return endings[ending]


def _require(packages: tuple[str, ...]) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"this format needs the package {package} ({error}). Run: pip install 'vision_zoo[export]'"
            ) from error


def _made(make: Callable[[Classifier, Metadata], bytes], model: Classifier, facts: Metadata, format_: str) -> bytes:
    try:
        with _quiet():
            return make(model, facts)
    except VisionZooError:
        raise
    except Exception as error:  # the exporters raise whatever they meet in a network that they cannot follow
        raise ExportError(
            f"{model.network_name} cannot be exported as {format_}: {_first_line(error)}. "
            "VISION_ZOO_DEBUG=1 shows the traceback; --format safetensors and state_dict take any network"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, whose notices are about their own making."""
    if os.environ.get("VISION_ZOO_DEBUG") == "1":
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
