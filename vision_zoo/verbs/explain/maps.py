"""Where a network looked: how much each pixel speaks for a class."""

from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError, refuse

Method: TypeAlias = Literal["grad_cam", "layer_cam", "integrated_gradients", "occlusion"]

LEAST = 4  # positions a side of a map of features that can tell where something is
STEPS = 32  # of integrated gradients
WINDOWS = 8  # of occlusion, a side; half of each overlaps with the next
AT_ONCE = 64  # images that pass the network together


def chosen(model: Classifier) -> Method:
    """The method for a network: by its last map of features, or by occlusion where it has none, as an MLP or a ViT."""
    return "occlusion" if last_map(model) is None else "layer_cam"


def maps(model: Classifier, images: Tensor, classes: Tensor, method: Method | None = None) -> Tensor:
    """How much each pixel speaks for a class, float (B, H, W) in [0, 1]; the most of each image is 1, or all are 0.

    - grad_cam: maps of features, weighted by the mean gradient of the class (Selvaraju et al. 2017,
      https://arxiv.org/abs/1610.02391).
    - layer_cam: the same with a gradient for each place (Jiang et al. 2021, https://doi.org/10.1109/TIP.2021.3089943).
    - integrated_gradients: gradients on the way from the mean image (Sundararajan et al. 2017,
      https://arxiv.org/abs/1703.01365).
    - occlusion: what the logit loses where a window covers the image (Zeiler and Fergus 2014,
      https://arxiv.org/abs/1311.2901).

    Args:
        model: in eval mode.
        images: uint8 (B, C, H, W).
        classes: int64 (B,), whose evidence is looked for.
        method: by default `chosen`.

    Raises:
        ConfigError: if the network has no map of features for a method that needs one, or captum is not installed.
    """
    try:
        from captum import attr  # noqa: PLC0415  # of the extra "explain"
    except ModuleNotFoundError as error:
        raise ConfigError(f"explain needs the package {error.name}: pip install 'vision_zoo[explain]'") from error
    method = method or chosen(model)
    layer = last_map(model)
    none = (
        f"--method {method} needs a map of features of {LEAST} x {LEAST} positions, which {model.network_name} has not"
    )
    refuse(ConfigError, (layer is None and method.endswith("cam"), f"{none}: take occlusion or integrated_gradients"))
    network, size = model.backbone, images.shape[2:]
    found = []
    for part, labels in zip(torch.split(images, AT_ONCE), torch.split(classes, AT_ONCE), strict=True):
        pixels = (part.to(model.device) * model.scale + model.shift).requires_grad_()
        target = labels.to(model.device)
        if method == "grad_cam":
            values = attr.LayerGradCam(network, layer).attribute(pixels, target, relu_attributions=True)
        elif method == "layer_cam":
            values = attr.LayerGradientXActivation(network, layer).attribute(pixels, target).relu()
        elif method == "integrated_gradients":
            start = torch.zeros_like(pixels)  # the mean image, as pixels are normalised
            values = (
                attr.IntegratedGradients(network)
                .attribute(pixels, start, target, n_steps=STEPS, internal_batch_size=AT_ONCE)
                .abs()
            )
        else:
            window = [max(1, side * 2 // (WINDOWS + 1)) for side in size]
            sizes = {"sliding_window_shapes": (pixels.shape[1], *window)}
            sizes["strides"] = (pixels.shape[1], *(max(1, side // 2) for side in window))
            with torch.no_grad():
                values = attr.Occlusion(network).attribute(pixels, target=target, **sizes).relu()
        values = values.detach().float().sum(1, keepdim=True)  # (B, 1, h, w)
        values = F.interpolate(values, list(size), mode="bilinear", align_corners=False)[:, 0]
        most = values.amax((1, 2), keepdim=True)
        found.append((values / most.where(most > 0, 1)).clamp(0, 1).cpu())
    return torch.cat(found)


def last_map(model: Classifier) -> nn.Module | None:
    """The last layer whose outputs lie in a plane, (B, C, h, w), of some positions a side; None if there is none."""
    found: list[nn.Module] = []

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) >= LEAST:
            found.append(module)

    leaves = [module for module in model.backbone.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(look) for leaf in leaves]
    try:
        with torch.no_grad():
            model(torch.zeros(1, *model.image_shape, dtype=torch.uint8, device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found[-1] if found else None
