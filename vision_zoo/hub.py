"""A network on the Hugging Face hub: a folder in which config.json has what a checkpoint holds besides its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vision_zoo.errors import CheckpointError, one_line, refuse
from vision_zoo.known import NUMBERS, PREFIX, TENSORS
from vision_zoo.specs import without_downloads

SCHEME = "hf://"
FILES = CARD, CONFIG, WEIGHTS = "README.md", "config.json", "model.safetensors"
_SECTIONS = ("hyper_parameters", "datamodule_hyper_parameters", "vision_zoo", "channels_last", "global_step")
_USED = ("seed_everything", "model", "data", "tta")  # of a run's configuration, by whoever does not continue it


def fetched(address: str) -> Path:
    """The local folder of hf://OWNER/NAME or hf://OWNER/NAME@REVISION, downloaded if need be, or a CheckpointError."""
    name, _, revision = address.removeprefix(SCHEME).partition("@")
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415  # of an extra

        folder = snapshot_download(name, revision=revision or None, allow_patterns=[CONFIG, WEIGHTS])
    except Exception as error:  # package, name, network, server, token, disk: each has its own kind
        way_out = "Check name, network, pip install 'vision_zoo[hub]', hf auth login if it is private; or copy it here"
        why = one_line(error).rstrip(".")
        refuse(CheckpointError, (True, f"--ckpt_path {address} cannot be fetched: {why}. {way_out}"))
    return Path(folder)


def read_folder(weights: Path) -> dict[str, Any]:
    """What the checkpoint would hold, by the path of the weights; nothing of it is vetted yet."""
    file, tensors, content = weights.with_name(CONFIG), read_safetensors(weights), dict[str, Any]()
    try:
        told = json.loads(file.read_bytes())
        content |= {name: told[name] for name in _SECTIONS if name in told}
        if told.get("known"):
            stored: dict[str, Any] = {name: tensors.pop(f"{PREFIX}{name}") for name in (*NUMBERS, *TENSORS)}
            content["known"] = stored | {name: float(stored[name]) for name in NUMBERS}
    except Exception as error:  # whatever the file may hold
        refuse(CheckpointError, (True, f"{file} does not describe a network: {one_line(error)}"))
    return {**content, "state_dict": {f"backbone.{name}": tensor for name, tensor in tensors.items()}}


def described(content: Mapping[str, Any]) -> str:
    """The text of config.json for a checkpoint: without what only training needs, and folders of this machine."""
    sections = {name: content[name] for name in _SECTIONS if content.get(name) is not None}
    options = sections["hyper_parameters"]
    sections["hyper_parameters"] = {**options, "loss": _portable(options.get("loss"))}  # a teacher's path
    if about := sections.get("vision_zoo"):
        config = {name: about["config"][name] for name in _USED if name in about["config"]}
        config["model"] = {**config["model"], "backbone": without_downloads(config["model"].get("backbone"))}
        sections["vision_zoo"] = {"name": about["name"], "config": _portable(config)}
    if data := sections.get("datamodule_hyper_parameters"):
        sections["datamodule_hyper_parameters"] = _portable(data)
    if known := content.get("known"):
        sections["known"] = {name: known[name] for name in NUMBERS}
    return json.dumps(sections, indent=1, default=Tensor.tolist)


def _portable(value: Any) -> Any:
    """The same plain data with absolute paths cut down to their last names."""
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(item) for item in value]
    return Path(value).name or value if isinstance(value, str) and Path(value).is_absolute() else value


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, or a CheckpointError."""
    from safetensors.torch import load_file  # noqa: PLC0415  # of the extras "export" and "hub"

    try:
        return load_file(file)
    except Exception as error:  # safetensors has one of its own, and others for what its header may hold
        raise CheckpointError(f"{file.resolve()} is not a whole safetensors file: {error}") from error
