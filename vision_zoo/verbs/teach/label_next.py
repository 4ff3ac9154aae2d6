"""Which unlabelled photos are worth a label: those that the network is unsure of, and that are not alike."""

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


def unlabelled_files(folder: str, datamodule: ImageDataModule, image_shape: ImageShape) -> Files:
    """The photos of a folder, prepared as those of the training; an InputError if there are none."""
    paths = [str(path) for path in find_images([folder], "--unlabelled")]
    names = ("resize", "value_range", "interpolation")
    how: dict[str, Any] = {name: getattr(datamodule, name) for name in names if hasattr(datamodule, name)}
    return Files(paths, torch.zeros(len(paths), dtype=torch.int64), image_shape, **how)


def worth_a_label(values: Tensor, logits: Tensor, count: int) -> list[int]:
    """Indices of photos to label, the first one first.

    Each is farthest from those before it by the gradient of the head's loss, were the label what the network says
    (BADGE, Ash et al. 2020, https://arxiv.org/abs/1906.03671): the gradient is long where the network is unsure, and
    alike for photos that are alike.

    Args:
        values: features, float32 (N, D).
        logits: of the head, float32 (N, K).
        count: how many.
    """
    errors = logits.softmax(1)
    errors = errors - torch.nn.functional.one_hot(errors.argmax(1), errors.shape[1])  # (N, K)
    lengths = errors.square().sum(1) * values.square().sum(1)
    chosen, distances = list[int](), lengths.clone()  # (N,), squared, to the nearest chosen one
    while len(chosen) < min(count, len(values)):
        index = int(distances.argmax())
        chosen.append(index)
        alike = (errors @ errors[index]) * (values @ values[index])
        distances = torch.minimum(distances, lengths + lengths[index] - 2 * alike)
        distances[chosen] = -torch.inf
    return chosen


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
