"""Rows of configs/results.csv, one for each run, and the texts made of them: configs/README.md and recipe headers.

`python scripts/reproduce.py --write` writes them, and the figures.
"""

import csv
import hashlib
import io
import json
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts import ablation
from vision_zoo.errors import VisionZooError
from vision_zoo.verbs.list_ import HEADER

ROOT = Path(__file__).resolve().parents[1]

# A recipe with other options under a name: recipe, options, and which of the published figures in its header they have.
ONE_CYCLE = (
    "--model.scheduler OneCycleLR --model.optimizer.lr"  # closes the gap where a protocol falls short in the mean
)
BATCH_1 = "--data.batch_size 1 --data.shuffle false"
VARIANTS: dict[str, tuple[str, str, int]] = {
    "fc_mnist_one_cycle": ("fc_mnist", f"{ONE_CYCLE} 0.003", 0),
    "simple_cnn_mnist_one_cycle": ("simple_cnn_mnist", f"{ONE_CYCLE} 0.003", 0),
    "small_cnn_mnist_batch_1": ("small_cnn_mnist", BATCH_1, 1),
    "small_cnn_mnist_batch_1_one_cycle": ("small_cnn_mnist", f"{BATCH_1} {ONE_CYCLE} 0.001", 1),
    "small_cnn_mnist_one_cycle": ("small_cnn_mnist", f"{ONE_CYCLE} 0.01", 0),
    "resnet18_cifar10_15_epochs": ("resnet18_cifar10", "--trainer.max_epochs 15", 0),
    **ablation.variants(),
}
# Changed after an earlier version had missed its target on the test images; others were chosen by validation alone.
CHOSEN_ANEW = ("cnn_fashion_mnist_best", "cnn_mnist_best", "resnet18_cifar10_best")
COLUMNS = (
    *("recipe", "data", "options", "seed", "parameters", "epochs", "test/accuracy", "test/loss", "tta"),
    *("val/accuracy", "fit_seconds", "images_per_second", "precision", "hardware", "versions", "commit", "digest"),
)
KEY = ("recipe", "data", "options", "seed")
CURVE_COLUMNS = ("recipe", "data", "options", "seconds", "val/accuracy")
BEGIN, END = "<!-- results -->", "<!-- /results -->"
HEADS = ("recipe", "data", "parameters", "test accuracy", "published", "reached", "epochs", "time", "tutorial's loop")

Row = dict[str, str]


class ReproduceError(VisionZooError):
    """What cannot be done, and the way out."""


@dataclass(frozen=True)
class Project:
    """Where things are."""

    root: Path = ROOT

    @property
    def configs(self) -> Path:
        """The recipes, and beside them what is generated."""
        return self.root / "configs"

    @property
    def page(self) -> Path:
        """The page of results."""
        return self.configs / "README.md"

    def recipe(self, name: str) -> Path:
        """The file of a recipe."""
        return self.configs / f"{name}.yaml"

    def recipes(self) -> list[Path]:
        """The files of the recipes that have results: those of a published dataset."""
        return [
            path for path in sorted(self.configs.glob("*.yaml")) if "class_path: ImageFolder" not in path.read_text()
        ]

    def rows(self) -> list[Row]:
        """All runs so far."""
        return read_rows(self.configs / "results.csv")


