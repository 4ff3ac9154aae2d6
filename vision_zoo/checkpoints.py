"""Reading files that may come from anywhere: nothing in them is run, and they name trusted classes only."""

import glob
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vision_zoo.errors import CheckpointError, ConfigError
from vision_zoo.files import expanded
from vision_zoo.specs import import_path, without_downloads
from vision_zoo.trust import WEIGHTS_ALONE, endless, untrusted
from vision_zoo.types import Config

HYPERPARAMETERS = {
    *("backbone", "image_shape", "class_names", "mean", "std"),
    *("optimizer", "scheduler", "label_smoothing"),
}
MOST_SIDE, MOST_VALUES, MOST_CLASSES = 2**15, 2**28, 10**6  # of an image, in an image, of a network


# -------------------------------------------------------------------------------------------------------------- files


def read_torch_file(path: str | Path) -> Any:
    """Read a file written by ``torch.save`` without running anything that it holds.

    Raises:
        CheckpointError: if it is missing, broken, or needs more than tensors and plain types.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file.resolve()} not found")
    cause: Exception | None = None
    try:
        if not (reason := _compressed(file)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the zip or pickle reader meets in a broken file
        cause, lines = error, str(error).splitlines() or [type(error).__name__]
        telling = [line for line in lines if "Unsupported" in line or "WeightsUnpickler error" in line]
        reason = (telling or lines[:1])[-1].strip()
    what = (
        "is not a checkpoint that can be loaded safely (truncated, of another kind, or holding more than tensors and "
        f"plain data): {reason}"
    )
    if isinstance(cause, PermissionError):
        what = f"cannot be read: {cause.strerror}"
    raise CheckpointError(f"{file.resolve()} {what}") from cause


def _compressed(file: Path) -> str:
    """Why an archive unpacks to more than it is, for torch.save compresses nothing; otherwise empty."""
    if not zipfile.is_zipfile(file):
        return ""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    if size <= file.stat().st_size and all(entry.compress_type == zipfile.ZIP_STORED for entry in entries):
        return ""
    return f"a compressed archive of {size:,} bytes, which torch.save does not write"


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
    except OSError:  # the next reader says what is wrong
        return False


def _read_safetensors(file: Path) -> Any:
    try:
        from safetensors.torch import load_file  # noqa: PLC0415  of an extra

        return load_file(file)
    except ImportError as error:
        raise ConfigError(
            f"{file} needs the package safetensors ({error}). Run: pip install 'vision_zoo[export]'"
        ) from error
    except Exception as error:  # safetensors has an exception of its own, and others for what its header may hold
        raise CheckpointError(f"{file.resolve()} is not a whole safetensors file: {error}") from error


# -------------------------------------------------------------------------------------------------------- checkpoints


def read_checkpoint(path: str | Path, trusted_packages: Sequence[str] = ()) -> dict[str, Any]:
    """Read a training checkpoint and check that it is one, and that it holds nothing but what `trust` allows.

    Raises:
        CheckpointError: if it is missing, broken, no vision_zoo checkpoint, or names a class of another package.
    """
    checkpoint: dict[str, Any] = read_torch_file(path)
    if (problem := next(_problems(checkpoint, trusted_packages), None)) is not None:
        raise CheckpointError(f"{Path(path).resolve()} {problem}")
    return checkpoint


def _problems(checkpoint: Any, trusted_packages: Sequence[str]) -> Iterator[str]:
    """What is wrong with a checkpoint, as predicates of one sentence each; each check relies on those before it."""
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters"} <= checkpoint.keys():
        yield "is not a vision_zoo checkpoint (a bare state dict goes to --model.weights)"
    for problem in _of_form(checkpoint):
        yield f"was not written by vision_zoo: {problem}. {WEIGHTS_ALONE}"
    yield from untrusted(checkpoint, trusted_packages)
    config = (checkpoint.get("vision_zoo") or {"config": {"model": {}}})["config"]
    for backbone in (checkpoint["hyper_parameters"]["backbone"], config["model"].get("backbone")):
        if isinstance(backbone, dict) and "class_path" in backbone:
            yield from _too_large(backbone, checkpoint)


def _of_form(checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the form and the size of a checkpoint's plain data."""
    if endless({name: part for name, part in checkpoint.items() if name != "state_dict"}):
        yield "its data are nested without an end"
    hparams, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    if not isinstance(hparams, dict) or not {"backbone", "image_shape", "class_names"} <= hparams.keys():
        yield "it describes no backbone"
    if not isinstance(hparams["backbone"], dict) or "class_path" not in hparams["backbone"]:
        yield f"{str(hparams['backbone'])[:80]!r} describes no backbone"
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
    if foreign := sorted(hparams.keys() - HYPERPARAMETERS):
        yield f"it has the hyperparameters {', '.join(foreign)[:80]}"


