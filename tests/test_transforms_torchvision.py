"""The transforms of batches against torchvision's of one image: the same pixels, and the same draws."""

import math

import pytest
import torch
from torchvision.transforms import v2

from vision_zoo.transforms import (
    ColorJitter,
    CutMix,
    GaussianBlur,
    MixUp,
    RandAugment,
    RandomGrayscale,
    RandomResizedCrop,
    TrivialAugmentWide,
    automatic,
    colour,
    geometry,
)

TF = v2.functional
SIZES = [(3, 32, 32), (1, 28, 28), (3, 19, 24)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def photos(count, channels, height, width):
    """uint8 (count, channels, height, width) with edges and gradients, each of another brightness and contrast."""
    rough = torch.rand(count, channels, 5, 6) * torch.rand(count, 1, 1, 1) * 400 - 60
    smooth = torch.nn.functional.interpolate(rough, (height, width), mode="bilinear")
    return (smooth + 8 * torch.randn_like(smooth)).round().clamp(0, 255).to(torch.uint8)


def theirs(name, image, strength, height, width):
    """What torchvision's RandAugment does with one image, by its public functions."""
    plain = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    slope = math.degrees(math.atan(strength))
    return {
        "ShearX": lambda: TF.affine(image, **{**plain, "shear": [slope, 0.0]}, center=[0, 0]),
        "ShearY": lambda: TF.affine(image, **{**plain, "shear": [0.0, slope]}, center=[0, 0]),
        "TranslateX": lambda: TF.affine(image, **{**plain, "translate": [int(strength), 0]}),
        "TranslateY": lambda: TF.affine(image, **{**plain, "translate": [0, int(strength)]}),
        "Rotate": lambda: TF.rotate(image, strength),
        "Brightness": lambda: TF.adjust_brightness(image, 1 + strength),
        "Color": lambda: TF.adjust_saturation(image, 1 + strength),
        "Contrast": lambda: TF.adjust_contrast(image, 1 + strength),
        "Sharpness": lambda: TF.adjust_sharpness(image, 1 + strength),
        "Posterize": lambda: TF.posterize(image, int(strength)),
        "Solarize": lambda: TF.solarize(image, strength),
        "AutoContrast": lambda: TF.autocontrast(image),
        "Equalize": lambda: TF.equalize(image),
        "Identity": lambda: image,
    }[name]()


def differences(ours, theirs):
    """Largest difference of a pixel; theirs is a list of images."""
    return (ours.int() - torch.stack(theirs).int()).abs().max()


@pytest.mark.parametrize("name", automatic.OPERATIONS)
@pytest.mark.parametrize(
    ("transform", "size"),
    [(RandAugment(), SIZES[0]), (TrivialAugmentWide(), SIZES[1]), (TrivialAugmentWide(num_magnitude_bins=7), SIZES[2])],
)
def test_every_operation_of_every_strength_gives_the_pixels_of_torchvision(name, transform, size):
    number = automatic.OPERATIONS.index(name)
    strengths = transform.strengths(*size[1:])[number]
    if name in automatic.SIGNED:
        strengths = torch.cat([strengths, -strengths])
    images = photos(len(strengths), *size)
    ours = automatic.operate(images, torch.full((len(images),), number), strengths)
    expected = [theirs(name, image, x, *size[1:]) for image, x in zip(images, strengths.tolist(), strict=True)]
    assert differences(ours, expected) <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (colour.brightness, TF.adjust_brightness, [0, 0.4, 1, 1.7]),
        (colour.contrast, TF.adjust_contrast, [0, 0.4, 1, 1.7]),
        (colour.saturation, TF.adjust_saturation, [0, 0.4, 1, 1.7]),
        (colour.hue, TF.adjust_hue, [-0.5, -0.21, 0, 0.1, 0.35, 0.5]),
    ],
)
def test_each_part_of_colour_jitter_gives_the_pixels_of_torchvision(ours, theirs, factors, size):
    images = photos(len(factors), *size)
    images[:, :, :2] = images[:, :1, :2]  # some gray pixels
    expected = [theirs(image, factor) for image, factor in zip(images, factors, strict=True)]
    assert differences(ours(images, torch.tensor(factors).double()), expected) <= 1


def test_a_colour_jitter_down_to_nothing_leaves_none():
    images = photos(4, 3, 8, 8)
    expected = [TF.adjust_saturation(image, 0) for image in images]
    assert differences(ColorJitter(saturation=(0, 0))(images), expected) <= 1
    assert int(ColorJitter(brightness=(0, 0))(images).max()) == 0
    assert torch.equal(ColorJitter(hue=(0, 0), contrast=(1, 1))(images), images)


@pytest.mark.parametrize("size", SIZES)
def test_a_blur_and_gray_have_the_pixels_of_torchvision(size):
    images = photos(6, *size)
    for width, sigma in ((3, 0.2), (3, 1.5), (7, 2.0)):
        expected = [TF.gaussian_blur(image, width, sigma) for image in images]
        assert differences(GaussianBlur(width, (sigma, sigma))(images), expected) <= 1
    assert differences(RandomGrayscale(1.0)(images), [TF.rgb_to_grayscale(image, size[0]) for image in images]) == 0


