"""Sections c and d: training as shipped, and time to the published accuracy, against the loops of the tutorials."""

import statistics
from typing import Any

import torch

from scripts import results
from scripts.benchmark.bench import ROOT, Bench, fit, processor, seeds
from scripts.benchmark.tutorials import SHORT_TEST, SYSTEMS, System

Results = list[dict[str, Any]]


def against_tutorials(bench: Bench) -> None:
    """Against the tutorial's own loop: fit as shipped (section c) and fit to the published accuracy (section d)."""
    for name in bench.systems:
        system = SYSTEMS[name]
        limit = (60 if system.steps is None else max(system.steps // 4, 5)) if bench.quick else system.steps
        words = ["--config", system.config, "--data.root", bench.root, "--trainer.max_epochs", "1"]
        if limit:
            words += ["--trainer.limit_train_batches", str(limit), "--trainer.limit_val_batches", "1"]
            words += ["--trainer.limit_test_batches", str(SHORT_TEST)]
            words += ["--trainer.val_check_interval", str(limit)] if "fashion" in name else []
        fast = ["--config", f"{system.config}_fast", "--data.root", bench.root]
        fast += ["--trainer.limit_train_batches", "20", "--trainer.max_epochs", "1"] if bench.quick else []

        ships = bench.measures("c")
        trains = bench.measures("d") and (system.steps is None or bench.quick)
        loops, shipped, trained = bench.turns(
            lambda seed, name=name, limit=limit: bench.child("tutorial", name, str(limit or 0), str(seed)),
            lambda seed, words=words, ships=ships: fit(*words, *seeds(seed)) if ships else None,
            lambda seed, words=fast, trains=trains: fit(*words, *seeds(seed)) if trains else None,
        )
        if ships:
            as_shipped(bench, name, limit, shipped, loops)
        if bench.measures("d"):
            to_accuracy(bench, name, limit, trained if trains else None, loops)


def as_shipped(bench: Bench, name: str, limit: int | None, shipped: Results, loops: Results) -> None:
    """Images per second, and whether both learn the same."""
    system = SYSTEMS[name]
    mine = [100 * r["metrics"]["test/accuracy"] for r in shipped]
    plain = [100 * r["accuracy"] for r in loops]
    allowed = max(max(mine) - min(mine), max(plain) - min(plain))
    gap = statistics.median(mine) - statistics.median(plain)
    same = "accuracy within the seeds' spread" if gap >= -allowed else "ACCURACY LOST" if len(mine) > 1 else "one run"
    same = "too short to compare accuracy" if limit and gap >= -allowed else same
    note = f"{same}: {spread(mine)} against {spread(plain)} % after {f'{limit} steps' if limit else 'one epoch'}"
    rates = [r["train_images_per_second"] for r in shipped], [r["images_per_second"] for r in loops]
    bench.row("c", f"{name} {system.batch}, training", *rates, "images/s", note, recipe=system.config)


def spread(values: list[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def to_accuracy(bench: Bench, name: str, limit: int | None, trained: Results | None, loops: Results) -> None:
    """Seconds to the published accuracy; the tutorial's from one of its epochs.

    Where training takes minutes, ours are of the runs that reproduce.py has made; a note says so.
    """
    system, project = SYSTEMS[name], results.Project(ROOT)
    config, source = f"{system.config}_fast", ""
    if trained is not None:
        seconds = [r["fit_seconds"] for r in trained]
        reached = [100 * r["metrics"]["test/accuracy"] for r in trained]
        images = trained[0]["data"]["note"]
    else:
        group = next((g for g in results.groups_of(project) if (g.recipe, g.options) == (config, "")), None)
        threads = torch.get_num_threads()
        here = f"{processor().partition(', family')[0]}, {threads} thread{'s' * (threads > 1)}"  # as in results.json
        if group is None or group.all("hardware") != here:
            bench.console.print(f"d {name}: not measured yet on {here}; run: python scripts/reproduce.py {config}")
            return
        seconds = [float(row["fit_seconds"]) for row in group.rows]
        reached = [100 * float(row["test/accuracy"]) for row in group.rows]
        images = results.note_of(group.data)
        source = f"ours from configs/results.csv, on {here} (no model recorded), commit {group.all('commit')}, "
        source += "not in turn"
    published = float(results.header(project, config)["published"].split(" %")[0])
    enough = "reached" if statistics.median(reached) >= published else "NOT REACHED"
    times, theirs = tutorial_epochs(system, limit)
    bench.row(
        *(
            "d",
            f"{name}, to {published:.2f} %",
            seconds,
            [system.images / r["images_per_second"] * times for r in loops],
        ),
        "s",
        f"{enough} by the median: {spread(reached)} %",
        theirs,
        source,
        images,
        recipe=system.config,
        in_turn=trained is not None,
    )


def tutorial_epochs(system: System, limit: int | None) -> tuple[float, str]:
    """How many of our epochs the tutorial trains, and how its time was found."""
    full = -(-system.images // system.batch)
    times = system.iterations / full if system.iterations else system.epochs
    epoch = f"an epoch as {limit} of its {full} steps take" if limit else "its epoch"
    return times, f"theirs: {times:.3g} times {epoch}"
