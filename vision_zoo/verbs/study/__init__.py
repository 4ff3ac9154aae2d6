"""study: many runs, one table: seeds, folds and variations of recipes, with the test set shut until the end."""

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from vision_zoo.errors import ConfigError, TrainingError, refuse
from vision_zoo.files import lock_file, release, write_file
from vision_zoo.formatting import duration, metric_text
from vision_zoo.training.evaluation import write_csv
from vision_zoo.verbs.study import table
from vision_zoo.verbs.study.page import write_page
from vision_zoo.verbs.study.plan import Recipe, Trial, file_name, read_seeds, read_variation, trials_of
from vision_zoo.verbs.study.running import PRUNED, Command, is_done, run_trials
from vision_zoo.verbs.study.search import Plan, Search, read_axis

# Of a run's configuration, what is its own and not its recipe's.
OF_THE_TRIAL = (("seed_everything",), ("test_after_fit",), ("trainer", "default_root_dir"),
                ("data", "init_args", "fold"), ("data", "init_args", "seed"))  # fmt: skip
ENDED = {130: "left", 143: "left", PRUNED: "pruned"}  # by the exit codes of what a signal has ended
STATES = ("done", "running", "left", "pruned", "failed")
SAID = {"done": "done", "left": "stopped", "pruned": "given up", "failed": "failed"}  # of a trial without the metric


def study(
    recipe: Sequence[Recipe], command: Command, words: Sequence[str] = (), seeds: str = "1", folds: int | None = None,
    vary: Sequence[str] = (), metric: str = "val/accuracy", jobs: int = 1, test: bool = False, name: str | None = None,
    search: Sequence[str] = (), sampler: Literal["gp", "tpe", "random", "grid"] | None = None,
    pruner: Literal["median", "hyperband", "none"] = "none", minutes: float | None = None, storage: str | None = None,
    trials: int | None = None, trusted_packages: Sequence[str] = (),
) -> None:  # fmt: skip
    """Compare recipes over seeds, folds and options.

    Each trial is an ordinary run in studies/NAME/trials. Stopped or killed in any way and started again, a study goes
    on where it was. A seed decides weights, dropout and augmentation, and also what --data.seed decides, the order of
    the images and the cut of the validation set; with folds, that is as --data.seed says, the same for all.

    Args:
        recipe: recipes by name, or YAML files; all options of fit may follow, for all trials.
        command: runs the words of a command line, for its exit code.
        words: options of fit for all trials.
        seeds: how many, or a list such as 0,1,2.
        folds: cross-validation in so many parts; every training image is validated once.
        vary: values of an option of fit to try; may be given several times.
        metric: of validation, whose mean chooses, by default val/accuracy, and a loss is minimised.
        jobs: trials at once, which share the processors.
        test: test the runs of the chosen configuration at the end.
        name: of the folder in studies, by default those of the recipes.
        search: an option of fit and its range or values, of which optuna chooses; may be given several times.
        trials: configurations that a search tries, by default 20, or all of a grid.
        sampler: of a search: gp and tpe spread five trials evenly and learn from all before, random draws, grid tries
            all combinations; default gp, which needs fewer trials, or with a pruner tpe.
        pruner: which runs a search ends early, at an epoch where they fall behind: median, hyperband or none.
        minutes: after which a search begins no further trial.
        storage: address of a database that several processes, or machines with a common disk, search with, by the same
            command; default: a file in the study's folder.
        trusted_packages: packages whose classes checkpoints may name.

    Raises:
        ConfigError: if an option cannot be used, another process runs this study, or runs have no such metric.
        TrainingError: at the end, if a trial failed, or its metric is not finite.
    """
    variations = dict(map(read_variation, vary))
    refuse(
        ConfigError,
        (not recipe, "study needs a recipe, as in: vision_zoo study cnn_mnist5k --seeds 3. See: vision_zoo list"),
        (len(variations) < len(vary), "--vary has an option twice: give all its values at once, OPTION=A,B,C"),
        (not metric.startswith("val/"), f"--metric {metric}: a choice sees validation alone, as by val/accuracy"),
        (jobs < 1, f"--jobs must be at least 1, got {jobs}"),
    )
    folder = Path.cwd() / "studies" / file_name(name or "+".join(dict.fromkeys(each.name for each in recipe)))
    how = folds, read_seeds(seeds), words
    chosen, axes = sampler or ("gp" if pruner == "none" else "tpe"), tuple(map(read_axis, search))
    found = trials_of(folder, recipe, {axis.option: ["0"] for axis in axes} or variations, *how)
    most = math.prod(len(axis.values) for axis in axes) if chosen == "grid" else 20
    plan = Plan(axes, most if trials is None else trials, chosen, pruner, minutes, storage)
    given = {"trials": trials, "sampler": sampler, "minutes": minutes, "storage": storage}
    only = [f"--{name}" for name, value in given.items() if value is not None] + ["--pruner"] * (pruner != "none")
    of_search = f"{', '.join(only)}: of a search alone: give --search OPTION=LOW..HIGH, or leave it out"
    refuse(ConfigError, (only and not search, of_search))
    if search:
        plan.check(recipe, variations, len(how[1]) * (folds or 1))
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_file(folder / ".lock", wait=False) if not storage else None
    in_use = lock is None and not storage
    refuse(ConfigError, (in_use, f"{folder} is in use by another process: wait, or give this one a --name"))
    asked = {"recipes": [str(each.path) for each in recipe], "seeds": read_seeds(seeds), "folds": folds}
    asked |= {"vary": variations, "metric": metric, "options": list(words)}
    asked |= {"search": list(search), "sampler": chosen, "trials": plan.trials} if search else {}
    try:
        made = Study(folder, [] if search else found, asked, command, jobs, tuple(trusted_packages))
        made.run(test, Search(made, plan, recipe[0], how) if search else None)
    finally:
        if lock is not None:
            release(lock)


