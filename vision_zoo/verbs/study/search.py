"""Search: a study whose configurations optuna proposes, one after another, by what the earlier ones reached."""

import hashlib
import math
import re
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.markup import escape
from scipy.stats.qmc import Halton

from vision_zoo.errors import ConfigError, InputError, one_line, refuse
from vision_zoo.verbs.study import table
from vision_zoo.verbs.study.page import curve_of
from vision_zoo.verbs.study.plan import Recipe, Trial, read_variation, trials_of
from vision_zoo.verbs.study.running import run_of

Sampler = Literal["gp", "tpe", "random", "grid"]
Pruner = Literal["median", "hyperband", "none"]

DATABASE = "search.db"
START = 5  # trials that are spread evenly, before a sampler learns
BEAT = 20  # seconds between the signs of life of a worker; another takes up its trial after three without
_RANGE = re.compile(r"(?P<low>[^,]+?)\.\.(?P<high>[^,:]+)(?P<log>:log)?")
_PICTURES = {"history.png": "plot_optimization_history", "importance.png": "plot_param_importances"}


class Axis(NamedTuple):
    """One option that is searched: a range, or values to choose from."""

    option: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Any) -> str:
        """A value for a trial of optuna, as a text; numbers with four digits, which is finer than any search."""
        if self.values:
            return str(trial.suggest_categorical(self.option, self.values))
        if self.whole:
            return str(trial.suggest_int(self.option, int(self.low), int(self.high), log=self.log))
        return f"{trial.suggest_float(self.option, self.low, self.high, log=self.log):.4g}"

    def at(self, share: float) -> str | float:
        """What lies at a share, in [0, 1), of the range or of the values."""
        if self.values:
            return self.values[int(share * len(self.values))]
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        value = low + share * (high - low)
        value = math.exp(value) if self.log else value
        return round(value) if self.whole else value


def read_axis(word: str) -> Axis:
    """OPTION=LOW..HIGH, OPTION=LOW..HIGH:log, or OPTION=A,B,C."""
    name, _, text = word.lstrip("-").partition("=")
    found = _RANGE.fullmatch(text)
    if not (name and found):
        return Axis(name, tuple(read_variation(word)[1]))
    low, high = math.nan, math.nan
    with suppress(ValueError):
        low, high = float(found["low"]), float(found["high"])
    log, form = bool(found["log"]), "write OPTION=LOW..HIGH, with :log behind it to go by factors, or OPTION=A,B,C"
    wrong = not -math.inf < low < high < math.inf or (log and low <= 0)
    refuse(ConfigError, (wrong, f"--search {word}: {form}; LOW is below HIGH, and above 0 for :log"))
    return Axis(name, (), low, high, log, all(re.fullmatch(r"-?\d+", found[end]) for end in ("low", "high")))


class Plan(NamedTuple):
    """How to search."""

    axes: tuple[Axis, ...]
    trials: int
    sampler: Sampler
    pruner: Pruner
    minutes: float | None
    storage: str | None

    def check(self, recipes: Sequence[Recipe], variations: Mapping[str, Any], runs: int) -> None:
        """Refuse what does not go together."""
        ranges = [axis.option for axis in self.axes if not axis.values]
        names = [axis.option for axis in self.axes]
        grid = f"--sampler grid tries every combination of values, and {', '.join(ranges)} has a range: give its values"
        gp = "--sampler gp learns nothing from runs that a --pruner has ended early: set --sampler tpe"
        several = "--pruner ends single runs early, and here a configuration has several: set --pruner none"
        refuse(
            ConfigError,
            (len(recipes) != 1, f"--search is of one recipe, and {len(recipes)} are named"),
            (variations, "--search and --vary: leave --vary out, and search its values as OPTION=A,B,C"),
            (len(set(names)) < len(names), "--search has an option twice: give all its values at once"),
            (self.sampler == "grid" and ranges, grid),
            (self.trials < 1, f"--trials must be at least 1, got {self.trials}"),
            (self.minutes is not None and self.minutes <= 0, f"--minutes must be above 0, got {self.minutes}"),
            (self.sampler == "gp" and self.pruner != "none", gp),
            (self.pruner != "none" and runs > 1, several),
        )


