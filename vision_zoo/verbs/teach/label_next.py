"""Which unlabelled photos are worth a label: those that tell most of all others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.sources import Files
from vision_zoo.plots import plot_images
from vision_zoo.training.evaluation import write_csv
from vision_zoo.training.run_folder import RunFolder
from vision_zoo.types import ImageShape
from vision_zoo.verbs.image_files import find_images
from vision_zoo.verbs.teach.head import Head

CANDIDATES = 4096  # photos that are looked at again after each choice: the best ones by themselves


def unlabelled_files(folder: str, datamodule: ImageDataModule, image_shape: ImageShape) -> Files:
    """The photos of a folder, prepared as those of the training; an InputError if there are none."""
    paths = [str(path) for path in find_images([folder], "--unlabelled")]
    names = ("resize", "value_range", "interpolation")
    how: dict[str, Any] = {name: getattr(datamodule, name) for name in names if hasattr(datamodule, name)}
    return Files(paths, torch.zeros(len(paths), dtype=torch.int64), image_shape, **how)


def worth_a_label(head: Head, strength: float, labelled: Tensor, values: Tensor, count: int) -> list[int]:
    """Indices of photos to label, the first one first.

    Each lowers the most, once those before it are labelled, by how much the head may be wrong: the variance of its
    logits over all photos, of which those count most that it is unsure of (Cohn et al. 1996,
    https://arxiv.org/abs/cs/9603104; for linear layers Yu et al. 2006, "Active learning via transductive experimental
    design"). So it names photos that many others are like, and no two that are alike.

    Args:
        head: the fitted layer.
        strength: of the penalty that it was fitted with.
        labelled: features of the photos that it was fitted to, float32 (M, D).
        values: features of the photos without labels, float32 (N, D).
        count: how many.
    """
    mean, scale = labelled.mean(0), labelled.var(0, correction=0).mean().sqrt().clamp(min=1e-12)
    scaled = [(part - mean) / scale for part in (labelled, values)]  # as the head was fitted
    # The curvature of a photo's loss by its logits, in the mean of the classes' directions.
    doubts = [(1 - head.logits(part).softmax(1).square().sum(1)).clamp(min=1e-4) / 2 for part in (labelled, values)]
    fitted, pool = ((part.T * doubt) @ part for part, doubt in zip(scaled, doubts, strict=True))  # (D, D)
    precision = strength * torch.eye(len(fitted)) + fitted
    covariance = torch.linalg.inv(precision.double()).float()  # of the weights of one class (Laplace)
    photos, noise, pool = scaled[1], 1 / doubts[1], pool + fitted
    gain, variance = _forms(photos, covariance @ pool @ covariance), _forms(photos, covariance)
    kept = (gain / (variance + noise)).topk(min(len(photos), max(CANDIDATES, 2 * count))).indices
    photos, noise, gain, variance = photos[kept], noise[kept], gain[kept], variance[kept]
    shared = photos @ covariance  # (C, D)
    chosen = list[int]()
    for _ in range(min(count, len(photos))):
        gains = gain / (variance + noise)
        gains[chosen] = -torch.inf
        chosen.append(index := int(gains.argmax()))
        its, whole = shared[index].clone(), variance[index] + noise[index]
        parts = shared @ photos[index] / whole  # (C,), of what it tells, that each photo has
        seen = pool @ its
        gain = gain - 2 * parts * (shared @ seen) + parts.square() * (its @ seen)
        variance, shared = variance - parts.square() * whole, shared - torch.outer(parts, its)
    return kept[chosen].tolist()


def _forms(values: Tensor, matrix: Tensor) -> Tensor:
    """Of each row x of values (N, D) the number x' matrix x, (N,)."""
    return torch.cat([((part @ matrix) * part).sum(1) for part in torch.split(values, CANDIDATES)])


def write_next(
    source: Files, places: Tensor, logits: Tensor, chosen: Sequence[int], names: Sequence[str], run: RunFolder
) -> list[tuple[str, str, float, int]]:
    """Write next.csv and next.png; gives the rows: path, label, probability, rank."""
    probabilities, labels = logits.softmax(1).max(1)
    rows = list[tuple[str, str, float, int]]()
    for rank, index in enumerate(chosen, start=1):
        path, name = source.paths[int(places[index])], names[int(labels[index])]
        rows.append((path, name, round(float(probabilities[index]), 4), rank))
    write_csv(run.path / "next.csv", [["path", "label", "probability", "rank"], *rows])
    images = source.fetch(places[list(chosen)]).images
    titles = [f"{Path(path).name}\n{name}? {probability:.0%}" for path, name, probability, _ in rows]
    plot_images(images, titles, run.path / "next.png", "Photos to label next")
    return rows
