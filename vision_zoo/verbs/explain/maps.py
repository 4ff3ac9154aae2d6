"""Where a network looked: how much each pixel speaks for a class."""

from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from torch import Tensor, nn

from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError, refuse

Method: TypeAlias = Literal["grad_cam", "layer_cam", "integrated_gradients", "occlusion"]

LEAST = 4  # positions a side of a map of features that can tell where something is
STEPS = 32  # of integrated gradients
WINDOWS = 8  # of occlusion, a side; half of each overlaps with the next
EXTRA_TOKENS = 8  # at most, of a class, of a teacher or as registers, besides those of the image
AT_ONCE = 64  # images that pass the network together


class Layer(NamedTuple):
    """A layer whose outputs lie in a plane, of some positions a side."""

    module: nn.Module
    layout: Literal["BCHW", "BHWC", "BNC"]  # of its outputs; N are tokens, those of the image last
    size: tuple[int, int]  # h, w

    def planes(self, values: Tensor) -> Tensor:
        """Its outputs, or what belongs to each of them, as (B, C, h, w)."""
        if self.layout == "BNC":
            values = values[:, -self.size[0] * self.size[1] :].reshape(len(values), *self.size, -1)
        return values if self.layout == "BCHW" else values.permute(0, 3, 1, 2)


def chosen(model: Classifier) -> Method:
    """The method for a network: by its last map of features, or by occlusion where it has none, as an MLP."""
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
    method, layer = method or chosen(model), last_map(model)
    none = f"--method {method} needs a map of features of {LEAST} x {LEAST} places, which {model.network_name} has not"
    tokens = f"--method grad_cam is of maps of features, and those of {model.network_name} are tokens: take layer_cam"
    refuse(
        ConfigError,
        (layer is None and method.endswith("cam"), f"{none}: take occlusion or integrated_gradients"),
        (layer is not None and layer.layout != "BCHW" and method == "grad_cam", tokens),
    )
    network, size = model.backbone, images.shape[2:]
    found = []
    for part, labels in zip(torch.split(images, AT_ONCE), torch.split(classes, AT_ONCE), strict=True):
        pixels = (part.to(model.device) * model.scale + model.shift).requires_grad_()
        target = labels.to(model.device)
        if layer is not None and method == "grad_cam":
            values = attr.LayerGradCam(network, layer.module).attribute(pixels, target, relu_attributions=True)
        elif layer is not None and method == "layer_cam":
            found_there = attr.LayerGradientXActivation(network, layer.module).attribute(pixels, target)
            values = layer.planes(found_there).relu()
        elif method == "integrated_gradients":  # from the mean image, which is 0 as pixels are normalised
            gradients = attr.IntegratedGradients(network)
            values = gradients.attribute(pixels, target=target, n_steps=STEPS, internal_batch_size=AT_ONCE).abs()
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


def overlay(image: Tensor, evidence: Tensor) -> Tensor:
    """An image, uint8 (C, H, W), in gray below its evidence, float (H, W) in [0, 1], in colours: uint8 (3, H, W)."""
    colours = torch.from_numpy(colormaps["inferno"](evidence.numpy())[..., :3]).permute(2, 0, 1)
    return (0.4 * image.float().mean(0) + 0.6 * 255 * colours).round().byte()


def last_map(model: Classifier) -> Layer | None:
    """The last layer with a plane of outputs that the answer hangs on; None if there is none.

    A transformer's last tokens are of no use where only the class token is read: those before its last attention are.
    """
    seen = list[tuple[nn.Module, Tensor]]()
    height, width = model.image_shape[1:]

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        # Tokens are those of a norm: other layers change their width, as to that of keys and queries together.
        same = [isinstance(before, Tensor) and before.shape == output.shape for before in inputs[:1]] == [True]
        if isinstance(output, Tensor) and output.requires_grad and (output.ndim == 4 or (output.ndim == 3 and same)):
            output.retain_grad()
            seen.append((module, output))

    leaves = [module for module in model.backbone.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(look) for leaf in leaves]
    noise = torch.randn(1, *model.image_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    try:
        with torch.enable_grad(), torch.inference_mode(False):
            model.backbone(noise.requires_grad_())[0].amax().backward()
    finally:
        for hook in hooks:
            hook.remove()
    patches = next((x.shape[2:] for _, x in seen if x.ndim == 4 and min(x.shape[2:]) >= LEAST), None)
    layers = [(layer, x.grad) for module, x in seen if (layer := _layer_of(module, x, (height, width), patches))]
    model.backbone.zero_grad()
    used = [layer for layer, grad in layers if grad is not None and layer.planes(grad).count_nonzero()]
    found = used or [layer for layer, _ in layers]
    return found[-1] if found else None


def _layer_of(module: nn.Module, output: Tensor, image: tuple[int, int], patches: Any) -> Layer | None:
    """What a layer's output is, by its shape; `patches` is the plane of the tokens, if there can be some."""

    def is_plane(height: int, width: int) -> bool:
        """Whether it has the proportions of the image, up to one position, and is not a matrix of attention."""
        lies = abs(height * image[1] - width * image[0]) < max(image) and min(height, width) >= LEAST
        return lies and not (height == width and of_tokens(height))

    def of_tokens(count: int) -> bool:
        return patches is not None and 0 <= count - patches[0] * patches[1] <= EXTRA_TOKENS

    if output.ndim == 3:
        return Layer(module, "BNC", tuple(patches)) if of_tokens(output.shape[1]) else None
    _, first, second, third = output.shape
    if is_plane(second, third):
        return Layer(module, "BCHW", (second, third))
    return Layer(module, "BHWC", (first, second)) if is_plane(first, second) else None
