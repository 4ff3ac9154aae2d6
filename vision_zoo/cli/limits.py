"""Options and callbacks that cannot work, each with its reason."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch.optim.swa_utils import SWALR

from vision_zoo.errors import ConfigError
from vision_zoo.specs import listed

# Lightning's callbacks that want another kind of module, and what does their work.
UNFIT: dict[type, str] = {}
if "state_dict" not in vars(SWALR):  # https://github.com/pytorch/pytorch/issues/163105
    UNFIT[StochasticWeightAveraging] = (
        "this torch saves the state of its schedule as code, which no checkpoint may hold. Take EMAWeightAveraging or "
        "a newer torch"
    )


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Refuse what would take away a part that every run has, where Lightning's message names no option."""
    if options.get("barebones"):
        raise ConfigError(
            "--trainer.barebones true does not work here: every run keeps its checkpoints and metrics. Leave it out"
        )
    if options.get("fast_dev_run"):
        tried = " ".join(f"--trainer.limit_{part}_batches 1" for part in ("train", "val", "test"))
        raise ConfigError(
            "--trainer.fast_dev_run does not work here: every run keeps its checkpoints and metrics. To see whether "
            f"everything runs: {tried} --trainer.max_epochs 1 --trainer.default_root_dir FOLDER"
        )
    for callback in listed(options.get("callbacks")):
        for kind, reason in UNFIT.items():
            if isinstance(callback, kind):
                raise ConfigError(f"--trainer.callbacks {type(callback).__name__} does not work here: {reason}")
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            option = "save_last" if callback.save_last else f"filename {callback.filename}"
            if callback.save_last or callback.filename in ("best", "last"):
                raise ConfigError(
                    f"--trainer.callbacks ModelCheckpoint with {option} would replace a checkpoint of the run's own, "
                    "which has best.ckpt and last.ckpt in any case. Leave it out, or set its dirpath"
                )
