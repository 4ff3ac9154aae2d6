"""Networks of timm (https://huggingface.co/docs/timm), fitted to the images and the classes."""

import importlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from vision_zoo.errors import ConfigError, ImageShapeError, did_you_mean, lack, one_line, refuse
from vision_zoo.files import expanded
from vision_zoo.specs import is_package, lies_beside
from vision_zoo.types import ImageShape, Interpolation, Preprocessing

_LAYOUT = "A folder with its config.json and model.safetensors serves as well: local-dir:FOLDER"


class Timm(nn.Module):
    """Any classifier of timm, fitted to channels, classes and, where it is built for one size, the size of the images.

    Nothing but the values of the weights depends on whether they were pretrained: a checkpoint is read without them.

    Args:
        image_shape: (channels, height, width) of one image; which sizes there may be depends on the network.
        num_classes: number of logits.
        name: a network of timm, such as resnet18 or resnet18.fb_swsl_ig1b_ft_in1k, see `vision_zoo list networks timm`;
            with weights DEFAULT also hf-hub:OWNER/MODEL or local-dir:FOLDER.
        weights: DEFAULT for the pretrained weights, downloaded once; a file of torch or safetensors; or
            hf-hub:OWNER/MODEL or local-dir:FOLDER; random weights if not given.
        options: further options of the network, such as {drop_path_rate: 0.1}.

    Raises:
        ConfigError: if timm is not installed, has no such network, option or weights, or cannot read the weights.
        ImageShapeError: if a network that is built for one size cannot be built for this one.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        name: str = "resnet18",
        weights: str | None = None,
        options: dict[str, bool | int | float | str | list[int] | list[float] | None] | None = None,
    ) -> None:
        super().__init__()
        settled = self.settled(name, weights, options)
        self.name, self.options = settled["name"], settled["options"]
        given = {**(self.options or {}), "in_chans": image_shape[0]}
        if _config(self.name).fixed_input_size:
            given["img_size"] = tuple(image_shape[1:])
        self.network = _build(self.name, image_shape, {**given, "num_classes": num_classes})
        if weights is not None:
            theirs = _pretrained(self.name, settled["weights"], given).state_dict()
            own = self.network.state_dict()  # whose last layer may be for another number of classes
            self.network.load_state_dict({**own, **{k: v for k, v in theirs.items() if v.shape == own[k].shape}})

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        return self.network(images)  # (B, num_classes)

    @staticmethod
    def preprocessing(name: str = "resnet18", weights: str | None = None) -> Preprocessing | None:
        """How the images were prepared that the weights were trained with; None for random weights."""
        if weights is None:
            return None
        address = next((text for text in (weights, name) if _is_address(text)), None)
        how = _read_address(address)[1] if address else _config(name).to_dict()
        interpolation = how.get("interpolation")  # also "random", of training
        interpolation = cast(Interpolation, interpolation if interpolation == "bicubic" else "bilinear")
        return Preprocessing(tuple(how["mean"]), tuple(how["std"]), how["input_size"][-1], interpolation)

    @staticmethod
    def settled(name: str = "resnet18", weights: str | None = None, options: Any = None) -> dict[str, Any]:
        """The same options with a network of timm for an address, so that a checkpoint is read without that."""
        if _is_address(name):
            given = f"Timm: {name} as name stands for weights, and weights is {weights}: set --model.backbone.weights"
            refuse(ConfigError, (weights != "DEFAULT", f"{given} to DEFAULT"))
            weights = name
            name, _, changed = _read_address(name)
            options = {**changed, **(options or {})} or None
        if weights and weights != "DEFAULT" and not _is_address(weights, "hf"):
            kind, colon, place = weights.partition(":") if _is_address(weights) else ("", "", weights)
            weights = f"{kind}{colon}{expanded(place).resolve()}"
        ours = sorted({*(options or {})} & {*inspect.signature(_timm().create_model).parameters, "num_classes"})
        refuse(ConfigError, (ours, f"Timm: --model.backbone.options: leave out {', '.join(ours)}, which are set here"))
        return {"name": name, "weights": weights, "options": options}


def networks() -> list[dict[str, Any]]:
    """Every classifier of timm, once for each of its pretrained weights: name, where those are, side of its images."""
    configs = {name: _timm().get_pretrained_cfg(name) for name in _timm().list_models(include_tags=True)}
    return [{"name": n, "weights": c.hf_hub_id or c.url, "image size": c.input_size[-1]} for n, c in configs.items()]


def _timm() -> Any:
    """The package, if it is installed; a file in the working directory, perhaps beside a checkpoint, is not."""
    there = is_package("timm") and not lies_beside("timm")
    refuse(ConfigError, (not there, "Timm: the package timm is missing: pip install 'vision_zoo[timm]'"))
    return importlib.import_module("timm")


def _is_address(name: Any, kinds: str = "hf|local") -> bool:
    return re.match(f"(?i)({kinds})[-_](hub|dir):", str(name)) is not None


def _config(name: str) -> Any:
    """What timm knows of a network and of the weights that its tag names."""
    known = {*_timm().list_models(), *_timm().list_models(include_tags=True)}
    hint = did_you_mean(name, known) or "."
    unknown = f"Timm: no network is named {name!r}{hint} Set --model.backbone.name to one of vision_zoo list networks"
    refuse(ConfigError, (name not in known, f"{unknown} timm"))
    return _timm().get_pretrained_cfg(name)


def _build(name: str, image_shape: ImageShape, given: dict[str, Any]) -> Any:
    try:
        return _timm().create_model(name, **given)
    except TypeError as error:  # of an option that it has not
        raise ConfigError(f"Timm: {name}: {error}: change --model.backbone.options") from error
    except (ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        if "img_size" not in given or lack(error):
            raise
        answer, size = " ".join(str(error).split()) or type(error).__name__, _config(name).input_size[-1]
        wrong = f"Timm: {name} cannot take images of shape {tuple(image_shape)} ({answer})"
        raise ImageShapeError(f"{wrong}: set --data.image_size to {size}, which it was made for") from error


def _read_address(address: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Of a model on the hub, or in a folder of that layout: its network, its preprocessing, options of the network."""
    with _reading(f"config.json of {address}", _LAYOUT):
        hub = importlib.import_module("timm.models._hub")
        read = hub.load_model_config_from_path if _is_address(address, "local") else hub.load_model_config_from_hf
        how, name, options = read(address.partition(":")[2])
        fitted = ("num_classes", "in_chans", "img_size")  # to the data
        return name, how, {key: value for key, value in (options or {}).items() if key not in fitted}