# ---------------------------------------------------------------------------------------------------------------- rows


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV file; none where there is no file."""
    return list(csv.DictReader(io.StringIO(path.read_text()))) if path.is_file() else []


def to_csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Rows as text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def short_names(node: Any) -> Any:
    """A recipe with every class by its name alone, for a class has several ways to be named."""
    if isinstance(node, list):
        return [short_names(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    plain = {key: short_names(value) for key, value in node.items()}
    if isinstance(plain.get("class_path"), str):
        name, options = plain["class_path"].rpartition(".")[2], plain.get("init_args")
        return {"class_path": name, "init_args": options} if options else name
    return plain


def digest_of(project: Project, recipe: str, options: Sequence[str]) -> str:
    """Short name of what a recipe and its options mean, whatever its comments say."""
    path = project.recipe(recipe)
    content = yaml.safe_load(path.read_text()) if path.is_file() else {}
    return hashlib.sha256(json.dumps([short_names(content), list(options)], sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Group:
    """The runs of one experiment, which differ by their seed."""

    recipe: str
    data: str
    options: str
    rows: tuple[Row, ...]

    def mean(self, column: str) -> float:
        """Mean of a column."""
        return statistics.fmean(float(row[column]) for row in self.rows)

    def all(self, column: str) -> str:
        """What a column holds, once each."""
        return " / ".join(dict.fromkeys(row[column] for row in self.rows))

    @property
    def accuracy(self) -> str:
        """Test accuracy in per cent: the mean, and the standard deviation of single runs (n - 1)."""
        values = [100 * float(row["test/accuracy"]) for row in self.rows]
        spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.2f}{spread} %"

    @property
    def time(self) -> str:
        """Mean duration, or the shortest and the longest where a mean would say little."""
        values = [float(row["fit_seconds"]) for row in self.rows]
        ends = [duration(min(values)), duration(max(values))]
        return " to ".join(ends) if max(values) > 1.5 * min(values) else duration(statistics.fmean(values))

    @property
    def tta(self) -> str:
        """The test-time augmentation, if there was any."""
        return "" if self.all("tta") == "none" else f", TTA {self.all('tta')}"

    @property
    def variant(self) -> str:
        """Its name in VARIANTS, if it has one."""
        ours = (self.recipe, self.options)
        return next((name for name, (recipe, options, _) in VARIANTS.items() if (recipe, options) == ours), "")

    @property
    def network(self) -> str:
        """The recipe of the tutorial's protocol, whose network this one trains."""
        return re.sub("_(fast|best)$", "", self.recipe)

    @property
    def kind(self) -> str:
        """How it trains the network, a key of figures.MARKERS."""
        if self.recipe != self.network:
            return self.recipe.rpartition("_")[2]
        return "one-cycle" if "OneCycleLR" in self.options else "other options" if self.options else "protocol"

    @property
    def short(self) -> str:
        """For figures: a variant's name, else the options on a line of their own, without dashes and sections."""
        words = [re.sub(r"^--(\w+\.)*", "", word) for word in shlex.split(self.options)]
        return self.variant or "\n".join([self.recipe, *([" ".join(words)] if words else [])])


def groups_of(project: Project) -> list[Group]:
    """Rows of the recipes as they are now, by dataset and experiment."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in project.rows():
        if row["digest"] == digest_of(project, row["recipe"], shlex.split(row["options"])):
            found.setdefault((row["data"], row["recipe"], row["options"]), []).append(row)
    order = ("MNIST", "FashionMNIST", "CIFAR10")
    groups = [Group(recipe, data, options, tuple(rows)) for (data, recipe, options), rows in sorted(found.items())]
    return sorted(groups, key=lambda g: [not g.data.startswith(name) for name in order])


def stale(project: Project) -> list[str]:
    """Rows that count no more, because their recipe was edited since."""
    current = [row for group in groups_of(project) for row in group.rows]
    return [f"{row['recipe']} {row['options']} seed {row['seed']}" for row in project.rows() if row not in current]


# ------------------------------------------------------------------------------------------- what was published


def header(project: Project, recipe: str) -> re.Match[str]:
    """The first two lines of a recipe, in their parts.

    Raises:
        ReproduceError: if they are not of the usual form.
    """
    match = HEADER.match(project.recipe(recipe).read_text())
    if match is None:
        raise ReproduceError(
            f"{project.recipe(recipe)}: the first two lines are not '# What (source).' and "
            "'# Test accuracy: published ...; measured ....'"
        )
    return match


def goal(project: Project, group: Group) -> tuple[float | None, str]:
    """What a group's mean should reach, in per cent, and how to call it; from the recipe's header."""
    said = header(project, group.recipe)
    own = yaml.safe_load(project.recipe(group.recipe).read_text())["data"]["class_path"].rpartition(".")[2]
    figures = [float(figure) for figure in re.findall(r"([\d.]+) %", said["published"])]
    if group.data.split()[0] != own or not figures:  # of other images, nothing was published
        return None, "-"
    which = [n for recipe, options, n in VARIANTS.values() if (recipe, options) == (group.recipe, group.options)]
    figure = figures[min((*which, 0)[0], len(figures) - 1)]
    if said["kind"] == "target":
        return figure, f"target {figure:g} %"
    return figure, f"{figure:.2f} %"


def reached(project: Project, group: Group) -> str:
    """Whether a group's mean is what its recipe should reach."""
    bar, _ = goal(project, group)
    if bar is None:
        return "-"
    return "yes" if round(100 * group.mean("test/accuracy"), 6) >= bar else "**no**"


