import pytest
import torch
from torchvision.transforms import v2

from tests import tiny
from tests.training.runs import rows
from vision_zoo.__main__ import main
from vision_zoo.errors import ConfigError
from vision_zoo.transforms import (
    AlternatingFlip,
    ColorJitter,
    CutMix,
    Cutout,
    GaussianBlur,
    LabelledTransform,
    MixUp,
    RandAugment,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    TrivialAugmentWide,
    apply_transforms,
    check_transforms,
    views,
)

EVERY = [
    RandomHorizontalFlip(),
    RandomVerticalFlip(),
    RandomCrop(4),
    RandomCrop(4, "reflect"),
    RandomCrop(4, "edge"),
    RandomAffine(15, 0.1, (0.8, 1.2), 10),
    RandomErasing(p=1.0),
    RandomErasing(p=1.0, value="random"),
    Cutout(5),
    RandomResizedCrop(),
    RandAugment(),
    TrivialAugmentWide(),
    ColorJitter(0.4, 0.4, 0.4, 0.1),
    GaussianBlur(5),
    RandomGrayscale(0.5),
]
MIXING = [MixUp(), CutMix()]
IDS = [f"{type(transform).__name__}{place}" for place, transform in enumerate(EVERY)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    return torch.randint(1, 256, (16, 3, 12, 20), dtype=torch.uint8)


def images_by(transforms, images):
    return apply_transforms(transforms, images, torch.zeros(len(images), dtype=torch.long), 10)[0]


@pytest.mark.parametrize("transform", EVERY, ids=IDS)
def test_shape_and_type_stay_and_the_input_is_not_changed(transform, batch):
    before = batch.clone()
    changed = transform(batch)
    assert changed.shape == batch.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(batch, before)


@pytest.mark.parametrize("transform", EVERY, ids=IDS)
def test_each_image_has_a_draw_of_its_own(transform, batch):
    same = batch[:1].expand(16, -1, -1, -1)
    assert len(transform(same).unique(dim=0)) > 1


@pytest.mark.parametrize(
    "transform", [*EVERY, *MIXING, AlternatingFlip()], ids=lambda transform: type(transform).__name__
)
@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 9, 9), (3, 5, 7)])
def test_one_image_of_any_number_of_channels_will_do(transform, shape):
    images = torch.randint(0, 256, (1, *shape), dtype=torch.uint8)
    changed, labels = apply_transforms([transform], images, torch.tensor([2]), 3)
    assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)
    assert labels.tolist() == ([[0, 0, 1]] if transform in MIXING else [2])


@pytest.mark.parametrize("transform", EVERY, ids=IDS)
def test_the_same_seed_gives_the_same_draws(transform, batch):
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(transform(batch))
    assert torch.equal(*results)


def test_flips_mirror_all_or_none(batch):
    assert torch.equal(RandomHorizontalFlip(1.0)(batch), batch.flip(3))
    assert torch.equal(RandomVerticalFlip(1.0)(batch), batch.flip(2))
    assert torch.equal(RandomHorizontalFlip(0.0)(batch), batch)


@pytest.mark.parametrize("size", [(3, 5, 7), (1, 28, 28)])  # bytes of an image that eight divides, and not
def test_a_flip_mirrors_some_images_whatever_their_size(size):
    batch = torch.randint(0, 256, (32, *size), dtype=torch.uint8)
    mirrored = [
        bool(torch.equal(after, before.flip(2)))
        for after, before in zip(RandomHorizontalFlip()(batch), batch, strict=True)
        if not torch.equal(after, before)
    ]
    assert all(mirrored)
    assert 0 < len(mirrored) < 32


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_a_crop_is_a_window_of_the_padded_image(batch, mode):
    padded = v2.functional.pad(batch, [2, 2, 2, 2], fill=7, padding_mode=mode)
    cropped = RandomCrop(2, mode, fill=7)(batch)
    places = set()
    for image, around in zip(cropped, padded, strict=True):
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(image, around[:, top : top + 12, left : left + 20])
        ]
        assert found
        places.add(found[0])
    assert len(places) > 4


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_a_crop_does_not_depend_on_the_order_of_pixels_in_memory(batch, mode):
    torch.manual_seed(3)
    expected = RandomCrop(2, mode)(batch)
    torch.manual_seed(3)
    assert torch.equal(RandomCrop(2, mode)(batch.contiguous(memory_format=torch.channels_last)), expected)


def test_an_affine_transform_without_range_changes_nothing(batch):
    assert torch.equal(RandomAffine()(batch), batch)


def test_a_rotation_keeps_proportions_of_images_that_are_not_square():
    """A disc in the centre stays where it is, whatever the angle."""
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(40.0), indexing="ij")
    disc = 255 * (((rows - 11.5) ** 2 + (columns - 19.5) ** 2) < 64).to(torch.uint8)
    images = disc.expand(8, 1, 24, 40)
    rotated = RandomAffine(degrees=90)(images)
    assert (rotated.float() - images.float()).abs().mean() < 6


