"""Reading files that may come from anywhere: nothing in them is run, and they name trusted classes only."""

import glob
import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, serialization

from vision_zoo import hub
from vision_zoo.errors import CheckpointError, ConfigError, refuse
from vision_zoo.files import expanded
from vision_zoo.known import ill_formed
from vision_zoo.specs import import_path, without_downloads
from vision_zoo.trust import FACTS, WEIGHTS_ALONE, endless, untrusted
from vision_zoo.types import Config, Interpolation, Resize, Resizing

OPTIONS = {"backbone", "optimizer", "scheduler", "finetune", "decay_vectors", "loss", *FACTS}
BESIDE = ("numpy.", "_codecs.", "argparse.", "pathlib.")  # of a score, options or paths beside the weights of others
_StandIn = type("_StandIn", (), dict.fromkeys(("__init__", "__setstate__"), lambda *_: None))  # which forgets all
MOST_SIDE, MOST_VALUES, MOST_CLASSES = 2**15, 2**28, 10**6  # of an image, in an image, of a network


def read_torch_file(path: str | Path, *, beside: tuple[str, ...] = ()) -> Any:
    """Read a file of ``torch.save`` without running anything in it; what is wrong with it is a CheckpointError.

    Objects of the packages ``beside`` become empty ones.
    """
    file, names = Path(path), list[str]()
    if not file.is_file():
        raise CheckpointError(f"{file.resolve()} not found")
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if size > file.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError(f"a compressed archive of {size:,} bytes, which torch.save does not write")
            names = serialization.get_unsafe_globals_in_checkpoint(file) if beside else []
        with serialization.safe_globals([(_StandIn, name) for name in names if name.startswith(beside)]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the zip or pickle reader meets in a broken file
        lines = str(error).splitlines() or [type(error).__name__]
        telling = [line for line in lines if "Unsupported" in line or "WeightsUnpickler error" in line]
        if code := re.search(r"GLOBAL (\S+)", telling[-1] if telling else ""):
            alone = "where it was made, save its weights alone: torch.save(network.state_dict(), FILE)"
            telling = [f"it names {code[1]}, and no code is run; {alone}"]
        made = f"{file.resolve()} is no checkpoint but a program that export made of one: give the run that it is from"
        refuse(CheckpointError, (file.suffix in (".onnx", ".pt2", ".html"), made))
        why = "(truncated, of another kind, or holding more than tensors and plain data)"
        told = f"{file.resolve()} is not a checkpoint that can be loaded safely {why}"
        raise CheckpointError(f"{told}: {(telling or lines[:1])[-1].strip()}") from error


def read_state_dicts(path: str | Path) -> list[dict[str, Tensor]]:
    """Read the state dicts in a file of torch or safetensors, such as a checkpoint: outer ones first, any depth."""
    file, begin = Path(path), b""
    with suppress(OSError), file.open("rb") as stream:  # the reader below says what is wrong
        begin = stream.read(9)
    is_safe = begin[8:] == b"{"  # https://huggingface.co/docs/safetensors: a length of eight bytes, then JSON
    state = hub.read_safetensors(file) if is_safe else read_torch_file(file, beside=BESIDE)
    if not (found := list(_state_dicts(state))):
        raise CheckpointError(f"{path} is neither a state dict (names with tensors) nor a checkpoint")
    return found


def _state_dicts(content: Any, depth: int = 4) -> Iterator[dict[str, Tensor]]:
    if isinstance(content, Mapping) and depth:
        own = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
        yield from (own,) if own else ()
        for value in content.values():
            yield from _state_dicts(value, depth - 1)


def read_checkpoint(path: str | Path, trusted_packages: Sequence[str] = ()) -> dict[str, Any]:
    """Read a checkpoint, or a folder of the hub by its weights; more than `trust` allows is a CheckpointError."""
    is_folder = Path(path).name == hub.WEIGHTS
    checkpoint: dict[str, Any] = hub.read_folder(Path(path)) if is_folder else read_torch_file(path)
    if (problem := next(_problems(checkpoint, trusted_packages), None)) is not None:
        raise CheckpointError(f"{Path(path).resolve()} {problem}")
    return checkpoint


def _problems(checkpoint: Any, trusted_packages: Sequence[str]) -> Iterator[str]:
    """What is wrong with a checkpoint, as predicates of one sentence each; each check relies on those before it."""
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters"} <= checkpoint.keys():
        yield "is not a vision_zoo checkpoint (a bare state dict goes to --model.weights)"
    for wrong, problem in _form(checkpoint):
        if wrong:
            yield f"was not written by vision_zoo: {problem}. {WEIGHTS_ALONE}"
    yield from untrusted(checkpoint, trusted_packages)
    config = (checkpoint.get("vision_zoo") or {"config": {"model": {}}})["config"]
    for backbone in (checkpoint["hyper_parameters"]["backbone"], config["model"].get("backbone")):
        if isinstance(backbone, dict) and "class_path" in backbone:
            yield from _too_large(backbone, checkpoint)


def _form(checkpoint: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """The form and the size of a checkpoint's plain data: whether something is wrong, and what; in turn, as above."""
    yield endless({k: v for k, v in checkpoint.items() if k != "state_dict"}), "its data are nested without an end"
    hparams, state, about = checkpoint["hyper_parameters"], checkpoint["state_dict"], checkpoint.get("vision_zoo")
    has = isinstance(hparams, dict) and {"backbone", "image_shape", "class_names"} <= hparams.keys()
    yield not has, "it describes no backbone"
    for section in ("hyper_parameters", "datamodule_hyper_parameters"):
        options = checkpoint.get(section)
        well = options is None or (isinstance(options, dict) and _are(str, list(options)))
        yield not well, f"its {section} are not options"
    backbone, shape, names = hparams["backbone"], hparams["image_shape"], hparams["class_names"]
    described = isinstance(backbone, dict) and "class_path" in backbone
    yield not described, f"{str(backbone)[:80]!r} describes no backbone"
    yield not isinstance(state, Mapping) or not _are(Tensor, list(state.values())), "its state_dict is not one"
    sizes = _are(int, shape) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
    yield not sizes, f"image_shape is {str(shape)[:80]}, not (channels, height, width)"
    large = max(shape) > MOST_SIDE or math.prod(shape) > MOST_VALUES
    yield large, f"images of shape {tuple(shape)} are beyond all measure"
    yield not _are(str, names), "class_names is not a list of names"
    yield not 1 <= len(names) <= MOST_CLASSES, f"it has {len(names):,} classes"
    for name in ("mean", "std"):
        values = hparams.get(name, [0.0])
        yield not _are((int, float), values), f"{name} is not a list of numbers"
        yield len(values) not in (1, shape[0]), f"{name} has {len(values)} values for {shape[0]} channels"
    span = hparams.get("value_range") or (0, 1)
    yield not (_are((int, float), span) and len(span) == 2 and span[0] < span[1]), f"value_range is {str(span)[:80]}"
    if about is not None:
        sections = about.get("config") if isinstance(about, dict) else None
        complete = isinstance(sections, dict) and _are(dict, [sections.get(part) for part in ("model", "data")])
        yield not complete, "its configuration has no model and data"
        run = about.get("name")
        yield not (isinstance(run, str) and run and Path(run).name == run), f"it names its run {str(run)[:80]!r}"
        made = about.get("made_with") or {}
        told = isinstance(made, dict) and all(isinstance(made.get(part, {}), dict) for part in ("versions", "data"))
        yield not told, "what it was made with is in no form of a run"
    yield type(checkpoint.get("global_step", 0)) is not int, "its global_step is not a number of steps"
    if checkpoint.get("known") is not None:
        yield from ill_formed(checkpoint["known"])
    foreign = sorted(hparams.keys() - OPTIONS)
    yield bool(foreign), f"it has the hyperparameters {', '.join(foreign)[:80]}"


def _are(kind: type | tuple[type, ...], values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, kind) for value in values)


def _too_large(backbone: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """Build the network without memory: one far larger than the weights in the file must not be built for real."""
    hparams, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    target, options = import_path(backbone["class_path"]), without_downloads(backbone).get("init_args") or {}
    try:
        with torch.device("meta"):
            network = target(tuple(hparams["image_shape"]), len(hparams["class_names"]), **options)
        own = sum(tensor.numel() for tensor in network.state_dict().values())
    except Exception:  # some networks compute while they are built; wrong options are refused later
        return
    held = sum(tensor.untyped_storage().nbytes() for tensor in state.values())
    if own > max(held, 2**20):  # values against bytes
        sizes = f"its network has {own:,} values, and its weights hold {held:,} bytes"
        yield f"was not written by vision_zoo: {sizes}. {WEIGHTS_ALONE}"


class Checkpoint(NamedTuple):
    """A checkpoint that was read and vetted: its absolute path, and what `read_checkpoint` gave."""

    path: Path
    content: dict[str, Any]

    @property
    def run(self) -> Path:
        """The run folder that it lies in, or would lie in."""
        return run_folder(self.path) or self.path.parent.parent

    @property
    def config(self) -> Config:
        """The whole configuration of its run; empty for one that plain Python wrote."""
        return dict((self.content.get("vision_zoo") or {}).get("config", {}))

    @property
    def data(self) -> Config:
        """Class and options of the data, as class_path and init_args; empty where it names none."""
        options = self.content.get("datamodule_hyper_parameters") or {}
        init_args = {name: value for name, value in options.items() if not name.startswith("_")}
        of_python = {"class_path": options["_class_path"], "init_args": init_args} if "_class_path" in options else {}
        found = dict(self.config.get("data", of_python))
        given = found.get("init_args")
        settled = {name: init_args[name] for name in ("resize", "interpolation") if init_args.get(name)}  # by a pack
        return found | {"init_args": {**given, **settled}} if isinstance(given, Mapping) else found

    @property
    def resizing(self) -> Resizing:
        """How its run brought image files to the size of its network."""
        options = {**given} if isinstance(given := self.data.get("init_args"), Mapping) else {}
        with suppress(ConfigError):  # of a package that is not here
            options.setdefault("resize", getattr(import_path(str(self.data.get("class_path"))), "resize", None))
        kinds: Any = {"resize": get_args(Resize), "interpolation": get_args(Interpolation)}
        given = {name: options.get(name) for name in kinds}  # of a class of one's own, anything
        how, values = (given[name] if given[name] in known else known[0] for name, known in kinds.items())
        return how, values

    @property
    def run_name(self) -> str | None:
        """The name of its run, or None for one that plain Python wrote."""
        return (self.content.get("vision_zoo") or {}).get("name")

    @property
    def step(self) -> int:
        """How many training steps its weights have seen."""
        return int(self.content.get("global_step", 0))


def open_checkpoint(
    name: str,
    trusted_packages: Sequence[str] = (),
    *,
    root: Path = Path(),
    prefer: str = "best",
    run_name: str | None = None,
) -> Checkpoint:
    """Find a checkpoint, read it once and vet what it names; if it is broken, name the next older good one of its run.

    Args:
        name: a checkpoint, a run folder, best or last of the newest run, hf://OWNER/NAME, or a local copy of such.
        trusted_packages: further packages whose classes it may name.
        root: folder that holds "runs".
        prefer: "best" or "last", for a run folder.
        run_name: look only at runs of this configuration.

    Raises:
        CheckpointError: if there is none, or it cannot be used.
    """
    path = find_checkpoint(name, root, prefer, run_name)
    try:
        return Checkpoint(path, read_checkpoint(path, trusted_packages))
    except CheckpointError as error:
        if (run := run_folder(path)) is None:
            raise
        hint = f"There is no other good checkpoint in {run / 'checkpoints'}"
        others = set((run / "checkpoints").rglob("*.ckpt")) - {path}
        for other in sorted(others, key=lambda p: p.stat().st_mtime_ns, reverse=True):
            with suppress(CheckpointError):
                read_checkpoint(other, trusted_packages)
                hint = f"The next older good checkpoint is {other}: --ckpt_path {other}"
                break
        raise CheckpointError(f"{error}. {hint}") from error


def find_checkpoint(name: str, root: Path, prefer: str, run_name: str | None = None) -> Path:
    """The file that a path, a run folder, or best or last stands for, or a CheckpointError; see `open_checkpoint`."""
    path = hub.fetched(name) if name.startswith(hub.SCHEME) else expanded(name)
    candidates, reason = [path], f"{path.resolve()} not found. To see all: vision_zoo list runs"
    if name in ("best", "last"):
        runs, named = root.resolve() / "runs", f"of {run_name} " if run_name else ""
        found = runs.glob(f"{glob.escape(run_name) if run_name else '*'}/version_*/checkpoints")
        written = {f: max(x.stat().st_mtime_ns for x in (f, *f.glob("*.ckpt"))) for f in sorted(found) if f.is_dir()}
        candidates = [f / f"{name}.ckpt" for f in sorted(written, key=lambda f: written[f])[-1:]]
        reason = f"no run {named}with a checkpoint below {runs}. Train first with vision_zoo fit, or give its path"
        if candidates:
            newest = candidates[0].parent.parent
            reason = f"the newest run, {newest}, has no {name}.ckpt yet: give the folder of another run"
    elif path.is_dir():
        names = (f"checkpoints/{prefer}.ckpt", f"{prefer}.ckpt", "checkpoints/last.ckpt", hub.WEIGHTS)
        candidates = [path / name for name in names]
        reason = f"{path.resolve()} holds no checkpoints/{prefer}.ckpt"
    elif path.suffix in (".yaml", ".yml"):
        candidates, reason = [], "a configuration is no checkpoint: give the folder of a run, or fit with --config"
    elif glob.has_magic(name) and glob.glob(str(path)):  # noqa: PTH207  # any path
        reason = "one network is asked for, and this is a pattern; predict, test and export average several"
    for candidate in candidates:
        if candidate.is_file():
            # In the hub's cache, files are links into a store without names.
            return candidate.absolute() if candidate.name == hub.WEIGHTS else candidate.resolve()
    raise CheckpointError(f"{name}: {reason}")


def open_checkpoints(
    names: Iterable[str], trusted_packages: Sequence[str] = (), root: Path = Path()
) -> list[Checkpoint]:
    """Open all that the names stand for, by `find_checkpoints`; see `open_checkpoint`."""
    paths = dict.fromkeys(path for name in names for path in find_checkpoints(name, root))
    return [open_checkpoint(str(path), trusted_packages) for path in paths]


def find_checkpoints(name: str, root: Path = Path(), prefer: str = "best") -> list[Path]:
    """The file that `find_checkpoint` gives; of a folder of several runs or a pattern one of each run, in their order.

    Numbers count as such: version_10 comes after version_9.
    """
    path, found = expanded(name), list[str]()
    matches = [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207  # any path
    for place in matches:
        is_one = (place / "checkpoints").is_dir() or (place / hub.WEIGHTS).is_file() or any(place.glob("*.ckpt"))
        if place.suffix == ".ckpt" or is_one:
            found.append(str(place))
        elif place.is_dir():
            found += [str(folder.parent) for folder in place.rglob("checkpoints") if folder.is_dir()]
    found.sort(key=lambda place: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", place)])
    return list(dict.fromkeys(find_checkpoint(place, root, prefer) for place in found or [name]))


def run_folder(checkpoint: Path) -> Path | None:
    """The run folder whose checkpoints one lies among, or in a folder below; None for one that lies elsewhere."""
    folder, *above = checkpoint.resolve().parents
    runs = [f.parent for f in above if f.name == "checkpoints" and (f.parent / "config.yaml").is_file()]
    return folder.parent if folder.name == "checkpoints" else next(iter(runs), None)
