"""The figures of configs/README.md: accuracy against time and against parameters, from the rows of configs/results.csv.

`python scripts/reproduce.py --write` draws those whose content has changed. `python scripts/figures.py --data_root DIR`
trains LeNet-5 and draws the figure of README.md, configs/figures/readme.png.
"""

import argparse
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import ablation  # noqa: E402
from scripts.results import Project, groups_of, read_rows  # noqa: E402  # of this checkout

README = "readme.png"  # which is drawn by this program alone
COLOURS = ("#4c78a8", "#e45756", "#54a24b", "#b279a2", "#f58518", "#439894", "#9d755d", "#d67195", "#79706e", "#b79a20")
MARKERS = {"protocol": "o", "other options": "D", "one-cycle": "^", "fast": "s", "best": "*"}
TIMES = {
    1: "1 s", 3: "3 s", 10: "10 s", 30: "30 s", 60: "1 min", 180: "3 min", 600: "10 min", 1800: "30 min",
    3600: "1 h", 10800: "3 h", 36000: "10 h", 108000: "30 h",
}  # fmt: skip
ACCURACIES = (10, 30, 50, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.3, 99.5, 99.7, 99.8, 99.9)


def figures_of(project: Project) -> dict[str, tuple[Any, Any]]:
    """Name of each figure: the function that draws it, and what it shows as plain data."""
    groups = [group for group in groups_of(project) if group.recipe != ablation.RECIPE]
    curves: dict[tuple[str, ...], list[list[float]]] = {}
    for row in read_rows(project.configs / "curves.csv"):
        key = tuple(row[name] for name in ("recipe", "data", "options"))
        curves.setdefault(key, []).append([float(row["seconds"]), float(row["val/accuracy"])])
    by_data: dict[str, list[Any]] = {}
    for group in groups:
        if "--trainer.precision" in group.options:
            continue  # what the table compares lies on top of each other in a figure
        curve = curves.get((group.recipe, group.data, group.options), [])
        end = [curve[-1][0] if curve else group.mean("fit_seconds"), group.mean("test/accuracy")]
        entry = [group.short, group.network, group.kind, curve, end]
        by_data.setdefault(group.data, []).append([*entry, int(group.rows[0]["parameters"])])
    by_data = {data: entries for data, entries in by_data.items() if len(entries) > 1}  # there is nothing to compare
    found: dict[str, tuple[Any, Any]] = {}
    for data, entries in by_data.items():
        name = re.sub(r"\W+", "_", data).strip("_").lower()
        found[f"time_{name}.png"] = (draw_time, [data, entries])
    if by_data:
        found["parameters.png"] = (draw_parameters, list(by_data.items()))
    return found


def mark_of(draw: Any, content: Any) -> str:
    """What a figure shows and how, in short; kept in its file, for pixels differ from machine to machine."""
    helpers = (draw, new_axes, accuracy_axis, label_points, TIMES, ACCURACIES, COLOURS, MARKERS)
    source = "".join(inspect.getsource(x) if callable(x) else repr(x) for x in helpers)
    return hashlib.sha256((source + json.dumps(content)).encode()).hexdigest()


def shown_mark(path: Path) -> str | None:
    """The mark in a figure's file, or None where there is no such file."""
    from PIL import Image

    if not path.is_file():
        return None
    with Image.open(path) as image:
        return str(image.info.get("Description"))


