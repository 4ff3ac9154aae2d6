"""audit: what is wrong with a data set, as one page with pictures, and the files moved as one ticks in it."""

from collections import Counter
from pathlib import Path

import torch

from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.files import expanded
from vision_zoo.training.evaluation import write_csv
from vision_zoo.training.features import features_of
from vision_zoo.verbs.audit.findings import all_of, find, has_class_folders, rows_of
from vision_zoo.verbs.audit.page import write_page
from vision_zoo.verbs.audit.pictures import look
from vision_zoo.verbs.predict import device_of


def audit(model: Classifier, datamodule: ImageDataModule, output: str = "audit", apply: str | None = None) -> Path:
    """Find wrong labels, copies, leaks between splits and broken files.

    Args:
        model: the classifier, around the pretrained network.
        datamodule: the data.
        output: folder for audit.html and issues.csv.
        apply: a fixes.csv that the page saved, to move files as it says; or undo.csv.

    Raises:
        ConfigError: if the output would lie among the images, or replace a page of another origin.
    """
    assert apply is None  # needs no network: see cli.main
    page = expanded(output).resolve() / "audit.html"
    among = has_class_folders(datamodule) and page.is_relative_to(datamodule.root.resolve())
    foreign = page.exists() and b'content="vision_zoo ' not in page.read_bytes()[:4096]
    another = "Set --output to another folder"
    refuse(
        ConfigError,
        (among, f"--output {page.parent} lies among the images, where it would be taken for a class. {another}"),
        (page.parent.exists() and not page.parent.is_dir(), f"--output {page.parent} is not a folder. {another}"),
        (foreign, f"{page} is there and was not written by audit. {another}"),
    )
    datamodule.prepare_data()
    audited, seed = all_of(datamodule), datamodule.seed
    looks, model = look(audited.source), model.to(device_of("auto"))
    values, places, _ = features_of(model, audited.source)
    looks = looks.of(torch.isin(looks.places, places))  # a damaged file may be readable at one size alone
    issues, notes = find(audited, looks, values[torch.isin(places, looks.places)], seed)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_csv(page.with_name("issues.csv"), rows_of(issues, audited))
    write_page(page, datamodule, audited, looks, issues, notes)
    for kind, count in Counter(issue.kind for issue in issues).items():
        print(f"{kind}: {count:,}")
    print(*notes, page, sep="\n")
    return page
