"""Figures of runs and data, drawn without a screen."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter
from torch import Tensor

from vision_zoo.files import new_file
from vision_zoo.formatting import metric_text

TRAIN, VAL = "#4c78a8", "#e45756"


def short_text(text: str, limit: int = 24) -> str:
    """Text that fits, on the lines that it has; names of classes may hold anything."""
    lines = ["".join(c if c.isprintable() else " " for c in line) for line in text.split("\n")]
    return "\n".join(line if len(line) <= limit else f"{line[: limit - 1]}\u2026" for line in lines)


def _series(rows: Sequence[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name) and math.isfinite(float(row[name]))]
    return [step for step, _ in points], [value for _, value in points]


def plot_curves(metrics: Path, output: Path, title: str) -> None:
    """Draw loss and accuracy of a metrics.csv against iterations as a PNG file; the legend holds the best values."""
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(10, 4))  # with margins of its own: finding them would take as long as drawing
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.12, top=0.85, wspace=0.18)
    loss, accuracy = figure.subplots(1, 2)
    steps, values = _series(rows, "train/loss_step")
    if len(values) > 2:  # fewer say nothing that the epochs do not
        loss.plot(steps, values, color=TRAIN, alpha=0.3, linewidth=0.9, label="train, single steps")
    for axes, metric, best_of in ((loss, "loss", min), (accuracy, "accuracy", max)):
        for split, colour, name in (("train", TRAIN, "train"), ("val", VAL, "validation")):
            steps, values = _series(rows, f"{split}/{metric}")
            if not values:
                continue
            best = values.index(best_of(values))
            label = f"{name}, best {metric_text(metric, values[best])}"
            marked = {"marker": "o", "markevery": [best], "clip_on": False}
            axes.plot(steps, values, color=colour, linewidth=1.8, label=label, **marked)
        axes.set_title(metric, fontsize=11, loc="left")
        axes.margins(y=0.1)
        axes.set(xlabel="iterations", xlim=(0, 1.02 * max([1, *(int(row["step"]) for row in rows)])), axisbelow=True)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
        if axes.get_legend_handles_labels()[0]:
            corner = "upper right" if metric == "loss" else "lower right"  # to search the best place takes long
            axes.legend(loc=corner, fontsize=9, framealpha=0.85, edgecolor="none")
    least, most = loss.dataLim.intervaly  # of all that is drawn
    if 0 < least < most / 20:  # such a fall shows its end on a logarithmic axis only
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        loss.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        loss.yaxis.set_minor_locator(NullLocator())
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    figure.suptitle(title, fontsize=12, parse_math=False)
    save(figure, output, 130)


def plot_confusion_matrix(matrix: Tensor, class_names: Sequence[str], output: Path, title: str) -> None:
    """Draw a confusion matrix, int (K, K), as a PNG file; rows are true classes, coloured by their shares."""
    classes = len(class_names)
    share = (matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()
    names = [short_text(name) for name in class_names]
    size = 4 + 0.45 * classes if classes <= 40 else 10
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    # The root lifts the few per cent of the mistakes out of the paper's white.
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    percent = PercentFormatter(1.0, symbol=" %")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=percent, label="share of the true class")
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    if classes <= 40:
        long = max(map(len, names)) > 2
        slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if long else {}
        axes.set_xticks(range(classes), names, fontsize=9, parse_math=False, **slanted)
        axes.set_yticks(range(classes), names, fontsize=9, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if classes <= 20:
        for row, column in matrix.nonzero().tolist():
            count = int(matrix[row, column])
            colour = "white" if share[row, column] > 0.3 else "#333333" if row == column else "#a02020"
            cell = axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=colour)
            cell.set_in_layout(False)  # inside the axes: measuring each would take longer than drawing
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=11, parse_math=False)
    save(figure, output, 130)


def plot_images(images: Tensor, titles: Sequence[str], output: Path, title: str = "") -> None:
    """Draw a grid of images, each below its title, as a PNG file.

    The images are uint8 (N, C, H, W) in [0, 255]; where C is neither 1 nor 3, the mean of the channels is shown.
    """
    count, _, height, width = images.shape
    columns = min(5, count)
    # All in inches. One pair of axes for everything: laying out a pair for each image takes five times as long.
    text = 0.1 + 0.14 * max(1 + line.count("\n") for line in titles)
    scale = 1.85 / max(height, width)
    cell_width, cell_height, top = 2.0, text + scale * height, 0.4 if title else 0.0
    figure_width = max(cell_width * columns, 0.1 * len(title))
    figure_height = top + cell_height * math.ceil(count / columns) + 0.1
    figure = Figure(figsize=(figure_width, figure_height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, figure_width), ylim=(figure_height, 0))
    axes.axis("off")
    for index, image in enumerate(images.numpy()):  # (C, H, W)
        row, column = divmod(index, columns)
        centre = figure_width / 2 + cell_width * (column + 0.5 - columns / 2)
        bottom = top + cell_height * (row + 1)
        left, right, upper = centre - scale * width / 2, centre + scale * width / 2, bottom - scale * height
        shown = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)  # which is shown in gray
        axes.imshow(shown, extent=(left, right, bottom, upper), cmap="gray", vmin=0, vmax=255)
        name = short_text(titles[index], 28)
        axes.text(centre, upper - 0.04, name, fontsize=8, ha="center", va="bottom", parse_math=False)
    axes.text(figure_width / 2, 0.12, title, fontsize=12, ha="center", va="top", parse_math=False)
    save(figure, output, 110)


def save(figure: Figure, output: Path, dpi: int) -> None:
    """Write a figure as a PNG file that is complete or not there."""
    with new_file(output.resolve()) as temporary:  # a link stays one
        figure.savefig(temporary, dpi=dpi, format="png")
