"""Known, or none of these: whether an image is of the classes that a network was trained with.

Virtual-logit matching (Wang et al. 2022, https://arxiv.org/abs/2203.10807), with so few principal axes that they take
little of a checkpoint.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_zoo.backbones.fitting import head_of
from vision_zoo.errors import CheckpointError, refuse

MOST_AXES = 128  # of the features of known images: half a megabyte for a thousand features
PREFIX = "known."  # of its names among the weights in an exported file
NUMBERS = ("share", "threshold", "weight")
TENSORS = ("center", "axes")


class Known(nn.Module):
    """A score that is high for images of the known classes, and the threshold from which an image passes as one.

    The score is the energy of the logits, their logsumexp, less what of the features lies outside of the axes along
    which those of known images vary most. Without features it is the energy alone.

    Args:
        center: mean of the features of training images, float (D,); D is 0 for the energy alone.
        axes: their principal axes, float (D, R), orthonormal.
        weight: of the part outside.
        threshold: the least score of a known image.
        share: of known images that passed where the threshold was fitted.
    """

    center: Tensor
    axes: Tensor

    def __init__(self, center: Tensor, axes: Tensor, weight: float, threshold: float, share: float) -> None:
        super().__init__()
        self.weight, self.threshold, self.share = weight, threshold, share
        # No part of the network's weights: what a checkpoint keeps of them is `stored`.
        self.register_buffer("center", center, persistent=False)
        self.register_buffer("axes", axes, persistent=False)

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """The score, float (B,), of logits (B, K) and features (B, D)."""
        energy, axes = logits.float().logsumexp(1), self.axes.float()  # also in a run of half precision
        if not len(self.center):
            return energy
        offset = features.float() - self.center.float()
        outside = offset - F.linear(offset @ axes, axes)  # (B, D)
        return energy - self.weight * outside.square().sum(1).sqrt()

    @classmethod
    def fit(cls, train: Tensor, logits: Tensor, features: Tensor, share: float) -> Self:
        """Fit axes to features of training images, and weight and threshold to validation images.

        Args:
            train: features of training images, float (N, D); with D 0, the score is the energy alone.
            logits: of validation images, float (M, K).
            features: of the same, float (M, D).
            share: of the validation images that are to pass, in (0, 1).
        """
        size = train.shape[1]
        known = cls(train.sum(0) / max(len(train), 1), train.new_zeros(size, 0), 0.0, 0.0, share)
        if size:
            offset = train - known.center
            vectors = torch.linalg.eigh((offset.T @ offset).double()).eigenvectors  # (D, D), the last vary most
            known.axes = vectors[:, -min(MOST_AXES, max(size // 2, 1)) :].float().contiguous()
            known.weight = 1.0
            outside = logits.logsumexp(1) - known(logits, features)
            size_of_logits = logits.amax(1).mean().abs()  # of BinaryCrossEntropy they are below 0
            known.weight = float(size_of_logits / outside.mean().clamp(min=1e-6))
        known.threshold = threshold_of(known(logits, features), share)
        return known

    @property
    def facts(self) -> dict[str, float]:
        """Share and threshold, for results and exported files."""
        return {"share": self.share, "threshold": self.threshold}

    def stored(self) -> dict[str, float | Tensor]:
        """What a checkpoint keeps of it, plain numbers and tensors."""
        numbers: dict[str, float | Tensor] = {name: getattr(self, name) for name in NUMBERS}
        return numbers | {name: getattr(self, name).cpu() for name in TENSORS}

    @classmethod
    def restore(cls, stored: Mapping[str, Any] | None, network: nn.Module) -> Self | None:
        """What a vetted checkpoint has stored for its network; None for nothing.

        Raises:
            CheckpointError: if it was fitted on other features than the network's.
        """
        if stored is None:
            return None
        size, own = len(stored["center"]), num_features(network)
        other = f'"known" in the checkpoint is of {size} features, and the network has {own}'
        refuse(CheckpointError, (size not in (0, own), other))
        return cls(**stored)


def threshold_of(scores: Tensor, share: float) -> float:
    """The score from which on this share of known images pass, of their scores, float (N,)."""
    return float(scores.sort(descending=True).values[math.ceil(share * len(scores)) - 1])


def with_features(network: nn.Module, classify: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (B, K) that ``classify`` gives by way of the network, and features, what its last linear layer was given.

    Features are (B, D), with D 0 where the network does not end in a linear layer on one vector for each image.
    """
    with noted_features(network) as given:
        logits = classify()
    return logits, given[0] if len(given) == 1 and given[0].ndim == 2 else logits[:, :0]


@contextmanager
def noted_features(network: nn.Module) -> Iterator[list[Tensor]]:
    """The list to which each batch's features are added, (B, D); none where the last layer is not a linear one."""
    given, head = list[Tensor](), network.get_submodule(head_of(network))
    note = head.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        yield given if isinstance(head, nn.Linear) else []
    finally:
        note.remove()


def num_features(network: nn.Module) -> int:
    """How many features the last linear layer is given; 0 where the network ends in another one."""
    head = network.get_submodule(head_of(network))
    return head.in_features if isinstance(head, nn.Linear) else 0


def ill_formed(stored: Any) -> Iterator[tuple[bool, str]]:
    """What is wrong with what a file claims that `Known.stored` gave: conditions and what to say, each after the last.

    A tensor may claim any size without holding it; one that is contiguous holds what it claims.
    """
    form = isinstance(stored, dict) and stored.keys() == {*NUMBERS, *TENSORS}
    yield not form, "its known holds other things than it should"
    numbers, tensors = ([stored[name] for name in names] for names in (NUMBERS, TENSORS))
    finite = all(type(value) is float and abs(value) < torch.finfo(torch.float32).max for value in numbers)
    yield not finite, "its known has numbers that are none"
    plain = all(type(x) is Tensor and x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)
    plain = plain and all(value.layout == torch.strided and value.is_contiguous() for value in tensors)
    yield not plain, "its known has tensors that are not plain ones"
    center, axes = tensors
    fit = center.ndim == 1 and axes.ndim == 2 and axes.shape[0] == len(center) and axes.shape[1] <= MOST_AXES
    yield not fit, f"its known has tensors of shapes {tuple(center.shape)} and {tuple(axes.shape)}"
    yield not all(bool(value.isfinite().all()) for value in tensors), "its known has values that are not finite"
