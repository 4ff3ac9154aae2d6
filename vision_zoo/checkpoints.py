"""Reading files that somebody else may have made: nothing in them is run, and they name trusted classes only."""

import contextlib
import importlib
import importlib.util
import inspect
import keyword
import pkgutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
import yaml
from jsonargparse import get_loader
from lightning import LightningDataModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from vision_zoo.errors import CheckpointError, ConfigError
from vision_zoo.files import expanded

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
HYPERPARAMETERS = {
    *("backbone", "image_shape", "class_names", "mean", "std"),
    *("optimizer", "scheduler", "label_smoothing"),
}
PATHS = ("data.init_args.root", "data.init_args.path", "root", "path", "trainer.default_root_dir")
WRITTEN_TO = ("dirpath", "save_dir", "dir")  # options of Lightning's callbacks, loggers and profilers
MOST_SIDE, MOST_VALUES, MOST_CLASSES = 2**15, 2**28, 10**6  # of an image, in an image, of a network
MOST_NODES, DEEPEST = 5_000_000, 40  # of nested plain data
MOST_TEXTS, MOST_LETTERS = 1000, 10**6  # within one text


# -------------------------------------------------------------------------------------------------------------- files


def read_torch_file(path: str | Path) -> Any:
    """Read a file written by ``torch.save`` without running anything that it holds.

    Raises:
        CheckpointError: if it is missing, broken, or needs more than tensors and plain types.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file.resolve()} not found")
    try:
        _refuse_compressed(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{file.resolve()} cannot be read: {error.strerror}") from error
    except Exception as error:  # torch.load raises whatever the zip or pickle reader meets in a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        for line in str(error).splitlines():
            if "Unsupported" in line or "WeightsUnpickler error" in line:
                reason = line.strip()
        raise CheckpointError(
            f"{file.resolve()} is not a checkpoint that can be loaded safely (truncated, of another kind, or holding "
            f"more than tensors and plain data): {reason}"
        ) from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a file of weights: a state dict written by ``torch.save``, a safetensors file, or a whole checkpoint.

    Returns:
        Names and tensors; of a checkpoint those of the backbone, by the backbone's own names.

    Raises:
        CheckpointError: if it is missing, broken, or holds anything else.
        ConfigError: if it is of the safetensors format and that package is not installed.
    """
    file = Path(path)
    state: Any = _read_safetensors(file) if _is_safetensors(file) else read_torch_file(file)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = {str(name).removeprefix("backbone."): value for name, value in state["state_dict"].items()}
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is neither a state dict (names with tensors) nor a checkpoint")
    return state


def _is_safetensors(file: Path) -> bool:
    """Whether a file begins as https://huggingface.co/docs/safetensors says: a length of eight bytes, then JSON."""
    try:
        with file.open("rb") as stream:
            return stream.read(9)[8:] == b"{"
    except OSError:  # who reads it as a whole says what is wrong
        return False


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file  # noqa: PLC0415  of an extra
    except ImportError as error:
        raise ConfigError(
            f"{file} needs the package safetensors ({error}). Run: pip install 'vision_zoo[export]'"
        ) from error
    try:
        state: dict[str, Tensor] = load_file(file)
    except Exception as error:  # safetensors has an exception of its own, and others for what its header may hold
        raise CheckpointError(f"{file.resolve()} is not a whole safetensors file: {error}") from error
    return state


