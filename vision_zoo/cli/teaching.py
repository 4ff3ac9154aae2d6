"""The words of ``teach``, ``audit`` and ``pack`` as options, and the fine-tuning that goes on from teach."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vision_zoo.cli.argv import FLAGS, Argv
from vision_zoo.cli.names import DATA_BY_ENDING, find_class
from vision_zoo.data.described import described_data
from vision_zoo.data.folder import ImageFolder
from vision_zoo.data.own import OwnImages
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.files import expanded
from vision_zoo.specs import import_path
from vision_zoo.training.features import BATCH
from vision_zoo.types import Config

RECIPE = "finetune"  # what --refine goes on with
IMAGE_SIZE = 128
VAL_SPLIT = 0.1  # unless some class has few to train with
LEAST = 64  # pixels of a side that tell digits apart to a network of photos
FEWEST = 10  # images of a class to train with, of which some are held out for validation
_SHORT = {"image_size": "data.image_size", "backbone": "model.backbone", "seed": "seed_everything"}


def in_full(argv: Argv) -> Argv:
    """The words of teach, audit or pack with the options that its own stand for, and its folder as the data's place."""
    verb, place = argv.verb, list[tuple[str, str | None]]()
    needs = f"{verb} needs a folder of class folders, a table or an array file"
    begins = {
        "teach": "begins a run: leave out --ckpt_path, or continue it with vision_zoo fit",
        "audit": "judges by a pretrained network's features: leave out --ckpt_path",
        "pack": "takes data alone: leave out --ckpt_path",
    }[verb]
    helps = set(FLAGS) & dict(argv.options).keys()
    words = argv.stray or (() if argv.values("data") else argv.values("data.root", "data.path")[-1:])
    refuse(
        ConfigError,
        (not words and not argv.values("data") and not helps, f"{needs}, as in: vision_zoo {verb} photos"),
        (len(argv.stray) > 1, f"{needs}, and one of them: got {' '.join(argv.stray)}. Quote a name with blanks"),
        (argv.values("ckpt_path"), f"{verb} {begins}"),
    )
    if words:
        kind, option = _kind(words[0])
        place = [("data", kind), (f"data.{option}", words[0])]
    options = [(_SHORT.get(name.partition(".")[0], name.partition(".")[0]) + name[len(name.partition(".")[0]) :], value)
               for name, value in argv.options]  # fmt: skip
    seeds = [("data.seed", value) for name, value in options if name == "seed_everything"]
    return replace(argv, options=(*place, *seeds, *options), stray=())


def _kind(place: str) -> tuple[str, str]:
    """The data module of a place, and its option for it."""
    path = expanded(place)
    kind = DATA_BY_ENDING.get(path.suffix.lower()) if not path.is_dir() else None
    unknown = f"{path} is none of the files that it takes: {', '.join(DATA_BY_ENDING)}. Give one of these, or a folder"
    refuse(ConfigError, (kind is None and path.is_file(), unknown))
    return (kind, "path") if kind else ("ImageFolder", "root")


def defaults(argv: Argv) -> Config:
    """The configuration that teach, audit or pack begins with: the latter two hold nothing out."""
    network = {"weights": "DEFAULT", "every_stage": True}
    backbone = {"class_path": "vision_zoo.backbones.EfficientNetLite", "init_args": network}
    config: Config = {"model": {"backbone": backbone}}
    given = [word for word in argv.values("data")[:1] if word != "null"]
    if not given:
        return config
    path = find_class(given[0], "data")
    kind: Any = import_path(path)
    shape = getattr(kind, "image_shape", None)  # where it is known without its files
    if isinstance(kind, type) and issubclass(kind, OwnImages) and kind.__module__.startswith("vision_zoo.data."):
        shares = (0.2, VAL_SPLIT) if argv.verb == "teach" else (0, 0)
        options: dict[str, Any] = {"test_split": shares[0], "val_split": shares[1]}
        options |= {} if argv.verb == "pack" else {"image_size": IMAGE_SIZE, "batch_size": BATCH}
        # Files are decoded while features are computed.
        options |= {"in_memory": False} if issubclass(kind, ImageFolder) else {}
        config["data"] = {"class_path": path, "init_args": options}
    elif argv.verb != "teach":
        side = max(LEAST, *shape[1:]) if isinstance(shape, tuple) else IMAGE_SIZE
        options = {"val_split": 0} | ({"image_size": side} if argv.verb == "audit" else {})
        config["data"] = {"class_path": path, "init_args": options}
    return config


def without_validation(data: Mapping[str, Any]) -> bool:
    """Whether to hold no validation images out of data of this description: some class has few to train with."""
    module = described_data({**data, "init_args": {**(data.get("init_args") or {}), "val_split": 0}}, ask=True)
    if module is None:
        return False
    return int(module.class_counts.min()) < FEWEST


def refine(execute: Callable[[list[str]], Any], taught: Path, config: Config) -> Path:
    """Fine-tune what teach left, with the same data, and say which of the two is better on validation."""
    words = ["fit", "--config", RECIPE, f"--model.weights={taught / 'checkpoints' / 'best.ckpt'}"]
    for slot, spec in (("model.backbone", config["model"]["backbone"]), ("data", config["data"])):
        spec = {"class_path": spec} if isinstance(spec, str) else spec  # noqa: PLW2901  # a function
        words.append(f"--{slot}={spec['class_path']}")
        given = {name: value for name, value in (spec.get("init_args") or {}).items() if value is not None}
        batch = {"batch_size", "augmentation"} if slot == "data" else set()  # which are the recipe's
        words += [f"--{slot}.{name}={_word(value)}" for name, value in given.items() if name not in batch]
    words.append(f"--seed_everything={config['seed_everything']}")
    trainer, known = config.get("trainer") or {}, json.loads((taught / "results.json").read_text())["known"]
    given = {name: trainer.get(name) for name in ("accelerator", "devices", "precision", "default_root_dir", "logger")}
    words += [f"--trainer.{name}={_word(value)}" for name, value in given.items() if value is not None]
    words += [f"--known={known['share']}"] if known else []
    folder = Path(execute(words))
    before, after = (json.loads((path / "results.json").read_text())["metrics"] for path in (taught, folder))
    for split in ("val", "test"):
        name = f"{split}/accuracy"
        if name in before and name in after:
            print(f"{name}: taught {100 * before[name]:.1f} %, refined {100 * after[name]:.1f} %")
    if "val/accuracy" in before and "val/accuracy" in after:
        better = folder if after["val/accuracy"] > before["val/accuracy"] else taught
        print(f"better on validation: {better}")
    return folder


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
