"""explain: for each image a picture of where the network looked."""

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vision_zoo.checkpoints import open_checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.data.decode import UNREADABLE, decode_image
from vision_zoo.errors import ConfigError, DataError, InputError, did_you_mean, refuse
from vision_zoo.files import new_file
from vision_zoo.plots import short_text
from vision_zoo.types import Resizing
from vision_zoo.verbs.explain.maps import Method, chosen, maps
from vision_zoo.verbs.image_files import find_images
from vision_zoo.verbs.output import numbered, output_folder
from vision_zoo.verbs.predict import NONE, answered, device_of, labels_shown

MARK = "vision_zoo explain"  # in the metadata of its pictures


def explain(
    ckpt_path: str,
    images: list[str],
    output: str = "explanations",
    method: Literal["grad_cam", "layer_cam", "integrated_gradients", "occlusion"] | None = None,
    label: str | None = None,
    top_k: int | None = None,
    accelerator: str = "auto",
    trusted_packages: Sequence[str] = (),
) -> None:
    """Draw for each image where the network looked.

    A picture has the image, how much each place speaks for the most probable class, and the most probable classes. It
    shows what the network uses, which need not be what a person would look at.

    Args:
        ckpt_path: a checkpoint, a run folder (its best), or best or last of the newest run.
        images: files, folders (with the folders in them) and patterns such as 'scans/*.png'.
        output: folder for the pictures.
        method: grad_cam, layer_cam, integrated_gradients or occlusion, by default layer_cam, or occlusion where a
            network has no maps of features.
        label: the class whose evidence is looked for, by default the most probable one of each image.
        top_k: classes beside the image, by default 5 or all where there are fewer.
        accelerator: cpu, cuda, mps, gpu for either of these two, or auto for the fastest that there is.
        trusted_packages: packages whose classes the checkpoint may name.
    """
    checkpoint = open_checkpoint(ckpt_path, trusted_packages)
    model = Classifier.from_checkpoint(checkpoint.content).to(device_of(accelerator))
    names, top_k = list(model.class_names), labels_shown(model, top_k)
    unknown = f"--label {label}: there is no such class{did_you_mean(label or '', names)}"
    refuse(
        ConfigError,
        (not images, "explain needs images: --images with files, folders or patterns: scans/*.png"),
        (label is not None and label not in names, unknown),
    )
    write_pictures(model, find_images(images), output, checkpoint.resizing, top_k, method, label)


def write_pictures(
    model: Classifier, paths: Sequence[Path], output: str, resized: Resizing, top_k: int,
    method: Method | None = None, label: str | None = None, invert: bool = False, console: Console | None = None,
) -> None:  # fmt: skip
    """Draw where a network looked in each image file, into a folder, and say how many there are; see `explain`.

    Raises:
        ConfigError: if the package captum is missing, or the network has nothing that the method needs.
        InputError: if none of the files can be read.
    """
    folder, method, names = output_folder(output), method or chosen(model), list(model.class_names)
    resize, interpolation = resized
    console, problems = console or Console(highlight=False, soft_wrap=True), list[str]()
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[Path] = set()
    images = [path for path in paths if not _is_own(path)]
    for path in track(images, "explain", console=console, transient=True, disable=not console.is_terminal):
        try:
            with warnings.catch_warnings(action="ignore"):
                pixels = decode_image(path, model.image_shape, resize, invert, model.value_range, interpolation)
        except DataError as error:
            problems.append(str(error))
            continue
        labels, shares, answer, _ = answered(model, pixels[None].to(model.device), top_k)[0]
        shown = label or labels[0]
        with torch.enable_grad():
            evidence = maps(model, pixels[None], torch.tensor([names.index(shown)]), method)[0]
        stem = os.fsdecode(os.fsencode(path.stem)[:240])  # file systems take 255 bytes
        free = (file for file in numbered(folder / f"{stem}.png") if file not in taken)
        taken.add(file := next(file for file in free if _is_own(file) or not file.exists()))
        title = f"{'/'.join(path.parts[-2:])}: {f'{NONE}, nearest ' * (answer == NONE)}{labels[0]}"
        figure = draw(pixels, evidence, labels, shares, title, f"evidence for {shown}, {method}")
        with new_file(file) as place:
            figure.savefig(place, format="png", dpi=100, metadata={"Software": MARK})
    refuse(
        InputError,
        (not taken, f"--images: none can be read as an image; {problems[0] if problems else 'explain drew them'}"),
    )
    for problem in problems:
        console.print(problem, markup=False)
    console.print(f"{len(taken):,} picture{'s' * (len(taken) != 1)} by {method} in")
    console.print(str(folder.absolute()), markup=False)


def _is_own(file: Path) -> bool:
    """Whether it is a picture of an earlier call: another one may take its place, and it is no image to explain."""
    with suppress(*UNREADABLE), Image.open(file) as there:
        return bool(there.info.get("Software") == MARK)
    return False


def draw(
    pixels: Tensor, evidence: Tensor, labels: Sequence[str], shares: Sequence[float], title: str, caption: str
) -> Figure:
    """An image, uint8 (C, H, W), the same below evidence, float (H, W) in [0, 1], and the shares of labels, as bars."""
    picture = (pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)).permute(1, 2, 0).numpy()
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    plain, overlay, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    figure.suptitle(short_text(title, 100), fontsize=11, x=0.01, ha="left", parse_math=False)
    plain.imshow(picture)
    overlay.imshow(picture.mean(2), cmap="gray", vmin=0, vmax=255)
    overlay.imshow(evidence.numpy(), cmap="inferno", alpha=0.6, vmin=0, vmax=1)
    overlay.set_xlabel(short_text(caption, 60), fontsize=9, parse_math=False)
    for axes in (plain, overlay):
        axes.set(xticks=[], yticks=[])
    places = range(len(labels))
    bars.barh(places, shares, color="#4c78a8")
    bars.set_yticks(places, [short_text(text) for text in labels], parse_math=False)
    bars.invert_yaxis()
    bars.set_xlim(0, 1.15)
    bars.set_xticks([])
    bars.spines[["top", "right", "bottom"]].set_visible(False)
    for place, share in zip(places, shares, strict=True):
        bars.text(share + 0.02, place, f"{100 * share:.1f} %", va="center", fontsize=9)
    return figure
