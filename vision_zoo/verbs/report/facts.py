"""What a run folder and its checkpoint say, as far as they say it: the values that the templates show."""

import base64
import contextlib
import csv
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import binomtest

from vision_zoo.checkpoints import Checkpoint, run_folder
from vision_zoo.classifier import Classifier
from vision_zoo.formatting import metric_text
from vision_zoo.trust import foreign_packages, trusting

PNG = b"\x89PNG\r\n\x1a\n"
LABELS = {
    "accuracy": "accuracy",
    "macro_accuracy": "accuracy, mean of the classes",
    "top5_accuracy": "top-5 accuracy",
    "f1": "F1, mean of the classes",
    "loss": "loss",
    "calibration_error": "calibration error",
}
SPLITS = {"train": "training", "val": "validation", "test": "test"}


@dataclass
class Facts:
    """A run, ready to be shown."""

    model: Classifier
    name: str  # of the configuration
    place: str  # the run folder, from the working directory if it is in there; the checkpoint where there is no folder
    weights: str  # the checkpoint, likewise
    dataset: str = "data of your own"  # name of its class
    config: str = ""  # as YAML, without options that are null
    foreign: Sequence[str] = ()  # packages of the user that a command on the checkpoint must trust
    results: dict[str, Any] = field(default_factory=dict)  # results.json
    metrics: dict[str, float] = field(default_factory=dict)  # by name, fractions
    per_class: list[dict[str, Any]] = field(default_factory=list)  # rows of per_class.csv
    epochs: list[dict[str, Any]] = field(default_factory=list)  # the last value of each metric
    images: dict[str, str] = field(default_factory=dict)  # PNG files in base64, by name
    test_source: str = ""  # folder or file of the test images, where the run was tested by itself
    views: str = "none"  # which the test averaged over, see types.TTA
    missing: list[str] = field(default_factory=list)  # what could not be read, a sentence each

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def tested(self) -> int:
        """Number of test images, where the accuracy of each class is known."""
        return sum(int(row["images"]) for row in self.per_class) if "test/accuracy" in self.metrics else 0

    def results_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the metrics by split."""
        splits = [split for split in SPLITS if any(name.startswith(f"{split}/") for name in self.metrics)]
        names = [name for name in LABELS if any(f"{split}/{name}" in self.metrics for split in splits)]
        rows = [[LABELS[name], *_texts(self.metrics, [f"{split}/{name}" for split in splits])] for name in names]
        return ["", *(SPLITS[split] for split in splits)], rows

    def epochs_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the metrics by epoch."""
        logged = dict.fromkeys(name for row in self.epochs for name in row)
        names = [name for part in (*SPLITS, "lr") for name in logged if name.partition("/")[0] == part]
        rows = [[f"{row['epoch'] + 1:.0f}", *_texts(row, names)] for row in self.epochs]
        return ["epoch", *(name.replace("/", " ").replace("_", " ") for name in names)], rows


