"""What `teach --unlabelled --next` saves: test accuracy by labels, chosen by it or at random, over five draws.

    python scripts/next_labels.py --photos data/flowers5 --picture next_labels.png

Both sides begin with the same random photos. In each round a head is fitted to what is labelled, and says which
photos of the rest to label next, a quarter as many.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

from vision_zoo.backbones import EfficientNetLite
from vision_zoo.classifier import Classifier
from vision_zoo.data import ImageFolder
from vision_zoo.training.features import features_of
from vision_zoo.verbs.teach.head import USUAL, Data, Fitter
from vision_zoo.verbs.teach.label_next import worth_a_label

DRAWS, SIZES = 5, (50, 100, 200, 400, 800, 1600)
SHARE = 0.25  # of the labels so far, that a round adds


def main() -> None:
    """Measure, print a table, draw a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", default="data/flowers5", help="a folder for each class")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    photos = ImageFolder(
        options.photos,
        image_size=options.image_size,
        interpolation="bicubic",
        in_memory=False,
        test_split=0.2,
        val_split=0,
    )
    shape = (3, options.image_size, options.image_size)
    network = partial(EfficientNetLite, weights="DEFAULT", every_stage=True)  # as teach has it
    model = Classifier(network, shape, photos.class_names).eval()
    pool, test = (_data(model, photos, split) for split in ("train", "test"))
    found = {way: [_accuracies(pool, test, way, seed) for seed in range(DRAWS)] for way in ("next", "random")}
    print(f"{'labels':>8}{'--next':>18}{'random':>18}   test accuracy, mean and range of {DRAWS} draws")
    for place, size in enumerate(SIZES):
        cells = [[run[place] for run in runs] for runs in found.values()]
        shown = (f"{100 * statistics.mean(c):.1f} ({100 * min(c):.1f}-{100 * max(c):.1f})" for c in cells)
        print(f"{size:>8}" + "".join(f"{text:>18}" for text in shown))
    if options.picture:
        _draw(found, options.picture)


def _data(model: Classifier, photos: ImageFolder, split: str) -> Data:
    source, indices = photos.subset(split)
    found = features_of(model, source, indices)
    return Data(found.values, source.labels[found.places])


def _accuracies(pool: Data, test: Data, way: str, seed: int) -> list[float]:
    """Test accuracy with each number of labels."""
    order = torch.randperm(len(pool.labels), generator=torch.Generator().manual_seed(seed))
    chosen, accuracies = order[: SIZES[0]], []
    while True:
        labelled = pool.of(chosen)
        head = Fitter(labelled).fit(USUAL)
        if len(chosen) == SIZES[len(accuracies)]:
            accuracies.append(float((head.logits(test.values).argmax(1) == test.labels).double().mean()))
            if len(accuracies) == len(SIZES):
                return accuracies
        more = min(max(1, round(SHARE * len(chosen))), SIZES[len(accuracies)] - len(chosen))
        if way == "random":
            chosen = order[: len(chosen) + more]
            continue
        rest = order[~torch.isin(order, chosen)]
        worth = worth_a_label(head, USUAL, labelled.values, pool.values[rest], more)
        chosen = torch.cat([chosen, rest[worth]])


def _draw(found: dict[str, list[list[float]]], path: Path) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="labelled photos", ylabel="test accuracy, %")
    for (way, runs), color in zip(found.items(), ("tab:blue", "tab:gray"), strict=True):
        columns = [[100 * value for value in column] for column in zip(*runs, strict=True)]
        axes.plot(SIZES, [statistics.mean(c) for c in columns], "o-", color=color, label=way)
        axes.fill_between(SIZES, [min(c) for c in columns], [max(c) for c in columns], color=color, alpha=0.2)
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
