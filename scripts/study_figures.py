"""What a study costs beside its fits, what warm and several workers save, and how soon a search finds a learning rate.

    python scripts/study_figures.py loop --trials 8 --turns 3       # a shell loop of fits against a study, in turn
    python scripts/study_figures.py workers --trials 40             # two workers on one storage against one
    python scripts/study_figures.py search --folder DIR             # twelve trials against a grid of thirty rates

`loop` and `workers` measure time and need a machine with nothing else to do. LeNet-5 on MNIST5k, one thread. With
--folder, what a `search` has trained stays there, and it goes on from it. Exit code 1 where a target is missed. That
kills leave the same table is shown by the slow test of tests/verbs/test_study.py.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RECIPE = """model: {{backbone: LeNet5, scheduler: OneCycleLR, optimizer: {{class_path: Adam, init_args: {{lr: 0.01}}}}}}
data: {{class_path: MNIST5k, init_args: {{batch_size: 50, val_split: 1000}}}}
trainer: {{max_epochs: {epochs}, precision: 32-true, enable_progress_bar: false}}
"""
PROGRAM = [sys.executable, "-m", "vision_zoo"]
RATE = "model.optimizer.lr"
RATES = [f"{10 ** (-4 + 3 * number / 29):.4g}" for number in range(30)]
# The same fit as a trial of a study with this seed.
LOOP = f"""for seed in $(seq 0 $1); do {" ".join(PROGRAM)} fit --config lenet5.yaml --seed_everything $seed \\
--data.seed $seed --test_after_fit false --trainer.default_root_dir loop/$seed || exit 1; done"""


def seconds(folder: Path, epochs: int, *programs: Sequence[str]) -> float:
    """How long programs take that begin together in a folder; a RuntimeError with the end of the log, if one fails."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lenet5.yaml").write_text(RECIPE.format(epochs=epochs))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("w") as log:
        began = time.monotonic()
        running = [subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, env=environment) for words in programs]
        codes = [process.wait() for process in running]
        took = time.monotonic() - began
    if any(codes):
        raise RuntimeError("\n".join((folder / "log.txt").read_text().splitlines()[-10:]))
    return took


def rows(study: Path) -> list[dict[str, str]]:
    """The table of a study."""
    return list(csv.DictReader((study / "results.csv").read_text().splitlines()))


def told(name: str, values: Sequence[float], text: str) -> float:
    """Print the median of some values with the smallest and the largest; the median."""
    middle = statistics.median(values)
    print(f"{name}: {middle:{text}} ({min(values):{text}} to {max(values):{text}}, n = {len(values)})", flush=True)
    return middle


def loop(folder: Path, given: argparse.Namespace) -> bool:
    """A shell loop of fits and a study of the same, in turn; whether targets are reached."""
    commands = {"loop": ["sh", "-c", LOOP, "sh", str(given.trials - 1)]}
    commands["study"] = [*PROGRAM, "study", "lenet5.yaml", "--seeds", str(given.trials)]
    took: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(given.turns):
        for name in sorted(commands, reverse=bool(turn % 2)):
            took[name].append(seconds(folder / f"{name}{turn}", given.epochs, commands[name]) / given.trials)
        if sorted(row["state"] for row in rows(folder / f"study{turn}/studies/lenet5")) != ["finished"] * given.trials:
            raise RuntimeError("a trial is missing")
    for name, values in took.items():
        told(f"{name}, seconds a trial of {given.trials}", values, ".2f")
    pairs = list(zip(took["loop"], took["study"], strict=True))
    over = told("overhead, <= 2 %", [100 * (study / fits - 1) for fits, study in pairs], "+.1f")
    warm = told("warm worker, >= 1.5x for trials of 5 s", [fits / study for fits, study in pairs], ".2f")
    return over <= 2 and warm >= 1.5


