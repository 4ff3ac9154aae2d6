"""The loader, which hands out whole batches, knows where it is in an epoch, and shares the work among processes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vision_zoo.data.sources import Source, pump
from vision_zoo.errors import DataError, refuse
from vision_zoo.types import Batch, LabelledImages

AT_ONCE = 64  # images that a thread decodes
OTHER_IMAGES = (
    ", so that it cannot resume exactly: bring them back, or start a new run from its weights (its config.yaml with "
    "--config, and --model.weights in place of --ckpt_path)"
)


@dataclass(eq=False)
class Loader:
    """Batches of a source: ordered by (seed, epoch), sharded over processes, continued after a restart.

    Lightning sees a sized iterable with a sampler, which gets the epoch, and with a state, which goes into checkpoints.
    A file that cannot be decoded is named once. In training another one takes its place; in evaluation it is left out.
    """

    source: Source
    indices: Tensor  # int64 (N,), the images of this part, in file order
    batch_size: int  # images per batch and process
    threads: int = 0  # that fetch batches ahead of time; 0 fetches each batch when it is asked for
    # To train, every process gets the same number of batches, and no image of the order twice; a last batch of one
    # image joins the one before it, since batch norm cannot train on one. Otherwise every image is handed out once.
    training: bool = False
    shuffle: bool = False  # whether the order of epoch e is drawn from (seed, e)
    balanced: bool = False  # whether a shuffled order has each class equally often, see `balanced_draw`
    seed: int = 0
    rank: int = 0  # which of the processes this is
    world_size: int = 1

    batch_sampler = None

    def __post_init__(self) -> None:
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
        group = {"shards_at_once": self.source.at_once} if self.source.at_once else {}
        return {"epoch": self.epoch, "batches": self._handed_out, "images": len(self.indices), **group}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue the epoch of the state at the next batch; other epochs start at their first."""
        self.check_state(state_dict)
        self._restored = state_dict

    def check_state(self, state_dict: dict[str, int]) -> None:
        """Refuse the state of another number of images with a DataError."""
        before, now = state_dict.get("images", len(self.indices)), len(self.indices)
        message = f"the run was trained on {before:,} images and there are {now:,} now{OTHER_IMAGES}"
        then, group = state_dict.get("shards_at_once", 0), self.source.at_once
        way_out = "it cannot resume exactly: give the --data.cache_gb, or the kind of --data.path, that it began with"
        other = f"the run shuffled {then or 'all'} shards together and now would {group or 'all'}, so that {way_out}"
        refuse(DataError, (before != now, message), (self.shuffle and then != group, other))

    def __len__(self) -> int:
        """Batches of one epoch in this process."""
        return len(self._divided(self.indices))

    def __iter__(self) -> Iterator[Batch]:
        # Lightning calls iter() before it sets the epoch, so nothing may be looked at before the first next().
        start = self._restored.get("batches", 0) if self._restored.get("epoch") == self.epoch else 0
        self._restored = {}
        self._handed_out = start
        broken = "None of the training files that were tried can be decoded. Repair them, or set --data.root to others"
        coming = self.source.await_each(self.batches()[start:])
        fetch = partial(self.source.fetch, among=self.indices) if self.training else self.source.fetch
        for images, labels, failures in pump(fetch, coming, self.threads, self.threads + 2):
            self.source.report(failures)
            refuse(DataError, (self.training and not len(images), broken))
            if len(images):
                self._handed_out += 1
                yield images, labels
        self.source.report((), last=True)

    def batches(self) -> list[Tensor]:
        """The indices of each batch of the current epoch, int64 (B,) each."""
        order = self.indices
        if self.shuffle:
            # torch's CPU generator takes only 32 bits of a seed, so seed and epoch are mixed before.
            mixed = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
            generator = torch.Generator().manual_seed(mixed)
            order = order[balanced_draw(self.source.labels[order], generator)] if self.balanced else order
            order = order[torch.randperm(len(order), generator=generator)]
            order = order[self.source.grouped(order, generator)] if self.source.at_once else order
        return self._divided(order)

    def _divided(self, order: Tensor) -> list[Tensor]:
        """What this process gets of the images in their order, int64 (N,), in batches."""
        shard = order[self.rank :: self.world_size]
        shard = shard[: len(order) // self.world_size] if self.training else shard
        batches = list(torch.split(shard, self.batch_size)) if len(shard) else []
        if self.training and self.batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches


def balanced_draw(labels: Tensor, generator: torch.Generator) -> Tensor:
    """As many places as there are labels, int64 (N,), of each class equally many, or one more of some that are drawn.

    Small classes are drawn with replacement, but in rounds: no image comes two times more often than another of its
    class. Of large ones no image comes twice.
    """
    counts = torch.unique(labels, return_counts=True)[1]
    share, rest = divmod(len(labels), len(counts))
    one_more = torch.randperm(len(counts), generator=generator) < rest
    found = list[Tensor]()
    members = torch.split(labels.argsort(stable=True), counts.tolist())
    for places, wanted in zip(members, (share + one_more).tolist(), strict=True):
        rounds, left = divmod(wanted, len(places))
        found += [places.repeat(rounds), places[torch.randperm(len(places), generator=generator)[:left]]]
    return torch.cat(found)


def joined(parts: Iterable[LabelledImages], most: int) -> LabelledImages:
    """All parts in one, of at most so many images: memory for them is taken once."""
    images, labels, done = torch.empty(0), torch.empty(most, dtype=torch.int64), 0
    for part in parts:
        images = images if done else part.images.new_empty((most, *part.images.shape[1:]))
        images[done : done + len(part.labels)], labels[done : done + len(part.labels)] = part
        done += len(part.labels)
    return LabelledImages(images[:done], labels[:done])