def new_axes(columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure, and its axes in the project's style."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color("#888888")
        one.tick_params(colors="#444444", labelsize=9, which="both")
        one.grid(visible=True, color="#e6e6e6", linewidth=0.8)
        one.set_axisbelow(True)
    return figure, axes


def accuracy_axis(axes: Any, values: Sequence[float], above: float, lowest: float = 0.0) -> None:
    """Accuracies on a scale of the logarithm of the error, where 98 to 99 is as much as 90 to 95."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    errors = [min(max(1 - value, 1e-4), 1 - lowest) for value in values]
    low, high = min(errors) / above, max(errors) * 1.12
    axes.set_yscale("log")
    axes.set_ylim(high, low)
    steps = [1 - step / 100 for step in ACCURACIES]
    shown = [step for step in steps if low <= step <= high]
    for points in (5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02):
        if len(shown) > 3:
            break
        shown = [k * points / 100 for k in range(1, round(100 / points)) if low <= k * points / 100 <= high]
    axes.yaxis.set_major_locator(FixedLocator(shown))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 - 100 * error:.4g} %"))


def draw_time(content: Any) -> Any:
    """Validation accuracy against time; a lone mark where there is no validation."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    data, entries = content
    networks = list(dict.fromkeys(network for _, network, *_ in sorted(entries, key=lambda entry: entry[5])))
    figure, (axes,) = new_axes(1, 9, max(4.8, 0.8 + 0.25 * len(entries)))
    for name, network, kind, points, (seconds, accuracy), _ in sorted(entries, key=lambda entry: -entry[4][1]):
        colour = COLOURS[networks.index(network) % len(COLOURS)]
        if points:
            x, y = [p[0] for p in points], [1 - p[1] for p in points]
            axes.plot(x, y, color=colour, linewidth=1.8, alpha=0.9, solid_joinstyle="round")
        axes.plot(
            *(seconds, 1 - accuracy), MARKERS[kind], color=colour, markersize=14 if kind == "best" else 9,
            markeredgecolor="white", linestyle="none", zorder=4, label=f"{name}  {100 * accuracy:.2f} %",
        )  # fmt: skip
    ends = [entry[4][1] for entry in entries]
    starts = [point[1] for entry in entries for point in entry[3]]
    accuracy_axis(axes, [*ends, *starts], 1.15, lowest=1 - 4 * max(1 - end for end in ends))
    times = [t for entry in entries for t in (entry[4][0], *(p[0] for p in entry[3]))]
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 1.3, max(times) * 1.3)
    axes.xaxis.set_major_locator(FixedLocator([t for t in TIMES if min(times) / 1.3 <= t <= max(times) * 1.3]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: TIMES.get(round(seconds), "")))
    axes.set_xlabel("time of training (the seconds of a run, shared out evenly over its steps)", fontsize=9)
    axes.set_ylabel("accuracy: validation, seed 0 (lines); test, mean (marks)", fontsize=9)
    axes.set_title(data, fontsize=11, loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9, frameon=False, labelspacing=0.7)
    return figure