def workers(folder: Path, given: argparse.Namespace) -> bool:
    """One worker and two on one storage, in turn; whether the target is reached."""
    words = [*PROGRAM, "study", "lenet5.yaml", "--search", f"{RATE}=1e-4..1e-1:log", "--sampler", "random"]
    words += ["--trials", str(given.trials), "--storage", "sqlite:///shared.db"]
    shares = []
    for turn in range(given.turns):
        took = {}
        for number in (1, 2) if turn % 2 == 0 else (2, 1):
            place = folder / f"workers{number}_{turn}"
            took[number] = seconds(place, given.epochs, *number * [words])
            made = rows(place / "studies/lenet5")
            if len(made) != given.trials or len({row["trial"] for row in made}) != given.trials:
                raise RuntimeError(f"{len(made)} of {given.trials} trials are in the table, or one is there twice")
        print(f"one worker {took[1]:.1f} s, two {took[2]:.1f} s", flush=True)
        shares.append(took[2] / took[1])
    return told("two workers, of the time of one, <= 0.55", shares, ".3f") <= 0.55


def search(folder: Path, given: argparse.Namespace) -> bool:
    """The best of twelve trials and of a grid, with the same seed; whether the target is reached with each.

    Both choose by images of which one is 0.1 points, the grid as the best of more: the last columns are of both rates
    with the other seeds, which had no part in the choice, read between the rates of the grid.
    """
    seeds, words = range(given.turns), ["study", "lenet5.yaml", "--vary", f"{RATE}={','.join(RATES)}", "--name", "grid"]
    seconds(folder, given.epochs, [*PROGRAM, *words, "--seeds", str(given.turns)])
    grid = {(row[RATE], int(row["seed"])): 100 * float(row["val/accuracy"]) for row in rows(folder / "studies/grid")}
    print("seed  grid: best, rate   search: best, rate, trials   with other seeds: grid, search")
    short, elsewhere = [], []
    for seed in seeds:
        words = ["study", "lenet5.yaml", "--search", f"{RATE}=1e-4..1e-1:log", "--trials", str(given.trials)]
        seconds(folder, given.epochs, [*PROGRAM, *words, "--seeds", f"[{seed}]", "--name", f"search{seed}"])
        found = [(100 * float(row["val/accuracy"]), row[RATE]) for row in rows(folder / f"studies/search{seed}")]
        best, (top, rate) = max(RATES, key=lambda name, seed=seed: grid[name, seed]), max(found)
        others = [statistics.mean(grid[name, other] for other in seeds if other != seed) for name in RATES]
        places = np.log([float(name) for name in (best, rate)])
        both = np.interp(places, np.log([float(name) for name in RATES]), others)
        first = next((n for n, (value, _) in enumerate(found, 1) if value >= grid[best, seed] - 0.1001), "-")
        print(f"{seed:>4}  {grid[best, seed]:.2f} {best:>9}   {top:.2f} {rate:>9} {first:>6}   ", end="")
        print(f"{both[0]:.2f} {both[1]:.2f}", flush=True)
        short.append(top - grid[best, seed])
        elsewhere.append(both[1] - both[0])
    told("search against the grid, points, >= -0.1 with every seed", short, "+.2f")
    told("the same rates with the other seeds, points", elsewhere, "+.2f")
    return min(short) >= -0.1001


def main() -> int:
    """Measure; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = {"loop": (loop, 8, 3, 10), "workers": (workers, 40, 1, 3), "search": (search, 12, 5, 3)}
    parser.add_argument("what", choices=usual)
    for name, what in (("trials", "of each study"), ("turns", "or seeds, of a search"), ("epochs", "of a trial")):
        parser.add_argument(f"--{name}", type=int, help=what)
    parser.add_argument("--folder", type=Path, help="of the runs; by default a temporary one")
    given = parser.parse_args()
    measure, *numbers = usual[given.what]
    for name, number in zip(("trials", "turns", "epochs"), numbers, strict=True):
        setattr(given, name, getattr(given, name) or number)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            return int(not measure(given.folder or Path(temporary), given))
        except RuntimeError as error:
            print(f"study_figures: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
