"""How well "none of these" tells images of other classes: AUROC, and foreign images that pass where 95 % of ours do.

python scripts/unknown.py --data data --flowers data/flowers5    # an epoch each, CIFAR-10 and flowers too
python scripts/unknown.py --data data --only MNIST --run runs/lenet5_mnist/version_0

The score of fit --known beside the largest softmax probability (Hendrycks and Gimpel 2017,
https://arxiv.org/abs/1610.02136). A row for each pair: the known classes, the others, and the test accuracy of the
network; higher AUROC and lower FPR95 are better.
"""

import argparse
import itertools
from functools import partial

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

import vision_zoo
from vision_zoo.backbones import EfficientNetLite
from vision_zoo.classifier import Classifier
from vision_zoo.data import CIFAR10, MNIST, FashionMNIST, ImageFolder
from vision_zoo.data.base import ImageDataModule
from vision_zoo.known import Known
from vision_zoo.training.features import features_of
from vision_zoo.verbs.teach.head import USUAL, Data, Fitter

PAIRS = {"MNIST": "FashionMNIST", "FashionMNIST": "MNIST", "CIFAR10": "flowers5", "flowers5": "two of its classes"}
BATCH = 500


def main() -> None:
    """Measure the pairs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="root of MNIST, FashionMNIST and CIFAR-10")
    parser.add_argument("--flowers", default="data/flowers5", help="a folder for each kind of flower")
    parser.add_argument("--only", choices=PAIRS, help="one pair, by its known classes")
    parser.add_argument("--run", help="run folder of a fit with --known, in place of a short one")
    parser.add_argument("--image_size", type=int, default=128, help="of the flowers")
    options = parser.parse_args()
    print(f"{'known':<16}{'others':<24}{'accuracy':>9}{'AUROC':>8}{'softmax':>9}{'FPR95':>8}{'softmax':>9}", flush=True)
    for name in [options.only] if options.only else PAIRS:
        if name == "flowers5":
            held_out(options)
        else:
            pair(name, options)


def pair(name: str, options: argparse.Namespace) -> None:
    """A network of the zoo, trained shortly on one dataset, shown the test images of another."""
    run = options.run
    if run is None:
        settings = {
            "data": name,
            "data.root": options.data,
            "data.val_split": 0.1,
            "data.mean": None,
            "data.std": None,
        }
        trained = vision_zoo.fit("lenet5_mnist", **settings, known=0.95, trainer={"max_epochs": 1})
        assert trained is not None
        run = trained.path
    model = vision_zoo.load(run)
    classes = {"MNIST": MNIST, "FashionMNIST": FashionMNIST, "CIFAR10": CIFAR10}
    others: ImageDataModule
    if PAIRS[name] in classes:
        others = classes[PAIRS[name]](root=options.data)
    else:
        others = ImageFolder(root=options.flowers, image_size=model.image_shape[1:])
    images, labels = classes[name](root=options.data).split_images("test")
    known, unknown = answers(model, images), answers(model, others.split_images("test").images)
    row(name, PAIRS[name], labels, known, unknown)


def answers(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and scores (N,) of raw images."""
    assert model.known is not None, "the run has no threshold: train it with --known 0.95"
    with torch.inference_mode():
        logits, scores = zip(*(model.answer(batch) for batch in images.split(BATCH)), strict=True)
    return torch.cat(logits), torch.cat(scores)


def held_out(options: argparse.Namespace) -> None:
    """Two kinds of flowers held out, for every two: EfficientNet-Lite's features and a head for the other kinds."""
    shape = (3, options.image_size, options.image_size)
    weights = partial(EfficientNetLite, weights="DEFAULT", every_stage=True)  # as teach has it
    data = ImageFolder(root=options.flowers, image_size=options.image_size, val_split=0.15, interpolation="bicubic")
    model = Classifier(weights, shape, data.class_names)
    parts = {}
    for split in ("train", "val", "test"):
        source, indices = data.subset(split)
        values, places, _ = features_of(model, source)
        chosen = torch.isin(places, indices)
        parts[split] = values[chosen], source.labels[places[chosen]]
    for pair_ in itertools.combinations(range(data.num_classes), 2):
        (train, val, test), foreign = zip(*(split_off(part, pair_) for part in parts.values()), strict=True)
        head = Fitter(Data(*train), classes=data.num_classes).fit(USUAL)
        known = Known.fit(train[0], head.logits(val[0]), val[0], 0.95)
        ours, others = ((head.logits(x), known(head.logits(x), x)) for x in (test[0], torch.cat(foreign)))
        row("flowers5, three", " ".join(data.class_names[k] for k in pair_), test[1], ours, others)


def split_off(part: tuple[Tensor, Tensor], classes: tuple[int, ...]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The features and labels that are of other classes, and the features that are of these."""
    features, labels = part
    foreign = torch.isin(labels, torch.tensor(classes))
    return (features[~foreign], labels[~foreign]), features[foreign]


def row(name: str, others: str, labels: Tensor, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Print one line of the table."""
    accuracy = float((ours[0].argmax(1) == labels).float().mean())
    pairs = [(ours[1], theirs[1]), (ours[0].softmax(1).amax(1), theirs[0].softmax(1).amax(1))]
    line = f"{name:<16}{others:<24}{100 * accuracy:>7.2f} %"
    target = torch.cat([torch.ones(len(labels)), torch.zeros(len(theirs[1]))]).long()
    # By rank: the metric takes scores outside of [0, 1] for logits, whose sigmoid would make many of them equal.
    ranks = [torch.cat(both).unique(return_inverse=True)[1].double() for both in pairs]
    for values in (
        [float(binary_auroc(rank / rank.max(), target)) for rank in ranks],
        [float((b >= a.quantile(0.05)).float().mean()) for a, b in pairs],
    ):
        line += f"{values[0]:>8.3f}{values[1]:>9.3f}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
