"""Pruning of weights while training, with checkpoints that hold plain weights."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import Tensor
from torch.nn.utils import prune

from vision_zoo.training import lightning_patches as patches


class ModelPruning(callbacks.ModelPruning):
    """Lightning's, with checkpoints that every command reads: plain weights, and beside them which are pruned.

    The weights are pruned before the validation that ends an epoch, so that what is saved is what was validated, and
    for good at the end of training (make_pruning_permanent cannot be switched off).

    Args:
        pruning_fn: function of torch.nn.utils.prune, such as l1_unstructured or random_unstructured.
        amount: how many of the weights that are left are pruned each time: a share, or a number.
        options: as of Lightning's.
    """

    def __init__(self, pruning_fn: str = "l1_unstructured", amount: int | float = 0.5, **options: Any) -> None:
        super().__init__(pruning_fn=pruning_fn, amount=amount, **options)
        self._module: LightningModule | None = None
        self._masks: dict[str, Tensor] = {}
        self._pruned_epoch = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the weights, before training."""
        if stage == "fit":
            self._module = pl_module
            patches.prune_for_good(self)
            super().setup(trainer, pl_module, stage)

    def state_dict(self) -> dict[str, Any]:
        """Which weights are kept, as 0 and 1, by the names of their masks."""
        buffers = self._module.named_buffers() if self._module is not None else ()
        return {"masks": {name: mask.cpu() for name, mask in buffers if name.endswith("_mask")}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the masks of the run that is continued."""
        self._masks = state_dict["masks"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune again what was; not before the optimizer has its weights, whose order this changes."""
        for name, mask in self._masks.items():
            place, _, weight = name.removesuffix("_mask").rpartition(".")
            custom_from_mask: Any = prune.custom_from_mask  # which has no types
            custom_from_mask(pl_module.get_submodule(place), weight, mask.to(pl_module.device))
        self._masks = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune before the validation that ends an epoch."""
        if trainer.state.fn == "fit" and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, once in an epoch."""
        if self._pruned_epoch != trainer.current_epoch and not trainer.sanity_checking:
            self._pruned_epoch = trainer.current_epoch
            super().on_train_epoch_end(trainer, pl_module)
