"""The formats of exported files: how each is written, and how its program or weights are read back."""

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from vision_zoo.checkpoints import read_state_dicts
from vision_zoo.classifier import Classifier

Format = Literal["onnx", "torch_export", "safetensors", "state_dict"]
Metadata = dict[str, str]
Forward = Callable[[Tensor], Tensor]

METADATA_FILE = "metadata.json"  # inside a torch.export archive


class Images(nn.Module):
    """The part of a classifier that is exported: raw images in, logits out, nothing of training."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.backbone, self.scale, self.shift = model.backbone, nn.Buffer(model.scale), nn.Buffer(model.shift)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float (B, K), of raw images, uint8 (B, C, H, W) in [0, 255]."""
        logits: Tensor = self.backbone(images * self.scale + self.shift)
        return logits


def _graph_arguments(model: Classifier) -> tuple[nn.Module, tuple[Tensor], dict[str, Any]]:
    images = torch.zeros(2, *model.image_shape, dtype=torch.uint8)  # sizes 0 and 1 would be taken for constants
    return Images(model).eval(), (images,), {"images": {0: Dim("batch")}}


def _make_onnx(model: Classifier, facts: Metadata) -> bytes:
    module, images, shapes = _graph_arguments(model)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    program = torch.onnx.export(module, images, dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    assert program is not None  # as it is where a file is named
    program.model.metadata_props.update(facts)
    return bytes(program.model_proto.SerializeToString())


def _load_onnx(path: Path, model: Classifier) -> Forward:
    import onnxruntime  # noqa: PLC0415  of an extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _make_torch_export(model: Classifier, facts: Metadata) -> bytes:
    module, images, shapes = _graph_arguments(model)
    file, program = io.BytesIO(), torch.export.export(module, images, dynamic_shapes=shapes, strict=False)
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(facts)})
    return file.getvalue()


def _load_torch_export(path: Path, model: Classifier) -> Forward:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _make_safetensors(model: Classifier, facts: Metadata) -> bytes:
    from safetensors.torch import save  # noqa: PLC0415  of an extra

    return bytes(save(_own_tensors(model), {"format": "pt", **facts}))


def _make_state_dict(model: Classifier, facts: Metadata) -> bytes:
    file = io.BytesIO()
    torch.save(_own_tensors(model), file)
    return file.getvalue()


def _own_tensors(model: Classifier) -> dict[str, Tensor]:
    # Copies: neither format should keep the memory that a view is cut from, and safetensors takes no shared tensors.
    return {name: tensor.detach().clone().contiguous() for name, tensor in model.backbone.state_dict().items()}


def _load_weights(path: Path, model: Classifier) -> Forward:
    """A second classifier with the weights of the file, which must have all of them."""
    other = copy.deepcopy(model)
    other.backbone.load_state_dict(read_state_dicts(path)[0])
    return other


class Kind(NamedTuple):
    """A format: the ending of its files, the packages that it needs, and how it is written and read."""

    suffix: str
    packages: tuple[str, ...]
    make: Callable[[Classifier, Metadata], bytes]
    load: Callable[[Path, Classifier], Forward]


FORMATS: dict[Format, Kind] = {
    "onnx": Kind(".onnx", ("onnx", "onnxscript", "onnxruntime"), _make_onnx, _load_onnx),
    "torch_export": Kind(".pt2", (), _make_torch_export, _load_torch_export),
    "safetensors": Kind(".safetensors", ("safetensors",), _make_safetensors, _load_weights),
    "state_dict": Kind(".pt", (), _make_state_dict, _load_weights),
}
