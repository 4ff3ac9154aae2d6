"""Train recipes, keep one row per run, and write every measured accuracy of the project from the rows.

    python scripts/reproduce.py lenet5_mnist fc_mnist --seeds 3 --data_root DIR    # run, then write
    python scripts/reproduce.py resnet18_cifar10 --seeds 1 -- --trainer.max_epochs 15
    python scripts/reproduce.py --write    # configs/README.md, headers of the recipes, figures
    python scripts/reproduce.py --check    # exit code 1 where any of them is not what the rows say

RECIPE is a name in configs/ or in results.VARIANTS; options after -- go to vision_zoo and into the rows. Runs are made
one after another by `vision_zoo fit`, each in a folder of its own. Stop the script in any way and start it again: a run
that has results.json is not made again, one that has a checkpoint goes on from it. Nothing else is remembered.

A seed decides weights, dropout and augmentation, and also what --data.seed decides, the order of the images and the cut
of the validation set: a spread with either of them fixed would be smaller than what another user gets. The test images
are read once per run, by the test that ends the fit. A run of fewer epochs than its recipe or its options say gives no
row, and rows of a recipe that was edited since count no more.
"""

import argparse
import contextlib
import fcntl
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Of this checkout, and without torch.
from scripts import results  # noqa: E402
from scripts.figures import README, figures_of, mark_of, shown_mark  # noqa: E402
from scripts.results import Project, ReproduceError, Row, digest_of, read_rows  # noqa: E402
from vision_zoo.errors import VisionZooError  # noqa: E402
from vision_zoo.files import write_file  # noqa: E402

# Options that this script chooses.
OURS = (
    *("config", "seed_everything", "data.seed", "data.root", "trainer.default_root_dir", "ckpt_path"),
    "test_after_fit",
)


class Task(NamedTuple):
    """One run: what a row is found by."""

    recipe: str
    options: tuple[str, ...]
    seed: int


# ------------------------------------------------------------------------------------------------------------- running


def tasks_of(project: Project, names: Sequence[str], extra: Sequence[str], seeds: int) -> list[Task]:
    """The runs that are asked for, seed by seed, so that every recipe has a figure early."""
    taken = [word for word in extra if word == "-c" or word.lstrip("-").split("=")[0] in OURS]
    if taken:
        raise ReproduceError(f"{', '.join(taken)} is chosen by this script and cannot be given after --")
    pairs = []
    for name in names:
        recipe, options, _ = results.VARIANTS.get(name, (name, "", 0))
        if not project.recipe(recipe).is_file():
            known = ", ".join([*(p.stem for p in sorted(project.configs.glob("*.yaml"))), *results.VARIANTS])
            raise ReproduceError(f"there is no recipe {name!r}. Known are {known}")
        pairs.append((recipe, (*shlex.split(options), *extra)))
    return [Task(recipe, options, seed) for seed in range(seeds) for recipe, options in pairs]


def find_run(folder: Path, recipe: str) -> tuple[Path | None, bool]:
    """The run in a task's folder that is finished, else the one that can go on; and whether it is finished."""
    runs = sorted(folder.glob(f"runs/{recipe}/version_*"), key=lambda path: int(path.name[8:]), reverse=True)
    for sign in ("results.json", "checkpoints/last.ckpt"):
        for run in runs:
            if (run / sign).is_file():
                return run, sign == "results.json"
    return None, False


