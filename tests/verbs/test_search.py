"""study --search: what optuna proposes follows from the trials before alone, and every trial is an ordinary one."""

import csv
import json
import math
import re
import sys
from pathlib import Path

import optuna
import pytest
import yaml

from tests.verbs.test_study import RECIPE
from vision_zoo.__main__ import main
from vision_zoo.errors import ConfigError
from vision_zoo.verbs.study import running
from vision_zoo.verbs.study.search import Axis, read_axis

RATE = ("--search", "model.optimizer.lr=1e-4..1e-1:log")


@pytest.fixture
def search(here, monkeypatch):
    """Searches with trainings that take no time: the nearer the rate to 0.005, the better."""
    (here / "tiny.yaml").write_text(RECIPE)
    made = []

    def run_trials(trials, _command, _rest, _jobs, told, watch):
        for trial in trials:
            told(trial, None)
            made.append(trial)
            rate = float(dict(trial.varied)["model.optimizer.lr"])
            good = 1 - abs(math.log10(rate / 0.005)) / 3
            run = trial.folder / "runs" / "tiny" / "version_0"
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
            rows = "".join(f"{n},{n},{good * (n + 1) / 4}\n" for n in range(4))
            (run / "metrics.csv").write_text("epoch,step,val/accuracy\n" + rows)
            if rate < 0:
                told(trial, 2)
            elif watch(trial):
                told(trial, running.PRUNED)
            else:
                (run / "config.yaml").write_text(yaml.safe_dump({"model": {"lr": rate}}))
                found = {"parameters": 1, "epochs": 4, "fit_seconds": 1.0, "versions": {}}
                (run / "results.json").write_text(
                    json.dumps({**found, "metrics": {"val/accuracy": good, "val/loss": -good}})
                )
                told(trial, 0)

    monkeypatch.setattr("vision_zoo.verbs.study.run_trials", run_trials)

    def run(*words, name="tiny"):
        made.clear()
        assert main(["study", "tiny.yaml", "--name", name, *words]) == 0
        return len(made)

    return run


def optimizers(name="tiny"):
    """What optuna knows of the searches of a study."""
    storage = f"sqlite:///studies/{name}/search.db"
    found = optuna.get_all_study_summaries(storage)
    return [optuna.load_study(storage=storage, study_name=summary.study_name) for summary in found]


def table(name="tiny"):
    return list(csv.DictReader(Path(f"studies/{name}/results.csv").read_text().splitlines()))


@pytest.mark.parametrize(
    ("word", "axis"),
    [
        ("a.b=1e-4..1e-1:log", Axis("a.b", (), 1e-4, 0.1, True, False)),
        ("a=-2..5", Axis("a", (), -2, 5, False, True)),
        ("a=0.5..1", Axis("a", (), 0.5, 1, False, False)),
        ("a=16..256:log", Axis("a", (), 16, 256, True, True)),
        ("--a=Adam,SGD", Axis("a", ("Adam", "SGD"))),
    ],
)
def test_an_axis_is_a_range_or_values(word, axis):
    assert read_axis(word) == axis


@pytest.mark.parametrize("word", ["a=3..1", "a=0..1:log", "a=x..y", "a=", "=1..2", "a=1..inf"])
def test_an_axis_that_is_none_is_refused(word):
    with pytest.raises(ConfigError, match=r"write OPTION="):
        read_axis(word)


def test_the_best_of_all_is_near_the_optimum_and_becomes_a_recipe(search):
    assert search(*RATE, "--trials", "25") == 25
    assert [row["state"] for row in table()] == ["finished"] * 25
    best = max(table(), key=lambda row: float(row["val/accuracy"]))
    assert 0.004 < float(best["model.optimizer.lr"]) < 0.00625
    assert yaml.safe_load(Path("studies/tiny/best.yaml").read_text())["model"]["lr"] == float(
        best["model.optimizer.lr"]
    )
    assert {"history.png", "results.csv", "report.html", "study.json"} <= {
        p.name for p in Path("studies/tiny").iterdir()
    }


def test_a_search_begins_with_trials_that_are_spread_evenly(search):
    search(*RATE, "--search", "data.batch_size=10,20,40", "--trials", "5")
    rates = sorted(math.log10(float(row["model.optimizer.lr"])) for row in table())
    assert rates == pytest.approx([-4 + 3 * eighth / 8 for eighth in (1, 2, 4, 5, 6)], abs=1e-3)
    assert {row["data.batch_size"] for row in table()} == {"10", "20", "40"}
    assert [read_axis("a=1..9").at(share) for share in (0, 0.3, 0.99)] == [1, 3, 9]


@pytest.mark.slow  # 4 s
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(search):
    search(*RATE, "--trials", "14", name="whole")
    search(*RATE, "--trials", "9")
    before, after = (optimizers(name)[0] for name in ("tiny", "whole"))
    before.enqueue_trial(after.trials[9].params)
    before.ask().suggest_float("model.optimizer.lr", 1e-4, 1e-1, log=True)  # and then its process was killed
    assert search(*RATE, "--trials", "14") == 5
    assert search(*RATE, "--trials", "14") == 0
    whole, parts = (Path(f"studies/{name}/results.csv").read_bytes() for name in ("whole", "tiny"))
    assert whole == parts


def test_a_run_that_ended_before_the_search_heard_of_it_is_not_made_again(search):
    search(*RATE, "--trials", "2")
    before = table()
    Path("studies/tiny/search.db").unlink()
    assert search(*RATE, "--trials", "2") == 0
    assert table() == before


