"""Which classes a checkpoint may name: it is data from somebody else."""

import contextlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import get_loader
from lightning import LightningDataModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from vision_zoo.errors import CheckpointError, ConfigError
from vision_zoo.files import expanded
from vision_zoo.specs import import_path, is_import_path, is_package, returned_class

TRUSTED_PACKAGES = ("vision_zoo", "torch", "torchvision", "torchmetrics", "lightning", "timm")
"""Packages whose classes a checkpoint may name; a checkpoint is data from somebody else."""


CLASS_KEYS = ("class_path", "_class_path", "_instantiator")


KINDS: dict[str, tuple[type, ...]] = {
    "backbone": (nn.Module,),
    "optimizer": (Optimizer,),
    "scheduler": (LRScheduler, ReduceLROnPlateau),
    "data": (LightningDataModule,),
    "augmentation": (nn.Module,),
    "callbacks": (Callback,),
    "logger": (Logger,),
}


PATHS = ("data.init_args.root", "data.init_args.path", "root", "path", "trainer.default_root_dir")


WRITTEN_TO = ("dirpath", "save_dir", "dir")  # options of Lightning's callbacks, loggers and profilers


MOST_NODES, DEEPEST = 5_000_000, 40  # of nested plain data


MOST_TEXTS, MOST_LETTERS = 1000, 10**6  # within one text


def check_trust(checkpoint: Any, trusted_packages: Sequence[str], where: str) -> None:
    """Refuse names of code outside of the trusted packages, and of code of the wrong kind.

    What a checkpoint describes is built by importing what it names. So every class path is checked for its package,
    and what it leads to for where it was defined (``torch.os.system`` is no part of torch) and for what it is (a
    backbone must be an ``nn.Module``). Other texts of the configuration count too where they could be imported.

    Raises:
        CheckpointError: naming the code and the option that admits it.
    """
    admitted = (*TRUSTED_PACKAGES, *trusted_packages)
    for _, key, value in _walk({k: v for k, v in checkpoint.items() if k != "state_dict"}, where):
        if key in CLASS_KEYS:
            _check_class(value, key, admitted, where)
    about = checkpoint.get("vision_zoo")
    described = [checkpoint.get("datamodule_hyper_parameters"), about.get("config") if isinstance(about, dict) else 0]
    hparams = checkpoint["hyper_parameters"]
    described += [{name: hparams.get(name)} for name in ("backbone", "optimizer", "scheduler")]
    model = about["config"].get("model") if isinstance(about, dict) and isinstance(about.get("config"), dict) else None
    plain = {*PATHS, *_plain_options(described[0], trusted_packages)}
    specs = {"backbone.init_args.": hparams.get("backbone")}
    if isinstance(model, dict):
        specs |= {"model.backbone.init_args.": model.get("backbone"), "data.init_args.": described[1].get("data")}
    for place, spec in specs.items():
        plain |= {place + option for option in _plain_options(spec, trusted_packages)}
    for part in described:
        for path, key, value in _walk(part, where):
            if key not in CLASS_KEYS and isinstance(value, str) and path not in plain:
                _check_text(value, path, admitted, where)
    for holder in (hparams, model if isinstance(model, dict) else {}):
        for slot in ("backbone", "optimizer", "scheduler"):
            _check_slot(holder.get(slot), slot, where, needed=slot == "backbone" and holder is hparams)
    if isinstance(about, dict) and isinstance(about.get("config"), dict):
        config = about["config"]
        _check_slot(config.get("data"), "data", where)
        for section, slot in (("data", "augmentation"), ("trainer", "callbacks"), ("trainer", "logger")):
            options = config.get(section)
            options = options.get("init_args") if section == "data" and isinstance(options, dict) else options
            found = options.get(slot) if isinstance(options, dict) else None
            for spec in found if isinstance(found, list) else [found]:
                _check_slot(spec, slot, where)
    # Only one of the two is built from: see `Classifier.load_from_checkpoint` and the command line's layers.
    for part in described[:2] if isinstance(about, dict) else described:
        _check_nested(part, trusted_packages, where)


def _plain_options(spec: Any, trusted_packages: Sequence[str]) -> list[str]:
    """Options of a class of the user's own that its annotations call texts or paths, such as a file with labels.

    The parser keeps them as they are; in other options it may import or read what a text names.
    """
    name = (spec.get("class_path") or spec.get("_class_path")) if isinstance(spec, Mapping) else None
    if not isinstance(name, str) or name.partition(".")[0] not in trusted_packages:
        return []
    try:
        found = import_path(name)
        hints = get_type_hints(found.__init__ if inspect.isclass(found) else found)
    except Exception:  # there is no such class, which is said later, or an annotation that means nothing here
        return []
    return [option for option, hint in hints.items() if {*(get_args(hint) or [hint])} <= {str, Path, NoneType}]


