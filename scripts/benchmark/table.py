"""Targets of the rows, the table for the terminal, and the generated part of scripts/README.md."""

import json
import statistics
from pathlib import Path

from rich.table import Table

from scripts.benchmark.bench import Bench, Row, shown

BEGIN, END = "<!-- speed -->", "<!-- /speed -->"
TITLES = {
    "a": "Batches alone, against torchvision's dataset, ToTensor and a DataLoader",
    "b": "A step of `fit`, against a bare loop",
    "c": "Training as shipped, against the tutorial's loop",
    "d": "Training to the published accuracy, against the tutorial's loop",
    "e": "Augmentation of a batch, against torchvision's v2 image by image",
    "f": "Commands that need no torch, against `import torch`",
    "g": "Start of the process to the first step, against `import lightning.pytorch.cli`",
    "h": "Peak memory above the imported libraries, against a bare loop in float32",
    "i": "predict on 10,000 images, against PIL and one forward pass each",
    "j": "Two processes of one thread, against one of two threads",
    "k": "Training steps in the way that the trial chooses, against the best way",
    "l": "Five kinds of flowers, 4,317 photos of 128 px, from pretrained weights, against fastai's `fine_tune(3)`",
    "n": "Training on a memory-mapped pack of 2 GB, against the same images in memory",
    "o": "Training on a pack of 8,000 photos, against the streams of others; weights after a kill in mid-epoch",
    "p": "Steps of the recipe `airbench_cifar10`, against the same algorithm written by hand",
}
TARGETS = {
    "a": ">= 100x", "b": "<= 0.55 ms, ours <= 0.15 ms; >= 0.75x to 0.98x by network",
    "c": ">= 2.2x geometric mean with AMX", "d": ">= 8x, none < 3x", "e": ">= 10x, flip + crop >= 15x; < 5 %",
    "f": ">= 2x", "g": ">= 0.8x", "h": "<= +100 MB", "i": ">= 5x, >= 1.8x", "j": ">= 0.9x", "k": ">= 0.97x",
    "l": "teach <= 30 s, with curve <= 60 s, >= 76 %; 2 epochs >= 4x, as accurate; 12 epochs >= 80 %",
    "n": ">= 0.5x, ResNet >= 0.9x; <= +250 MB",
    "o": "the same weights", "p": ">= 0.95x",
}  # fmt: skip
# Columns of a row's notes, by section.
NOTES = {
    "c": ("test accuracy",), "d": ("test accuracy", "their time", "our time", "images"),
    "i": ("measured", "with start-up", "agreement"), "j": ("measured",), "k": ("chosen",),
    "l": ("test accuracy",), "n": ("measured", "limit"),
    "o": ("measured", "weights"), "p": ("measured", "mean loss"),
}  # fmt: skip
FORMATS = {  # of a row's figures
    "GFLOP/s inside": "{:,.0f}", "steps": "{:.0f}", "share of a step": "{:.2f} %", "more memory": "{:+.0f} MB",
}  # fmt: skip
LEAST = {  # ratio of every row of a section
    "a": 100, "d": 3, "e": 10, "f": 2, "g": 0.8, "j": 0.9, "k": 0.97, "n": 0.5, "p": 0.95,
}  # fmt: skip
LEAST_OF_STEP = {  # in section b, where each may take 0.55 ms more than the bare loop, too
    "small_cnn": 0.8, "mlp": 0.75, "simple_cnn": 0.95, "lenet5": 0.9, "cnn_fashion": 0.95, "cnn": 0.97,
    "alexnet": 0.98, "resnet18": 0.98,
}  # fmt: skip
MOST = {  # of a row's figures, by section; of b, for the whole step and for what passes outside of the arithmetic
    "b": {"a step": 0.55, "ours of a step": 0.15, "outside": 0.55, "ours outside": 0.15},
    "e": {"share of a step": 5},
    "h": {"more memory": 100},
    "n": {"more memory": 250},
}
LEAST_WITH_AMX = 1.35, 2.2  # in section c: each, and their mean
LEAST_MEAN = 8  # in section d


def missed(row: Row, amx: bool = False) -> list[str]:
    """What of a row misses its targets; section c has some only on CPUs with AMX."""
    least = {"b": LEAST_OF_STEP.get(row.what.split()[0], 0), "i": 5 if "32 px" in row.what else 1.8} | LEAST
    least["e"] = 15 if "flip + crop" in row.what else least["e"]
    least["c"] = LEAST_WITH_AMX[0] if amx else 0
    least["n"] = 0.9 if row.what.startswith("ResNet") else least["n"]
    short = ["ratio"] if row.ratio < least.get(row.section, 0) else []
    short += [name for name, most in MOST.get(row.section, {}).items() if row.figures[name] > most]
    return short + [word.lower() for word in ("NOT REACHED", "ACCURACY LOST") if word in row.note]


def missed_mean(section: str, ratios: list[float], amx: bool) -> list[str]:
    """The mean of a section, if it misses its target."""
    least = {"c": LEAST_WITH_AMX[1] if amx else 0, "d": LEAST_MEAN}.get(section, 0)
    return ["the mean"] if statistics.geometric_mean(ratios) < least else []


