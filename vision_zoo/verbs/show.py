"""show: a grid of a dataset's images with their labels."""

import textwrap
import warnings

import torch
from torch import Tensor

from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.files import expanded
from vision_zoo.plots import plot_images
from vision_zoo.transforms import apply_transforms
from vision_zoo.types import Split
from vision_zoo.verbs.output import output_file

COLUMNS = 5  # of plot_images
MOST = 500  # images that a PNG of legible labels can hold
WIDTH, LINES = 21, 3  # of a label


def show(
    datamodule: ImageDataModule,
    split: Split = "train",
    count: int = 20,
    augmented: bool = False,
    output: str | None = None,
) -> None:
    """Draw a grid of a dataset's images with their labels.

    Args:
        datamodule: the data.
        split: which images.
        count: number of images, spread evenly over the split.
        augmented: show fewer images, each followed by random draws of the training augmentation.
        output: PNG file to write, by default DATASET_SPLIT.png here.
    """
    name, given = type(datamodule).__name__, datamodule.augmentation
    path = expanded(output or f"{name}_{split}.png").absolute()
    way_out = "Give --data.augmentation, a --config that has one, or the --ckpt_path of a network trained with one"
    refuse(
        ConfigError,
        (not 1 <= count <= MOST, f"--count must be between 1 and {MOST}, got {count}"),
        (augmented and split != "train", f"--augmented goes with --split train: {split} images are never augmented"),
        (augmented and not given, f"--augmented: no augmentation is set for {name}. {way_out}"),
        (path.suffix.lower() != ".png", f"--output {output} must end in .png"),
    )
    datamodule.in_memory = False  # decode the images that are shown, not the whole folder
    datamodule.prepare_data()
    images, labels = datamodule.sample(split, -(-count // COLUMNS) if augmented else count)
    names = [textwrap.wrap(n, WIDTH, max_lines=LINES, placeholder=" ...") for n in datamodule.class_names]
    titles = ["\n".join(names[label]) for label in labels.tolist()]
    if augmented:
        datamodule.check_augmentation()
        of_mixed = (images, labels, datamodule.num_classes)
        drawn = [apply_transforms(given, *of_mixed, epoch) for epoch in range(COLUMNS - 1)]
        # (N * COLUMNS, C, H, W), the draws of an image side by side
        images = torch.stack([images, *(pixels for pixels, _ in drawn)], dim=1).flatten(0, 1)
        beside = [_mixed(mixed, names) for _, mixed in drawn]
        titles = [text for place, title in enumerate(titles) for text in (title, *(texts[place] for texts in beside))]
    part = {"train": "training", "val": "validation", "test": "test"}[split]
    title = f"{name}: {len(labels)} of {datamodule.sizes[split]:,} {part} images"
    with output_file(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # names in scripts that the font lacks
        plot_images(images, titles, file, f"{title}, then four draws of each" if augmented else title)
    channels, height, width = datamodule.image_shape
    colour = {1: "gray", 3: "colour"}.get(channels, f"{channels} channels")
    sizes = ", ".join(f"{split} {size:,}" for split, size in datamodule.sizes.items())
    classes = textwrap.shorten(", ".join(datamodule.class_names), 400, placeholder=" ...")
    print(f"{name}: {height} x {width} {colour}; {sizes}; {datamodule.num_classes} classes: {classes}\n{path}")


def _mixed(labels: Tensor, names: list[list[str]]) -> list[str]:
    """The two most probable classes of each mixed image, with their shares; nothing where labels are not mixed."""
    if labels.ndim == 1:
        return [""] * len(labels)
    shares, classes = labels.topk(min(2, labels.shape[1]))
    found = zip(shares.tolist(), classes.tolist(), strict=True)
    return ["\n".join(f"{names[k][0]} {p:.0%}" for p, k in zip(*both, strict=True) if p >= 0.005) for both in found]
