"""What was ticked in the page of audit, done to the files: they are moved, never deleted, and can be moved back."""

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from shlex import quote

from vision_zoo.data.discovery import REMOVED, nfc
from vision_zoo.errors import ConfigError, TrainingError, refuse
from vision_zoo.files import expanded, write_file
from vision_zoo.verbs.output import numbered

# Of fixes.csv and undo.csv: a file, from the folder on; relabel, remove or keep, or move in undo.csv; and the class to
# relabel to, or the path to move to, from the folder on.
COLUMNS = ("path", "action", "to")
_TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # names may be any bytes


def apply_fixes(folder: str, fixes: str) -> Path | None:
    """Move the files of a folder of class folders as fixes.csv or undo.csv says; gives the file that undoes it.

    Nothing is moved unless everything can be. What is removed goes to a folder _removed, which ImageFolder leaves out.

    Raises:
        ConfigError: naming the row, if a file is not there or not in the folder, or a class has no folder.
        TrainingError: if files cannot be moved; those that were are in the undo file.
    """
    root, table = expanded(folder).resolve(), expanded(fixes)
    advice = "--apply moves files between class folders; correct a table or arrays by hand, by what issues.csv names"
    refuse(ConfigError, (not root.is_dir(), f"audit: {root} is not a folder. {advice}"))
    moves, taken = list[tuple[Path, Path]](), set[Path]()
    for source, wanted in _wanted(root, table, _read(table)).items():
        target = next(x for x in numbered(wanted) if x not in taken and not os.path.lexists(x))
        moves.append((source, target))
        taken.add(target)
    if not moves:
        print(f"{table}: nothing to move")
        return None
    text = io.StringIO()
    back = [(to.relative_to(root).as_posix(), "move", path.relative_to(root).as_posix()) for path, to in moves]
    csv.writer(text).writerows([COLUMNS, *back[::-1]])
    undo, done = next(x for x in numbered(root / REMOVED / "undo.csv") if not x.exists()), 0
    try:
        undo.parent.mkdir(exist_ok=True)
        write_file(undo, text.getvalue().encode(**_TEXT))
        for path, to in moves:
            to.parent.mkdir(parents=True, exist_ok=True)
            path.rename(to)
            done += 1
    except OSError as error:
        moved = f"What was moved before can be moved back: --apply {undo}"
        if not done:
            undo.unlink(missing_ok=True)
            moved = "Nothing was moved"
        raise TrainingError(f"audit: {error}. {moved}") from error
    again = f"vision_zoo audit {quote(str(folder))} --apply {quote(str(undo))}"
    print(f"{len(moves):,} file{'s' * (len(moves) != 1)} moved; to move them back: {again}")
    return undo


def _read(table: Path) -> list[tuple[str, ...]]:
    """The rows of a table of fixes."""
    try:
        with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            records = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise ConfigError(f"--apply {table} cannot be read: {error}. Give the fixes.csv that the page saves") from error
    lacks = f"--apply {table} has not the columns {', '.join(COLUMNS)}. Give the fixes.csv that the page saves"
    refuse(ConfigError, (records and not set(COLUMNS) <= records[0].keys(), lacks))
    return [tuple(record[name] or "" for name in COLUMNS) for record in records]


def _wanted(root: Path, table: Path, fixes: Iterable[tuple[str, ...]]) -> dict[Path, Path]:
    """Where each file is to go, if no other of that name is there."""
    found = dict[Path, Path]()
    for number, (name, action, to) in enumerate(fixes, start=2):
        if action == "keep":
            continue
        path, where = _inside(root, name), f"--apply {table}, row {number}: {name}"
        there = path is not None and (path.is_file() or (path.is_symlink() and not path.exists()))  # a link to nothing
        refuse(
            ConfigError,
            (path is None, f"{where} is not in {root}, or a link leads out of it: nothing was moved"),
            (action not in ("relabel", "remove", "move"), f"{where}: {action!r} is none of relabel, remove, keep"),
        )
        assert path is not None
        target = _inside(root, to) if action == "move" else root / REMOVED / path.relative_to(root)
        if action == "relabel" and there:
            classes = (x for x in path.parent.parent.iterdir() if x.is_dir()) if path.parent != root else ()
            target = next((x / path.name for x in classes if nfc(x.name) == nfc(to)), None)
        later = f"If it was moved since, apply the later undo files in {REMOVED} first, the last one first"
        again = later if action == "move" else "Audit the folder again"
        if action == "move" and not there and target is not None and os.path.lexists(target):
            continue  # the moves were interrupted before this one
        refuse(
            ConfigError,
            (not there and path.exists(), f"{where} is no file: nothing was moved. Name the files in it"),
            (not there, f"{where} is not there any more: nothing was moved. {again}"),
            (
                target is None and action == "move",
                f"{where}: {to or 'nothing'} is no place in {root}: nothing was moved",
            ),
            (target is None, f"{where}: there is no class folder {to} beside its own in {root}: nothing was moved"),
            (found.get(path, target) != target, f"{where} is told to go to two places: nothing was moved"),
        )
        assert target is not None
        found[path] = target
    return {path: target for path, target in found.items() if path != target}


def _inside(root: Path, name: str) -> Path | None:
    """The file of this name in a folder, with links in its own path followed; None if it lies elsewhere."""
    path = Path(os.path.normpath(root / name.replace("\0", "")))
    path = path.parent.resolve() / path.name
    return path if path.is_relative_to(root) and path != root else None