def counted(rows: list[Row], section: str) -> list[float]:
    """The ratios that a section's mean is of.

    The targets of c and d were set for the networks but dnn_fashion; of a, batches as uint8 spare what theirs do.
    """
    left_out = {"a": "uint8", "c": "dnn_fashion", "d": "dnn_fashion"}.get(section)
    return [r.ratio for r in rows if r.section == section and not (left_out and left_out in r.what)]


def means(rows: list[Row]) -> list[str]:
    """The geometric means of the sections with one row for each system."""
    found = {section: counted(rows, section) for section in "cd"}
    return [
        f"{section}: geometric mean {statistics.geometric_mean(r):.2f}x, lowest {min(r):.2f}x of {len(r)}"
        for section, r in found.items()
        if r
    ]


def show(bench: Bench) -> None:
    """The table for the terminal; the notes stand in the lines above it, where they have room."""
    table = Table("", "what", "ours", "theirs", "", "ratio", "spread", "n", "target")
    for r in bench.rows:
        spread = f"{r.lowest:.2f}-{r.highest:.2f}"
        figures = (shown(r.ours), shown(r.theirs), r.unit, f"{r.ratio:.2f}x", spread, str(r.n))
        table.add_row(r.section, r.what, *figures, TARGETS[r.section])
    bench.console.print(table, *means(bench.rows), sep="\n")


# ------------------------------------------------------------------------------------------------------------ the page


def lines_of(cells: list[list[str]]) -> list[str]:
    """A table of markdown, without the columns that are empty."""
    kept = [place for place in range(len(cells[0])) if place == 0 or any(row[place] for row in cells[1:])]
    rows = [f"| {' | '.join(row[place] for place in kept)} |" for row in cells]
    return [rows[0], "|---" * len(kept) + "|", *rows[1:]]


def summary(rows: list[Row], amx: set[str]) -> list[str]:
    """One line for each section: its mean, its target, and how many rows miss it."""
    cells = [["", "", "ratio", "rows", "target", "missed"]]
    for section, title in TITLES.items():
        if mine := [row for row in rows if row.section == section]:
            ratios, has_amx = counted(rows, section), {row.machine for row in mine} <= amx
            whole = f"**{statistics.geometric_mean(ratios):.3g}x**"
            whole += f" ({min(ratios):.3g} to {max(ratios):.3g})" if len(ratios) > 1 else ""
            short = [row for row in mine if missed(row, row.machine in amx)]
            fails = [f"{len(short)} of {len(mine)}"] * bool(short) + missed_mean(section, ratios, has_amx)
            text = ", ".join(fails) or ("-" if section == "c" and not has_amx else "none")
            cells.append([f"[{section}](#{section})", title, whole, str(len(ratios)), TARGETS[section], text])
    return lines_of(cells)


def formatted(name: str, value: float) -> str:
    """A figure of a row; those without a form of their own are ms, and differences unless they are in a package."""
    return FORMATS.get(name, "{:.2f} ms" if name.startswith("in ") else "{:+.2f} ms").format(value)


def details(section: str, rows: list[Row], letters: dict[str, str], amx: set[str]) -> list[str]:
    """Every figure of a section; a row's figures, or else its notes, are columns."""
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    notes = NOTES.get(section, ())
    cells = [["", "vision_zoo", "compared with", "", "ratio", "n", *names, *notes, "misses", "machine, commit"]]
    for row in rows:
        figures = [formatted(name, row.figures[name]) if name in row.figures else "" for name in names]
        parts = row.note.split("; ") if notes else []
        parts = [part.split(": ", 1)[-1] if part.startswith("theirs") else part for part in parts]
        ratio = f"**{row.ratio:.2f}x** ({row.lowest:.2f}-{row.highest:.2f})"
        at = f"{letters[row.machine]}, {row.commit[:7]}{'+' * row.commit.endswith('+')}"
        cells.append(
            [
                *(row.what, shown(row.ours), shown(row.theirs), row.unit, ratio, str(row.n), *figures),
                *(parts + [""] * (len(notes) - len(parts))),
                *(", ".join(missed(row, row.machine in amx)), at),
            ]
        )
    return ["", f"### {section}", "", f"{TITLES[section]}.", "", *lines_of(cells)]


def speed(path: Path) -> str:
    """The generated part of scripts/README.md, from configs/speed.json."""
    said = json.loads(path.read_text())
    rows = [Row(**row) for row in said["rows"]]
    letters = {name: "ABCDEFGH"[place] for place, name in enumerate(said["machines"])}
    amx = {name for name, facts in said["machines"].items() if facts.get("bf16 by") == "AMX"}
    lines = [*summary(rows, amx), "", "Measured on:", ""]
    for name, facts in said["machines"].items():
        sections = ", ".join(dict.fromkeys(row.section for row in rows if row.machine == name))
        lines.append(f"- {letters[name]} (rows of {sections}): {name}")
        lines += [f"    - {what}: {value}" for what, value in facts.items()]
    for section in TITLES:
        if mine := [row for row in rows if row.section == section]:
            lines += details(section, mine, letters, amx)
    return "\n".join(lines)
