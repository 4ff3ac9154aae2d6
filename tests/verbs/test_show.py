import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.data import MNIST5k, sources
from vision_zoo.plots import plot_images
from vision_zoo.verbs.show import show

FLIP = '[{"class_path": "RandomHorizontalFlip", "init_args": {"p": 1.0}}]'

pytestmark = pytest.mark.draws


def size(path):
    with Image.open(path) as image:
        return image.size


def test_the_default_needs_no_options_and_no_network(here, capsys, monkeypatch):
    monkeypatch.setattr("vision_zoo.classifier.build_backbone", lambda *_: pytest.fail("a network was built"))
    assert main(["show"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "MNIST5k: 28 x 28 gray; train 3,500, val 500; 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert last == str(here / "MNIST5k_train.png")
    width, height = size(last)
    assert width > 1000
    assert height > 900  # four rows


@pytest.mark.parametrize(("split", "of"), [("train", "train"), ("val", "val"), ("test", "test")])
def test_every_split_is_shown_with_its_own_labels(here, monkeypatch, split, of):
    drawn = {}
    monkeypatch.setattr(
        "vision_zoo.verbs.show.plot_images", lambda *words: drawn.update(zip("itph", words, strict=True))
    )
    assert main(["show", "--split", split, "--count", "12"]) == 0
    expected = MNIST5k().sample(of, 12)
    assert np.array_equal(drawn["i"], expected.images)
    assert drawn["t"] == [str(label) for label in expected.labels.tolist()]
    assert (here / f"MNIST5k_{split}.png").is_file()


def test_long_names_of_classes_are_broken_into_lines(here, monkeypatch):
    tiny.write_image_folder(here / "data", ("cat", "American Staffordshire terrier, also called pit bull terrier"))
    titles = []
    monkeypatch.setattr("vision_zoo.verbs.show.plot_images", lambda images, names, *_: titles.extend(names))
    assert main(["show", "--data", "ImageFolder", "--data.root", "data", "--count", "4"]) == 0
    assert set(titles) == {"cat", "American\nStaffordshire\nterrier, also ..."}


def test_augmented_images_stand_beside_the_original(monkeypatch, here):
    drawn = []
    monkeypatch.setattr("vision_zoo.verbs.show.plot_images", lambda images, *_: drawn.append(images))
    assert main(["show", "--augmented", "true", "--data.augmentation", FLIP]) == 0
    (images,) = drawn
    assert images.shape == (20, 1, 28, 28)
    for row in images.split(5):
        assert all((draw == row[0].flip(-1)).all() for draw in row[1:])


def test_a_checkpoint_names_its_data(trained_run, here, capsys):
    assert main(["show", "--ckpt_path", str(trained_run), "--count", "2", "--output", "new/two.png"]) == 0
    assert "changed against the checkpoint" not in capsys.readouterr().err
    assert size(here / "new" / "two.png")[0] > 100


@pytest.mark.parametrize("channels", [1, 3])
def test_a_single_image_gray_or_in_colour(here, channels):
    tiny.write_npz(here / "some.npz", 100, 20, shape=(9, 7, channels))
    assert main(["show", "--data", "ArrayFile", "--data.path", "some.npz", "--count", "1", "--output", "x.png"]) == 0
    assert size("x.png")[0] > 100


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_of_other_channels_are_shown_in_gray(channels, tmp_path):
    images = torch.full((1, channels, 9, 7), 100, dtype=torch.uint8)
    plot_images(images, ["five bands"], tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert (100, 100, 100) in {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


def test_a_folder_is_not_decoded_for_a_few_images(here, monkeypatch):
    tiny.write_image_folder(here / "data", count=40)
    decoded, original = [], sources.decode
    monkeypatch.setattr(sources, "decode", lambda *words, **more: decoded.append(words[0]) or original(*words, **more))
    assert main(["show", "--data", "ImageFolder", "--data.root", "data", "--count", "6"]) == 0
    assert 6 <= len(decoded) <= 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count", "0"], "--count must be between 1 and 500, got 0"),
        (["--output", "x.pdf"], "--output x.pdf must end in .png"),
        (
            ["--augmented", "true", "--data.augmentation", "null"],
            "no augmentation is set for MNIST5k. Give --data.augmentation",
        ),
        (["--augmented", "true", "--split", "test", "--data.augmentation", FLIP], "test images are never augmented"),
        (["--split", "val", "--data.val_split", "0"], "--data.val_split is 0"),
        (["--data", "MNIST5"], "did you mean MNIST5k"),
        (["--data", "ImageFolder", "--data.root", "gone"], "there is no folder"),
    ],
)
def test_wrong_usage_is_refused_by_name(here, capsys, words, message):
    assert main(["show", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_by_name(here):
    from vision_zoo.errors import ConfigError

    (here / "file").write_text("")
    with pytest.raises(ConfigError, match=r"x.png cannot be written"):
        show(MNIST5k(), output="file/x.png")