def test_an_affine_shift_moves_by_at_most_the_fraction_and_fills():
    images = torch.zeros(64, 1, 20, 20, dtype=torch.uint8)
    images[:, :, 10, 10] = 255
    shifted = RandomAffine(translate=0.1, fill=0)(images).float()[:, 0]
    centre = (shifted.sum(2) * torch.arange(20)).sum(1) / shifted.sum((1, 2))
    assert (centre - 10).abs().max() <= 2.1
    assert centre.std() > 0.5
    assert (RandomAffine(translate=0.5, fill=9)(images) == 9).any()


def test_erasing_overwrites_one_rectangle_of_the_asked_area():
    images = torch.full((200, 3, 32, 32), 200, dtype=torch.uint8)
    erased = RandomErasing(p=0.5, scale=(0.1, 0.2), value=5)(images) == 5
    share = erased[:, 0].float().mean((1, 2))
    hit = share[share > 0]
    assert 60 < len(hit) < 140
    assert hit.min() > 0.07
    assert hit.max() < 0.24
    for image in erased[share > 0][:, 0]:
        assert image.sum() == image.any(0).sum() * image.any(1).sum()


def test_cutout_overwrites_a_square_cut_off_at_the_border():
    images = torch.full((200, 1, 16, 16), 200, dtype=torch.uint8)
    erased = (Cutout(6, fill=1)(images) == 1).sum((1, 2, 3))
    assert erased.max() == 36
    assert erased.min() >= 9


def test_a_foreign_transform_draws_for_each_image(batch):
    same = batch[:1].expand(16, -1, -1, -1)
    assert len(images_by([v2.RandomHorizontalFlip(), v2.RandomRotation(10)], same).unique(dim=0)) > 2


def test_transforms_apply_in_their_order():
    images = torch.full((2, 1, 4, 4), 100, dtype=torch.uint8)
    erase_last = images_by([RandomHorizontalFlip(1.0), Cutout(9, fill=3)], images)
    assert (erase_last == 3).all()


