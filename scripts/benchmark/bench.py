"""Rows of measurements, and how both sides of a row are run."""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from scripts import reproduce
from scripts.benchmark.tutorials import ON_CPU, SYSTEMS

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Row:
    """One comparison. `note` holds remarks, separated by semicolons, and `figures` what else was measured, by name."""

    section: str
    what: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    lowest: float
    highest: float
    n: int
    note: str = ""
    recipe: str = ""
    machine: str = ""
    commit: str = ""
    figures: dict[str, float] = field(default_factory=dict)


class Bench:
    """Runs both sides in turn and keeps the rows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.root = str(Path(options.data_root).resolve())
        self.n = options.n or (2 if options.quick else 5)
        self.quick: bool = options.quick
        self.fastai: str | None = options.fastai
        self.peers: str | None = options.peers
        self.sections: list[str] | None = options.only.split(",") if options.only else None
        self.systems = options.systems.split(",") if options.systems else list(SYSTEMS)
        self.rows: list[Row] = []
        self.facts: dict[str, Any] = {}
        self.console = Console()

    def measures(self, section: str) -> bool:
        """Whether a section is asked for."""
        return self.sections is None or section in self.sections

    def row(
        self,
        section: str,
        what: str,
        ours: list[float],
        theirs: list[float],
        unit: str,
        *notes: str,
        recipe: str = "",
        figures: Mapping[str, float] | None = None,
        in_turn: bool = True,
    ) -> None:
        """Keep a comparison; of seconds less is better, of rates more, and a ratio above 1 is in our favour.

        Of sides that were not measured in turn, every run of the one makes a pair with every run of the other.
        """
        rate = unit.endswith("/s")
        matched = zip(ours, theirs, strict=True) if in_turn else itertools.product(ours, theirs)
        pairs = [a / b if rate else b / a for a, b in matched]
        a, b = statistics.median(ours), statistics.median(theirs)
        ratio, n = a / b if rate else b / a, min(len(ours), len(theirs))
        note, at = "; ".join(filter(None, notes)), (surroundings(), reproduce.commit())
        row = Row(section, what, a, b, unit, ratio, min(pairs), max(pairs), n, note, recipe, *at, dict(figures or {}))
        self.rows.append(row)
        more = ", ".join(f"{name} {value:.2f}" for name, value in row.figures.items())
        self.console.print(
            f"{section} {what}: {shown(a)} against {shown(b)} {unit}, {ratio:.2f}x ({min(pairs):.2f}-{max(pairs):.2f})",
            *filter(None, (note, more)),
        )

    def turns(self, *sides: Callable[[int], Any]) -> list[list[Any]]:
        """Each side n times, in turn, every turn beginning with another one; it gets the number of the turn."""
        results: list[list[Any]] = [[] for _ in sides]
        for turn in range(self.n):
            for place in range(len(sides)):
                number = (turn + place) % len(sides)
                results[number].append(sides[number](turn))
        return results

    def child(self, task: str, *words: str) -> Any:
        """Run a task of tasks.py in a process of its own."""
        out = run(str(Path(__file__).parent), "--data_root", self.root, "--task", task, *words)
        return json.loads(out.strip().splitlines()[-1])

    def merge(self, path: Path) -> None:
        """Put the rows into a file, in place of older ones of the same name."""
        old = json.loads(path.read_text()) if path.exists() else {"machines": {}, "rows": []}
        # The rows of a recipe, whose name holds a target that may change, are found by the recipe.
        rows = {(row["section"], row["recipe"] or row["what"]): row for row in old["rows"]}
        rows |= {(row.section, row.recipe or row.what): asdict(row) for row in self.rows}
        ordered = sorted(rows.values(), key=lambda row: row["section"])
        machines = old["machines"] | {surroundings(): self.facts}
        machines = {name: facts for name, facts in machines.items() if any(row["machine"] == name for row in ordered)}
        path.write_text(json.dumps({"machines": machines, "rows": ordered}, indent=2) + "\n")


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def run(*words: str, folder: str | None = None, python: str = sys.executable, **environment: str) -> str:
    """Run Python in a process of its own and give its output."""
    done = subprocess.run(
        [python, *words],
        cwd=folder,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def fit(*words: str, **environment: str) -> dict[str, Any]:
    """`vision_zoo fit` in a process and a folder of its own; gives results.json."""
    with tempfile.TemporaryDirectory() as folder:
        run("-m", "vision_zoo", "fit", *words, *ON_CPU, folder=folder, **environment)
        return dict(json.loads(next(Path(folder).glob("runs/*/version_0/results.json")).read_text()))


def seeds(seed: int) -> list[str]:
    """The options of a run with another start and another order of the images, as the tutorial's loop has them."""
    return ["--seed_everything", str(seed), "--data.seed", str(seed)]


def processor() -> str:
    """The name of this processor; one name may stand for several models, which their numbers tell apart."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    numbers = [f"{word} {said[name]}" for word, name in (("family", "cpu family"), ("model", "model")) if name in said]
    return ", ".join([said.get("model name", platform.machine()), *numbers])


def surroundings() -> str:
    """What rows are compared under: rows of others stay apart in the file."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "lightning"))
    return f"{processor()}, {torch.get_num_threads()} threads, {versions}"


def shown(figure: float) -> str:
    """Four digits, or all before the point."""
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.4g}"
