import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from vision_zoo.data.loaders import Loader
from vision_zoo.data.sources import InMemory


def loader(count=20, batch_size=4, **order):
    """Image i is filled with i, so that an image tells its index."""
    images = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Loader(InMemory(images, torch.arange(count)), torch.arange(count), batch_size, **order)


def epoch(batches):
    return [labels.tolist() for _, labels in batches]


def flat(lists):
    return [index for part in lists for index in part]


def seen(batches):
    return sorted(flat(epoch(batches)))


TRAIN = {"training": True, "shuffle": True}


def test_a_batch_is_uint8_images_with_their_own_labels():
    images, labels = next(iter(loader(**TRAIN)))
    assert images.dtype == torch.uint8
    assert images.shape == (4, 1, 2, 2)
    assert labels.dtype == torch.int64
    assert images[:, 0, 0, 0].tolist() == labels.tolist()


def test_every_image_comes_once_per_epoch_in_a_new_order():
    batches = loader(**TRAIN)
    first = epoch(batches)
    batches.set_epoch(1)
    second = epoch(batches)
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(20))
    assert first != second
    batches.set_epoch(0)
    assert epoch(batches) == first


def test_another_seed_is_another_order():
    assert epoch(loader(**TRAIN, seed=0)) != epoch(loader(**TRAIN, seed=1))
    assert epoch(loader(**TRAIN, seed=1)) == epoch(loader(**TRAIN, seed=1))


def test_without_shuffling_images_come_in_file_order():
    assert flat(epoch(loader(training=True, batch_size=1))) == list(range(20))


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 1, [1, 1, 1]), (1, 4, [1]), (4, 4, [4]), (5, 4, [5])],
)
def test_a_last_training_batch_of_one_image_joins_the_one_before(count, batch_size, sizes):
    batches = loader(count, batch_size, **TRAIN)
    assert [len(batch) for batch in epoch(batches)] == sizes
    assert len(batches) == len(sizes)


def test_evaluation_keeps_a_last_batch_of_one_image():
    assert [len(batch) for batch in epoch(loader(9))] == [4, 4, 1]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("count", [20, 25, 26])
def test_processes_train_on_equally_many_batches_without_overlap(world, count):
    shards = [loader(count, rank=rank, world_size=world, **TRAIN) for rank in range(world)]
    assert len({len(shard) for shard in shards}) == 1
    assert [len(epoch(shard)) for shard in shards] == [len(shard) for shard in shards]
    images = [index for shard in shards for index in seen(shard)]
    assert len(set(images)) == len(images) == count // world * world


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("count", [1, 20, 25])
def test_processes_evaluate_every_image_exactly_once(world, count):
    shards = [loader(count, rank=rank, world_size=world) for rank in range(world)]
    assert sorted(index for shard in shards for index in seen(shard)) == list(range(count))
    assert [len(epoch(shard)) for shard in shards] == [len(shard) for shard in shards]


class Recorder(LightningModule):
    """Notes the labels of the batches that it is trained on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append((self.current_epoch, batch_idx, batch[1].tolist()))
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Keep(Callback):
    """Saves in the middle of an epoch and stops there."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


class KeepEpoch(Callback):
    """Saves at the end of an epoch and stops there."""

    def __init__(self, path, epoch):
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer, *_):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def fit(batches, ckpt_path=None, callbacks=(), **options):
    options = {"max_epochs": 4, **options}
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    recorder = Recorder()
    trainer.fit(recorder, batches, ckpt_path=ckpt_path)
    return recorder.batches


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [{}, {"limit_train_batches": 4}])
@pytest.mark.parametrize("step", [1, 3, 6, 7, 9])
def test_a_run_stopped_in_mid_epoch_continues_with_exactly_the_batches_that_remain(tmp_path, step, limit):
    uninterrupted = fit(loader(**TRAIN), **limit)
    path = tmp_path / "stopped.ckpt"
    fit(loader(**TRAIN), callbacks=[Keep(path, step)], **limit)
    assert fit(loader(**TRAIN), path, **limit) == uninterrupted[step:]


@pytest.mark.filterwarnings("ignore")
def test_a_run_stopped_by_max_steps_continues_with_exactly_the_batches_that_remain(tmp_path):
    uninterrupted = fit(loader(**TRAIN), max_steps=18)
    path = tmp_path / "stopped.ckpt"
    fit(loader(**TRAIN), callbacks=[Keep(path, 8)], max_steps=8)
    assert fit(loader(**TRAIN), path, max_steps=18) == uninterrupted[8:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("epoch_of_save", [0, 1])
def test_a_run_stopped_at_the_end_of_an_epoch_continues_with_the_next(tmp_path, epoch_of_save):
    uninterrupted = fit(loader(**TRAIN))
    path = tmp_path / "stopped.ckpt"
    fit(loader(**TRAIN), callbacks=[KeepEpoch(path, epoch_of_save)])
    assert fit(loader(**TRAIN), path) == uninterrupted[5 * (epoch_of_save + 1) :]