@pytest.mark.parametrize("transform", [v2.Resize(5), v2.ToDtype(torch.float32)])
def test_a_transform_that_changes_shape_or_type_is_refused_by_name(transform, batch):
    with pytest.raises(ConfigError, match=rf"--data.augmentation: {type(transform).__name__} turns .* must keep both"):
        images_by([transform], batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomHorizontalFlip(1.5), "RandomHorizontalFlip: p must be between 0 and 1, got 1.5"),
        (lambda: RandomCrop(-1), "padding must be at least 0"),
        (lambda: check_transforms([RandomCrop(1, "wrap")], (1, 12, 12), 2), "fails .*padding_mode.* but got .'wrap'"),
        (lambda: RandomAffine(scale=(0, 1)), "RandomAffine: scale must be two rising numbers from 1e-06 to inf, got"),
        (lambda: RandomAffine(shear=90), "shear below 90"),
        (lambda: RandomErasing(scale=(0.5, 2)), "RandomErasing: scale must be two rising numbers from 1e-06 to 1, got"),
        (
            lambda: RandomResizedCrop((0.5, 2)),
            "RandomResizedCrop: scale must be two rising numbers from 1e-06 to 1, got",
        ),
        (
            lambda: ColorJitter(hue=0.6),
            r"ColorJitter: hue must be two rising numbers from -0.5 to 0.5, got \[-0.6, 0.6\]",
        ),
        (lambda: ColorJitter(contrast=(1.2, 0.5)), "ColorJitter: contrast must be two rising numbers from 0 to inf"),
        (lambda: GaussianBlur(4), "GaussianBlur: kernel_size must be an odd number, got 4"),
        (lambda: RandAugment(magnitude=31), "RandAugment: .* magnitude from 0 to one less than them, got 2, 31 and 31"),
        (lambda: TrivialAugmentWide(1), "TrivialAugmentWide: .*num_magnitude_bins at least 2.* got 1, 1 and 0"),
        (lambda: MixUp(0), "MixUp: alpha must be above 0, got 0"),
        (lambda: CutMix(p=2), "CutMix: p must be between 0 and 1, got 2"),
        (
            lambda: check_transforms([Unlabelled()], (1, 9, 9), 3),
            r"Unlabelled turns torch.float32 labels of shape \(2, 3\) into torch.int64",
        ),
        (lambda: Cutout(0), "size must be at least 1, got 0"),
        (lambda: Cutout(2, 300), "fill must be between 0 and 255, got 300"),
        (
            lambda: check_transforms([RandomCrop(12, "reflect")], (1, 12, 12), 2),
            r"fails on images of shape \(1, 12, 12\): .*Padding size should be less",
        ),
    ],
)
def test_impossible_options_are_refused_by_name(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_diagonal_views_have_half_of_the_weight_and_reflect_the_border():
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    (whole, half), (down_right, quarter), (up_left, other) = views(image, "diagonal")
    assert (half, quarter, other) == (1 / 2, 1 / 4, 1 / 4)
    assert torch.equal(whole, image)
    assert down_right[0, 0].tolist() == [[5, 4, 5, 6], [1, 0, 1, 2], [5, 4, 5, 6], [9, 8, 9, 10]]
    assert up_left[0, 0].tolist() == [[5, 6, 7, 6], [9, 10, 11, 10], [13, 14, 15, 14], [9, 10, 11, 10]]
    mirrored = views(image, "flip+diagonal")
    assert [weight for _, weight in mirrored] == [1 / 4, 1 / 8, 1 / 8] * 2
    for (view, _), (mirror, _) in zip(mirrored[:3], mirrored[3:], strict=True):
        assert torch.equal(view.flip(3), mirror)


class Unlabelled(LabelledTransform):
    """Gives the numbers of the classes, not their probabilities."""

    def forward(self, images, labels):
        return images, labels.argmax(1)


def plain_images(count):
    """Image i has the value 8 i everywhere, and class i."""
    values = 8 * torch.arange(count, dtype=torch.uint8)
    return values[:, None, None, None].expand(-1, 3, 12, 20).contiguous(), torch.arange(count)


def test_the_labels_of_cutmix_are_the_shares_of_pixels():
    images, labels = plain_images(30)
    mixed, shares = apply_transforms([CutMix(p=0.8)], images, labels, 30)
    counted = torch.stack([(mixed == 8 * k).float().mean((1, 2, 3)) for k in range(30)], dim=1)
    torch.testing.assert_close(shares, counted)
    assert shares.max(1).values.unique().numel() > 10  # a draw for each image
    assert (shares.max(1).values == 1).any()  # p
    for image in mixed[:, 0] != images[:, 0]:
        assert image.sum() == image.any(0).sum() * image.any(1).sum()  # a rectangle


def test_the_labels_of_mixup_are_the_weights_of_pixels_also_when_mixed_twice():
    images, labels = plain_images(30)
    for transforms, rounding in (([MixUp(p=0.8)], 0.51), ([MixUp(), MixUp()], 1.01)):
        mixed, shares = apply_transforms(transforms, images, labels, 30)
        weighted = shares @ (8.0 * labels)
        assert (mixed.float() - weighted[:, None, None, None]).abs().max() <= rounding
        torch.testing.assert_close(shares.sum(1), torch.ones(30))
        assert shares.max(1).values.unique().numel() > 10
        assert images.unique().numel() == 30  # the given ones stay


def test_labels_that_nothing_mixes_stay_numbers(batch):
    labels = torch.arange(16)
    assert torch.equal(apply_transforms([RandAugment(), AlternatingFlip()], batch, labels, 16)[1], labels)


def test_an_alternating_flip_shows_both_sides_of_each_image_in_two_epochs_whatever_the_batch():
    images = torch.randint(0, 256, (400, 3, 12, 20), dtype=torch.uint8)
    labels = torch.zeros(400, dtype=torch.long)
    epochs = [apply_transforms([AlternatingFlip()], images, labels, 2, epoch)[0] for epoch in range(3)]
    flipped = (epochs[0] != images).flatten(1).any(1)
    assert 160 < flipped.sum() < 240
    assert torch.equal(epochs[0][flipped], images[flipped].flip(3))
    assert torch.equal(epochs[1], epochs[0].flip(3))
    assert torch.equal(epochs[2], epochs[0])
    order = torch.randperm(400)[:77]
    again = apply_transforms(
        [AlternatingFlip()], images[order].contiguous(memory_format=torch.channels_last), labels[:77], 2
    )
    assert torch.equal(again[0], epochs[0][order])


def test_images_that_differ_in_one_pixel_flip_apart():
    images = torch.zeros(200, 1, 10, 20, dtype=torch.uint8)
    images.view(200, 200).fill_diagonal_(1)
    flipped = AlternatingFlip()(images).view(200, 200).argmax(1) != torch.arange(200)
    assert 70 < flipped.sum() < 130


def test_streamed_pictures_are_trained_on_with_mixed_labels(here):
    root = tiny.write_image_folder(here / "pictures")
    words = ["--data", "ImageFolder", "--data.root", str(root), "--data.in_memory", "false", "--data.image_size", "16"]
    words += ["--data.augmentation", "[AlternatingFlip, RandomResizedCrop, RandAugment, MixUp, CutMix]"]
    words += ["--model.backbone", "SimpleCNN", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"]
    assert main(["fit", *words, "--data.batch_size", "8"]) == 0
    logged = rows(here / "runs/default/version_0")
    losses = [float(row["train/loss"]) for row in logged if row["train/loss"]]
    assert len(losses) == 1
    assert all(0 < loss < 20 for loss in losses)
    assert main(["show", "--ckpt_path", "last", "--augmented", "true", "--output", "drawn.png"]) == 0
