"""What there is: backbones, datasets, recipes and past runs, read from files without importing torch."""

import argparse
import ast
import importlib
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vision_zoo.errors import ConfigError, did_you_mean, refuse
from vision_zoo.files import expanded
from vision_zoo.formatting import metric_text

PACKAGE = Path(__file__).parents[1]
KINDS = ("backbones", "networks", "datasets", "recipes", "runs")
HEADER = re.compile(  # the first two lines of a recipe
    r"# (?P<what>.+?) \((?P<source>.+?)\)(?P<how>.*?)\.\n"
    r"# Test accuracy: (?P<kind>published|target) (?P<published>.+?); measured (?P<measured>.+)\.\n"
)
PAPER = re.compile(r" ?\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")
RUN_COLUMNS = (
    *("config", "version", "network", "data", "test/accuracy", "val/accuracy"),
    *("seed", "epochs", "seconds", "parameters"),
)

Row = dict[str, Any]


def list_(
    kind: Literal["backbones", "networks", "datasets", "recipes", "runs"] | None = None,
    words: Sequence[str] = (),
    sort: str | None = None,
    root: str = ".",
) -> None:
    """List backbones, networks, datasets, recipes and past runs.

    Args:
        kind: backbones, networks, datasets, recipes or runs, by default all but networks.
        words: after networks, timm or torchvision and parts of the names that are looked for.
        sort: order of the past runs, best first: test/accuracy, ...
        root: folder that holds runs, by default this one.
    """
    folder = expanded(root)
    refuse(
        ConfigError,
        (kind not in (None, *KINDS), f"list takes {', '.join(KINDS)}, not {kind!r}{did_you_mean(str(kind), KINDS)}"),
        (words and kind != "networks", f"list: unrecognized arguments: {' '.join(words)}. See: vision_zoo list --help"),
        (sort and kind != "runs", "list: only the runs can be sorted: vision_zoo list runs --sort COLUMN"),
        (kind in (None, "runs") and not folder.is_dir(), f"list: --root {root}: there is no such folder"),
    )
    for name, rows_of in (("backbones", backbones), ("datasets", datasets), ("recipes", recipes)):
        if kind in (None, name):
            rows = rows_of()
            if kind is None:  # sources and files would make the whole too long to look through
                rows = [{key: row[key] for key in row if key not in ("source", "file")} for row in rows]
            _print_table(name, rows, "none")
    if kind == "networks":
        _print_table("networks", networks(words), f"none has {' and '.join(words)} in its name")
        if words[:1] not in (["timm"], ["torchvision"]):
            sys.stdout.write("Many more: vision_zoo list networks timm resnet, or torchvision in place of timm\n")
    if kind in (None, "runs"):
        runs, broken = _past_runs(folder)
        _print_table("runs", _sorted_runs(runs, sort), f"none below {folder.resolve()}; train with: vision_zoo fit")
        for message in broken:
            sys.stderr.write(f"vision_zoo: {message}\n")


def main(words: Sequence[str]) -> int:
    """Answer ``vision_zoo list``; the exit code is 0."""
    parser = argparse.ArgumentParser(prog="vision_zoo list", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("kind", nargs="?")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--sort")
    parser.add_argument("--root", default=".")
    try:
        options, rest = parser.parse_known_args(words)
        problem = f"unrecognized arguments: {' '.join(rest)}" if rest else ""
    except argparse.ArgumentError as error:
        problem = str(error)
    refuse(ConfigError, (problem, f"list: {problem}. See: vision_zoo list --help"))
    list_(options.kind, options.words, options.sort, options.root)
    return 0


def backbones() -> list[Row]:
    """Name, description, source and file of each backbone."""
    return _classes("backbones")


def networks(words: Sequence[str]) -> list[Row]:
    """The networks of a library, the first word, else the zoo's own, whose names contain all the words."""
    rows, parts = backbones(), words
    if words[:1] in (["timm"], ["torchvision"]):  # which need torch, as nothing else here does
        rows, parts = importlib.import_module(f"vision_zoo.backbones.{words[0]}").networks(), words[1:]
    return [row for row in rows if all(part.lower() in row["name"].lower() for part in parts)]


def datasets() -> list[Row]:
    """Name, description, paper and file of each dataset."""
    rows = [row for row in _classes("data") if row["name"] != "ImageDataModule"]  # the base of the others
    for row in rows:
        # The paper stands in brackets, beside the class or, where a file holds a family, at its top.
        paper = PAPER.search(row["description"]) or PAPER.search(row["source"])
        row |= {"description": PAPER.sub("", row["description"], 1), "source": paper[1] if paper else None}
    return rows


def _classes(package: str) -> list[Row]:
    """The classes that a package exports, by name."""
    modules = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted((PACKAGE / package).glob("*.py"))}
    constants = (node for node in modules[PACKAGE / package / "__init__.py"].body if isinstance(node, ast.Assign))
    exported = next(ast.literal_eval(node.value) for node in constants if ast.unparse(node.targets[0]) == "__all__")
    rows = [
        {
            "name": node.name,
            "description": _first_line(node),
            "source": _first_line(module),
            "file": f"{package}/{file.name}",
        }
        for file, module in modules.items()
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name in exported
    ]
    return sorted(rows, key=lambda row: row["name"].lower())


