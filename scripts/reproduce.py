"""Train recipes, keep one row per run, and write every measured accuracy of the project from the rows.

    python scripts/reproduce.py lenet5_mnist fc_mnist --seeds 3 --data_root DIR    # run, then write
    python scripts/reproduce.py resnet18_cifar10 --seeds 1 -- --trainer.max_epochs 15
    python scripts/reproduce.py --write    # configs/README.md, headers of the recipes, figures
    python scripts/reproduce.py --check    # exit code 1 where any of them is not what the rows say

RECIPE is a name in configs/ or in results.VARIANTS; options after -- go to vision_zoo and into the rows. Runs are the
trials of a study, one after another, each in a folder of its own. Stop the script in any way and start it again: a run
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
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Of this checkout, and without torch.
from scripts import results  # noqa: E402
from scripts.figures import README, figures_of, mark_of, shown_mark  # noqa: E402
from scripts.results import Project, ReproduceError, Row, digest_of, read_rows  # noqa: E402
from vision_zoo.errors import VisionZooError  # noqa: E402
from vision_zoo.files import write_file  # noqa: E402
from vision_zoo.stopping import until_stopped  # noqa: E402

if TYPE_CHECKING:
    from vision_zoo.verbs.study.plan import Trial

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


def trial_of(project: Project, task: Task, folder: Path, data_root: Path) -> "Trial":
    """A task as a trial of a study in a folder."""
    from vision_zoo.verbs.study.plan import Recipe, Trial

    path = project.recipe(task.recipe)
    content = yaml.safe_load(path.read_text())
    embedded = content["data"]["class_path"].endswith("MNIST5k")
    options = (*task.options, *([] if embedded else [f"--data.root={data_root}"]))
    recipe = Recipe(task.recipe, path, json.dumps(results.short_names(content)))
    return Trial(folder, recipe, (), "", task.seed, options, tested=True)


@contextlib.contextmanager
def locked(folder: Path, wait: bool) -> Iterator[None]:
    """Hold a folder against other processes.

    Raises:
        ReproduceError: if another process holds it and is not waited for.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    except BlockingIOError:
        raise ReproduceError(f"another process is busy with {folder}: wait, or give another --runs") from None
    finally:
        os.close(descriptor)


def make_runs(project: Project, tasks: Sequence[Task], folder: Path, data_root: Path) -> int:
    """Make runs, or the rest of them, one after another, and a row of each as it ends.

    Returns:
        1 if one failed, else 0.
    """
    from vision_zoo.cli.main import main as command
    from vision_zoo.verbs.study.running import is_done, run_of, run_trials

    trials, failed = {trial_of(project, task, folder, data_root): task for task in tasks}, False

    def told(trial: "Trial", code: Any) -> None:
        """Note the commit at which a trial begins; make the row of one that has ended."""
        nonlocal failed
        task, log, commits = trials[trial], trial.folder / "log.txt", trial.folder / "commits.txt"
        title, (run, _) = " ".join([task.recipe, *task.options, f"seed {task.seed}"]), run_of(trial)
        said = [f"ended with exit code {code}"]
        if code is None:
            trial.folder.mkdir(parents=True, exist_ok=True)
            with commits.open("a") as file:
                file.write(f"{commit()}\n")
            said = [f"{'goes on' if run else 'starts'}, {log}"]
        elif code or run is None:
            failed = True
            lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
            said += [line for line in lines if line.strip()][-3:]
        else:
            try:
                row, points = row_of(project, task, run, commits.read_text().split(), log)
                add_row(project, row, points)
                write(project)
                said = [f"{100 * float(row['test/accuracy']):.2f} %, {results.duration(float(row['fit_seconds']))}"]
            except VisionZooError as error:
                failed, said = True, [str(error)]
        print(f"{title}: {said[0]}", *said[1:], sep="\n    ", flush=True)

    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=False):
        left = [trial for trial in trials if not is_done(trial, tests=False)]
        for trial in trials:
            if trial not in left:
                told(trial, 0)
            elif run_of(trial)[0] is None:  # what earlier attempts said is of no row
                for name in ("log.txt", "commits.txt"):
                    (trial.folder / name).unlink(missing_ok=True)
        run_trials(left, command, (False, ()), 1, told)
    return int(failed)


def commit() -> str:
    """The commit that is checked out, with a plus where the program differs from it.

    Recipes do not count: each row has the digest of its own, and their headers are generated.
    """
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--", "vision_zoo", "scripts", "pyproject.toml"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + "+" * bool(changes)


# ---------------------------------------------------------------------------------------------------------------- rows


def row_of(project: Project, task: Task, run: Path, commits: Sequence[str], log: Path) -> tuple[Row, list[Row]]:
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
    parser.add_argument("--data_root", type=Path, default=root / "data", help="folder of the datasets")
    parser.add_argument("--runs", type=Path, default=root / "runs" / "reproduce", help="folder of the runs")
    parser.add_argument("--write", action="store_true", help="write what is generated from the rows")
    parser.add_argument("--check", action="store_true", help="say what is not as the rows say")
    given = parser.parse_args(words)
    if not given.recipes and not given.write and not given.check:
        parser.error("name a recipe, or --write, or --check")
    if given.seeds < 1:
        parser.error(f"--seeds {given.seeds} would run nothing")
    project = Project(root)
    try:
        tasks = tasks_of(project, given.recipes, extra, given.seeds)
        runs, data_root = given.runs.resolve(), given.data_root.resolve()
        code = until_stopped(lambda: make_runs(project, tasks, runs, data_root) if tasks else 0, own_process=False)
        if code > 128:
            return code
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
    return int(bool(code or wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