@contextlib.contextmanager
def locked(folder: Path, wait: bool) -> Iterator[int]:
    """Hold a folder against other processes; a child that inherits the descriptor keeps holding it.

    Raises:
        ReproduceError: if another process holds it and is not waited for.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield descriptor
    except BlockingIOError:
        raise ReproduceError(f"another process is busy with {folder}") from None
    finally:
        os.close(descriptor)


def execute(words: Sequence[str], log: Path, lock: int) -> int:
    """Run vision_zoo and hand on the signals that we get, once each: it saves at the first and gives up at the second.

    Returns:
        Its exit code.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "vision_zoo", *words],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C comes from us alone
        )
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda got, _: child.send_signal(got)) for number in numbers]
    try:
        code = child.wait()
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def make_run(project: Project, task: Task, folder: Path, data_root: Path | None) -> int:
    """Make one run, or the rest of it, and its row.

    Returns:
        The exit code of vision_zoo, 0 where the run was there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    title = " ".join([task.recipe, *task.options, f"seed {task.seed}"])
    with locked(folder, wait=False) as lock:
        run, done = find_run(folder, task.recipe)
        if run is not None and data_root is not None and (run / "config.yaml").is_file():
            before = (yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"] or {}).get("root")
            if before not in (None, str(data_root)) and not task.recipe.endswith("mnist5k"):
                raise ReproduceError(f"{title}: {run} has data of {before}: give another --runs, or that --data_root")
        if not done:
            words = ["fit", "--config", str(project.recipe(task.recipe))]
            words += ["--seed_everything", str(task.seed), "--data.seed", str(task.seed)]
            words += ["--trainer.default_root_dir", str(folder)]
            recipe = yaml.safe_load(project.recipe(task.recipe).read_text())
            if data_root is not None and not recipe["data"]["class_path"].endswith("MNIST5k"):
                words += ["--data.root", str(data_root)]
            words += [*task.options, *(["--ckpt_path", str(run)] if run else [])]
            print(f"{title}: {'goes on' if run else 'starts'}, {folder / 'log.txt'}", flush=True)
            if run is None:  # what earlier attempts said is of no row
                for name in ("log.txt", "commits.txt"):
                    (folder / name).unlink(missing_ok=True)
            with (folder / "commits.txt").open("a") as commits:
                commits.write(f"{commit()}\n")
            code = execute(words, folder / "log.txt", lock)
            if code:
                told = (folder / "log.txt").read_text(errors="replace").splitlines()
                tail = [line for line in told if line.strip()][-3:]
                print(f"{title}: ended with exit code {code}", *tail, sep="\n    ", flush=True)
                return code
            run, done = find_run(folder, task.recipe)
            if run is None or not done:
                raise ReproduceError(f"{title}: no results.json below {folder}")
        assert run is not None
        row, points = row_of(project, task, run, (folder / "commits.txt").read_text().split())
        add_row(project, row, points)
        figures = f"{100 * float(row['test/accuracy']):.2f} %, {results.duration(float(row['fit_seconds']))}"
        print(f"{title}: {figures}", flush=True)
    return 0


def commit() -> str:
    """The commit that is checked out, with a plus where the program differs from it; generated files do not count."""
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--", "vision_zoo", "scripts", "configs/*.yaml", "pyproject.toml"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + "+" * bool(changes)


# ---------------------------------------------------------------------------------------------------------------- rows


def row_of(project: Project, task: Task, run: Path, commits: Sequence[str]) -> tuple[Row, list[Row]]:
    """The row of a finished run and, for the first seed, the points of its validation curve.

    Raises:
        ReproduceError: if it trained fewer epochs than it should have.
    """
    found = json.loads((run / "results.json").read_text())
    recipe = yaml.safe_load(project.recipe(task.recipe).read_text())
    words = [part for word in task.options for part in word.split("=", 1)]
    asked = [words[place + 1] for place, word in enumerate(words[:-1]) if word == "--trainer.max_epochs"]
    expected = int(asked[-1]) if asked else recipe["trainer"]["max_epochs"]
    if found["epochs"] < expected:
        raise ReproduceError(f"{run} trained {found['epochs']} of {expected} epochs, which makes no row")
    metrics, data = found["metrics"], found["data"]
    device = re.sub(r"^cpu \((.*)\)$", r"\1", found["device"])
    log = run.parents[2] / "log.txt"
    # A run that was stopped may have gone on otherwise.
    started = re.findall(r"^device +cpu \((.+?)\), ", log.read_text() if log.exists() else "", re.MULTILINE)
    device = " then ".join(dict.fromkeys(started)) or device
    row = {
        "recipe": task.recipe,
        "data": data["name"] + (f" ({data['note']})" if data["note"] else ""),
        "options": shlex.join(task.options),
        "seed": task.seed,
        "parameters": found["parameters"],
        "epochs": found["epochs"],
        **{name: metrics.get(name, "") for name in ("test/accuracy", "test/loss", "val/accuracy")},
        # Of each image, which views were averaged for the test figures.
        "tta": json.loads((run / "test.json").read_text()).get("test_time_augmentation", "none"),
        "fit_seconds": found["fit_seconds"],
        "images_per_second": found["train_images_per_second"],
        "precision": found["precision"],
        "hardware": device if found.get("devices", 1) == 1 else f"{found['devices']} x {device}",
        "versions": " ".join(f"{name}={number}" for name, number in found["versions"].items()),
        "commit": " ".join(dict.fromkeys(commits)),
        "digest": digest_of(project, task.recipe, task.options),
    }
    text = {name: str(value) for name, value in row.items()}
    if task.seed:
        return text, []
    steps = read_rows(run / "metrics.csv")
    seconds = float(found["fit_seconds"]) / max(int(step["step"]) for step in steps)
    points = [
        {
            **{name: text[name] for name in ("recipe", "data", "options")},
            "seconds": f"{seconds * int(step['step']):.1f}",
            "val/accuracy": f"{float(step['val/accuracy']):.4f}",
        }
        for step in steps
        if step.get("val/accuracy")
    ]
    return text, points


def add_row(project: Project, row: Row, points: list[Row]) -> None:
    """Put a run into results.csv, in place of an earlier one of the same recipe, data, options and seed."""
    with locked(project.configs, wait=True):
        others = [other for other in project.rows() if any(other[name] != row[name] for name in results.KEY)]
        rows = sorted([*others, row], key=lambda r: (*(r[name] for name in results.KEY[:3]), int(r["seed"])))
        write_file(project.configs / "results.csv", results.to_csv(results.COLUMNS, rows).encode())
        if row["seed"] == "0":
            whose = results.CURVE_COLUMNS[:3]
            curves = read_rows(project.configs / "curves.csv")
            curves = [other for other in curves if any(other[name] != row[name] for name in whose)] + points
            curves.sort(key=lambda r: tuple(r[name] for name in whose))  # stable: the points stay in order
            write_file(project.configs / "curves.csv", results.to_csv(results.CURVE_COLUMNS, curves).encode())


# ------------------------------------------------------------------------------------------------------------ writing


def write(project: Project) -> None:
    """Write everything that is generated; a figure only if what it shows has changed."""
    with locked(project.configs, wait=True):
        wanted = figures_of(project)
        for path, text in results.texts(project, list(wanted)).items():
            if path.read_text() != text:
                write_file(path, text.encode())
        folder = project.configs / "figures"
        for name, (draw, shown) in wanted.items():
            mark = mark_of(draw, shown)
            if shown_mark(folder / name) != mark:
                folder.mkdir(exist_ok=True)
                content = io.BytesIO()
                metadata = {"Description": mark, "Software": None}
                draw(shown).savefig(content, format="png", dpi=110, metadata=metadata)
                write_file(folder / name, content.getvalue())
        for path in folder.glob("*.png"):
            if path.name not in (*wanted, README):
                path.unlink()


def check(project: Project) -> list[str]:
    """Files that are not what the rows say."""
    wanted, folder = figures_of(project), project.configs / "figures"
    wrong = [str(path) for path, text in results.texts(project, list(wanted)).items() if path.read_text() != text]
    wrong += [str(folder / name) for name, what in wanted.items() if shown_mark(folder / name) != mark_of(*what)]
    return wrong + [str(path) for path in folder.glob("*.png") if path.name not in (*wanted, README)]


# ------------------------------------------------------------------------------------------------------------- command


def main(argv: Sequence[str], root: Path = ROOT) -> int:
    """Run the command.

    Returns:
        The exit code: 0 success, 1 something failed or is out of date, 2 wrong usage, 128 + n stopped by signal n.
    """
    words, extra = list(argv), []
    if "--" in words:
        words, extra = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument("--data_root", type=Path, help="folder of the datasets; by default data, below the project")
    parser.add_argument("--runs", type=Path, default=root / "runs" / "reproduce", help="folder of the runs")
    parser.add_argument("--write", action="store_true", help="write what is generated from the rows")
    parser.add_argument("--check", action="store_true", help="say what is not as the rows say")
    given = parser.parse_args(words)
    if not given.recipes and not given.write and not given.check:
        parser.error("name a recipe, or --write, or --check")
    if given.seeds < 1:
        parser.error(f"--seeds {given.seeds} would run nothing")
    project = Project(root)
    data_root = given.data_root and given.data_root.resolve()
    failed = 0
    try:
        for task in tasks_of(project, given.recipes, extra, given.seeds):
            digest = digest_of(project, task.recipe, task.options)
            folder = given.runs.resolve() / f"{task.recipe}-{digest}" / f"seed_{task.seed}"
            try:
                code = make_run(project, task, folder, data_root)
            except VisionZooError as error:
                print(f"reproduce: {error}", file=sys.stderr)
                code = 1
            if code > 128:
                return code
            failed += bool(code)
            write(project)
        if given.write:
            write(project)
        wrong = check(project) if given.check else []
        for row in results.stale(project):
            print(f"counts no more, for the recipe was edited since: {row}", file=sys.stderr)
    except VisionZooError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    for path in wrong:
        print(f"out of date: {path}; run: python scripts/reproduce.py --write", file=sys.stderr)
    return int(bool(failed or wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