# --------------------------------------------------------------------------------------------------------------- texts


def duration(seconds: float) -> str:
    """Seconds for people, rounded as the spread of runs allows."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def note_of(data: str) -> str:
    """What is said of the images of a row beside the name of their dataset."""
    found = re.search(r"\((.+)\)$", data)
    return found[1] if found else ""


def measured(groups: Sequence[Group]) -> str:
    """The measured part of a recipe's header: its runs as it stands, else those with other options."""
    parts = []
    for group in [group for group in groups if not group.options] or groups:
        n = len(group.rows)
        devices = " then ".join(re.findall(r"\d+ threads?", group.all("hardware"))) or group.all("hardware")
        note = note_of(group.data)
        text = f"{group.accuracy} ({n} seed{'s' * (n > 1)}{group.tta}), {group.time} on {devices}"
        text += f", {note}" if note else ""
        parts.append(text + (f", with {group.options}" if group.options else ""))
    return "; ".join(parts) or "not yet"


def table(project: Project, groups: Sequence[Group]) -> list[str]:
    """Lines of a table with a row for each group."""
    path = project.configs / "speed.json"
    speed = json.loads(path.read_text())["rows"] if path.is_file() else []
    loops = {row["recipe"]: duration(row["theirs"]) for row in speed if row["section"] == "d"}
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    for group in groups:
        precisions = {row["precision"] for row in group.rows}
        mixed = f", {' and '.join(sorted(precisions))}" if len(precisions) > 1 else ""
        share = yaml.safe_load(project.recipe(group.recipe).read_text())["trainer"].get("limit_train_batches", 1.0)
        part = f"{share:g} of " if isinstance(share, float) and share < 1 else ""  # of each epoch
        name = (
            f"`{group.variant}`" if group.variant else f"`{group.recipe}`" + f" `{group.options}`" * bool(group.options)
        )
        cells = (
            name,
            group.data,
            f"{int(group.rows[0]['parameters']):,}",
            f"{group.accuracy} ({len(group.rows)}{group.tta}{mixed})",
            goal(project, group)[1],
            reached(project, group) + " \\*" * (group.recipe in CHOSEN_ANEW),
            part + group.all("epochs"),
            group.time,
            "-" if group.options else loops.get(group.recipe, "-"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def results(project: Project, figures: Sequence[str]) -> str:
    """What is generated of the page of results: tables, variants, what is not measured, and the figures."""
    everything = groups_of(project)
    groups = [group for group in everything if group.recipe != ablation.RECIPE]
    if not groups:
        return "Not measured yet."
    folded = [group for group in groups if "--trainer.precision" in group.options]
    lines = table(project, [group for group in groups if group not in folded])
    hardware = " / ".join(dict.fromkeys(group.all("hardware") for group in groups))
    lines += ["", f"Measured on {hardware}."]
    variants = [group for group in groups if group.variant]
    if variants:
        lines += ["", "Recipes with other options:", ""]
        lines += [f"- `{group.variant}`: `{group.recipe}` with `{group.options}`" for group in variants]
    if folded:
        lines += ["", "<details><summary>In another precision</summary>", "", *table(project, folded), "", "</details>"]
    have = {group.recipe for group in everything if not group.options}
    missing = [f"`{path.stem}`" for path in project.recipes() if path.stem not in have]
    if missing:
        lines += ["", f"Not measured yet, as they stand: {', '.join(missing)}."]
    lines += ablation.lines(everything)
    for name in figures:
        about = "Accuracy against parameters" if name == "parameters.png" else "Accuracy against wall time"
        lines += ["", f"![{about}](figures/{name})"]
    return "\n".join(lines)


def between(path: Path, begin: str, end: str, content: str) -> str:
    """The text of a page with another content between its two marks.

    Raises:
        ReproduceError: if the page does not hold each mark once.
    """
    text = path.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ReproduceError(f"{path} must hold {begin} and {end}, once each")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def texts(project: Project, figures: Sequence[str]) -> dict[Path, str]:
    """Every text file that holds measured accuracies, as it should be."""
    groups = groups_of(project)
    found = {project.page: between(project.page, BEGIN, END, results(project, figures))}
    for path in project.recipes():
        said, text = header(project, path.stem), path.read_text()
        mine = [group for group in groups if group.recipe == path.stem]
        found[path] = f"{text[: said.start('measured')]}{measured(mine)}{text[said.end('measured') :]}"
    return found