def _first_line(node: ast.ClassDef | ast.Module) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def configs_folder() -> Path:
    """Where the shipped recipes lie: in the installed package, or beside it in a checkout."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def recipes() -> list[Row]:
    """Name, published and measured result of each shipped recipe, from the first lines of its file."""
    rows = []
    for file in sorted(configs_folder().rglob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        experiment, published, measured = text.partition("\n")[0].lstrip("# "), "", ""
        if match := HEADER.match(text):
            experiment, measured = match["what"] + match["how"], match["measured"]
            published = "target " * (match["kind"] == "target") + match["published"]
        rows.append({"name": file.stem, "experiment": experiment, "published": published, "measured": measured})
    return rows


def _past_runs(root: Path) -> tuple[list[Row], list[str]]:
    """The runs in the folder "runs" below root, and what is wrong with files that cannot be read.

    A run without results.json was stopped or is still training: its row says so by empty figures.
    """
    rows, broken = [], []
    for folder in root.glob("runs/*/version_*/"):
        file = folder / "results.json"
        row: Row = {"config": folder.parent.name, "version": folder.name.removeprefix("version_")}
        try:
            results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            row |= {name: results.get(name) for name in ("network", "seed", "epochs", "parameters")}
            data = results.get("data", {})
            named = f"{data.get('name')} ({data['note']})" if data.get("note") else data.get("name")
            row |= {"seconds": results.get("fit_seconds"), "data": named}
            row |= {name: value for name, value in results.get("metrics", {}).items() if "/" in name}
            rows.append(row)
        except (OSError, ValueError, AttributeError) as error:  # the last where a list stands in place of a mapping
            broken.append(f"{file} is broken and left out: {error}")
    return sorted(rows, key=lambda row: (row["config"], _place(row["version"]))), sorted(broken)


def _sorted_runs(rows: list[Row], column: str | None) -> list[Row]:
    """The runs by one column, the best first, with the columns that are shown."""
    shown = list(RUN_COLUMNS)
    if column is not None:
        known = dict.fromkeys([*RUN_COLUMNS, *(name for row in rows for name in row)])
        hint = did_you_mean(column, known) or f". There are {', '.join(known)}"
        refuse(ConfigError, (column not in known, f"list: --sort {column}: there is no such column{hint}"))
        if column not in shown:
            shown.insert(2, column)
        sign = -1 if "/" in column and not column.endswith(("loss", "error")) else 1  # as study chooses
        rows = sorted(rows, key=lambda row: _place(row.get(column), sign))
    return [{name: row.get(name) for name in shown} for row in rows]


def _place(value: Any, sign: int = 1) -> tuple[int, float, str]:
    """Where a value stands in order: figures, also those in texts, then other texts, then what is missing."""
    try:
        figure = sign * float(value)
    except (TypeError, ValueError):
        return (1, 0.0, value) if isinstance(value, str) else (2, 0.0, "")
    return (2, 0.0, "") if math.isnan(figure) else (0, figure, "")  # NaN compares with nothing


def _print_table(title: str, rows: list[Row], empty: str) -> None:
    """Print a table: a terminal that is wide enough folds long texts, else each row is one line."""
    from rich import console, table, text  # noqa: PLC0415  # completion needs the rows alone

    if not rows:
        sys.stdout.write(f"{title}: {empty}\n\n")
        return
    drawn = table.Table(box=None, pad_edge=False)
    for name in rows[0]:
        right = any(isinstance(row[name], int | float) for row in rows)
        whole = right or name == next(iter(rows[0]))
        drawn.add_column(name, justify="right" if right else "left", no_wrap=whole, overflow="fold")
    for row in rows:
        drawn.add_row(*(text.Text(_text(name, value)) for name, value in row.items()))
    screen, paper = console.Console(), console.Console(width=100_000, color_system=None)
    fits = screen.is_terminal and paper.measure(drawn).minimum <= screen.width  # else it would cut figures off
    (screen if fits else paper).print(title.upper(), drawn, "", sep="\n")


def _text(column: str, value: Any) -> str:
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "?" for c in value)
    if not isinstance(value, int | float):
        return "-"
    if column == "seconds":
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else metric_text(column, value)