def test_a_grid_ends_with_its_last_combination(search):
    words = ("--search", "model.optimizer.lr=0.1,0.01,0.001", "--search", "data.batch_size=10,20", "--sampler", "grid")
    assert search(*words, "--trials", "50") == 6
    assert len({(row["model.optimizer.lr"], row["data.batch_size"]) for row in table()}) == 6


def test_a_grid_is_tried_as_a_whole_unless_fewer_are_asked_for(search):
    rates = ",".join(f"{n / 1000}" for n in range(1, 23))
    words = ("--search", f"model.optimizer.lr={rates}", "--sampler", "grid")
    assert search(*words, "--trials", "2") == 2
    assert search(*words) == 20
    assert len(table()) == 22


@pytest.mark.parametrize(
    "changed",
    [
        ("--trainer.max_epochs", "9"),
        ("--seeds", "2"),
        ("--search", "data.batch_size=10,20"),
    ],
)
def test_a_search_with_other_options_is_another_and_is_made(search, changed):
    search(*RATE, "--trials", "2")
    assert search(*RATE, *changed, "--trials", "2") >= 2
    assert {row["state"] for row in table()} == {"finished"}
    assert search(*RATE, "--trials", "2") == 0


def test_a_search_by_another_metric_learns_nothing_from_the_first(search):
    search(*RATE, "--trials", "6")
    search(*RATE, "--trials", "6", "--metric", "val/loss")
    found = {one.direction.name: [trial.value for trial in one.trials] for one in optimizers()}
    assert found.keys() == {"MAXIMIZE", "MINIMIZE"}
    assert min(found["MINIMIZE"]) == pytest.approx(-max(found["MAXIMIZE"]), abs=1e-6)


def test_other_values_of_a_search_are_other_trials(search):
    words = ("--sampler", "random", "--trials", "2")
    search("--search", "model.optimizer.lr=0.1,0.01", *words)
    search("--search", "model.optimizer.lr=0.1,0.01,0.001", *words)
    search(*RATE, *words)
    assert len(table()) == 2


def test_a_mistaken_search_leaves_what_the_finished_one_shows(search, capsys):
    search(*RATE, "--trials", "3")
    names = ("history.png", "importance.png", "results.csv", "study.json", "report.html", "best.yaml")
    kept = {name: Path("studies/tiny", name).read_bytes() for name in names}
    assert main(["study", "tiny.yaml", "--name", "tiny", *RATE, "--trials", "3", "--metric", "val/f1"]) == 2
    assert {name: Path("studies/tiny", name).read_bytes() for name in names} == kept


def test_a_search_says_how_far_it_is(search, capsys):
    search(*RATE, "--trials", "3")
    assert re.findall(r"\((\d of 3 configurations); 1 done\)", capsys.readouterr().out) == [
        f"{number} of 3 configurations" for number in (1, 2, 3)
    ]


def test_failed_trials_are_counted_among_all_and_what_tries_others_is_told(search, monkeypatch, capsys):
    monkeypatch.setattr("vision_zoo.verbs.study.run_trials", lambda trials, *_: None)
    words = ["study", "tiny.yaml", "--name", "tiny", *RATE, "--trials", "2", "--test", "false"]
    assert main(words) == 1
    assert "2 of 2 trials failed; more --trials try other values" in capsys.readouterr().err
    assert main(words) == 1
    assert "2 of 2 trials failed; more --trials try other values" in capsys.readouterr().err


@pytest.mark.slow  # 3 s
def test_a_run_that_falls_behind_is_given_up_and_never_chosen(search):
    search(*RATE, "--trials", "25", "--pruner", "median")
    states = [row["state"] for row in table()]
    assert 0 < states.count("pruned") < 20
    assert states.count("pruned") + states.count("finished") == 25
    best = max((row for row in table() if row["state"] == "finished"), key=lambda row: float(row["val/accuracy"]))
    assert json.loads(Path("studies/tiny/study.json").read_text())["chosen"].endswith(best["model.optimizer.lr"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*RATE, "--sampler", "grid"), "has a range: give its values"),
        ((*RATE, *RATE), "--search has an option twice"),
        ((*RATE, "--vary", "data.batch_size=1,2"), "leave --vary out"),
        ((*RATE, "--trials", "0"), "--trials must be at least 1"),
        ((*RATE, "--pruner", "median", "--seeds", "2"), "set --pruner none"),
        ((*RATE, "--pruner", "median", "--sampler", "gp"), "set --sampler tpe"),
        ((*RATE, "--storage", "nothing://here"), "--storage nothing://here cannot be used"),
        (("--minutes", "3"), "--minutes: of a search alone: give --search"),
        (("--search", "data.seed=1,2"), "--data.seed is given twice, or decided by"),
        ((*RATE, "--model.optimizer.lr", "0.1"), "--model.optimizer.lr is given twice"),
        ((*RATE, "--folds", "1"), "--folds must be at least 2"),
    ],
)
def test_what_does_not_go_together_is_refused(words, message, here, capsys):
    (here / "tiny.yaml").write_text(RECIPE)
    assert main(["study", "tiny.yaml", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_search_that_has_no_time_says_so(search, capsys):
    assert main(["study", "tiny.yaml", "--name", "tiny", *RATE, "--minutes", "1e-9"]) == 1
    assert "no trial was begun: give more --minutes" in capsys.readouterr().err


def test_a_missing_package_is_one_line(here, capsys, monkeypatch):
    (here / "tiny.yaml").write_text(RECIPE)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["study", "tiny.yaml", *RATE]) == 2
    assert "pip install 'vision_zoo[search]'" in capsys.readouterr().err