def _too_large(backbone: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """Build the network without memory: one far larger than the weights in the file must not be built for real."""
    hparams, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    target, options = import_path(backbone["class_path"]), without_downloads(backbone).get("init_args") or {}
    try:
        with torch.device("meta"):
            network = target(tuple(hparams["image_shape"]), len(hparams["class_names"]), **options)
    except Exception:  # some networks compute while they are built; wrong options are refused later
        return
    own = sum(tensor.numel() for tensor in network.state_dict().values()) if isinstance(network, nn.Module) else 0
    held = sum(tensor.untyped_storage().nbytes() for tensor in state.values())
    if own > max(held, 2**20):  # values against bytes
        yield (
            f"was not written by vision_zoo: its network has {own:,} values, and its weights hold {held:,} bytes. "
            f"{WEIGHTS_ALONE}"
        )


# ------------------------------------------------------------------------------------------------ finding checkpoints


class Checkpoint(NamedTuple):
    """A checkpoint that was read and vetted.

    Attributes:
        path: the file, absolute.
        content: what it holds, see `read_checkpoint`.
    """

    path: Path
    content: dict[str, Any]

    @property
    def config(self) -> Config:
        """The whole configuration of its run; empty for one that plain Python wrote."""
        config: Config = (self.content.get("vision_zoo") or {}).get("config", {})
        return config

    @property
    def data(self) -> Config:
        """Class and options of the data, as class_path and init_args; empty where it names none."""
        options = self.content.get("datamodule_hyper_parameters") or {}
        of_plain_python: Config = {}
        if "_class_path" in options:
            init_args = {name: value for name, value in options.items() if not name.startswith("_")}
            of_plain_python = {"class_path": options["_class_path"], "init_args": init_args}
        spec: Config = self.config.get("data", of_plain_python)
        return spec

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
    """Find a checkpoint, read it once and vet what it names.

    Args:
        name: a checkpoint, a run folder, or best or last of the newest run.
        trusted_packages: further packages whose classes it may name.
        root: folder that holds "runs".
        prefer: "best" or "last", for a run folder.
        run_name: look only at runs of this configuration.

    Raises:
        CheckpointError: if there is none, or it cannot be used.
    """
    path = find_checkpoint(name, root, prefer, run_name)
    return Checkpoint(path, read_or_offer(path, trusted_packages))


def find_checkpoint(name: str, root: Path, prefer: str, run_name: str | None = None) -> Path:
    """The checkpoint that a path, a run folder, or best or last stands for; see `open_checkpoint`.

    Raises:
        CheckpointError: if there is none.
    """
    path = expanded(name)
    if name in ("best", "last"):
        runs = root.resolve() / "runs"
        found = runs.glob(f"{glob.escape(run_name) if run_name else '*'}/version_*/checkpoints")
        candidates = [f / f"{name}.ckpt" for f in sorted((f for f in found if f.is_dir()), key=_written)[-1:]]
        reason = (
            f"no run {f'of {run_name} ' if run_name else ''}with a checkpoint below {runs}. Train first with "
            "vision_zoo fit, or give the checkpoint's path"
        )
        if candidates:
            newest = candidates[0].parent.parent
            reason = f"the newest run, {newest}, has no {name}.ckpt yet: give the folder of another run"
    elif path.is_dir():
        candidates = [path / "checkpoints" / f"{prefer}.ckpt", path / f"{prefer}.ckpt", path / "checkpoints/last.ckpt"]
        reason = f"{path.resolve()} holds no checkpoints/{prefer}.ckpt"
    else:
        candidates, reason = [path], f"{path.resolve()} not found"
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise CheckpointError(f"--ckpt_path {name}: {reason}")


def run_folder(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, or None for one that lies elsewhere."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" else None


def _written(folder: Path) -> tuple[int, str]:
    """When the newest file in a folder of checkpoints was written."""
    return max(file.stat().st_mtime_ns for file in (folder, *folder.glob("*.ckpt"))), str(folder)


def read_or_offer(path: Path, trusted_packages: Sequence[str]) -> dict[str, Any]:
    """Read a checkpoint, or say which other one of the same run is good.

    Raises:
        CheckpointError: if it cannot be used, with the path of the next older good one.
    """
    try:
        return read_checkpoint(path, trusted_packages)
    except CheckpointError as error:
        if path.parent.name != "checkpoints":
            raise
        others = sorted(set(path.parent.glob("*.ckpt")) - {path}, key=lambda p: p.stat().st_mtime_ns, reverse=True)
        good = next((other for other in others if _is_good(other, trusted_packages)), None)
        hint = f"There is no other good checkpoint in {path.parent}"
        if good is not None:
            hint = f"The next older good checkpoint is {good}: --ckpt_path {good}"
        raise CheckpointError(f"{error}. {hint}") from error


def _is_good(path: Path, trusted_packages: Sequence[str]) -> bool:
    try:
        read_checkpoint(path, trusted_packages)
    except CheckpointError:
        return False
    return True
