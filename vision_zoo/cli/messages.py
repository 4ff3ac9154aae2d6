"""Exceptions and the parser's errors in words."""

import dis
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException

from vision_zoo.cli.names import LIST_SLOTS
from vision_zoo.errors import InputError, VisionZooError, did_you_mean, lack, missing
from vision_zoo.specs import import_path, options_of
from vision_zoo.training.processes import lost_process


def explain(error: BaseException) -> tuple[str, int]:
    """What to print about an exception, and the exit code. What nobody foresaw is called what it is, a bug."""
    chain: list[BaseException] = []  # the parser wraps constructors' errors, which are written for the user
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    reading = any(isinstance(link, InputError) for link in chain)
    told = [lack(link, reading=reading) for link in chain if not isinstance(link, VisionZooError)]
    lacks = [*filter(None, told)]
    for link in chain:
        if isinstance(link, VisionZooError) and not (lacks and isinstance(link, InputError)):
            return str(link), link.exit_code
    if lacks:
        return lacks[0], 1
    for link in chain:
        if isinstance(link, ModuleNotFoundError):  # of a logger, a strategy, or the user's own code
            return f"a package is missing: {link}".strip(), 2
        if isinstance(link, MisconfigurationException):
            return _tidy(re.sub(r"`Timer\(duration=(.+?)\)`", r"\1, of --trainer.max_time or Timer,", str(link))), 2
        if lost := lost_process(link):
            return str(lost), lost.exit_code
        if type(link).__module__.startswith(("torch._dynamo", "torch._inductor")):  # such as for a smaller last batch
            reason = " ".join(str(link).partition("\n\n")[0].split())
            return f"torch could not compile the network anew ({reason}): continue with --compile false", 1
    if isinstance(error, ArgumentError):
        return _tidy(str(error)), 2
    for link in chain:
        if refusal := _refusal(link):
            return refusal
    text = str(error)
    if isinstance(error, ValueError) and "any of the Union subtypes" in text:  # no class could be built
        reasons = re.findall(r"^ +- (?!Expected an? )(.+(?:\n {6,}.+)*)", text, re.MULTILINE)
        return " ".join("; ".join(reasons).split()) or text, 2
    if "returned nan values" in text:  # with --trainer.detect_anomaly true
        return text, 1
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'a file'} cannot be read or written: {error.strerror}", 1
    if what := missing():
        return f"{what}, {type(error).__name__}: {error}", 1
    return (
        f"internal error, {type(error).__name__}: {error}\nThis is a bug in vision_zoo or in a class that the "
        "configuration names. VISION_ZOO_DEBUG=1 shows the traceback."
    ), 1


def _refusal(error: BaseException) -> tuple[str, int] | None:
    """What a library refuses by a raise statement of its own, or a callback of Lightning's before the first step."""
    places, place = [], error.__traceback__
    while place is not None:
        places.append(place)
        place = place.tb_next
    stack = [place.tb_frame for place in places]
    modules = [str(frame.f_globals.get("__name__")) for frame in stack]
    if not stack or any(frame.f_code.co_name in ("training_step", "forward", "__getattr__") for frame in stack):
        return None  # about a batch, or by our own mistake
    text = " ".join(str(error.args[0] if error.args else type(error).__name__).split())
    for module, frame in zip(modules, stack, strict=True):
        if "lightning" in module and "callbacks" in module and frame.f_code.co_name in ("setup", "on_fit_start"):
            return f"--trainer.callbacks {type(frame.f_locals['self']).__name__} cannot be used so: {text}", 2
    raised = stack[-1].f_code.co_code[places[-1].tb_lasti] == dis.opmap["RAISE_VARARGS"]  # no operation that failed
    ours = modules[-1].partition(".")[0] not in ("lightning", "torch", "torchvision", "torchmetrics")
    running = any(module.endswith("training_epoch_loop") for module in modules)
    return None if ours or not raised else (text, 1 if running else 2)


def _tidy(message: str) -> str:
    """The parser's message in one line where its form is known: the option, the value, what was expected."""
    keys = list(re.finditer(r'^( *).*?arser key "([^"]+)"', message, re.MULTILINE))
    option = "--" + ".".join(key[2] for key in keys)
    if needed := re.search(r"the following arguments are required: (.+)", message):
        names = [f"{option}.{name.strip()}" if keys else f"--{name.strip()}" for name in needed[1].split(",")]
        owners = re.findall(r"given class_path '(?:.+\.)?(.+)'", message[: needed.start()])
        if option[2:] in LIST_SLOTS and owners:  # one of several, perhaps
            return f"{option}: {owners[-1]} must be given {needed[1]}, as {' and '.join(names)} or under its init_args"
        return f"{' and '.join(names)} must be given, on the command line or in a --config file"
    if keys:
        about = message[keys[-1].start() :]
        if len(keys) > 1:  # the lines that are indented further than the innermost option's own
            about = re.split(rf"\n {{0,{len(keys[-1][1])}}}(?=\S)", about)[0]
        value = re.search(r"(?:Given|Got) value: (.*?)(?:\. Got value: .*)?$", about, re.MULTILINE)
        kinds = re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", about, re.MULTILINE)
        if value and (known := [word for kind in dict.fromkeys(kinds) if (word := _readable(kind))]):
            return f"{option}: got {value[1]!r}, expected {' or '.join(known)}"
    return "\n".join(line.rstrip() for line in message.splitlines() if line.strip())