def _texts(metrics: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [metric_text(name, metrics[name]) if name in metrics else "" for name in names]


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` images (Wilson 1927); unlike the normal one, it stays within 0 and 1."""
    found = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def collect(model: Classifier, checkpoint: Checkpoint) -> Facts:
    """Gather the facts of a run; what is missing or broken is reported in words, never made up."""
    path, config = checkpoint.path, checkpoint.config
    run = run_folder(path)
    facts = Facts(model, run.parent.name if run else checkpoint.run_name or path.stem, str(path), str(path))
    with contextlib.suppress(yaml.YAMLError):  # of a file that others made, with values that YAML cannot hold
        facts.config = yaml.safe_dump(_without_nulls(config), sort_keys=False, allow_unicode=True) if config else ""
    facts.foreign = foreign_packages(config)
    facts.dataset = str(checkpoint.data.get("class_path") or facts.dataset).rpartition(".")[2]
    if run is None:
        facts.missing.append("The checkpoint lies outside a run folder, so nothing is known about its results.")
        return facts
    here = Path.cwd().resolve()
    facts.place = str(run.relative_to(here) if run.is_relative_to(here) else run)
    facts.weights = f"{facts.place}/{path.relative_to(run).as_posix()}"
    facts.results = _read_json(run / "results.json", facts)
    if not facts.results:
        facts.missing.append("The run has no results: it was stopped before its end, or is still training.")
    facts.name = str(facts.results.get("config") or facts.name)
    tested = _take_metrics(facts, run, checkpoint)
    if note := _mapping(facts.results.get("data")).get("note"):
        facts.missing.append(f"Of the images of {facts.dataset}, its results say: {note}.")
    facts.epochs = by_epoch(_read_csv(run / "metrics.csv", facts, {"epoch", "step"}))
    files = {"curves": run / "curves.png"}
    if tested is not None:
        files |= {name: tested / f"{name}.png" for name in ("confusion_matrix", "mistakes")}
    contents = {name: file.read_bytes() for name, file in files.items() if file.is_file()}
    facts.images = {n: base64.b64encode(png).decode() for n, png in contents.items() if png.startswith(PNG)}
    return facts


def _take_metrics(facts: Facts, run: Path, checkpoint: Checkpoint) -> Path | None:
    """Take the metrics of the test that ended the run, or of a later test of the same weights, images and views.

    Returns:
        The folder of the test's other files, if there was a test.
    """
    facts.views = str(facts.results.get("test_time_augmentation", "none"))
    metrics = stored = _mapping(facts.results.get("metrics"))
    tested = next((folder for folder in (run, run / "test") if (folder / "per_class.csv").is_file()), None)
    if tested is not None and "test/accuracy" not in stored:
        later, data = _read_json(tested / "test.json", facts), _mapping(checkpoint.data.get("init_args"))
        views = str(checkpoint.config.get("tta") or "none")
        ours: dict[str, Any] = {"checkpoint": checkpoint.path.name, "step": checkpoint.step, "data": facts.dataset}
        if later.get("images") in (data.get("root"), data.get("path")):
            # With another split, the test part holds images that the network was trained with.
            ours |= {name: data[name] for name in ("test_split", "seed") if name in data and name in later}
        same = all(later.get(name, value) == value for name, value in ours.items())
        if same and later.get("test_time_augmentation", "none") == views:
            metrics, facts.views, facts.test_source = {**stored, **later}, views, str(later.get("images", ""))
        else:
            tested = None
    facts.metrics = {n: float(v) for n, v in metrics.items() if isinstance(v, int | float) and not n.endswith("_step")}
    if "test/accuracy" not in facts.metrics:
        words = f"--ckpt_path {shlex.quote(facts.place)}{trusting(facts.foreign)}"
        none = "This run was never tested, so there are no metrics of the test images"
        facts.missing.append(f"{none}. Test it: vision_zoo test {words}")
    elif tested is not None:
        facts.per_class = _read_csv(tested / "per_class.csv", facts, {"class", "precision", "recall", "f1", "images"})
    of_best = [SPLITS[split] for split in ("val", "test") if any(name.startswith(f"{split}/") for name in stored)]
    best = run / "checkpoints/best.ckpt"
    if of_best and not (best.is_file() and best.samefile(checkpoint.path)):
        facts.missing.append(f"The {' and '.join(of_best)} metrics are of best.ckpt, not of {checkpoint.path.name}.")
    return tested


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_json(path: Path, facts: Facts) -> dict[str, Any]:
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except ValueError as error:
        facts.missing.append(f"{path.name} is broken: {error}")
        return {}


def _read_csv(path: Path, facts: Facts, columns: set[str]) -> list[dict[str, Any]]:
    """Rows of a table in which everything but the class is a number, without empty values."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                given = {name: text for name, text in row.items() if text or name == "class"}
                if lacking := columns - given.keys():
                    raise ValueError(f"it lacks columns: {', '.join(sorted(lacking))}")
                rows.append({name: text if name == "class" else float(text) for name, text in given.items()})
    except (ValueError, TypeError, csv.Error) as error:
        facts.missing.append(f"{path.name} is broken: {error}")
        return []
    return rows


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def by_epoch(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each epoch with the last value of each metric; values of single steps are left out."""
    epochs: dict[Any, dict[str, Any]] = {}
    for row in rows:
        known = epochs.setdefault(row["epoch"], {})
        known.update({name: value for name, value in row.items() if not name.endswith("_step")})
    # An epoch that was cut short has no metrics yet.
    return [row for row in epochs.values() if any("/" in name for name in row)]
