import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_zoo.data.splits import places_by_name, split_by_place, stratified_split
from vision_zoo.errors import ConfigError


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(2, 40), min_size=2, max_size=8), share=st.floats(0.05, 0.9), seed=st.integers(0, 99))
def test_both_parts_hold_every_class_once_in_proportion(counts, share, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    wanted = min(max(round(share * len(labels)), len(counts)), len(labels) - len(counts))
    stays, cut = stratified_split(labels, wanted, seed, "--data.val_split")
    assert len(cut) == wanted
    assert sorted([*stays.tolist(), *cut.tolist()]) == list(range(len(labels)))
    assert stays.tolist() == sorted(stays.tolist())
    for label, count in enumerate(counts):
        here = int((labels[cut] == label).sum())
        assert 1 <= here < count
        assert abs(here - wanted * count / len(labels)) <= len(counts) + 1


def test_equal_classes_are_cut_equally():
    labels = torch.arange(1000) % 10
    assert labels[stratified_split(labels, 0.1, 0, "x")[1]].bincount().tolist() == [10] * 10


def test_the_seed_decides():
    labels = torch.arange(100) % 5
    first, again, other = (stratified_split(labels, 0.2, seed, "x")[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_zero_cuts_nothing():
    stays, cut = stratified_split(torch.arange(10) % 2, 0, 0, "x")
    assert len(stays) == 10
    assert len(cut) == 0


@pytest.mark.parametrize("part", [3, 98, 0.01, 0.99])
def test_a_part_without_some_class_is_refused_with_the_numbers(part):
    with pytest.raises(ConfigError, match=rf"--data.val_split {part} would cut \d+ of 100 images.*between 5 and 95"):
        stratified_split(torch.arange(100) % 5, part, 0, "--data.val_split")


def test_where_a_class_has_one_image_no_number_is_advised():
    with pytest.raises(ConfigError, match=r"smallest class has 1\)\. Add images, or set --data.val_split 0"):
        stratified_split(torch.tensor([0] * 9 + [1]), 4, 0, "--data.val_split")


@pytest.mark.parametrize("part", [-1, -0.1, 1.0, 1.5])
def test_what_is_neither_a_fraction_nor_a_count_is_refused(part):
    with pytest.raises(ConfigError, match="must be a fraction of at least 0 and below 1, or a whole number"):
        stratified_split(torch.arange(100) % 5, part, 0, "--data.val_split")


@pytest.mark.parametrize("count", [3, 5, 11])
def test_no_class_of_three_named_images_is_refused_by_chance(count):
    labels = torch.arange(20).repeat_interleave(count)
    for seed in range(20):
        places = places_by_name([f"{index}.png" for index in range(len(labels))], seed)
        stays, _ = split_by_place(labels, places, 0.3, "--data.test_split")
        _, val = split_by_place(labels[stays], places[stays], 0.51, "--data.val_split")
        assert set(labels[stays][val].tolist()) == set(range(20))
    with pytest.raises(ConfigError, match=r"the smallest class has 1 to deal: add images, or set --data\.val_split 0"):
        split_by_place(torch.tensor([0, 0, 1]), torch.rand(3), 0.1, "--data.val_split")