# What other programs call options.
_USUAL = {"seed": "seed_everything", "gpus": "trainer.devices", "learning_rate": "model.optimizer.lr"}


def suggest_option(message: str, names: Sequence[str], verb: str) -> str:
    """The parser's message; where it is about an option that does not exist, that option with close ones of `names`."""
    more = f"All options: vision_zoo {verb} --help_all"
    stray = re.search(r"nrecognized arguments: (\S+)", message)
    refused = re.search(r"(?:[Oo]ption|[Kk]ey) ['\"]([\w.]+)['\"] is not (?:accepted|expected)", message)
    refused = refused or re.search(r"does not accept (?:nested )?option ['\"]([\w.]+)['\"]", message)
    if stray and not stray[1].startswith("-"):
        pictures = "--config finetune --data.root" if Path(stray[1]).is_dir() else "--config"
        likely = {"fit": pictures, "predict": "--images"}.get(verb, "--ckpt_path")
        return f"{stray[1]!r} is not an option: those start with two dashes, such as {likely} {stray[1]}. {more}"
    flags = [f"--{name}" for name in names]
    if stray:
        option = stray[1].lstrip("-").split("=")[0]
    elif refused:
        option, slots = refused[1], re.findall(r'arser key "([^"]+)"', message)
        owners = re.findall(r"Problem with given class_path '([^']+)'", message)
        if owners and not any(flag.startswith(f"--{'.'.join(slots)}.") for flag in flags):  # one class of a list
            known = list(options_of(import_path(owners[-1])))
            hint = did_you_mean(option, known) or (f"; it takes {', '.join(known)}" if known else "; it takes none")
            return f"--{'.'.join(slots)}: {owners[-1].rpartition('.')[2]} has no option {option}{hint}"
        slots = slots or re.findall(r"Group '([\w.]+)'", message)
        if slots and not option.startswith(f"{slots[0]}."):
            option = f"{slots[0]}.{option}"
    else:
        return message
    option = option.replace("init_args.", "")
    # --lr and --epochs are the last parts of the names that they stand for, as lr is of --model.lr.
    section, _, last = option.rpartition(".")
    ends = [flag for flag in flags if flag.endswith((f".{last}", f"_{last}")) and flag.startswith(f"--{section}")]
    usual = _USUAL.get(option)
    close = [*([f"--{usual}"] if usual in names else []), *ends[:3]]
    hint = f"; did you mean {' or '.join(close)}?" if close else did_you_mean(f"--{option}", flags) or "."
    return f"there is no option --{option}{hint} {more}"


def _readable(kind: str) -> str:
    """A type in words; empty for what nobody would type."""
    names = {"NoneType": "null", "int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}
    if literal := re.match(r"typing\.Literal\[(.*)\]", kind.rstrip(".")):
        return f"one of {literal[1]}"
    if class_ := re.match(r"<class '([^']+)'>", kind):
        return names.get(class_[1], class_[1])
    return "" if kind.startswith(("path but", "dot import path")) else kind.replace("tuple with", "a list of")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence meanwhile what a user can do nothing about: advertising lines and notices of the libraries underneath."""
    if os.environ.get("VISION_ZOO_DEBUG") == "1":
        yield
        return
    levels = dict.fromkeys(("lightning.pytorch", "lightning.fabric", "python_multipart"), logging.ERROR)
    # What these print was asked for.
    levels |= dict.fromkeys(("lightning.pytorch.profilers", "lightning.pytorch.callbacks.model_summary"), logging.INFO)
    loggers = {name: logging.getLogger(name) for name in levels}
    before = {name: logger.level for name, logger in loggers.items()}
    kept = warnings.formatwarning, threading.excepthook
    libraries = r"(lightning|torch|torchvision|torchmetrics|jsonargparse|onnx\w*|scipy)\b"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=libraries)
        warnings.filterwarnings("default", "Experiment logs directory .* will be deleted")  # of a user's own CSVLogger
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # names of classes may be of any script
        warnings.formatwarning = _words
        # TensorBoard's thread, which a lack ends, has it raised in the main thread too.
        threading.excepthook = lambda e: None if e.exc_value and lack(e.exc_value) else threading.__excepthook__(e)
        try:
            for name, logger in loggers.items():
                logger.setLevel(levels[name])
            yield
        finally:
            warnings.formatwarning, threading.excepthook = kept
            for name, logger in loggers.items():
                logger.setLevel(before[name])


def _words(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning of ours in words; of others with the place that it comes from."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        return f"vision_zoo: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"
