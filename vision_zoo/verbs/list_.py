"""What there is: backbones, datasets, recipes and past runs, read from files without importing torch."""

import argparse
import ast
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
KINDS = ("backbones", "datasets", "recipes", "runs")
HEADER = re.compile(  # the first two lines of a recipe
    r"# (?P<what>.+?) \((?P<source>.+?)\)(?P<how>.*?)\.\n"
    r"# Test accuracy: (?P<kind>published|target) (?P<published>.+?); measured (?P<measured>.+)\.\n"
)
PAPER = re.compile(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")
RUN_COLUMNS = (
    *("config", "version", "network", "data", "test/accuracy", "val/accuracy"),
    *("seed", "epochs", "seconds", "parameters"),
)

Row = dict[str, Any]


def list_(
    kind: Literal["backbones", "datasets", "recipes", "runs"] | None = None, sort: str | None = None, root: str = "."
) -> None:
    """List backbones, datasets, recipes and past runs.

    Args:
        kind: backbones, datasets, recipes or runs; by default all.
        sort: order of the past runs, best first: test/accuracy, ...
        root: folder that holds runs, by default this one.
    """
    folder = expanded(root)
    refuse(
        ConfigError,
        (kind not in (None, *KINDS), f"list takes {', '.join(KINDS)}, not {kind!r}{did_you_mean(str(kind), KINDS)}"),
        (sort and kind != "runs", "list: only the runs can be sorted: vision_zoo list runs --sort COLUMN"),
        (kind in (None, "runs") and not folder.is_dir(), f"list: --root {root}: there is no such folder"),
    )
    for name, rows_of in (("backbones", backbones), ("datasets", datasets), ("recipes", recipes)):
        if kind in (None, name):
            rows = rows_of()
            if kind is None:  # sources and files would make the whole too long to look through
                rows = [{key: row[key] for key in row if key not in ("source", "file")} for row in rows]
            print_table(name, rows, "none")
    if kind in (None, "runs"):
        runs, broken = past_runs(folder)
        print_table("runs", sorted_runs(runs, sort), f"none below {folder.resolve()}; train with: vision_zoo fit")
        for message in broken:
            sys.stderr.write(f"vision_zoo: {message}\n")


def main(words: Sequence[str]) -> int:
    """Answer ``vision_zoo list``.

    Returns:
        The exit code.

    Raises:
        ConfigError: if the words are not what the command takes.
    """
    parser = argparse.ArgumentParser(prog="vision_zoo list", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("kind", nargs="?")
    parser.add_argument("--sort")
    parser.add_argument("--root", default=".")
    try:
        options, rest = parser.parse_known_args(words)
        problem = f"unrecognized arguments: {' '.join(rest)}" if rest else ""
    except argparse.ArgumentError as error:
        problem = str(error)
    refuse(ConfigError, (problem, f"list: {problem}. See: vision_zoo list --help"))
    list_(options.kind, options.sort, options.root)
    return 0


# ---------------------------------------------------------------------------------------------- what is in the package


def backbones() -> list[Row]:
    """Name, description, source and file of each backbone."""
    return _classes("backbones")


def datasets() -> list[Row]:
    """Name, description, source and file of each dataset."""
    rows = []
    for row in _classes("data"):
        if row["name"] == "ImageDataModule":  # the base of the others
            continue
        # The paper stands in brackets, beside the class or, where a file holds a family, at its top.
        own = PAPER.search(row["description"])
        paper = own or PAPER.search(row["source"])
        description = row["description"].replace(f" {own[0]}", "") if own else row["description"]
        rows.append({**row, "description": description, "source": paper[1] if paper else None})
    return rows


def _classes(package: str) -> list[Row]:
    """The classes that a package exports, by name."""
    folder = PACKAGE / package
    assignments = (node for node in _parse(folder / "__init__.py").body if isinstance(node, ast.Assign))
    exported = next(ast.literal_eval(node.value) for node in assignments if ast.unparse(node.targets[0]) == "__all__")
    rows: list[Row] = []
    for file in sorted(folder.glob("*.py")):
        module = _parse(file)
        source, place = _first_line(module), f"{package}/{file.name}"
        rows += [
            {"name": node.name, "description": _first_line(node), "source": source, "file": place}
            for node in module.body
            if isinstance(node, ast.ClassDef) and node.name in exported
        ]
    return sorted(rows, key=lambda row: row["name"].lower())


def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


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
        match = HEADER.match(text)
        facts = {"what": text.partition("\n")[0].lstrip("# "), "how": "", "kind": "", "published": "", "measured": ""}
        facts |= match.groupdict("") if match else {}
        rows.append(
            {
                "name": file.stem,
                "experiment": facts["what"] + facts["how"],
                "published": "target " * (facts["kind"] == "target") + facts["published"],
                "measured": facts["measured"],
            }
        )
    return rows


# ---------------------------------------------------------------------------------------------------------- past runs


def past_runs(root: Path) -> tuple[list[Row], list[str]]:
    """The runs in the folder "runs" below root, and what is wrong with files that cannot be read.

    A run without results.json was stopped or is still training: its row says so by empty figures.
    """
    rows, broken = [], []
    for folder in root.glob("runs/*/version_*/"):
        file = folder / "results.json"
        results: Any = {}
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(results, dict) or not isinstance(results.get("metrics", {}), dict):
                raise ValueError("not the results of a run")
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            broken.append(f"{file} is broken and left out: {error}")
            continue
        data = results.get("data")
        metrics = {name: _of_kind(int | float, value) for name, value in results.get("metrics", {}).items()}
        rows.append(
            {
                "config": folder.parent.name,
                "version": folder.name.removeprefix("version_"),
                "network": _of_kind(str, results.get("network")),
                "data": _of_kind(str, data.get("name") if isinstance(data, dict) else None),
                **{name: _of_kind(int | float, results.get(name)) for name in ("seed", "epochs", "parameters")},
                "seconds": _of_kind(int | float, results.get("fit_seconds")),
                **{name: value for name, value in metrics.items() if "/" in name},
            }
        )
    rows.sort(key=lambda row: (row["config"], len(row["version"]), row["version"]))
    return rows, sorted(broken)


def _of_kind(kind: Any, value: Any) -> Any:
    """A value of a file that other programs may have written, or None if it is of another kind."""
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


def sorted_runs(rows: list[Row], column: str | None) -> list[Row]:
    """The runs by one column, the best first, with the columns that are shown.

    Raises:
        ConfigError: if there is no such column.
    """
    shown = list(RUN_COLUMNS)
    if column is not None:
        known = dict.fromkeys([*RUN_COLUMNS, *(name for row in rows for name in row)])
        hint = did_you_mean(column, known) or f". There are {', '.join(known)}"
        refuse(ConfigError, (column not in known, f"list: --sort {column}: there is no such column{hint}"))
        if column not in shown:
            shown.insert(2, column)
        sign = -1 if column.endswith(("accuracy", "/f1")) else 1

        def place(row: Row) -> tuple[int, float, str]:
            value = row.get(column)
            if isinstance(value, str):
                return (0, float(value), "") if value.isdecimal() else (1, 0.0, value)
            # NaN compares with nothing: it counts as no figure, and comes last.
            return (2, 0.0, "") if value is None or math.isnan(value) else (0, sign * float(value), "")

        rows = sorted(rows, key=place)
    return [{name: row.get(name) for name in shown} for row in rows]


# ------------------------------------------------------------------------------------------------------------ printing


def print_table(title: str, rows: list[Row], empty: str) -> None:
    """Print a table: drawn by rich on a terminal that is wide enough, else aligned plain text, one line a row."""
    terminal = sys.stdout.isatty()
    if not rows:
        sys.stdout.write(f"{title}: {empty}\n" + ("" if terminal else "\n"))
        return
    header = list(rows[0])
    cells = [[_text(name, row[name]) for name in header] for row in rows]
    numeric = [any(isinstance(row[name], int | float) for row in rows) for name in header]
    if terminal:
        from rich import box, console, table, text  # noqa: PLC0415  # for terminals alone, as they cost time

        drawn = table.Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
        for position, (name, right) in enumerate(zip(header, numeric, strict=True)):
            whole = right or position == 0
            drawn.add_column(name, justify="right" if right else "left", no_wrap=whole, overflow="fold")
        for row_cells in cells:
            drawn.add_row(*map(text.Text, row_cells))
        if console.Console(width=10_000).measure(drawn).minimum <= console.Console().width:  # else it cuts figures off
            console.Console().print(drawn)
            return
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for line in ([title.upper()], header, *cells):
        padded = [
            cell.rjust(width) if right and len(line) > 1 else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=False)
        ]
        sys.stdout.write("  ".join(padded).rstrip() + "\n")
    sys.stdout.write("\n")


def _text(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "?" for c in value)
    if column == "seconds":
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else metric_text(column, value)