@pytest.mark.parametrize("size", SIZES)
def test_an_enlarged_piece_has_the_pixels_of_torchvision(size):
    _, height, width = size
    tall, wide = torch.randint(1, height + 1, (40,)), torch.randint(1, width + 1, (40,))
    top, left = ((torch.rand(40) * (n - side + 1)).long() for n, side in ((height, tall), (width, wide)))
    images, boxes = photos(40, *size), torch.stack([top, left, tall, wide])
    expected = [
        TF.resized_crop(image, *box, [height, width]) for image, box in zip(images, boxes.T.tolist(), strict=True)
    ]
    assert differences(geometry.enlarged(images, *boxes.float()), expected) <= 1


@pytest.mark.parametrize("ratio", [(0.3, 0.5), (2.0, 3.0)])
def test_where_no_piece_fits_it_is_the_one_in_the_middle_as_in_torchvision(ratio):
    images = photos(4, 3, 16, 20)
    theirs = v2.RandomResizedCrop((16, 20), (0.9, 1.0), ratio)
    assert differences(RandomResizedCrop((0.9, 1.0), ratio)(images), [theirs(image) for image in images]) <= 1


def figures(images):
    """What tells one random image from another, float (5, B): brightness, contrast, sharpness, tint, and a corner."""
    x = images.float()
    edges = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
    return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), edges, (x[:, 0] - x[:, 2]).mean((1, 2)), x[:, 0, 2, 2]])


def distance(one, other):
    """Of Kolmogorov and Smirnov: the largest difference of the two distributions' shares below a value."""
    values = torch.cat([one, other]).sort().values
    below = [torch.searchsorted(x.sort().values, values, right=True) / len(x) for x in (one, other)]
    return float((below[0] - below[1]).abs().max())


def limit(one, other):
    """What the distance of samples of one distribution exceeds once in 10,000 times."""
    return 2.23 * math.sqrt(1 / len(one) + 1 / len(other))


DRAWN = [
    (RandomResizedCrop(), v2.RandomResizedCrop((16, 20))),
    (RandAugment(), v2.RandAugment()),
    (RandAugment(3, 20), v2.RandAugment(3, 20)),
    (TrivialAugmentWide(), v2.TrivialAugmentWide()),
    (ColorJitter(0.4, (0.5, 1.2), 0.7, 0.1), v2.ColorJitter(0.4, (0.5, 1.2), 0.7, 0.1)),
    (ColorJitter((3, 3), (0.3, 0.3)), v2.ColorJitter((3, 3), (0.3, 0.3))),  # where the order tells
    (ColorJitter(hue=(0.1, 0.4)), v2.ColorJitter(hue=(0.1, 0.4))),
    (GaussianBlur(5, (0.1, 2.0)), v2.GaussianBlur(5, (0.1, 2.0))),
    (RandomGrayscale(0.3), v2.RandomGrayscale(0.3)),
]


@pytest.mark.parametrize(("ours", "theirs"), DRAWN)
def test_draws_are_distributed_as_those_of_torchvision(ours, theirs):
    image = photos(1, 3, 16, 20)
    many = figures(ours(image.expand(5000, -1, -1, -1)))
    few = figures(torch.stack([theirs(image[0]) for _ in range(500)]))
    for drawn, expected in zip(many, few, strict=True):
        # What differs by the rounding of a pixel is the same.
        assert distance((drawn / 2).round(), (expected / 2).round()) < limit(drawn, expected) + 0.02


@pytest.mark.parametrize("transform", [RandAugment(num_ops=1), TrivialAugmentWide(num_magnitude_bins=3)])
def test_every_outcome_is_as_frequent_as_that_of_torchvision(transform):
    image = photos(1, 3, 16, 16)
    ours = transform(image.expand(20_000, -1, -1, -1)).flatten(1)
    outcomes, counts = ours.unique(dim=0, return_counts=True)
    options = {"num_ops": 1} if type(transform) is RandAugment else {"num_magnitude_bins": 3}
    other = getattr(v2, type(transform).__name__)(**options)
    drawn = torch.stack([other(image[0]) for _ in range(1000)]).flatten(1)
    apart = torch.cdist(drawn.float(), outcomes.float(), p=torch.inf)
    nearest, place = apart.min(1)
    assert nearest.max() <= 1  # whatever theirs gives, ours gives too
    expected, found = counts / len(ours) * len(drawn), torch.bincount(place, minlength=len(outcomes))
    chi_square, freedom = float(((found - expected) ** 2 / expected).sum()), len(outcomes) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)
    assert len(outcomes) > 20


@pytest.mark.parametrize(("ours", "theirs"), [(MixUp(0.4), v2.MixUp(alpha=0.4)), (CutMix(1.5), v2.CutMix(alpha=1.5))])
def test_shares_are_distributed_as_those_of_torchvision(ours, theirs):
    labels = torch.eye(2)
    few = torch.stack([theirs(torch.zeros(2, 1, 20, 28), labels)[1][0, 0] for _ in range(500)])
    _, mixed = ours(torch.zeros(4000, 1, 20, 28, dtype=torch.uint8), torch.eye(4000))
    many = mixed.diagonal()
    assert distance((many * 100).round(), (few * 100).round()) < limit(many, few)
