import threading
import time

import pytest
import torch

from tests import tiny
from vision_zoo.data.sources import Files, InMemory, pump


def counting(batches):
    """Says how many of the batches were drawn."""
    counting.drawn = 0
    for batch in batches:
        counting.drawn += 1
        yield batch


@pytest.mark.parametrize("take_turns", [False, True])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_what_is_fetched_comes_in_order_and_no_further_ahead_than_asked(threads, take_turns):
    def fetch(batch):
        time.sleep(0.005 * (batch % 3))  # later ones may be ready first
        return batch * 10

    results = []
    for result in pump(fetch, counting(range(12)), threads, ahead=4, take_turns=take_turns):
        results.append(result)
        assert counting.drawn <= len(results) + 3
    assert results == [batch * 10 for batch in range(12)]


def test_several_threads_fetch_at_once_and_end_when_nobody_takes_more():
    met = threading.Barrier(2, timeout=10)
    results = pump(lambda batch: met.wait() >= 0, range(100), threads=2, ahead=2)
    assert next(results)
    results.close()  # does not wait for what is being fetched
    for thread in threading.enumerate():
        if thread.name.startswith("decode"):
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_an_error_of_fetching_is_raised_where_its_batch_is_taken():
    results = pump(lambda batch: 1 // batch, [1, 0, 1], threads=2, ahead=3)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_images_are_the_same_in_memory_and_in_files(tmp_path):
    paths = sorted(map(str, tiny.write_image_folder(tmp_path).glob("*/*")))
    labels = torch.arange(len(paths)) // 10
    files = Files(paths, labels, (3, 16, 16))
    everything = files.fetch(torch.arange(len(files)))
    assert everything.images.shape == (20, 3, 16, 16)
    indices = torch.tensor([3, 3, 17])
    for source in (files, InMemory(everything.images, everything.labels)):
        images, found, failures = source.fetch(indices)
        assert torch.equal(images, everything.images[indices])
        assert torch.equal(found, labels[indices])
        assert not failures


def test_a_file_that_cannot_be_decoded_is_left_out_or_replaced_by_a_fixed_other_one(tmp_path):
    paths = sorted(map(str, tiny.write_image_folder(tmp_path).glob("*/*")))
    for broken in (2, 5):
        (tmp_path / paths[broken]).write_bytes(b"")
    files = Files(paths, torch.arange(20), (3, 8, 8))
    batch = torch.tensor([1, 2, 5])
    images, labels, failures = files.fetch(batch)
    assert (len(images), labels.tolist()) == (1, [1])
    assert [path for path, _ in failures] == [paths[2], paths[5]]
    _, replaced, failures = files.fetch(batch, among=torch.arange(20))
    assert len(replaced) == 3
    assert not {2, 5} & set(replaced.tolist())
    assert torch.equal(files.fetch(batch, among=torch.arange(20)).labels, replaced)
    _, labels, _ = files.fetch(batch[1:], among=batch[1:])
    assert not len(labels)


def test_where_all_files_are_gone_not_each_is_looked_for_in_place_of_each(tmp_path):
    files = Files([str(tmp_path / f"{number}.png") for number in range(3000)], torch.arange(3000), (3, 8, 8))
    _, labels, failures = files.fetch(torch.arange(4), among=torch.arange(3000))
    assert (len(labels), len(failures)) == (0, 4004)
