"""The learning curve: how accuracy grows with the number of photos, and what more of them would bring."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter, StrMethodFormatter
from scipy.optimize import curve_fit

from vision_zoo.plots import VAL, save
from vision_zoo.training.evaluation import write_csv
from vision_zoo.training.run_folder import RunFolder
from vision_zoo.verbs.teach.head import Data, Fitter, Head

DRAWS = 5
SIZES = [step * 10**power for power, step in product(range(6), (1, 2, 5))][2:]  # 5, 10, 20, 50, ... photos per class
FEWEST = 4  # sizes that a law is fitted to


class Point(NamedTuple):
    """A head that was fitted to so many photos, scored on validation."""

    photos: int  # of each class, on average
    draw: int
    accuracy: float
    recalls: list[float]  # of each class; nan where it has no validation photos


def learning_curve(train: Data, val: Data, strength: float, head: Head, seed: int) -> list[Point]:
    """Score heads that are fitted to few photos and more, several draws each, and at last the head of all of them."""
    generator, points = torch.Generator().manual_seed(seed), list[Point]()
    members = [(train.labels == label).nonzero()[:, 0] for label in range(len(head.bias))]
    for photos, draw in product([size for size in SIZES if size < min(map(len, members))], range(DRAWS)):
        drawn = torch.cat([of[torch.randperm(len(of), generator=generator)[:photos]] for of in members])
        points.append(_point(photos, draw, Fitter(train.of(drawn)).fit(strength), val))
    return [*points, _point(round(len(train.labels) / len(members)), 0, head, val)]


def _point(photos: int, draw: int, head: Head, val: Data) -> Point:
    hits = head.logits(val.values).argmax(1) == val.labels
    recalls = [float(hits[val.labels == label].double().mean()) for label in range(len(head.bias))]
    return Point(photos, draw, float(hits.double().mean()), recalls)


def _law(photos: Sequence[int], errors: Sequence[float]) -> Callable[[float], float] | None:
    """The error as a power law of the number of photos, a + b n^-c (Hestness et al. 2017); None if none fits."""
    known = [(n, error) for n, error in zip(photos, errors, strict=True) if error == error]  # noqa: PLR0124  # not nan
    if len({n for n, _ in known}) < FEWEST:
        return None
    n, error = np.array(known).T

    def law(n: Any, a: float, b: float, c: float) -> Any:
        return a + b * n**-c

    try:
        found, _ = curve_fit(law, n, error, (error.min() / 2, error.max(), 0.5), bounds=(0, (1, 10, 2)), max_nfev=2000)
    except RuntimeError:
        return None
    return lambda n: float(law(n, *found))


def what_more_brings(points: Sequence[Point], class_names: Sequence[str]) -> str:
    """A sentence about twice as many photos, and the class that they help most."""
    photos, last = [point.photos for point in points], points[-1]
    law = _law(photos, [1 - point.accuracy for point in points])
    if law is None:
        return "the photos are too few to tell what more of them would bring: 50 of each class begin to tell"
    text = f"twice the photos, about {2 * last.photos:,} of each class, would bring validation accuracy from about "
    text += f"{100 - 100 * law(last.photos):.1f} to about {100 - 100 * law(2 * last.photos):.1f} %"
    laws = [_law(photos, [1 - point.recalls[label] for point in points]) for label in range(len(class_names))]
    gains = [(of(last.photos) - of(2 * last.photos), label) for label, of in enumerate(laws) if of is not None]
    if not gains or max(gains)[0] < 0.001:  # a tenth of a per cent
        return text
    label = max(gains)[1]
    recall = f"recall now {100 * last.recalls[label]:.0f} %, about {100 * max(gains)[0]:.1f} points more"
    return f"{text}, and most for {class_names[label]} ({recall})"


def write_curve(points: Sequence[Point], class_names: Sequence[str], run: RunFolder) -> None:
    """Write learning_curve.csv and learning_curve.png: mean and range of the draws."""
    header = ["photos_per_class", "draw", "accuracy", *(f"recall {name}" for name in class_names)]
    rows = ((point.photos, point.draw, point.accuracy, *point.recalls) for point in points)
    write_csv(run.path / "learning_curve.csv", [header, *rows])
    sizes = sorted({point.photos for point in points})
    drawn = [[point.accuracy for point in points if point.photos == size] for size in sizes]
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(sizes, [*map(min, drawn)], [*map(max, drawn)], color=VAL, alpha=0.2, linewidth=0, label="range")
    means = [float(np.mean(values)) for values in drawn]
    axes.plot(sizes, means, color=VAL, marker="o", linewidth=1.8, label=f"mean of {DRAWS} draws; last: all photos")
    law = _law([point.photos for point in points], [1 - point.accuracy for point in points])
    if law is not None:
        beyond = np.geomspace(sizes[0], 2 * sizes[-1], 60).tolist()
        told: dict[str, Any] = {"linestyle": "--", "linewidth": 1, "label": "power law, to twice the photos"}
        axes.plot(beyond, [1 - law(n) for n in beyond], color="#555555", **told)
    axes.set_xscale("log")
    axes.set_xticks([*sizes[:-1], 2 * sizes[-1]] if law is not None else sizes)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set(xlabel="training photos of each class", ylabel="validation accuracy", axisbelow=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
    axes.legend(loc="lower right", fontsize=9, framealpha=0.85, edgecolor="none")
    save(figure, run.path / "learning_curve.png", 130)
