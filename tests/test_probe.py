"""One trial of a network before any work."""

import pytest
import torch

from tests.test_classifier import classifier
from vision_zoo.__main__ import main
from vision_zoo.backbones import LeNet5
from vision_zoo.errors import ConfigError, VisionZooError
from vision_zoo.verbs.summary import layer_table

passes = []


class Counting(LeNet5):
    """Notes each image that passes, while it is not trained on."""

    def forward(self, images):
        if not self.training:
            passes.append(len(images))
        return super().forward(images)


@pytest.fixture(autouse=True)
def none_passed():
    passes.clear()


def test_check_and_table_share_one_pass():
    model = classifier(Counting)
    layer_table(model)
    model.check(64)
    assert passes == [1]
    assert not model.channels_last
    assert model.backbone.training


def test_another_backbone_is_tried_anew():
    model = classifier(Counting)
    model.check()
    model.backbone = Counting((1, 28, 28), 9)
    with pytest.raises(ConfigError, match=r"must return logits of shape .* \(1, 10\), got \(1, 9\)"):
        model.check()


@pytest.mark.parametrize("words", [[], ["--data.batch_size", "64"]])
def test_fit_sends_one_image_through_the_network_before_its_first_step(words, here, monkeypatch):
    before_first = []

    def begin(self, *_):
        before_first.extend(passes)
        raise VisionZooError("the first step")

    monkeypatch.setattr("vision_zoo.classifier.Classifier.training_step", begin)
    assert main(["fit", "--model.backbone", f"{__name__}.Counting", "--trainer.max_epochs", "1", *words]) == 1
    assert before_first == [1]


def test_the_random_state_is_as_if_nothing_had_been_tried():
    model = classifier(Counting)
    before = torch.random.get_rng_state()
    model.check()
    assert torch.equal(torch.random.get_rng_state(), before)


class Starved(LeNet5):
    """Finds no memory for a convolution, as oneDNN says it."""

    def forward(self, images):
        raise RuntimeError("could not create a primitive")


def test_a_lack_of_memory_is_not_taken_for_a_network_of_the_wrong_kind(here, capsys):
    assert main(["summary", "--model.backbone", "tests.test_probe.Starved"]) == 1
    assert "there is not enough memory" in capsys.readouterr().err
