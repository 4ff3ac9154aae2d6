"""Several trained networks as one, which answers with the mean of their probabilities."""

import math
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from vision_zoo.checkpoints import Checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.errors import CheckpointError, refuse
from vision_zoo.trust import FACTS
from vision_zoo.types import ImageShape


class Members(nn.Module):
    """Networks side by side, each with the normalisation that it was trained with.

    Args:
        image_shape: (channels, height, width) of one image.
        num_classes: number of classes.
        members: the classifiers; their networks are taken, not copied.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, members: Sequence[Classifier] = ()) -> None:
        super().__init__()
        self.networks = nn.ModuleList(member.backbone for member in members)
        for place, member in enumerate(members):
            self.register_buffer(f"scale_{place}", member.scale, persistent=False)
            self.register_buffer(f"shift_{place}", member.shift, persistent=False)
        kinds = ", ".join(dict.fromkeys(member.network_name for member in members))
        self.name = f"{len(members)} networks ({kinds})"

    def forward(self, pixels: Tensor) -> Tensor:
        """The logarithm of the mean probabilities, float (B, K), of pixels, float (B, C, H, W) in [0, 255]."""
        scaled = (
            network(pixels * self.get_buffer(f"scale_{place}") + self.get_buffer(f"shift_{place}"))
            for place, network in enumerate(self.networks)
        )
        logarithms = torch.stack([logits.float().log_softmax(1) for logits in scaled])  # (members, B, K)
        return logarithms.logsumexp(0) - math.log(len(self.networks))


class Ensemble(Classifier):
    """A classifier whose probabilities are the mean of those of several (Lakshminarayanan et al. 2017).

    It does not say "none of these": each network's threshold is for its own score, and lets the share of images pass
    that was asked for; what a mean of scores would let pass, nobody has measured.

    Args:
        checkpoints: at least two, of the same classes and image shape.

    Raises:
        CheckpointError: if their classes, image shapes or ways to prepare images differ.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        first = _facts(checkpoints[0])
        for checkpoint, (what, value) in product(checkpoints[1:], first.items()):
            theirs = _facts(checkpoint)[what]
            differ = f"{what} is {value} in {checkpoints[0].path}, and {theirs} in {checkpoint.path}"
            alike = "only networks of the same classes and images can be averaged"
            refuse(CheckpointError, (theirs != value, f"{differ}: {alike}"))
        members = [Classifier.from_checkpoint(checkpoint.content) for checkpoint in checkpoints]
        for member in members:
            member.set_memory_format(channels_last=False)
        super().__init__(partial(Members, members=members), **{name: members[0].hparams[name] for name in FACTS})
        self.hparams["backbone"] = [member.hparams["backbone"] for member in members]
        self.scale, self.shift = torch.ones_like(self.scale), torch.zeros_like(self.shift)  # each has its own
        self.members = ["/".join(checkpoint.path.parts[-4:]) for checkpoint in checkpoints]  # name/version/checkpoints/
        if any(member.known for member in members):
            left_out = "answers without none of these, whose thresholds are each of one network's own score"
            rank_zero_only(print)(f"vision_zoo: the mean of several networks {left_out}", file=sys.stderr)
        self.eval()


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What members must have in common."""
    described = checkpoint.content["hyper_parameters"]
    facts = {name: described.get(name) for name in ("class_names", "image_shape", "value_range")}
    return facts | dict(zip(("resize", "interpolation"), checkpoint.resizing, strict=True))


def classifier_of(checkpoints: Sequence[Checkpoint]) -> Classifier:
    """The classifier of a checkpoint, or the ensemble of several."""
    return Classifier.from_checkpoint(checkpoints[0].content) if len(checkpoints) == 1 else Ensemble(checkpoints)