def foreign_packages(config: Any) -> list[str]:
    """Packages of the classes and functions that a configuration names, save those that are trusted by themselves."""
    found = set()
    for path, key, value in _walk(config, "the configuration"):
        if isinstance(value, str) and is_import_path(value) and path not in PATHS:
            package = value.partition(".")[0]
            if package not in TRUSTED_PACKAGES and (key in CLASS_KEYS or is_package(package)):
                found.add(package)
    return sorted(found)


def trusting(packages: Iterable[str]) -> str:
    """What follows in a command on a checkpoint that names such packages: a blank and options, or nothing."""
    return "".join(f" --trusted_packages {name}" for name in packages)


def _walk(node: Any, where: str) -> Iterator[tuple[str, str, Any]]:
    """Every value of nested plain data that holds no further ones, and every class path.

    Yields:
        Where each is, the key that holds it, and the value.
    """
    stack: list[tuple[str, str, Any, int]] = [("", "", node, 0)]
    count = 0
    while stack:
        path, key, value, depth = stack.pop()
        count += 1
        if depth > DEEPEST or count > MOST_NODES:
            raise CheckpointError(f"{where} was not written by vision_zoo: its data are nested without an end")
        if key in CLASS_KEYS or not isinstance(value, (Mapping, list, tuple, set)):
            yield path, key, value
        elif isinstance(value, Mapping):
            stack += [(f"{path}.{k}".lstrip("."), str(k), v, depth + 1) for k, v in value.items()]
        else:
            stack += [(path, "", v, depth + 1) for v in value]


def _check_class(value: Any, key: str, admitted: Sequence[str], where: str) -> None:
    if not isinstance(value, str) or not is_import_path(value):
        raise CheckpointError(f"{where} has {str(value)[:80]!r} as {key}, which is not a package.module.Class")
    package = value.split(".")[0]
    if package not in admitted:
        raise CheckpointError(_not_trusted(where, value, package))
    _check_origin(value, admitted, where)


def _check_nested(part: Any, trusted_packages: Sequence[str], where: str) -> None:
    """Refuse a class among the options of another one, unless it is a module or of a package that the user named.

    An option without annotation takes any class, and what is called may start a program of its own.
    """
    for _, key, value in _walk(_nested_options(part), where):
        if key in CLASS_KEYS and value.split(".")[0] not in trusted_packages:
            try:
                found = pkgutil.resolve_name(value)
            except Exception:  # cannot be imported: then it cannot be run either
                found = nn.Module
            made = found if inspect.isclass(found) else returned_class(found)
            if made is None or not issubclass(made, nn.Module):
                raise CheckpointError(
                    f"{where} names {value} among the options of a class, which is not a Module class"
                )


def _nested_options(part: Any) -> list[Any]:
    """The options of the classes that stand for a slot, or among those of the trainer."""
    if not isinstance(part, Mapping):
        return []
    specs = [part.get(name) for name in ("backbone", "optimizer", "scheduler", "data")]
    model, trainer = part.get("model"), part.get("trainer")
    specs += [model.get(name) for name in ("backbone", "optimizer", "scheduler")] if isinstance(model, Mapping) else []
    for value in trainer.values() if isinstance(trainer, Mapping) else ():  # callbacks, a strategy, ...
        specs += _specs(value)
    options: list[Any] = [_without_class(spec) for spec in specs if isinstance(spec, Mapping)]
    if "_class_path" in part:  # options of a data module by themselves
        options.append(_without_class(part))
    return options


def _without_class(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name not in CLASS_KEYS}


