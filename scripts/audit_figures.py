"""How well audit finds wrong labels and copies, beside cleanlab on the same features.

python scripts/audit_figures.py --data data --flowers data/flowers5 --output figures
CLEANLAB/bin/python scripts/audit_figures.py --cleanlab figures/*.npz    # in an environment of its own

Flowers: the groups of identical files that lie in two classes, by the SHA-1 of files. Flowers and 10,000 images of
MNIST: 5 % of the labels changed at random, for each seed: how many of them audit suspects (recall), and how many of
those that it suspects were changed (precision; labels that were wrong before count against it). Seconds are those of a
processor.
"""

import argparse
import hashlib
import time
import warnings
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

RATE, IMAGES = 0.05, 10_000


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="root of MNIST")
    parser.add_argument("--flowers", default="data/flowers5", help="a folder for each kind of flower")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", help="folder for what cleanlab is to see")
    parser.add_argument("--cleanlab", nargs="+", help="files of that folder, of which cleanlab judges")
    options = parser.parse_args()
    if options.cleanlab:
        for file in options.cleanlab:
            with_cleanlab(Path(file))
    else:
        with_audit(options)


def with_audit(options: argparse.Namespace) -> None:
    """Audit both data sets."""
    import torch

    from vision_zoo.backbones import EfficientNetLite
    from vision_zoo.classifier import Classifier
    from vision_zoo.data import MNIST, ImageFolder
    from vision_zoo.data.sources import InMemory
    from vision_zoo.training.features import features_of
    from vision_zoo.verbs.audit import findings, labels
    from vision_zoo.verbs.audit.pictures import copies, look

    kept = {}
    compute = labels.cross_validate  # what the heads of audit see, for cleanlab

    def cross_validate(data, *rest):
        kept["features"] = data.values.numpy()
        return compute(data, *rest)

    labels.cross_validate = cross_validate
    common = {"val_split": 0, "interpolation": "bicubic"}
    flowers = ImageFolder(root=options.flowers, image_size=128, test_split=0, in_memory=False, **common)
    for name, data in (("flowers5", flowers), ("MNIST", MNIST(root=options.data, image_size=64, **common))):
        began = time.process_time()
        audited = findings.all_of(data)
        if name == "MNIST":
            audited = audited._replace(source=InMemory(*audited.source.fetch(torch.arange(IMAGES))[:2]))
        backbone = partial(EfficientNetLite, weights="DEFAULT", every_stage=True)  # as audit has it
        model = Classifier(backbone, data.image_shape, data.class_names, mean=(0.5,), std=(0.5,))
        looks, true = look(audited.source), audited.source.labels
        values = features_of(model, audited.source).values
        seen = time.process_time() - began
        issues, _ = findings.find(audited, looks, values, seed=0)
        total = time.process_time() - began
        print(f"{name}: {len(true):,} images, {seen:.0f} s to see them, {total:.0f} s in all", flush=True)
        kinds = defaultdict(int)
        for issue in issues:
            kinds[f"{issue.kind} ({issue.detail})" if "copies" in issue.kind else issue.kind] += 1
        print("  " + ", ".join(f"{kind}: {count}" for kind, count in kinds.items()))
        if name == "flowers5":
            same = defaultdict(set)
            for path in audited.source.paths:
                same[hashlib.sha1(Path(path).read_bytes(), usedforsecurity=False).digest()].add(path)
            known = [group for group in same.values() if len({Path(path).parent for path in group}) > 1]
            found = [{audited.source.paths[place] for place in issue.places} for issue in issues
                     if issue.kind == findings.ACROSS_CLASSES]  # fmt: skip
            print(f"  identical files in two classes: {sum(group in found for group in known)} of {len(known)} found")
        for seed in range(options.seeds):
            given, wrong = changed(true.numpy(), len(data.class_names), seed)
            groups = copies(audited.source, looks, values)
            copy_of = torch.arange(len(true))
            for _, rows in groups:
                copy_of[rows] = rows[0]
            small = looks.gray.flatten(1)
            probabilities = labels.held_out_probabilities(values, small, torch.from_numpy(given), copy_of, 0)
            assert probabilities is not None
            suspected = labels.suspects(probabilities, torch.from_numpy(given)).places.numpy()
            row(f"{name}, seed {seed}, audit", np.isin(np.arange(len(given)), suspected), wrong)
            if options.output:
                Path(options.output).mkdir(parents=True, exist_ok=True)
                arrays = {"given": given, "wrong": wrong, "probabilities": probabilities.numpy(), **kept}
                np.savez(Path(options.output) / f"{name}_{seed}.npz", **arrays)


def changed(labels: np.ndarray, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which some were changed to another, and which."""
    rng, given, wrong = np.random.default_rng(seed), labels.copy(), np.zeros(len(labels), bool)
    places = rng.choice(len(labels), round(RATE * len(labels)), replace=False)
    given[places] = (labels[places] + rng.integers(1, classes, len(places))) % classes
    wrong[places] = True
    return given, wrong


def with_cleanlab(file: Path) -> None:
    """What cleanlab's defaults find, on audit's features and on its probabilities."""
    from cleanlab.classification import CleanLearning
    from cleanlab.filter import find_label_issues

    warnings.filterwarnings("ignore")  # its regression does not converge on unscaled features
    arrays = np.load(file)
    given, wrong = arrays["given"], arrays["wrong"]
    row(f"{file.stem}, find_label_issues", find_label_issues(given, arrays["probabilities"], n_jobs=1), wrong)
    issues = CleanLearning(seed=0).find_label_issues(arrays["features"], given)
    row(f"{file.stem}, CleanLearning", issues["is_label_issue"].to_numpy(), wrong)


def row(name: str, suspected: np.ndarray, wrong: np.ndarray) -> None:
    """Print one line of the table."""
    hits = int((suspected & wrong).sum())
    recall, precision = hits / int(wrong.sum()), hits / max(1, int(suspected.sum()))
    score = 2 * hits / (int(wrong.sum()) + int(suspected.sum()))
    print(f"{name:<40} suspected {suspected.sum():>5,}  recall {recall:.3f}  precision {precision:.3f}  F1 {score:.3f}")


if __name__ == "__main__":
    main()
