"""reproduce: train a run again from its own checkpoint, and tell whether it comes out the same."""

import copy
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only
from scipy.stats import t

from vision_zoo.checkpoints import Checkpoint, open_checkpoint, run_folder
from vision_zoo.errors import CheckpointError, ConfigError, VisionZooError, refuse
from vision_zoo.files import expanded, is_address
from vision_zoo.formatting import metric_text
from vision_zoo.trainer_facts import device_name
from vision_zoo.training.made_with import versions
from vision_zoo.types import Config
from vision_zoo.verbs.predict import device_of

FEWEST = 3  # runs that tell a spread


def reproduce(
    run: list[str],
    train: Callable[[Checkpoint, Config], Path | None],
    data_root: str | None = None,
    output: str = ".",
    accelerator: str | None = None,
    trusted_packages: Sequence[str] = (),
) -> None:
    """Train a run again from its checkpoint alone, and compare.

    The exit code is 0 where the new run is the same bit for bit, or within the spread of the run's seeds, and else 1.

    Args:
        run: a run folder, a checkpoint, or best or last of the newest run.
        train: trains anew what a checkpoint and a configuration describe.
        data_root: folder of the images, where they have moved.
        output: folder for the new run, in its folder runs, by default here.
        accelerator: cpu, cuda, mps or gpu, by default as the run was told.
        trusted_packages: packages whose classes the checkpoint may name.
    """
    refuse(ConfigError, (len(run) != 1, "reproduce needs one run: vision_zoo reproduce runs/lenet5_mnist/version_0"))
    theirs = open_checkpoint(run[0], trusted_packages, prefer="last")
    folder, config = run_folder(theirs.path), copy.deepcopy(theirs.config)
    taught = f"{theirs.path} was not trained by steps, as fit does: what teach has made, teach makes again"
    bare = f"{theirs.path} holds no configuration: it is of no run of vision_zoo fit"
    way_out = f"continue it first: vision_zoo fit --ckpt_path {quote(str(folder))}"
    stopped = f"{folder} has no results.json, for the run was stopped before its end: {way_out}"
    ended = folder is None or (folder / "results.json").is_file()
    refuse(CheckpointError, (not config, bare), (not theirs.step, taught), (not ended, stopped))
    trainer = config.setdefault("trainer", {})
    trainer["default_root_dir"] = str(expanded(output).absolute())
    trainer |= {"accelerator": accelerator} if accelerator else {}
    if data_root:
        options = config["data"].setdefault("init_args", {})
        place = data_root if is_address(data_root) else str(expanded(data_root).absolute())
        options["path" if options.get("path") else "root"] = place
    if folder and (weights := _yaml(folder / "config.yaml").get("model", {}).get("weights")):
        config["model"]["weights"] = weights  # of a file that no checkpoint names
    before, named = _made_with(theirs), trainer.get("accelerator") or "auto"
    device = device_of(named) if isinstance(named, str) else None
    here = {**versions(), **({"device": device_name(device)} if device else {})}
    _tell({**before.get("versions", {}), "device": before.get("device")}, here)
    made = train(theirs, config)
    if made is None or vars(rank_zero_only).get("rank"):
        return
    found = (open_checkpoint(str(made), trusted_packages, prefer=prefer) for prefer in ("last", "best"))
    ours = next((checkpoint for checkpoint in found if checkpoint.step == theirs.step), None)
    now = _made_with(ours) if ours else {}
    _tell(before.get("data", {}), now.get("data", {}), "images of ")
    _tell({"processes": before.get("processes")}, {"processes": now.get("processes")})
    same = ours is not None and _same_weights(ours, theirs)
    metrics = folder / "metrics.csv" if folder else Path()
    first = _first_difference(metrics, made / "metrics.csv") if metrics.is_file() else ""
    if same and not first:
        print(f"bit-identical: weights{' and metrics.csv' * metrics.is_file()}, after {theirs.step:,} steps")
        return
    weights = f"weights after {theirs.step:,} steps {'are the same' if same else 'differ' if ours else 'are not there'}"
    how = f"{first or 'metrics.csv is the same' if metrics.is_file() else 'no metrics.csv is beside it'}; {weights}"
    spread, within = _spread(folder, made) if folder else ("no run folder, so that no other seeds are known", False)
    refuse(VisionZooError, (not within, f"different: {how}; {spread}"))
    print(f"within the spread of its seeds: {spread}; {how}")