class Study:
    """A study in its folder, and what it tells."""

    def __init__(self, folder: Path, trials: Sequence[Trial], asked: dict[str, Any], *how: Any) -> None:
        self.folder, self.asked, self.metric = folder, asked, str(asked["metric"])
        self.command, self.jobs, self.trusted = how
        self.outcomes = {trial: table.Outcome.of(trial) for trial in trials}
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.codes = set[int]()  # of the trials that failed
        self.place = ""  # of a configuration in a search, for people
        self.lacking = False  # whether a trial ended without the metric, as all others would

    def run(self, test: bool, search: Search | None = None) -> None:
        """Make what is left to do, choose, test if that is asked for, and write what was found."""
        began = time.monotonic()
        failed = search.run() if search else self.make([*self.outcomes])["failed"]
        refuse(TrainingError, (not self.outcomes, "no trial was begun: give more --minutes"))
        chosen = table.best_of(table.configurations([*self.outcomes.values()]), self.metric)
        if test and chosen is not None:
            failed += self.make([outcome.trial for outcome in chosen.outcomes], tests=True)["failed"]
        names = {name for outcome in self.outcomes.values() for name in outcome.results.get("metrics", {})}
        known = ", ".join(sorted(name for name in names if name.startswith("val/")))
        way_out = f"there are {known}" if known else "give --folds, or --data.val_split 0.1"
        again = "more --trials try other values" if search else "the same command tries them again"
        lacking = f"no configuration has {self.metric} in all its trials: {way_out}"
        asked = f"{failed} of {len(self.outcomes)} trials cannot be run as asked, see above: correct the command"
        refuse(
            ConfigError,
            (failed and self.codes == {2} and not names, asked),
            (names and self.metric not in names, lacking),
        )
        self._tell(time.monotonic() - began)
        if search:
            search.draw()
        failing = f"{failed} of {len(self.outcomes)} trials failed; {again}"
        refuse(TrainingError, (failed, failing), (chosen is None, lacking))

    def make(
        self, trials: list[Trial], tests: bool = False, watch: Callable[[Trial], bool] = lambda _: False
    ) -> Counter[str]:
        """Run the trials that are not done, with a display of how far they are; how many of them ended how."""
        states = {trial: "done" if is_done(trial, tests) else "left" for trial in trials}
        left, began = [trial for trial in trials if states[trial] == "left"], time.monotonic()
        parts = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        with Progress(*parts, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            shown = bar.add_task("", total=len(trials))

            def told(trial: Trial, code: Any) -> bool:
                """Tell of a trial; whether others need not begin, for they would end as it did."""
                ended = "done" if is_done(trial, tests) else ENDED.get(code, "failed")
                states[trial] = "running" if code is None else ended
                count = {state: [*states.values()].count(state) for state in STATES}
                begun, over = count["running"] + count["left"], len(left) - count["running"] - count["left"]
                to_go = f", {duration((time.monotonic() - began) / over * begun)} to go" if over and begun else ""
                line = self.place + ", ".join(f"{number} {state}" for state, number in count.items() if number) + to_go
                bar.update(shown, completed=len(trials) - begun, description=line)
                if code is None:
                    return False
                self._told(trial, ended, code, line, tests)
                refused = code == 2 and not count["done"]
                if ended == "done" and not tests:
                    self.lacking |= self.metric not in self.outcomes[trial].results["metrics"]
                return self.lacking or (refused and len({each.configuration for each in trials}) == 1)

            run_trials(left, self.command, (tests, self.trusted), self.jobs, told, watch)
        return Counter(states.values())

    def _told(self, trial: Trial, state: str, code: int, line: str, tests: bool) -> None:
        """Say how a trial ended, and write the table anew."""
        self.outcomes[trial] = table.Outcome.of(trial, state == "failed", state == "pruned")
        metric, log = self.metric.replace("val/", "test/") if tests else self.metric, trial.folder / "log.txt"
        values = self.outcomes[trial].values(metric)
        texts = [f"{metric} {metric_text(metric, value)}" for value in values] or [SAID[state]]
        if state == "failed":
            self.codes.add(code)
            text = log.read_text(errors="replace") if log.is_file() else ""  # it may have ended before it began
            what = f"failed with exit code {code}" if code else "left no results"
            texts = [f"{what}, see {log}", *[line for line in text.splitlines() if line.strip()][-3:]]
        self.console.print(escape("\n    ".join([f"{trial.title}: {texts[0]} ({line})", *texts[1:]])))
        if any(outcome.results for outcome in self.outcomes.values()):  # a mistaken command leaves the table as it was
            write_csv(self.folder / "results.csv", table.rows_of([*self.outcomes.values()]))

    def _tell(self, seconds: float) -> None:
        """Write study.json, best.yaml and the page; print the configurations, and where everything is."""
        outcomes = [*self.outcomes.values()]
        write_csv(self.folder / "results.csv", table.rows_of(outcomes))
        found, tested = table.configurations(outcomes), self.metric.replace("val/", "test/")
        chosen = table.best_of(found, self.metric)
        every = [
            (each.name + " (chosen)" * (each is chosen and len(found) > 1), self.metric, each.summary(self.metric))
            for each in found
        ]
        if chosen is not None and chosen.summary(tested)["n"]:
            every.append((chosen.name, tested, chosen.summary(tested)))
        about = {
            "asked": self.asked,
            "versions": next((outcome.results["versions"] for outcome in outcomes if outcome.results), None),
            "trials": len(outcomes),
            "finished": sum(bool(outcome.results) for outcome in outcomes),
            "configurations": [{"configuration": each, metric: summary} for each, metric, summary in every],
            "chosen": chosen and chosen.name,
            "seconds": round(seconds, 3),
            "fit_seconds": {o.trial.folder.name: o.results["fit_seconds"] for o in outcomes if o.results},
        }
        write_file(self.folder / "study.json", (json.dumps(about, indent=2) + "\n").encode())
        (self.folder / "best.yaml").unlink(missing_ok=True)
        if chosen is not None and (run := chosen.outcomes[0].run) is not None:
            config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
            for *sections, option in OF_THE_TRIAL:
                reduce(lambda holder, section: holder.get(section) or {}, sections, config).pop(option, None)
            text = f"# {chosen.name}: the best {self.metric} of {len(found)} configurations, by vision_zoo study\n"
            text += yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            write_file(self.folder / "best.yaml", text.encode())
        write_page(self.folder, found, chosen, self.asked)
        keys = {"mean": "mean", "spread": "spread", "n": "n", "half": "95 % +-"}
        shown = Table("configuration", "metric", *(Column(title, justify="right") for title in keys.values()))
        for name, metric, summary in every:
            texts = {key: metric_text(metric, value) for key, value in summary.items()} | {"n": str(summary["n"])}
            shown.add_row(escape(name), metric, *(texts.get(key, "") for key in keys))
        curse = table.winners_curse(chosen, found, self.metric) if chosen is not None else ""
        self.console.print(shown, curse, escape(str(self.folder)), sep="\n")
