"""At home in Lightning: every option, callback, logger, profiler and strategy that the installed lightning has.

The names are found by introspection. Each is driven through the real command line by a row of the tables in
tests/lightning_rows, or stands in the package's table of what cannot work; a name that is in neither fails a test, so
that a new version of lightning is noticed.
"""

import inspect
import re

import lightning.pytorch as pl
import pytest
from lightning.pytorch import callbacks, loggers, profilers, strategies

from tests.lightning_rows.callbacks import CALLBACKS, callback
from tests.lightning_rows.options import OPTIONS
from tests.lightning_rows.plugs import LOGGERS, PROCESSES, PROFILERS, STRATEGIES, a_strategy
from tests.lightning_rows.trial import Row, Trial, try_out
from vision_zoo.cli.limits import LIMITS

MOST_LIMITS = 12

NAMES = {
    "option": (OPTIONS, set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}),
    "callback": (CALLBACKS, set(callbacks.__all__)),
    "logger": (LOGGERS, set(loggers.__all__)),
    "profiler": (PROFILERS, set(profilers.__all__)),
    "strategy": (
        STRATEGIES | PROCESSES,
        set(strategies.__all__) | set(strategies.StrategyRegistry.available_strategies()),
    ),
}
ROWS = {
    f"{kind} {name}": row
    for kind, (table, _) in NAMES.items()
    for name, row in table.items()
    if isinstance(row, Row) and (name.partition(",")[0] in NAMES[kind][1])
}


@pytest.mark.parametrize("kind", NAMES)
def test_every_name_of_lightning_is_tried_or_cannot_work(kind):
    table, known = NAMES[kind]
    tried = {name.partition(",")[0] for name in table}
    impossible = {word for limit in LIMITS for word in re.findall(r"\w+", limit.name)}
    assert not known - tried - impossible, "new in lightning: add a row to tests/lightning_rows"


def test_what_cannot_work_is_little_and_has_reasons():
    assert len(LIMITS) <= MOST_LIMITS
    assert len({limit.name for limit in LIMITS}) == len(LIMITS)
    assert all(len(limit.reason.split()) >= 4 for limit in LIMITS)


# The words that ask for what cannot work; None where only some versions of torch cannot.
REFUSED: dict[str, tuple[str, ...] | None] = {
    "strategy ModelParallelStrategy": ("--trainer.strategy", a_strategy("ModelParallelStrategy")),
    "callbacks ModelCheckpoint with save_last, or with filename best or last, and without dirpath": callback(
        "ModelCheckpoint", save_last=True
    ),
    "callbacks StochasticWeightAveraging": None,
    "precision 16-mixed on a CPU": ("--trainer.accelerator", "cpu", "--trainer.precision", "16-mixed"),
    "sync_batchnorm over several processes on a CPU": (
        *("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.sync_batchnorm", "true"),
    ),
}


@pytest.mark.parametrize("limit", LIMITS, ids=[limit.name for limit in LIMITS])
def test_what_cannot_work_is_refused_with_its_reason(limit, tmp_path, other):
    if (words := REFUSED[limit.name]) is not None:
        trial = try_out(tmp_path, Row(words, lambda _: True, code=2), other)
        assert trial.code == 2, trial.text
        assert limit.reason in trial.text
        assert not list(tmp_path.glob("runs"))


_trials: dict[tuple[str, ...], Trial] = {}


@pytest.fixture
def other(tmp_path_factory):
    """Gives the trial of some words; each is run once in a process."""

    def try_words(*words: str) -> Trial:
        if words not in _trials:
            _trials[words] = try_out(tmp_path_factory.mktemp("other"), Row(words, lambda _: True), try_words)
            assert _trials[words].code == 0, _trials[words].text
        return _trials[words]

    return try_words


@pytest.mark.parametrize("name", ROWS)
def test_it_works_as_lightning_says(name, tmp_path, other):
    row = ROWS[name]
    trial = try_out(tmp_path, row, other)
    assert trial.code == row.code, trial.text
    assert row.holds(trial), trial.text
