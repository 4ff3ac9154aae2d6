import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from vision_zoo.data.loaders import Loader
from vision_zoo.data.sources import InMemory


def loader(count=20, batch_size=4, **order):
    """Image i is filled with i, so that an image tells its index; two thirds are of class 0, a twelfth of class 2."""
    numbers = torch.arange(count)
    images = numbers.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    labels = (numbers % 3 == 0).long() + (numbers % 12 == 0)
    return Loader(InMemory(images, labels), numbers, batch_size, **order)


def indices_of(images):
    return images[:, 0, 0, 0].tolist()


def epoch(batches):
    return [indices_of(images) for images, _ in batches]


def flat(lists):
    return [index for part in lists for index in part]


def seen(batches):
    return sorted(flat(epoch(batches)))


TRAIN = {"training": True, "shuffle": True}
BALANCED = {**TRAIN, "balanced": True}
each_order = pytest.mark.parametrize("order", [TRAIN, BALANCED], ids=["each image once", "balanced"])


def test_a_batch_is_uint8_images_with_their_own_labels():
    batches = loader(**TRAIN)
    images, labels = next(iter(batches))
    assert images.dtype == torch.uint8
    assert images.shape == (4, 1, 2, 2)
    assert labels.dtype == torch.int64
    assert torch.equal(batches.source.labels[indices_of(images)], labels)


def test_every_image_comes_once_per_epoch_in_a_new_order():
    batches = loader(**TRAIN)
    first = epoch(batches)
    batches.set_epoch(1)
    second = epoch(batches)
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(20))
    assert first != second
    batches.set_epoch(0)
    assert epoch(batches) == first


@each_order
def test_another_seed_is_another_order(order):
    assert epoch(loader(**order, seed=0)) != epoch(loader(**order, seed=1))
    assert epoch(loader(**order, seed=1)) == epoch(loader(**order, seed=1))


@pytest.mark.parametrize("count", [25, 36, 37, 100])
def test_a_balanced_epoch_has_each_class_equally_often_and_the_images_of_a_class_almost(count):
    batches, total = loader(count, **BALANCED), torch.zeros(3)
    for number in range(40):
        batches.set_epoch(number)
        drawn = torch.tensor(flat(epoch(batches)))
        assert len(drawn) == count
        times = drawn.bincount(minlength=count)
        for label in range(3):
            mine = times[batches.source.labels == label]
            assert mine.sum() in (count // 3, -(-count // 3))
            assert mine.max() - mine.min() <= 1, "with replacement only once each was drawn"
            total[label] += mine.sum()
    assert total.max() - total.min() <= 25, "one class is favoured"


def test_a_balanced_epoch_is_of_other_images_in_an_order_that_is_mixed():
    batches = loader(240, **BALANCED)
    first = epoch(batches)
    batches.set_epoch(1)
    second = epoch(batches)
    large = [set(flat(e)) & set((batches.source.labels == 0).nonzero()[:, 0].tolist()) for e in (first, second)]
    assert large[0] != large[1], "the same images of the large class"
    assert len({int(batches.source.labels[index]) for index in flat(first)[:20]}) == 3


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_balanced_order(world):
    whole = flat(epoch(loader(26, batch_size=1, **BALANCED)))
    shards = [flat(epoch(loader(26, 1, rank=rank, world_size=world, **BALANCED))) for rank in range(world)]
    assert [index for turn in zip(*shards, strict=True) for index in turn] == whole[: 26 // world * world]


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
    """Notes the images of the batches that it is trained on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append((self.current_epoch, batch_idx, indices_of(batch[0])))
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
@each_order
@pytest.mark.parametrize("limit", [{}, {"limit_train_batches": 4}])
@pytest.mark.parametrize("step", [1, 3, 6, 7, 9])
def test_a_run_stopped_in_mid_epoch_continues_with_exactly_the_batches_that_remain(tmp_path, step, limit, order):
    uninterrupted = fit(loader(**order), **limit)
    path = tmp_path / "stopped.ckpt"
    fit(loader(**order), callbacks=[Keep(path, step)], **limit)
    assert fit(loader(**order), path, **limit) == uninterrupted[step:]


@pytest.mark.filterwarnings("ignore")
@each_order
def test_a_run_stopped_by_max_steps_continues_with_exactly_the_batches_that_remain(tmp_path, order):
    uninterrupted = fit(loader(**order), max_steps=18)
    path = tmp_path / "stopped.ckpt"
    fit(loader(**order), callbacks=[Keep(path, 8)], max_steps=8)
    assert fit(loader(**order), path, max_steps=18) == uninterrupted[8:]


@pytest.mark.filterwarnings("ignore")
@each_order
@pytest.mark.parametrize("epoch_of_save", [0, 1])
def test_a_run_stopped_at_the_end_of_an_epoch_continues_with_the_next(tmp_path, epoch_of_save, order):
    uninterrupted = fit(loader(**order))
    path = tmp_path / "stopped.ckpt"
    fit(loader(**order), callbacks=[KeepEpoch(path, epoch_of_save)])
    assert fit(loader(**order), path) == uninterrupted[5 * (epoch_of_save + 1) :]
