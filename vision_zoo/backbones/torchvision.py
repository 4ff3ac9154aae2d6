"""Networks of torchvision (https://pytorch.org/vision/stable/models.html), fitted to the images and the classes."""

import pickle
import re
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from vision_zoo.backbones.fitting import fit_channels, fit_classes
from vision_zoo.errors import ConfigError, ImageShapeError, did_you_mean, one_line, refuse
from vision_zoo.types import ImageShape, Preprocessing

_RGB = 3


class Torchvision(nn.Module):
    """Any classification network of torchvision, its last layer fitted to the classes, its first to the channels.

    Where images have not three channels, the filters of the first convolution are made of the red, green and blue ones,
    so that pretrained weights stay useful: one channel takes their sum (the network then answers as if the gray image
    stood in all three), others take them in turn, scaled by 3 / channels. Auxiliary heads are left out. Vision
    transformers are built for the size of the images, and pretrained position embeddings are interpolated to it.

    Nothing but the values of the weights depends on whether they were pretrained: a checkpoint is read without them.

    Args:
        image_shape: (channels, height, width) of one image; the least size depends on the network, and each takes 224.
        num_classes: number of logits.
        name: a network of torchvision, such as resnet18, mobilenet_v3_small, swin_t.
        weights: pretrained weights of that network, such as DEFAULT or IMAGENET1K_V1, downloaded once; random weights
            if not given.
        batch_norm_momentum: share of each batch in the running statistics of batch norm; torch's usual one if not
            given. null keeps the network's own: MobileNetV3's 0.01 is for the many steps of ImageNet, after the few of
            a small dataset its statistics would still be those of the first steps, and evaluation below training.

    Raises:
        ConfigError: if torchvision has no such network or weights, or the weights cannot be downloaded.
        ImageShapeError: if a network that is built for one size cannot be built for this one.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        name: str = "resnet18",
        weights: str | None = None,
        batch_norm_momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        self.name = name
        chosen = _find_weights(name, weights)
        outputs = num_classes if chosen is None else len(chosen.meta["categories"])
        self.network = _build(name, image_shape, outputs)
        if chosen is not None:
            _load(self.network, name, chosen, image_shape)
            fit_classes(self.network, num_classes)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d) and batch_norm_momentum is not None:
                module.momentum = batch_norm_momentum
        fit_channels(self.network, image_shape[0])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        return self.network(images)  # (B, num_classes)

    @staticmethod
    def preprocessing(name: str = "resnet18", weights: str | None = None) -> Preprocessing | None:
        """How the images were prepared that the weights were trained with; None for random weights."""
        chosen = _find_weights(name, weights)
        if chosen is None:
            return None
        how: Any = chosen.transforms()
        return Preprocessing(tuple(how.mean), tuple(how.std), how.crop_size[0], how.interpolation.value)


def networks() -> list[dict[str, Any]]:
    """Every classifier of torchvision, with the names of its pretrained weights."""
    names = models.list_models(module=models)
    return [{"name": name, "weights": ", ".join(models.get_model_weights(name).__members__)} for name in names]


def _find_weights(name: str, weights: str | None) -> models.WeightsEnum | None:
    """The pretrained weights of these names, or None for random ones; torchvision must know both names."""
    names = models.list_models(module=models)
    hint = did_you_mean(name, names) or f"; there are {', '.join(names)}."
    unknown = f"Torchvision: no network is named {name!r}{hint} Set --model.backbone.name to one of them"
    refuse(ConfigError, (name not in names, unknown))
    known = models.get_model_weights(name).__members__
    way_out = f"set --model.backbone.weights to one of {', '.join(known)}, or leave it out for random weights"
    none = f"Torchvision: {name} has no weights named {weights!r}; {way_out}"
    refuse(ConfigError, (weights is not None and weights not in known, none))
    return None if weights is None else known[weights]


def _build(name: str, image_shape: ImageShape, num_classes: int) -> nn.Module:
    options: dict[str, Any] = {"num_classes": num_classes}
    channels, height, width = image_shape
    if name.startswith("vit_"):
        options["image_size"] = height
    elif name.startswith("maxvit"):
        options["input_size"] = (height, width)
    elif name in ("googlenet", "inception_v3"):
        # Their pretrained weights expect [-1, 1]; colour images normalised by ImageNet's mean are brought there.
        options |= {"aux_logits": False, "init_weights": True, "transform_input": channels == _RGB}
    try:
        refuse(ValueError, (name.startswith("vit_") and height != width, "it takes square ones"))
        return models.get_model(name, weights=None, **options)
    except (ValueError, AssertionError) as error:  # of one that is built for the size of the images
        wrong = f"Torchvision: {name} cannot take images of shape {tuple(image_shape)} ({one_line(error)})"
        raise ImageShapeError(f"{wrong}: set --data.image_size to 224, which each network there takes") from error


def _load(network: nn.Module, name: str, weights: models.WeightsEnum, image_shape: ImageShape) -> None:
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:  # no network, no space; a broken file
        file, folder = urlparse(weights.url).path.rsplit("/", 1)[-1], f"{torch.hub.get_dir()}/checkpoints"
        wrong = f"Torchvision: the weights {weights.name} of {name} could not be fetched from {weights.url} to {folder}"
        way_out = f"Put the file {file} there, or leave out --model.backbone.weights to start from random weights"
        raise ConfigError(f"{wrong} ({error}). {way_out}") from error
    if isinstance(network, models.VisionTransformer):
        state = interpolate_embeddings(image_shape[1], network.patch_size, state)
    elif isinstance(network, models.GoogLeNet | models.Inception3):
        state = {key: value for key, value in state.items() if not key.lower().startswith("aux")}
    elif isinstance(network, models.DenseNet):  # its weights still have the names of an old release: norm.1 for norm1
        state = {re.sub(r"(denselayer\d+\.\w+)\.([12])\.", r"\1\2.", key): value for key, value in state.items()}
    network.load_state_dict(state)
