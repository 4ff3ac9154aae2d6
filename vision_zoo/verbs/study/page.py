"""report.html of a study: one offline page, whose pictures are drawn by its template."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vision_zoo.files import write_file
from vision_zoo.formatting import metric_text
from vision_zoo.training.evaluation import per_class, write_csv, write_matrix
from vision_zoo.verbs.output import templates
from vision_zoo.verbs.study.running import MATRIX
from vision_zoo.verbs.study.table import LESS_IS_BETTER, Configuration, Outcome, winners_curse
from vision_zoo.version import __version__


def write_page(
    folder: Path, found: Sequence[Configuration], chosen: Configuration | None, asked: Mapping[str, Any]
) -> None:
    """Write report.html and, of a study with folds, the pooled counts of the validation images."""
    metric, pooled = asked["metric"], (list[str](), list[list[int]](), list[dict[str, float]]())
    if chosen is not None and asked["folds"]:
        names, counts, scores = pooled = pool(chosen.outcomes)
        write_matrix(folder / "confusion_matrix.csv", names, counts)
        rows = ([name, *row.values()] for name, row in zip(names, scores, strict=True))
        write_csv(folder / "per_class.csv", [["class", *scores[0]], *rows])
    trials = [each.outcomes[0].trial for each in found]
    settings = {"recipe": [trial.recipe.name for trial in trials]}
    settings |= {name: [dict(trial.short)[name] for trial in trials] for name, _ in trials[0].short}
    text = templates(Path(__file__).parent).get_template("study.html").render(
        name=folder.name, found=found, chosen=chosen, metric=metric, tested=metric.replace("val/", "test/"),
        curse=winners_curse(chosen, found, metric) if chosen is not None else "", asked=asked, pooled=pooled,
        settings={name: values for name, values in settings.items() if len(set(values)) > 1},
        curves=[[curve for outcome in each.outcomes if (curve := curve_of(outcome, metric))] for each in found],
        less=metric.endswith(LESS_IS_BETTER), text=metric_text, version=__version__,
    )  # fmt: skip
    write_file(folder / "report.html", text.encode(errors="replace"))


def curve_of(outcome: Outcome, metric: str) -> list[tuple[int, float]]:
    """Steps and values of a metric of a run."""
    path = outcome.run and outcome.run / "metrics.csv"
    rows = csv.DictReader(path.read_text().splitlines()) if path and path.is_file() else ()
    points = [(int(row["step"]), float(row[metric])) for row in rows if row.get(metric)]
    return [(step, value) for step, value in points if math.isfinite(value)]


def pool(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[int]], list[dict[str, float]]]:
    """Class names, the counts of all folds added up with the true classes as rows, and the figures of each class."""
    names, total = list[str](), torch.zeros((), dtype=torch.int64)
    for path in (outcome.run / MATRIX for outcome in outcomes if outcome.run is not None):
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            (_, *names), *rows = csv.reader(file)
        total = total + torch.tensor([[int(cell) for cell in row[1:]] for row in rows])
    return names, total.tolist(), per_class(total)