def _check_text(value: str, path: str, admitted: Sequence[str], where: str) -> None:
    """Refuse a text that the parser would import, or read as a configuration of its own."""
    texts, count, length = [value], 0, 0
    while texts:
        text = texts.pop()
        count, length = count + 1, length + len(text)
        if count > MOST_TEXTS or length > MOST_LETTERS:
            raise CheckpointError(f"{where} was not written by vision_zoo: {path} is text within text")
        if is_import_path(text):
            package = text.split(".", maxsplit=1)[0]
            if package in admitted:
                _check_origin(text, admitted, where)
                if path.startswith("trainer.") and package not in admitted[len(TRUSTED_PACKAGES) :]:
                    _check_hook(text, path, where)
            elif is_package(package):
                raise CheckpointError(_not_trusted(where, text, package))
        elif ("/" in text or "." in text) and "\0" not in text and len(text) < 4096 and _is_file(text):
            raise CheckpointError(f"{where} names the file {text} as {path}, which a checkpoint may not do")
        try:
            with contextlib.suppress(yaml.YAMLError, ValueError, LookupError, AttributeError):
                yaml.safe_load(text)  # in Python: the parser's own reader, in C, has no limit to depth
            read = get_loader("yaml")(text)  # a class may be named within, and its dots be escaped
        except RecursionError:
            raise CheckpointError(f"{where} was not written by vision_zoo: {path} is nested without an end") from None
        except Exception:  # whatever the reader meets in a text that is none of its own
            read = None
        if isinstance(read, str):
            texts += [read] if read != text else []
        elif isinstance(read, (Mapping, list, set)):
            for _, key, inner in _walk(read, where):
                if key in CLASS_KEYS:
                    raise CheckpointError(f"{where} has options written as a text, {text[:80]!r}, as {path}")
                texts += [inner] if isinstance(inner, str) else []


def _check_hook(text: str, path: str, where: str) -> None:
    """Refuse a function's name among the trainer's options: callbacks and strategies call it."""
    try:
        found = pkgutil.resolve_name(text)
    except Exception:  # cannot be imported: then it cannot be called either
        return
    if callable(found) and not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise CheckpointError(
            f"{where} names {text} as {path}, to be called while training. Give that option on the command line or in "
            "a --config file"
        )


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # no name that a file could have
        return False


def _check_origin(value: str, admitted: Sequence[str], where: str) -> None:
    """Refuse what a trusted module has merely imported from elsewhere."""
    try:
        found = pkgutil.resolve_name(value)
    except Exception:  # cannot be imported: then it cannot be run either, and is refused where needed
        return
    module = found.__name__ if inspect.ismodule(found) else getattr(found, "__module__", None)
    package = str(module).split(".")[0]
    if callable(found) and package not in admitted:
        raise CheckpointError(_not_trusted(where, f"{value}, which is {module}.{found.__name__}", package))
    if inspect.ismodule(found) and package not in admitted:
        raise CheckpointError(_not_trusted(where, f"{value}, which is {module}", package))


def _check_slot(spec: Any, slot: str, where: str, *, needed: bool = False) -> None:
    """Refuse a class of the wrong kind before anybody calls it."""
    if isinstance(spec, Mapping) and "class_path" in spec:
        name, options = spec["class_path"], spec.get("init_args")
        if options is not None and not (isinstance(options, Mapping) and all(isinstance(k, str) for k in options)):
            raise CheckpointError(f"{where}: the init_args of {name} are not options")
    elif isinstance(spec, str) and "." in spec and not needed:
        name = spec
    elif needed:
        raise CheckpointError(f"{where} was not written by vision_zoo: {str(spec)[:80]!r} describes no {slot}")
    else:
        return
    try:
        found = import_path(name)
    except ConfigError as error:
        if slot in ("callbacks", "logger"):  # of training alone; to go on with it, fit imports them and says so
            return
        raise CheckpointError(f"{where} names {name} as {slot}: {error}") from error
    made = found if inspect.isclass(found) else returned_class(found)
    kinds = KINDS[slot]
    if made is None or not issubclass(made, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise CheckpointError(f"{where} names {name} as {slot}, which is no {expected} class")


def _not_trusted(where: str, what: str, package: str) -> str:
    return (
        f"{where} names {what}, code of a package that is not trusted. If you trust it, admit it with "
        f"--trusted_packages {package}"
    )


def places_outside(options: Any, folders: Sequence[Path]) -> Iterator[str]:
    """Where the callbacks, loggers and so on of a trainer's options would write, as far as it is in no such folder."""
    for _, key, value in _walk([_without_class(spec) for spec in _specs(options)], "the trainer's options"):
        if isinstance(value, str) and key not in CLASS_KEYS:
            path = expanded(value.removeprefix("file:"))
            if key in WRITTEN_TO or path.is_absolute() or ".." in path.parts:
                place = path.resolve()
                if not any(place.is_relative_to(folder.resolve()) for folder in folders):
                    yield value


def _specs(value: Any) -> list[Mapping[str, Any]]:
    """The classes with options that an option of the trainer names: none, one or several."""
    return [spec for spec in (value if isinstance(value, list) else [value]) if isinstance(spec, Mapping)]