def draw_parameters(content: Any) -> Any:
    """Mean test accuracy against the number of parameters: a panel for each data set, a column for each network."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure, panels = new_axes(len(content), max(6.0, 4.6 * len(content)), 4.6)
    labels: list[list[tuple[str, float, float]]] = []
    for axes, (data, entries) in zip(panels, content, strict=True):
        networks: dict[str, list[Any]] = {}
        for entry in entries:
            networks.setdefault(entry[1], []).append(entry)
        labels.append([])
        for network, mine in networks.items():
            errors = [1 - entry[4][1] for entry in mine]
            axes.plot([mine[0][5]] * 2, [min(errors), max(errors)], color="#bbbbbb", linewidth=1.2, zorder=2)
            labels[-1].append((re.sub("_[a-z]+[0-9]*$", "", network), mine[0][5], min(errors)))
            for error, entry in zip(errors, mine, strict=True):
                kind = entry[2]
                axes.plot(
                    *(entry[5], error), MARKERS[kind], markersize=13 if kind == "best" else 8, zorder=3,
                    markeredgecolor="white", color=COLOURS[list(MARKERS).index(kind)],
                )  # fmt: skip
        sizes = [entry[5] for entry in entries]
        low, high = min(sizes) / 2.2, max(sizes) * 2.2
        accuracy_axis(axes, [entry[4][1] for entry in entries], 1.2)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        steps = [k * 10**e for e in range(2, 10) for k in (1, 3) if low <= k * 10**e <= high]
        axes.xaxis.set_major_locator(FixedLocator(steps))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _: f"{x / 1e6:g} M" if x >= 1e6 else f"{x / 1e3:g} k" if x >= 1e3 else f"{x:g}")
        )
        axes.set_title(data, fontsize=11, loc="left")
        axes.set_xlabel("parameters", fontsize=9)
    panels[0].set_ylabel("test accuracy, mean", fontsize=9)
    shown = [kind for kind in MARKERS if any(entry[2] == kind for _, entries in content for entry in entries)]
    marks = [
        Line2D(
            [],
            [],
            marker=MARKERS[kind],
            color=COLOURS[list(MARKERS).index(kind)],
            linestyle="none",
            label=kind,
            markersize=8,
        )
        for kind in shown
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=9, frameon=False)
    figure.draw_without_rendering()
    for axes, points in zip(panels, labels, strict=True):
        label_points(axes, points)
    return figure


def label_points(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Write the names beside their points, each where it covers neither a point nor another name."""
    from matplotlib.transforms import Bbox

    places = [axes.transData.transform(point[1:]) for point in points]
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    sides = [((8, 0), "left", "center"), ((-8, 0), "right", "center"), ((0, 7), "center", "bottom")]
    sides += [((0, -7), "center", "top"), ((6, 6), "left", "bottom"), ((-6, -6), "right", "top")]
    for name, x, y in points:
        best: tuple[float, Any, Any] | None = None
        for offset, across, up in sides:
            text = axes.annotate(
                name, (x, y), xytext=offset, textcoords="offset points", ha=across, va=up, fontsize=8, color="#333333"
            )
            box = text.get_window_extent()
            outside = max(0, axes.bbox.x0 - box.x0) + max(0, box.x1 - axes.bbox.x1 - 20)
            cost = outside + sum(1000.0 for other in taken if box.overlaps(other))
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, text, box)
            else:
                text.remove()
        assert best is not None
        taken.append(best[2])


# -------------------------------------------------------------------------------------------------- README.md's picture


def draw_readme(command: str, output: str, run: Path) -> Any:
    """A terminal with the output of a fit, beside confusion matrix and mistakes of its run: 1600 pixels wide."""
    import matplotlib as mpl
    from PIL import Image, ImageDraw, ImageFont

    width, height, margin, left = 1600, 780, 24, 850
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    draw.rounded_rectangle((0, 0, left, height - 1), 18, fill="#1e1f29")
    for place, colour in enumerate(("#ff5f56", "#ffbd2e", "#27c93f")):
        draw.ellipse((24 + 32 * place, 22, 42 + 32 * place, 40), fill=colour)
    lines = [f"$ {command}"]
    for line in output.strip().splitlines():
        lines += textwrap.wrap(line.rstrip(), 70, subsequent_indent="  ", drop_whitespace=False) or [""]
    font = ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"), 19)
    for row, line in enumerate(lines):
        colour = "#50fa7b" if row == 0 else "#e8e8ec"
        draw.text((24, 62 + row * 24), line, font=font, fill=colour)
    for name, part, box in (
        ("mistakes.png", 0.525, (left + margin, 0, width, 364)),  # the title and two of the four rows
        ("confusion_matrix.png", 1.0, (left + margin, 372, width, height)),
    ):
        with Image.open(run / name) as image:
            figure = image.convert("RGB").crop((0, 0, image.width, int(part * image.height)))
        figure.thumbnail((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
        canvas.paste(figure, ((box[0] + box[2] - figure.width) // 2, box[1]))
    return canvas


def main(argv: Sequence[str]) -> int:
    """Train LeNet-5 on MNIST and draw configs/figures/readme.png from its output and its run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, default=Path("data"), help="folder of MNIST")
    options = parser.parse_args(argv)
    command = "vision_zoo fit --config lenet5_mnist"
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", *command.split(), "--data.root", str(options.data_root.resolve())]
        done = subprocess.run(
            words,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        output = done.stdout[done.stdout.index("network ") :].replace(f"{Path(folder).resolve()}/", "")
        run = next(Path(folder).glob("runs/*/version_0"))
        draw_readme(command, output, run).save(ROOT / "configs" / "figures" / README, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