class Search:
    """Asks optuna for configurations and runs them as trials of a study, until there are as many as asked for.

    What it proposes follows from the trials before alone, so that a search that was killed goes on as if it had not
    been: the configuration that was being tried is tried again, from its last checkpoint.
    """

    def __init__(self, study: Any, plan: Plan, recipe: Recipe, how: tuple[Any, ...]) -> None:
        try:
            import optuna  # noqa: PLC0415  # of the extra "search"
        except ModuleNotFoundError as error:
            raise ConfigError(f"--search needs the package {error.name}: pip install 'vision_zoo[search]'") from error
        self.optuna: Any = optuna
        self.study, self.plan, self.recipe, self.how = study, plan, recipe, how
        self.optimizer = self._open()

    def _open(self) -> Any:
        optuna, plan = self.optuna, self.plan
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder: Path = self.study.folder
        url = plan.storage or f"sqlite:///{folder / DATABASE}"
        # Values of another metric, space, recipe or options would mislead the sampler: theirs is another search.
        asked = repr((self.study.metric, plan.axes, self.recipe.content, self.how)).encode(errors="replace")
        pruners = {
            "median": optuna.pruners.MedianPruner(n_warmup_steps=1),
            "hyperband": optuna.pruners.HyperbandPruner(),
            "none": optuna.pruners.NopPruner(),
        }
        beats: Any = {"heartbeat_interval": BEAT, "grace_period": 3 * BEAT} if plan.storage else {}
        for tries_left in (2, 1, 0):
            try:
                with warnings.catch_warnings(action="ignore"):  # of features that optuna calls experimental
                    again = optuna.storages.RetryHeartbeatStaleTrialCallback() if plan.storage else None
                    storage = optuna.storages.RDBStorage(url, heartbeat_stale_trial_callback=again, **beats)
                    found = optuna.create_study(
                        storage=storage,
                        study_name=f"{folder.name} {hashlib.sha256(asked).hexdigest()[:10]}",
                        direction="minimize" if self.study.metric.endswith(table.LESS_IS_BETTER) else "maximize",
                        pruner=pruners[plan.pruner],
                        load_if_exists=True,
                    )
                break
            except Exception as error:  # whatever the driver of a database raises
                cannot = f"--storage {url} cannot be used: {one_line(error)}"
                refuse(ConfigError, (not (plan.storage and tries_left), cannot))
                time.sleep(1)  # another worker may be making the tables
        states = optuna.trial.TrialState
        if not plan.storage:  # this process alone works here: what runs is what was killed
            for trial in found.get_trials(states=[states.RUNNING]):
                found.tell(trial.number, state=states.FAIL)
                found.enqueue_trial(trial.params)
        return found

    def counted(self) -> list[Any]:
        """The trials of optuna that count, in their order: not those that were lost, and tried again."""
        states = self.optuna.trial.TrialState
        ended = (states.COMPLETE, states.PRUNED, states.RUNNING)
        return [t for t in self.optimizer.get_trials() if t.state in ended or "failed" in t.user_attrs]

    def run(self) -> int:
        """Try configurations; how many failed."""
        began = time.monotonic()
        self._restore()
        if self.plan.sampler == "grid":
            values = {axis.option: axis.values for axis in self.plan.axes}
            self.optimizer.sampler = self.optuna.samplers.GridSampler(values, seed=0)
        while self._is_left() and not self.study.lacking:
            if self.plan.minutes is not None and time.monotonic() - began > 60 * self.plan.minutes:
                break
            with warnings.catch_warnings(action="ignore"):
                self.optimizer.optimize(self._objective, n_trials=1, catch=(InputError,))
            if self.plan.sampler == "grid" and self.optimizer.sampler.is_exhausted(self.optimizer):
                break
        self._restore()
        self.study.place = ""
        return sum("failed" in trial.user_attrs for trial in self.optimizer.get_trials())

    def _is_left(self) -> bool:
        """Whether a configuration is to be tried; waits for those of other workers, which may be lost."""
        told = False
        while True:
            if self.plan.storage:
                with warnings.catch_warnings(action="ignore"):
                    self.optuna.storages.fail_stale_trials(self.optimizer)
            trials = self.counted()
            others = [trial.number for trial in trials if trial.state == self.optuna.trial.TrialState.RUNNING]
            if len(trials) < self.plan.trials or not others:
                return len(trials) < self.plan.trials
            if not told:
                self.study.console.print(f"waiting for {len(others)} trials of other workers")
            told = True
            time.sleep(1)

    def _settle(self, asked: Any) -> None:
        """Let the draws of a trial follow from how many came before it, and refuse one that is too many.

        Two workers may have begun the last one at once.
        """
        number = sum(trial.number < asked.number for trial in self.counted())
        refuse(InputError, (number >= self.plan.trials, f"there are {self.plan.trials} trials already"))
        self.study.place = f"{number + 1} of {self.plan.trials} configurations; "
        samplers, axes = self.optuna.samplers, self.plan.axes
        if self.plan.sampler == "random":
            self.optimizer.sampler = samplers.RandomSampler(seed=number)
        elif self.plan.sampler != "grid":
            kind = samplers.GPSampler if self.plan.sampler == "gp" else samplers.TPESampler
            self.optimizer.sampler = kind(seed=number, n_startup_trials=START)
            if number < START:  # spread evenly: few draws by chance leave gaps
                shares = Halton(len(axes), scramble=False).fast_forward(number + 1).random()[0]
                fixed = {axis.option: axis.at(share) for axis, share in zip(axes, shares, strict=True)}
                self.optimizer.sampler = samplers.PartialFixedSampler(fixed, self.optimizer.sampler)

    def trials(self, values: Mapping[str, str]) -> list[Trial]:
        """The runs of a configuration."""
        folds, seeds, words = self.how
        varied = {axis.option: [values[axis.option]] for axis in self.plan.axes}
        return trials_of(self.study.folder, [self.recipe], varied, folds, seeds, words)

    def _objective(self, asked: Any) -> float:
        """Run a configuration; the mean of the metric over its runs."""
        self._settle(asked)
        values = {axis.option: axis.suggest(asked) for axis in self.plan.axes}
        asked.set_user_attr("values", values)
        runs, seen = self.trials(values), set[int]()

        def hopeless(trial: Trial) -> bool:
            """Whether a run falls behind the others at an epoch that was just validated."""
            if self.plan.pruner == "none":
                return False
            run = run_of(trial)[0] or next(iter(sorted(trial.folder.glob("runs/*/version_*"))), None)
            curve = curve_of(table.Outcome(trial, run, {}), self.study.metric) if run else []
            for epoch, (_, value) in enumerate(curve):
                if epoch not in seen:
                    seen.add(epoch)
                    asked.report(value, epoch)
                    if asked.should_prune():
                        return True
            return False

        ended = self.study.make(runs, watch=hopeless)
        if ended.get("pruned"):
            raise self.optuna.TrialPruned
        found = [value for run in runs for value in table.Outcome.of(run).values(self.study.metric)]
        if len(found) < len(runs):
            asked.set_user_attr("failed", True)
            raise ConfigError("a run of this configuration has no result")
        return statistics.fmean(found)

    def _restore(self) -> None:
        """Take the trials of all workers into the study, in their order."""
        outcomes = dict[Trial, table.Outcome]()
        for trial in self.counted():
            pruned = trial.state == self.optuna.trial.TrialState.PRUNED
            for run in self.trials(trial.user_attrs["values"]) if "values" in trial.user_attrs else ():
                outcomes.setdefault(run, table.Outcome.of(run, "failed" in trial.user_attrs, pruned))
        self.study.outcomes = outcomes

    def draw(self) -> None:
        """Write the pictures of history and importance, as far as the trials tell."""
        for name, function in _PICTURES.items():
            try:
                with warnings.catch_warnings(action="ignore"):
                    axes = getattr(self.optuna.visualization.matplotlib, function)(self.optimizer)
                    axes.figure.savefig(self.study.folder / name, dpi=110, bbox_inches="tight")
            except (ValueError, RuntimeError) as error:  # of trials too few or too alike
                self.study.console.print(escape(f"no {name}: {error}"))