def _pretrained(name: str, weights: str, given: dict[str, Any]) -> Any:
    """The network with its pretrained weights, for as many classes as those are."""
    how, overlay, source = _config(name), dict[str, Any](), name
    if _is_address(weights):
        way, source, other = _LAYOUT, weights, _read_address(weights)[0]
        refuse(ConfigError, (other != name, f"Timm: {weights} is a {other}: set --model.backbone.name to that"))
    elif weights == "DEFAULT":
        refuse(ConfigError, (not how.has_weights, f"Timm: there are no weights of {name}: leave out weights"))
        hub = f"https://huggingface.co/{how.hf_hub_id}/resolve/main/{how.hf_hub_filename or 'model.safetensors'}"
        way = f"Fetch {hub if how.hf_hub_id else how.url} and name the file: --model.backbone.weights FILE"
    else:
        way = f"It must hold the weights of {name}; others go to --model.weights"
    with _reading(f"the weights {weights} of {name}", way):
        if weights != "DEFAULT" and source == name:
            Path(weights).open("rb").close()  # or says that there is none
            head = _timm().models.load_state_dict(weights, weights_only=True).get(f"{how.classifier}.weight")
            overlay = {"file": weights, **({} if head is None else {"num_classes": len(head)})}
        return _timm().create_model(source, pretrained=True, pretrained_cfg_overlay=overlay, **given)


@contextmanager
def _reading(what: str, way: str) -> Iterator[None]:
    """Say what cannot be read, and the way out, at once: without a network, the hub's client would try for a minute."""
    hub: Any = importlib.import_module("huggingface_hub")  # timm brings it
    constants = hub.constants
    before = constants.HF_HUB_OFFLINE
    try:
        hub.utils.get_session().head(constants.ENDPOINT, timeout=5)  # seconds
    except Exception:  # which kind depends on the release
        constants.HF_HUB_OFFLINE = True  # what was fetched before is found all the same
    try:
        yield
    except Exception as error:  # of the file, the network, the hub, JSON, torch, safetensors
        if lack(error, reading=True):
            raise
        raise ConfigError(f"Timm: {what} could not be read ({one_line(error)}). {way}") from error
    finally:
        constants.HF_HUB_OFFLINE = before