def _tell(before: Mapping[str, Any], now: Mapping[str, Any], what: str = "") -> None:
    for name, value in before.items():
        if value is not None and name in now and now[name] != value:
            print(f"differs from the run: {what}{name}: {value} -> {now[name]}")


def _made_with(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint says that it was made with."""
    return dict((checkpoint.content.get("vision_zoo") or {}).get("made_with") or {})


def _same_weights(ours: Checkpoint, theirs: Checkpoint) -> bool:
    a, b = (checkpoint.content["state_dict"] for checkpoint in (ours, theirs))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _first_difference(theirs: Path, ours: Path) -> str:
    """Where two metrics.csv differ first; nothing where they are the same."""
    if theirs.read_bytes() == ours.read_bytes():
        return ""
    rows = [list(csv.DictReader(path.open(newline="", encoding="utf-8"))) for path in (theirs, ours)]
    for before, now in zip_longest(*rows, fillvalue={}):
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if names:
            row, name = before or now, names[0]
            where = f"epoch {int(row['epoch']) + 1}, step {row['step']}"
            return f"metrics.csv first differs in {where}: {name} {before.get(name)} -> {now.get(name)}"
    return "metrics.csv has other columns"


def _spread(folder: Path, made: Path) -> tuple[str, bool]:
    """Whether a new run is as runs of other seeds beside the old one let expect, and how that was told.

    By the 95 % prediction interval of one more run (Hahn & Meeker 1991, Statistical Intervals, section 4.7).
    """
    above = folder.parents[min(3, len(folder.parents) - 1)]
    beside = [*folder.parent.glob("version_*"), *above.glob(f"*/runs/{folder.parent.name}/version_*")]
    metrics, settings = dict[Any, dict[str, float]](), _settings(_yaml(folder / "config.yaml"))
    for other in dict.fromkeys([folder, *beside]):  # by seed; the run's own first
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):  # no run, or half
            config, found = _yaml(other / "config.yaml"), json.loads((other / "results.json").read_text())
            if other != made and _settings(config) == settings:
                metrics.setdefault(config.get("seed_everything"), dict(found["metrics"]))
    if len(metrics) < FEWEST:
        return f"beside it are {max(len(metrics) - 1, 0)} runs of other seeds, and {FEWEST - 1} tell a spread", False
    new = json.loads((made / "results.json").read_text())["metrics"]
    name = next((n for n in ("test/accuracy", "val/accuracy") if all(n in of for of in (new, *metrics.values()))), "")
    if not name:
        return "the runs of other seeds have no accuracy in common", False
    values = np.array([of[name] for of in metrics.values()])
    half = t.isf(0.025, len(values) - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / len(values))
    low, high = (metric_text(name, float(values.mean() + sign * half)) for sign in (-1, 1))
    told = f"{name} {metric_text(name, new[name])}, and {len(values)} seeds let {low} to {high} be expected"
    return told, bool(abs(new[name] - values.mean()) <= half)


def _settings(config: Config) -> Config:
    """A configuration without its seeds and its places."""
    left_out = {"trainer": {"default_root_dir"}, "data": {"root", "seed"}}
    flat = {section: dict(config.get(section) or {}) for section in left_out}
    flat["data"] |= flat["data"].pop("init_args", None) or {}
    kept = {section: {n: v for n, v in flat[section].items() if n not in names} for section, names in left_out.items()}
    return {**{name: value for name, value in config.items() if name != "seed_everything"}, **kept}


def _yaml(path: Path) -> Config:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}
