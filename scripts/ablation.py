"""What each method of training is worth: a small network on some of CIFAR-10, one method at a time.

    python scripts/ablation.py --data_root DIR            # all runs of three seeds, seed by seed, then the table
    python scripts/ablation.py --data_root DIR --seeds 1

The runs are those of scripts/reproduce.py: they can be stopped and started again, and each leaves a row in
configs/results.csv. The table in configs/README.md is made of the rows.
"""

import argparse
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "ablation_cifar10"
_FLIP, _CROP = "RandomHorizontalFlip", "{class_path: RandomCrop, init_args: {padding: 4}}"
_CUTMIX = "{class_path: CutMix, init_args: {p: 0.5}}"
_HEADING = """
## What each method is worth

A ConvNet of 98,970 parameters, 20 epochs of 10,000 images of CIFAR-10, one method at a time on top of the recipe
`ablation_cifar10`. The difference to the plain recipe is the mean over the seeds that both have, and behind it stands
its standard error, which is rough with so few seeds: a seed is also a choice of images. The plain network learns its
images by heart, and what keeps it from that gains most here. `scripts/ablation.py` has the options; the last lines of
its table put methods together; which ones was decided by the test accuracies of the others, so that those figures are
slightly optimistic. Rates of optimizers are untuned. It makes the rows by
`python scripts/ablation.py --data_root data`.
"""
_RATES = "lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.0005"
_MUON = f'--model.optimizer MuonWith --model.optimizer.other SGD --model.optimizer.other_options "{{{_RATES}}}"'
_EMA = "--trainer.callbacks+ EMA --trainer.callbacks.decay 0.998"
_TOGETHER = f"{_MUON} {_EMA} --tta flip"


def _augmented(*transforms: str) -> str:
    return f'--data.augmentation "[{", ".join(transforms)}]"'


# Options on top of the recipe.
METHODS: dict[str, str] = {
    "plain": "",
    "RandomHorizontalFlip": _augmented(_FLIP),
    "AlternatingFlip": _augmented("AlternatingFlip"),
    "RandomCrop": _augmented(_CROP),
    "RandomResizedCrop": _augmented("{class_path: RandomResizedCrop, init_args: {scale: [0.5, 1.0]}}"),
    "Cutout": _augmented("Cutout"),
    "RandomErasing": _augmented("RandomErasing"),
    "ColorJitter": _augmented("{class_path: ColorJitter, init_args: {brightness: 0.3, contrast: 0.3}}"),
    "RandAugment": _augmented("RandAugment"),
    "TrivialAugmentWide": _augmented("TrivialAugmentWide"),
    "MixUp": _augmented("{class_path: MixUp, init_args: {alpha: 0.2}}"),
    "CutMix": _augmented(_CUTMIX),
    "label smoothing": "--model.loss.label_smoothing 0.1",
    "Focal": "--model.loss Focal",
    "BinaryCrossEntropy": "--model.loss BinaryCrossEntropy",
    "no decay of vectors": "--model.decay_vectors false",
    "EMA": _EMA,
    "MuonWith": _MUON,
    "SAM": "--model.optimizer SAM --model.optimizer.lr 0.1 --model.optimizer.base_options "
    '"{momentum: 0.9, nesterov: true, weight_decay: 0.0005}"',
    "AdamWScheduleFree": "--model.optimizer AdamWScheduleFree --model.optimizer.lr 0.005 --model.scheduler null",
    "TTA flip": "--tta flip",
    "RandomHorizontalFlip, RandomCrop, MuonWith, EMA, TTA flip": f"{_augmented(_FLIP, _CROP)} {_TOGETHER}",
    "the same and RandAugment": f"{_augmented(_FLIP, _CROP, 'RandAugment')} {_TOGETHER}",
    "the same and RandAugment, CutMix": f"{_augmented(_FLIP, _CROP, 'RandAugment', _CUTMIX)} {_TOGETHER}",
}


def variants() -> dict[str, tuple[str, str, int]]:
    """The methods as variants of the recipe; see results.VARIANTS."""
    names = {name: f"ablation {name}" for name in METHODS if name != "plain"}
    return {name: (RECIPE, METHODS[method], 0) for method, name in names.items()}


def lines(groups: Sequence[Any]) -> list[str]:
    """The table of the rows, a line for each method, those that help most first; nothing where the plain one lacks."""
    told = {tuple(shlex.split(group.options)): group for group in groups if group.recipe == RECIPE}
    found = {options: _by_seed(group) for options, group in told.items()}
    if () not in found:
        return []
    keys = {name: tuple(shlex.split(options)) for name, options in METHODS.items()}
    of_method = {name: key for name, key in keys.items() if key in found}
    gains = {name: _gains(found[key], found[()]) for name, key in of_method.items()}
    text = _HEADING.splitlines()
    text += ["", "| method | test accuracy | against plain, points | time |", "|---|---|---|---|"]
    for name in sorted(gains, key=lambda name: -statistics.fmean(gains[name])):
        group, own = told[of_method[name]], gains[name]
        error = f" +- {statistics.stdev(own) / math.sqrt(len(own)):.2f}" if len(own) > 1 else ""
        gain = "" if name == "plain" else f"{statistics.fmean(own):+.2f}{error}"
        text.append(f"| {name} | {group.accuracy} ({len(group.rows)}) | {gain} | {group.time} |")
    missing = [name for name in METHODS if name not in of_method]
    return [*text, "", f"Not measured yet: {', '.join(missing)}."] if missing else text


def _by_seed(group: Any) -> dict[str, float]:
    return {row["seed"]: 100 * float(row["test/accuracy"]) for row in group.rows}


def _gains(of_method: dict[str, float], plain: dict[str, float]) -> list[float]:
    """The differences of the seeds that both have: a seed is also a choice of images."""
    return [value - plain[seed] for seed, value in of_method.items() if seed in plain] or [math.nan]


def main() -> int:
    """Make the runs that are missing; the exit code of the first that fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", required=True, help="folder that holds CIFAR-10")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from scripts import reproduce

    return reproduce.main([RECIPE, *variants(), "--seeds", str(given.seeds), "--data_root", given.data_root])


if __name__ == "__main__":
    sys.exit(main())