def _refuse_compressed(file: Path) -> None:
    """Refuse archives that unpack to more than they are: torch.save compresses nothing."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    if size > file.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(f"a compressed archive of {size:,} bytes, which torch.save does not write")


# -------------------------------------------------------------------------------------------------------- checkpoints


def read_checkpoint(path: str | Path, trusted_packages: Sequence[str] = ()) -> dict[str, Any]:
    """Read a training checkpoint and check that it is one, and that it names trusted classes only.

    Raises:
        CheckpointError: if it is missing, broken, no vision_zoo checkpoint, or names a class of another package.
    """
    checkpoint = read_torch_file(path)
    where = str(Path(path).resolve())
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters"} <= checkpoint.keys():
        raise CheckpointError(f"{where} is not a vision_zoo checkpoint (a bare state dict goes to --model.weights)")
    hparams = checkpoint["hyper_parameters"]
    if not isinstance(hparams, dict) or not {"backbone", "image_shape", "class_names"} <= hparams.keys():
        raise CheckpointError(f"{where} was not written by vision_zoo: it describes no backbone")
    check_trust(checkpoint, trusted_packages, where)
    for problem in _problems(checkpoint):
        raise CheckpointError(f"{where} was not written by vision_zoo: {problem}")
    return checkpoint


def _problems(checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a checkpoint's plain data, one after the other."""
    hparams, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    shape, names = hparams["image_shape"], hparams["class_names"]
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        yield "its state_dict is not one"
    if not isinstance(shape, (list, tuple)) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        yield f"image_shape is {str(shape)[:80]}, not (channels, height, width)"
    if max(shape) > MOST_SIDE or shape[0] * shape[1] * shape[2] > MOST_VALUES:
        yield f"images of shape {tuple(shape)} are beyond all measure"
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        yield "class_names is not a list of names"
    if not 1 <= len(names) <= MOST_CLASSES:
        yield f"it has {len(names):,} classes"
    for name in ("mean", "std"):
        values = hparams.get(name, [0.0])
        if not isinstance(values, (list, tuple)) or not all(isinstance(x, (int, float)) for x in values):
            yield f"{name} is not a list of numbers"
        if len(values) not in (1, shape[0]):
            yield f"{name} has {len(values)} values for {shape[0]} channels"
    about = checkpoint.get("vision_zoo")
    if about is not None:
        sections = about.get("config") if isinstance(about, dict) else None
        if not isinstance(sections, dict) or not all(isinstance(sections.get(n), dict) for n in ("model", "data")):
            yield "its configuration has no model and data"
        name = about.get("name")
        if not isinstance(name, str) or not name or Path(name).name != name:
            yield f"it names its run {str(name)[:80]!r}"
    for section in ("hyper_parameters", "datamodule_hyper_parameters"):
        options = checkpoint.get(section)
        if options is not None and not (isinstance(options, dict) and all(isinstance(key, str) for key in options)):
            yield f"its {section} are not options"
    foreign = sorted(hparams.keys() - HYPERPARAMETERS)
    if foreign:
        yield f"it has the hyperparameters {', '.join(foreign)[:80]}"
    described = [hparams["backbone"], about["config"]["model"].get("backbone") if about is not None else None]
    for backbone in described:
        if isinstance(backbone, dict) and "class_path" in backbone:
            yield from _too_large(backbone, shape, len(names), state)


def _too_large(
    backbone: Mapping[str, Any], shape: Sequence[int], classes: int, state: Mapping[str, Tensor]
) -> Iterator[str]:
    """Build the network without memory: one far larger than the weights in the file must not be built for real."""
    target, options = import_path(backbone["class_path"]), dict(backbone.get("init_args") or {})
    if isinstance(options.get("weights"), str):  # those to start from are not fetched any more
        options["weights"] = None
    try:
        with torch.device("meta"):
            network = target(tuple(shape), classes, **options)
    except Exception:  # some networks compute while they are built; wrong options are refused later
        return
    own = sum(tensor.numel() for tensor in network.state_dict().values()) if isinstance(network, nn.Module) else 0
    held = sum(tensor.untyped_storage().nbytes() for tensor in state.values())
    if own > max(held, 2**20):  # values against bytes
        yield f"its network has {own:,} values, and its weights hold {held:,} bytes"


# -------------------------------------------------------------------------------------------------------------- trust


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
            if package not in TRUSTED_PACKAGES and (key in CLASS_KEYS or _is_package(package)):
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
            elif _is_package(package):
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


# ------------------------------------------------------------------------------------------------------- import paths


def is_import_path(text: str) -> bool:
    """Whether a text is ``package.Name``, with any number of modules between."""
    parts = text.split(".")
    return text.isascii() and len(parts) > 1 and all(p.isidentifier() and not keyword.iskeyword(p) for p in parts)


def import_path(path: str) -> Any:
    """Import ``package.module.Name``.

    Raises:
        ConfigError: if there is no such thing.
    """
    module_name, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be imported: {error}") from error


def returned_class(function: Any) -> type | None:
    """The class that a function says it returns."""
    try:
        returns = inspect.signature(function).return_annotation
        if isinstance(returns, str):  # of a module that says `from __future__ import annotations`
            name, *path = returns.split(".")
            returns = reduce(getattr, path, function.__globals__[name])
    except (TypeError, ValueError, KeyError, AttributeError):
        return None
    return returns if inspect.isclass(returns) and returns is not inspect.Signature.empty else None


def _is_package(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
