"""compare: is one run, or one group of runs, better than another? Paired tests on the same images."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from vision_zoo.checkpoints import Checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.sources import fingerprint
from vision_zoo.errors import ConfigError, DataError, refuse
from vision_zoo.files import write_file
from vision_zoo.plots import plot_images
from vision_zoo.training.evaluation import write_csv
from vision_zoo.transforms import mean_of_views
from vision_zoo.types import TTA
from vision_zoo.verbs.checks import check_data, data_place
from vision_zoo.verbs.compare import statistics
from vision_zoo.verbs.output import output_folder
from vision_zoo.verbs.predict import device_of

SHOWN = 10  # images that only one group gets right, in the picture; and classes on the screen
Part = Literal["test", "val"]


class Run(NamedTuple):
    """What one checkpoint makes of the images."""

    checkpoint: Checkpoint
    classes: tuple[str, ...]
    marks: dict[str, Any]  # which tell its images from others
    labels: NDArray[np.int64]  # (N,)
    said: NDArray[np.int64]  # (N,), the most probable class
    sure: NDArray[np.float64]  # (N,), the probability of the label

    @property
    def name(self) -> str:
        """Configuration and version, a trial of a study, or the name of a file outside of a run folder."""
        parts = self.checkpoint.path.parts
        if parts[-7:-6] == ("trials",) and parts[-5] == "runs":
            return parts[-6]
        return "/".join(parts[-4:-2]) if parts[-2] == "checkpoints" else parts[-1]

    @property
    def seed(self) -> Any:
        """None where it names none."""
        return self.checkpoint.config.get("seed_everything")


class Group:
    """Runs whose mean counts; often one."""

    def __init__(self, name: str, runs: Sequence[Run]) -> None:
        self.name, self.runs = name, runs
        right = np.array([run.said == run.labels for run in runs])  # (runs, N)
        self.right = right.mean(0)  # of each image, the share of the runs that are right
        self.sure = np.mean([run.sure for run in runs], axis=0)
        self.accuracies = [float(share) for share in right.mean(1)]  # of each run
        # By how much they would differ if each image were right by chance, as often as it is.
        self.least = float(right.var(0, ddof=1).sum()) / right.shape[1] ** 2 if len(runs) > 1 else 0.0
        self.by_seed = {run.seed: share for run, share in zip(runs, self.accuracies, strict=True)}

    def says(self, place: int) -> str:
        """What a run says of an image; of several, how many are right."""
        if len(self.runs) == 1:
            return str(self.runs[0].classes[self.runs[0].said[place]])
        return f"{round(self.right[place] * len(self.runs))} of {len(self.runs)} right"


def compare(
    open_run: Callable[[Path], tuple[Checkpoint, Classifier, ImageDataModule, TTA]],
    runs: list[tuple[str, list[Path]]],
    split: Literal["test", "val"] = "test",
    output: str = "comparison",
    accelerator: str = "auto",
    tta: TTA = "none",
) -> None:
    """Tell whether one run, or group of runs, is better than another.

    Args:
        open_run: opens a checkpoint with its data, and says what is averaged in its test.
        runs: two or more run folders, checkpoints, folders or patterns of several runs; the others are compared with
            the first.
        split: test, or val where all held out the same images.
        output: folder for compare.json, compare.csv and pictures of images that only one gets right, by default
            comparison here.
        accelerator: cpu, cuda, mps, gpu for either of these two, or auto for the fastest that there is.
        tta: test-time augmentation, see test, by default as each run was tested.
    """
    folder, device, paths = output_folder(output), device_of(accelerator), [path for _, group in runs for path in group]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    refuse(ConfigError, (twice, f"{twice} is named twice, and no run is better than itself: leave one out"))
    console, opened = Console(highlight=False, soft_wrap=True), list[Run]()
    data = None
    for path in paths:
        checkpoint, model, own, views = open_run(path)
        data = data or own  # of the others nothing is kept: they would fill the memory
        opened.append(run := _answers(checkpoint, model, own, views, split, device))
        _check_same(opened[0], run, split)
        console.print(escape(f"{run.name}: {100 * np.mean(run.said == run.labels):.2f} % of {len(run.labels):,}"))
    waiting = iter(opened)
    first, *others = (Group(name, [next(waiting) for _ in group]) for name, group in runs)
    rows = [_compared(first, other, statistics.ALPHA / len(others)) for other in others]
    for row, p in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
        row |= {"p_corrected": p, "comparisons": len(rows)}
        row["answer"] = _answer(row)
    folder.mkdir(parents=True, exist_ok=True)
    assert data is not None
    _write(folder, [first, *others], rows, data, split)
    _say(console, [first, *others], rows)
    console.print(escape(str(folder.resolve())))


def _answers(
    checkpoint: Checkpoint, model: Classifier, data: ImageDataModule, tta: TTA, split: Part, device: torch.device
) -> Run:
    """Have a checkpoint classify the images of a split, in their order."""
    check_data(model.to(device).eval(), data)
    data.prepare_data()
    none = "there are no validation images: --data.val_split is 0. To compare on the test images: --split test"
    refuse(ConfigError, (not len(data.subset(split).indices), none))
    parts = []
    with torch.inference_mode():
        for images, labels in data.loader(split):
            shares = mean_of_views(model, images.to(device), tta).softmax(1).cpu()
            parts.append((labels, shares.argmax(1), shares.gather(1, labels[:, None])[:, 0]))
    columns: Any = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    truth, said, sure = columns
    marks: dict[str, Any] = {**fingerprint(data.subset(split), data.root), "classes": data.class_names}
    size = (data.image_shape, data.interpolation, data.value_range, getattr(data, "resize", None))
    marks |= {"place": (type(data).__name__, data_place(data)), "size": size}
    return Run(checkpoint, data.class_names, marks | {"images that can be read": len(truth)}, truth, said, sure)


def _check_same(first: Run, run: Run, split: Part) -> None:
    """Refuse to compare on other images, or in another order."""
    alike = first.marks["size"] == run.marks["size"]
    # Pixels differ where images were resized otherwise, and are known of those in memory, names of those in files.
    names = (first.marks.keys() & run.marks.keys()) - {"size", "size" if alike else "pixels"}
    names -= {"place"} if names & {"names", "pixels"} else set()  # which else must be the same
    differing = sorted(name for name in names if first.marks[name] != run.marks[name])
    what = f"the {split} images of {run.name} are not those of {first.name}: {', '.join(differing)} differ"
    way_out = "Give all the same with --data.root, --data.path or --data.seed"
    refuse(DataError, (differing, f"{what}. {way_out}"))


def _compared(first: Group, second: Group, alpha: float) -> dict[str, Any]:
    """The difference of two groups, the second less the first, and what tells, with this alpha, if it is chance."""
    gains, labels = second.right - first.right, first.runs[0].labels

    def figures(of: Any) -> dict[str, Any]:
        low, high = statistics.interval(gains[of])
        shares = {"accuracy": float(second.right[of].mean()), "accuracy_against": float(first.right[of].mean())}
        counts = {"group_right_more": int((gains[of] > 0).sum()), "against_right_more": int((gains[of] < 0).sum())}
        bounds = {"difference": float(gains[of].mean()), "low": low, "high": high}
        return {"images": len(gains[of]), **shares, **bounds, **counts}

    classes = {name: labels == label for label, name in enumerate(first.runs[0].classes)}
    row: dict[str, Any] = {"group": second.name, "against": first.name, **figures(slice(None))}
    row["classes"] = {name: figures(of) for name, of in classes.items() if of.any()}
    row["p"] = row["p_images"] = statistics.over_images(gains)
    row |= {"images_needed": statistics.images_needed(gains, alpha), "seeds": None}
    if min(len(first.runs), len(second.runs)) > 1:
        seeds = first.by_seed.keys()
        paired = None not in seeds and seeds == second.by_seed.keys()
        paired = paired and len(seeds) == len(first.runs) == len(second.runs)
        other = [second.by_seed[seed] for seed in seeds] if paired else second.accuracies
        spread = statistics.over_seeds(first.accuracies, other, paired, (first.least, second.least))
        row["seeds"] = {**vars(spread), "seeds_needed": statistics.seeds_needed(spread, alpha)}
        row["p"] = max(row["p"], spread.p)  # chance of images and of seeds must both be ruled out (Berger 1982)
    return row


def _answer(row: dict[str, Any]) -> str:
    """The conclusion in words."""
    group, against, seeds, alpha = row["group"], row["against"], row["seeds"], statistics.ALPHA
    what = f"{100 * row['difference']:+.2f} points, 95 % interval over images {_range(row)}"
    what += f", over seeds {_range(seeds)} ({'' if seeds['paired'] else 'not '}paired)" if seeds else ""
    what += f"; p = {row['p_corrected']:.2g}"
    among = f", corrected for {row['comparisons']} comparisons, as the intervals are not"
    what += among * (row["comparisons"] > 1)
    about = "" if seeds else ". This is about these networks: several runs of both tell what other seeds would give"
    if row["p_corrected"] <= alpha:
        return f"{group} is {'better' if row['difference'] > 0 else 'worse'} than {against}: {what}{about}"
    alone = alpha / row["comparisons"]
    lacking = [f"{row['images_needed']:,} images"] if row["p_images"] > alone and row["images_needed"] else []
    if seeds and seeds["p"] > alone and seeds["seeds_needed"]:
        lacking.append(f"{seeds['seeds_needed']:,} seeds of each")
    would = f"about {' and '.join(lacking)} would tell such a difference, in 8 of 10 cases"
    would = would if lacking else "no number would tell so small a one"
    return f"it cannot be told whether {group} is better or worse than {against}: {what}; {would}{about}"


def _range(bounds: dict[str, Any]) -> str:
    return f"{100 * bounds['low']:+.2f} to {100 * bounds['high']:+.2f}"


def _write(
    folder: Path, groups: Sequence[Group], rows: Sequence[dict[str, Any]], data: ImageDataModule, split: Part
) -> None:
    """Write compare.json, compare.csv and the pictures."""
    listed = list[Any]()
    for group in groups:
        runs = zip(group.runs, group.accuracies, strict=True)
        told = [{"checkpoint": str(run.checkpoint.path), "seed": run.seed, "accuracy": share} for run, share in runs]
        listed.append({"name": group.name, "runs": told})
    about = {"split": split, "data": type(data).__name__, "place": data_place(data), "groups": listed}
    text = json.dumps({**about, "comparisons": rows}, indent=2) + "\n"
    write_file(folder / "compare.json", text.encode(errors="surrogateescape"))
    columns = ["group", "against", "class", *next(iter(rows[0]["classes"].values())), "p_images", "p", "p_corrected"]
    lines = list[dict[str, Any]]()
    for row in rows:
        both = {name: row[name] for name in ("group", "against")}
        lines += [{**row, "class": "(all)"}, *({**both, "class": name, **of} for name, of in row["classes"].items())]
    write_csv(folder / "compare.csv", [columns, *([line.get(name) for name in columns] for line in lines)])
    for number, second in enumerate(groups[1:], 1):
        _picture(groups[0], second, folder / f"compare{f'_{number}' if len(rows) > 1 else ''}.png", data, split)


def _picture(first: Group, second: Group, path: Path, data: ImageDataModule, split: Part) -> None:
    """Draw images that one group gets right (more often), those first in which probabilities differ most."""
    gains = second.right - first.right
    order = np.lexsort((np.abs(second.sure - first.sure), np.abs(gains)))[::-1]
    places = [*order[gains[order] < 0][:SHOWN], *order[gains[order] > 0][:SHOWN]]
    path.unlink(missing_ok=True)
    if not places:
        return
    kept, start = dict[int, torch.Tensor](), 0
    for images, _ in data.loader(split):  # once more: the files that cannot be decoded have no place
        kept |= {place: images[place - start].clone() for place in places if start <= place < start + len(images)}
        start += len(images)
    labels, names = first.runs[0].labels, data.class_names
    titles = [f"is {names[labels[at]]}\nA: {first.says(at)}\nB: {second.says(at)}" for at in places]
    title = f"Images that only one gets right (more often); A: {first.name}, B: {second.name}"
    plot_images(torch.stack([kept[place] for place in places]), titles, path, title)


def _say(console: Console, groups: Sequence[Group], rows: Sequence[dict[str, Any]]) -> None:
    """Print the groups, the answers, and the classes that differ most."""
    right = (Column(name, justify="right") for name in ("runs", "accuracy", "difference", "95 % interval", "p"))
    table = Table(Column("", overflow="fold"), *right)  # the end of a path tells it from others
    for group, row in zip(groups, [None, *rows], strict=True):
        spread = f" ± {100 * np.std(group.accuracies, ddof=1):.2f}" if len(group.runs) > 1 else ""
        told = [f"{100 * row['difference']:+.2f}", _range(row), f"{row['p_corrected']:.2g}"] if row else []
        table.add_row(escape(group.name), f"{len(group.runs)}", f"{100 * group.right.mean():.2f}{spread} %", *told)
    console.print(table)
    for row in rows:
        classes = sorted(row["classes"].items(), key=lambda of: -abs(of[1]["difference"]))[:SHOWN]
        points = ", ".join(f"{name} {100 * of['difference']:+.1f}" for name, of in classes if of["difference"])
        console.print(escape(f"{row['answer']}\nclasses that differ most, in points: {points or 'none'}"))
