"""What the trials of a study left, as rows; and the configurations that are compared, of which one is chosen."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from vision_zoo.verbs.study.plan import Trial
from vision_zoo.verbs.study.running import TESTED, run_of

SPLITS = ("val", "test", "train")
LESS_IS_BETTER = ("loss", "error")


class Outcome(NamedTuple):
    """What is known of a trial."""

    trial: Trial
    run: Path | None  # its run folder, where that has ended
    results: dict[str, Any]  # results.json, with the metrics of a later test; else nothing
    failed: bool = False
    pruned: bool = False  # ended early by a search

    @classmethod
    def of(cls, trial: Trial, failed: bool = False, pruned: bool = False) -> "Outcome":
        """Read what a trial has left."""
        run, ended = run_of(trial)
        if run is None or not ended:
            return cls(trial, None, {}, failed, pruned)
        found = json.loads((run / "results.json").read_text(encoding="utf-8"))
        if (run / TESTED).is_file():
            tested = json.loads((run / TESTED).read_text(encoding="utf-8"))
            found["metrics"] |= {name: value for name, value in tested.items() if name.startswith("test/")}
        return cls(trial, run, found, failed)

    def values(self, metric: str) -> list[float]:
        """A metric, if it is there and finite, else nothing."""
        found = self.results.get("metrics", {}).get(metric, math.nan)
        return [found] if math.isfinite(found) else []


class Configuration(NamedTuple):
    """The trials that differ by fold and seed alone, and what is known of a metric in them."""

    name: str
    outcomes: list[Outcome]

    def summary(self, metric: str) -> dict[str, float]:
        """Number n, mean, standard deviation (n - 1), half the 95 % interval of the mean (Student).

        They are of single runs, or in validation of folds, whose seeds see the same images and count as their mean.
        """
        by_fold = metric.startswith("val/")
        of_fold: dict[Any, list[float]] = {}
        for outcome in self.outcomes:
            of_fold.setdefault((by_fold and outcome.trial.fold) or outcome.trial, []).extend(outcome.values(metric))
        values = [statistics.fmean(found) for found in of_fold.values() if found]
        found: dict[str, float] = {"n": len(values)} | ({"mean": statistics.fmean(values)} if values else {})
        if len(values) > 1:
            found["spread"] = statistics.stdev(values)
            found["half"] = float(stats.t.ppf(0.975, len(values) - 1)) * found["spread"] / math.sqrt(len(values))
        return found


def configurations(outcomes: Sequence[Outcome]) -> list[Configuration]:
    """The configurations in the order of their trials."""
    found: dict[Any, Configuration] = {}
    for outcome in outcomes:
        key = outcome.trial.recipe.path, outcome.trial.varied
        found.setdefault(key, Configuration(outcome.trial.configuration, [])).outcomes.append(outcome)
    return [*found.values()]


def best_of(found: Sequence[Configuration], metric: str) -> Configuration | None:
    """The configuration of the best mean, of those of which no trial lacks the metric; the first of equals."""
    complete = [each for each in found if all(outcome.values(metric) for outcome in each.outcomes)]
    sign = 1 if metric.endswith(LESS_IS_BETTER) else -1
    return min(complete, key=lambda each: sign * each.summary(metric)["mean"], default=None)


def rows_of(outcomes: Sequence[Outcome]) -> list[list[object]]:
    """The header and a row for each trial, in their order; nothing in them depends on time or machine."""
    options = [name for name, _ in outcomes[0].trial.varied]
    names = {name for outcome in outcomes for name in outcome.results.get("metrics", {}) if not name.endswith("_step")}
    order = [name for split in SPLITS for name in sorted(names) if name.startswith(f"{split}/")]
    head = ["trial", "recipe", *options, "fold", "seed", "state", "parameters", "epochs", *order, "run"]
    rows: list[list[object]] = [[*head]]
    for trial, run, results, failed, pruned in outcomes:
        state = "finished" if results else "failed" if failed else "pruned" if pruned else "not finished"
        about = [trial.folder.name, trial.recipe.name, *(value for _, value in trial.varied), trial.fold, trial.seed]
        values = [results.get(name, "") for name in ("parameters", "epochs")]
        values += [results.get("metrics", {}).get(name, "") for name in order]
        rows.append([*about, state, *values, run.relative_to(trial.study).as_posix() if run else ""])
    return rows


def winners_curse(chosen: Configuration, found: Sequence[Configuration], metric: str) -> str:
    """How the chosen configuration's validation figure and its test figure are to be read."""
    if len(found) == 1:
        return "One configuration, so nothing was chosen: its validation figure is not raised by a choice."
    others = sum(each.summary("test/loss")["n"] > 0 for each in found if each is not chosen)
    read = f"were read for {others} more, which was chosen before" if others else "had no part in the choice"
    return (
        f"It had the best {metric} of {len(found)} configurations that were compared. Part of such a lead is luck, the "
        "more the more were compared (the winner's curse): expect less of it on other images. The test images "
        f"{read}."
    )
