"""Loaders that hand out whole batches, know where they are in an epoch, and share the work among processes."""

import math
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vision_zoo.data.decode import ImageFiles
from vision_zoo.errors import DataError
from vision_zoo.types import Batch, LabelledImages


class Loader:
    """The order of the batches: by (seed, epoch), sharded over processes, continued after a restart.

    Lightning sees a sized iterable with a sampler, which gets the epoch, and with a state, which goes into checkpoints.

    Args:
        indices: int64 (N,), the images of this part, in file order.
        batch_size: images per batch and process.
        training: every process gets the same number of batches and no image twice; a last batch of one image joins the
            one before it, since batch norm cannot train on one. Otherwise every image is handed out exactly once.
        shuffle: draw a new order for each epoch.
        seed: the order of epoch e is drawn from (seed, e).
        rank: which of the processes this is.
        world_size: how many processes there are.
    """

    batch_sampler = None

    def __init__(
        self,
        indices: Tensor,
        batch_size: int,
        training: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.indices = indices
        self.batch_size = batch_size
        self.training = training
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._handed_out = 0  # batches of this epoch
        self._restored: dict[str, int] = {}

    @property
    def sampler(self) -> "Loader":
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; called before the first batch is drawn."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: the epoch and the batches handed out in it; and of how many images."""
        return {"epoch": self.epoch, "batches": self._handed_out, "images": len(self.indices)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue the epoch of the state at the next batch; other epochs start at their first."""
        self.check_state(state_dict)
        self._restored = dict(state_dict)

    def check_state(self, state_dict: dict[str, int]) -> None:
        """Refuse the state of another number of images.

        Raises:
            DataError: naming both numbers.
        """
        before, now = state_dict.get("images", len(self.indices)), len(self.indices)
        if before != now:
            raise DataError(
                f"the run was trained on {before:,} images and there are {now:,} now, so that it cannot resume "
                "exactly: bring them back, or start a new run from its weights (its config.yaml with --config, and "
                "--model.weights in place of --ckpt_path)"
            )

    def __len__(self) -> int:
        """Batches of one epoch in this process."""
        count = self._shard_size()
        batches = math.ceil(count / self.batch_size)
        return batches - 1 if self._joins_last(count) else batches

    def __iter__(self) -> Iterator[Batch]:
        # Lightning calls iter() before it sets the epoch, so nothing may be looked at before the first next().
        start = self._restored.get("batches", 0) if self._restored.get("epoch") == self.epoch else 0
        self._restored = {}
        self._handed_out = start
        for batch in self._load(self.batches()[start:]):
            self._handed_out += 1
            yield batch

    def batches(self) -> list[Tensor]:
        """The indices of each batch of the current epoch, int64 (B,) each."""
        order = self.indices
        if self.shuffle:
            # torch's CPU generator takes only 32 bits of a seed, so seed and epoch are mixed before.
            mixed = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(mixed))]
        shard = order[self.rank :: self.world_size][: self._shard_size()]
        if not len(shard):
            return []
        batches = list(torch.split(shard, self.batch_size))
        if self._joins_last(len(shard)):
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def _shard_size(self) -> int:
        if self.training:
            return len(self.indices) // self.world_size
        return len(range(self.rank, len(self.indices), self.world_size))

    def _joins_last(self, count: int) -> bool:
        return self.training and self.batch_size > 1 and count > self.batch_size and count % self.batch_size == 1

    def _load(self, batches: list[Tensor]) -> Iterator[Batch]:
        raise NotImplementedError


class TensorLoader(Loader):
    """Batches of images in memory: one index_select each."""

    def __init__(self, data: LabelledImages, indices: Tensor, batch_size: int, **order: Any) -> None:
        super().__init__(indices, batch_size, **order)
        self.data = data

    def _load(self, batches: list[Tensor]) -> Iterator[Batch]:
        images, labels = self.data
        for batch in batches:
            yield images.index_select(0, batch), labels.index_select(0, batch)


def _leave_signals(_worker: int) -> None:
    """Signals may reach every process of a run; workers ignore them, the training process ends them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class StreamLoader(Loader):
    """Batches of image files, decoded by worker processes, or by this one where num_workers is 0.

    A file that cannot be decoded is named once. In training another one takes its place, so that batches
    keep their size; in evaluation it is left out.
    """

    def __init__(self, files: ImageFiles, indices: Tensor, batch_size: int, num_workers: int = 0, **order: Any) -> None:
        super().__init__(indices, batch_size, **order)
        self.files = files
        self.num_workers = num_workers

    def _load(self, batches: list[Tensor]) -> Iterator[Batch]:
        # Left to itself, DataLoader draws from the global generator, which would shift the augmentation's draws.
        source = DataLoader(
            self.files.replacing(self.indices.tolist()) if self.training else self.files,
            sampler=[batch.tolist() for batch in batches],
            batch_size=None,
            num_workers=self.num_workers,
            worker_init_fn=_leave_signals,
            generator=torch.Generator().manual_seed(0),
        )
        for images, labels, failures in source:
            self.report(failures)
            if len(images):
                yield images, labels
            elif self.training:
                raise DataError("None of the training files can be decoded. Repair them, or set --data.root to others")

    def report(self, failures: list[tuple[str, str]]) -> None:
        """Name files that could not be decoded, each once.

        Raises:
            DataError: if such files are not to be left out.
        """
        fresh = [(path, reason) for path, reason in failures if path not in self.files.reported]
        self.files.reported.update(path for path, _ in fresh)
        if fresh and self.files.strict:
            raise DataError(
                f"{fresh[0][0]} cannot be decoded ({fresh[0][1]}). Repair or remove it, or leave such files out with "
                "--data.strict false"
            )
        for path, reason in fresh:
            # By each process of its own files; no other one meets them.
            warnings.warn(f"{path} cannot be decoded ({reason}) and is left out", stacklevel=2)
