"""The formats of exported files: how each is written, and how its program or weights are read back."""

import copy
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.export import Dim

from vision_zoo.checkpoints import read_state_dicts
from vision_zoo.classifier import Classifier
from vision_zoo.errors import VisionZooError
from vision_zoo.known import NUMBERS, PREFIX, Known, with_features
from vision_zoo.verbs.page import onnx_of, rendered

Format = Literal["onnx", "html", "torch_export", "safetensors", "state_dict"]
Metadata = dict[str, str]
Outputs = tuple[Tensor, ...]
"""Logits (B, K), and the scores (B,) of a network that tells known images from others."""
Forward = Callable[[Tensor], Outputs]

METADATA_FILE = "metadata.json"  # inside a torch.export archive


class ExportError(VisionZooError):
    """A network cannot be exported, or the written file does not give the module's outputs."""


class Images(nn.Module):
    """The part of a classifier that is exported: raw images in, logits (and scores) out, nothing of training."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.backbone, self.scale, self.shift = model.backbone, nn.Buffer(model.scale), nn.Buffer(model.shift)
        self.known = model.known

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """Logits, float (B, K), of raw images, uint8 (B, C, H, W) in [0, 255]; with `Known`, scores (B,), too."""
        pixels = images * self.scale + self.shift
        if self.known is None:
            return cast(Tensor, self.backbone(pixels))
        logits, features = with_features(self.backbone, lambda: self.backbone(pixels))
        return logits, self.known(logits, features)


def outputs_of(model: Classifier, images: Tensor) -> Outputs:
    """What a file must give for raw images, uint8 (B, C, H, W)."""
    logits, scores = model.answer(images)
    return (logits,) if scores is None else (logits, scores)


def _names(model: Classifier) -> list[str]:
    return ["logits"] if model.known is None else ["logits", "known_score"]


def _graph_arguments(model: Classifier) -> tuple[nn.Module, tuple[Tensor], dict[str, Any]]:
    images = torch.zeros(2, *model.image_shape, dtype=torch.uint8)  # sizes 0 and 1 would be taken for constants
    return Images(model).eval(), (images,), {"images": {0: Dim("batch")}}


def _make_onnx(model: Classifier, facts: Metadata) -> bytes:
    module, images, shapes = _graph_arguments(model)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": _names(model)}
    program = torch.onnx.export(module, images, dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    assert program is not None  # as it is where a file is named
    for node in program.model.graph:
        node.metadata_props.clear()  # among them the paths of this machine
    program.model.metadata_props.update(facts)
    return bytes(program.model_proto.SerializeToString())


def _load_onnx(path: Path, model: Classifier, unpack: Callable[[bytes], bytes] = bytes) -> Forward:
    import onnxruntime  # noqa: PLC0415  of an extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(unpack(path.read_bytes()), options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(_names(model), {"images": images.numpy()})))


def _make_html(model: Classifier, facts: Metadata) -> bytes:
    mean = json.loads(facts.get("training_mean", "null"))
    usual = {"resize": "crop", "interpolation": "bilinear"}
    needed: dict[str, object] = {name: facts.get(name, value) for name, value in usual.items()}
    needed |= {"value_range": model.value_range, "threshold": model.known and model.known.threshold}
    return rendered(model, mean, _make_onnx(model, facts), needed)


def _make_torch_export(model: Classifier, facts: Metadata) -> bytes:
    module, images, shapes = _graph_arguments(model)
    file, program = io.BytesIO(), torch.export.export(module, images, dynamic_shapes=shapes, strict=False)
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(facts)})
    return file.getvalue()


def _load_torch_export(path: Path, model: Classifier) -> Forward:
    with path.open("rb") as file:
        program = torch.export.load(file).module()
    return program if model.known is not None else lambda images: (program(images),)


def _make_safetensors(model: Classifier, facts: Metadata) -> bytes:
    from safetensors.torch import save  # noqa: PLC0415  of an extra

    return bytes(save(_own_tensors(model), {"format": "pt", **facts}))


def _make_state_dict(model: Classifier, facts: Metadata) -> bytes:
    file = io.BytesIO()
    torch.save(_own_tensors(model), file)
    return file.getvalue()


def _own_tensors(model: Classifier) -> dict[str, Tensor]:
    # Copies: neither format should keep the memory that a view is cut from, and safetensors takes no shared tensors.
    own = {name: tensor.detach().clone().contiguous() for name, tensor in model.backbone.state_dict().items()}
    stored = {} if model.known is None else model.known.stored()
    return own | {
        f"{PREFIX}{name}": torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
        for name, value in stored.items()
    }


def _load_weights(path: Path, model: Classifier) -> Forward:
    """A second classifier with the weights of the file, which must have all of them."""
    other, state = copy.deepcopy(model), read_state_dicts(path)[0]
    if model.known is not None:
        stored = {name: state.pop(f"{PREFIX}{name}") for name in model.known.stored()}
        other.known = Known.restore({**stored, **{name: float(stored[name]) for name in NUMBERS}}, other.backbone)
    other.backbone.load_state_dict(state)
    return partial(outputs_of, other)


class Kind(NamedTuple):
    """A format: the ending of its files, the packages that it needs, and how it is written and read."""

    suffix: str
    packages: tuple[str, ...]
    make: Callable[[Classifier, Metadata], bytes]
    load: Callable[[Path, Classifier], Forward]
    is_program: bool = False  # which can hold several networks; the others hold the weights of one


_ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS: dict[Format, Kind] = {
    "onnx": Kind(".onnx", _ONNX, _make_onnx, _load_onnx, True),
    "html": Kind(".html", _ONNX, _make_html, partial(_load_onnx, unpack=onnx_of), True),
    "torch_export": Kind(".pt2", (), _make_torch_export, _load_torch_export, True),
    "safetensors": Kind(".safetensors", ("safetensors",), _make_safetensors, _load_weights),
    "state_dict": Kind(".pt", (), _make_state_dict, _load_weights),
}
