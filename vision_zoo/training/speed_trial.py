"""A trial of the ways in which a network can compute, before training: which of them is the fastest here?"""

import copy
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from vision_zoo import probe
from vision_zoo.classifier import Classifier, set_memory_format
from vision_zoo.training.random_states import kept_random_states

SECONDS, SHARE = 2.0, 0.02  # of the run: what a trial may take is the larger of both,
LARGEST_SHARE = 0.05  # but no more than this share of a short run
SHORT = 60.0  # seconds: a run of few steps is too short for a trial if it takes less
FEW, ENOUGH = 4, 256  # images: fewer tell too little of a batch, and of more each takes as long
CHUNK = 0.02  # seconds that are timed at once, for steps that are shorter
CHUNKS = 2, 12  # of each way: the fewest that tell, and as many as are of use
BEHIND = 1.25  # a way that takes so many times as long as the fastest is out of the race
TIE = 1.02  # a simpler way is preferred where it takes at most so many times as long


class Way(NamedTuple):
    """How a network computes."""

    bf16: bool = False  # autocast, otherwise float32
    channels_last: bool = False

    def __str__(self) -> str:
        return ("bf16" if self.bf16 else "float32") + " channels_last" * self.channels_last


def fastest(
    model: Classifier, batch_size: int, device: torch.device, ways: Sequence[Way], steps: float, training: bool = True
) -> tuple[Way, dict[str, float]]:
    """The fastest of some ways for a run of so many steps, and images per second of each that works.

    The first way, and no figures, where there is no other, the run is too short, or, with a warning, the network fails.
    """
    times: dict[Way, float] = {}
    size = min(batch_size, ENOUGH) if device.type == "cpu" else batch_size
    if len(ways) > 1:
        try:
            trial = Trial(model.backbone, (size, *model.image_shape), model.num_classes, device, training)
            times = trial.fastest(ways, steps * batch_size / size)
        except probe.REFUSALS as error:
            rank_zero_warn(f"the trial of speed failed, so that the run computes in {ways[0]}: {error}")
    figures = {str(way): float(f"{1 / seconds:.4g}") for way, seconds in times.items()}
    return next(iter(times), ways[0]), figures


class Trial:
    """Steps of a copy of a network on random images, so that nothing is changed, nor any random number drawn.

    Args:
        network: maps images (B, C, H, W) to logits (B, K).
        shape: (B, C, H, W) of a batch.
        classes: number of classes K.
        device: where to compute.
        training: try training steps, with their backward pass; otherwise evaluation.
    """

    def __init__(
        self, network: nn.Module, shape: Sequence[int], classes: int, device: torch.device, training: bool = True
    ) -> None:
        self.device, self.training = device, training
        self.network = copy.deepcopy(network).to(device).train(training)
        with kept_random_states():
            self.images = torch.randn(*shape, device=device)
            self.labels = torch.randint(classes, shape[:1], device=device)
        self.size = len(self.images)  # how many of them a step takes

    def fastest(self, ways: Sequence[Way], steps: float) -> dict[Way, float]:
        """Try ways of computing, the simplest first, within what a run of so many steps may spend on it.

        A step is of fewer images where steps of a whole batch would take too long, as in a short fine-tuning.

        Returns:
            Seconds per image of each way that works, the one to take first; empty if the run is too short for a trial.
        """
        fewest = (1 + CHUNKS[0]) * len(ways) + 2
        whole, began = len(self.images), time.perf_counter()
        self.size = min(whole, FEW)
        if fewest * self.size > LARGEST_SHARE * steps * whole:
            return {}
        step = whole * self._seconds_per_image(ways[0])  # or less, for a small batch does not keep a processor busy
        run = steps * step
        allowed = min(max(SECONDS, SHARE * run), LARGEST_SHARE * run)
        size = int(min(whole, whole * allowed / (fewest * step)))
        if size < self.size or (run < SHORT and fewest > LARGEST_SHARE * steps):
            return {}
        self.size = size
        count = max(1, round(CHUNK / size / self._seconds_per_image(ways[0])))
        best: dict[Way, float] = {}
        for way in ways:
            with suppress(*probe.REFUSALS):  # such as a `view` of features in channels_last
                self.seconds(way)
                best[way] = self.seconds(way, count) / size
        for chunk in range(1, CHUNKS[1]):
            if chunk >= CHUNKS[0] and time.perf_counter() - began > allowed:
                break
            for way in [way for way in best if best[way] <= BEHIND * min(best.values())]:
                best[way] = min(best[way], self.seconds(way, count) / size)
        chosen = next((way for way in best if best[way] <= TIE * min(best.values())), None)
        return {way: best[way] for way in sorted(best, key=lambda way: (way != chosen, best[way]))}

    def _seconds_per_image(self, way: Way) -> float:
        """Of a step after a first one, which makes the kernels."""
        self.seconds(way)
        return self.seconds(way) / self.size

    def seconds(self, way: Way, count: int = 1) -> float:
        """Seconds of one of so many steps."""
        order = torch.channels_last if way.channels_last else torch.contiguous_format
        set_memory_format(self.network, order)
        with kept_random_states():
            self._wait()
            began = time.perf_counter()
            for _ in range(count):
                with torch.set_grad_enabled(self.training), torch.autocast(self.device.type, torch.bfloat16, way.bf16):
                    logits = self.network(self.images[: self.size].contiguous(memory_format=order))
                if self.training:
                    torch.autograd.backward(F.cross_entropy(logits.float(), self.labels[: self.size]))
                    self.network.zero_grad()
            self._wait()
            return (time.perf_counter() - began) / count

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
