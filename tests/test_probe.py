"""One trial of a network before any work."""

import pytest
import torch
from torch import nn

from tests.test_classifier import classifier
from vision_zoo import probe
from vision_zoo.__main__ import main
from vision_zoo.backbones import LeNet5
from vision_zoo.errors import ConfigError, VisionZooError
from vision_zoo.verbs.summary import layer_table, summarise

passes = []


class Counting(LeNet5):
    """Notes each image that passes, while it is not trained on."""

    def forward(self, images):
        if not self.training:
            passes.append(len(images))
        return super().forward(images)


class Viewing(nn.Module):
    """A network whose features are viewed, which only torch's contiguous format allows."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.features = nn.Conv2d(image_shape[0], 4, 3)
        self.head = nn.Linear(4 * 26 * 26, num_classes)

    def forward(self, images):
        passes.append(len(images))
        return self.head(self.features(images).view(len(images), -1))


@pytest.fixture(autouse=True)
def none_passed():
    passes.clear()


def test_check_table_and_modes_share_one_pass():
    model = classifier(Counting)
    layer_table(model)
    model.check(64)
    assert probe.accepts(model)
    assert probe.accepts(model, channels_last=True)
    assert passes == [1]
    assert not model.channels_last
    assert model.backbone.training


def test_another_backbone_is_tried_anew():
    model = classifier(Counting)
    model.check()
    model.backbone = Counting((1, 28, 28), 9)
    with pytest.raises(ConfigError, match=r"must return logits of shape .* \(1, 10\), got \(1, 9\)"):
        model.check()


def test_a_network_that_views_its_features_falls_back_to_the_plain_format():
    model = classifier(Viewing)
    expected = summarise(model).total
    assert passes == [1, 1]
    assert not probe.accepts(model, channels_last=True)
    assert probe.accepts(model)
    assert passes == [1, 1]
    assert expected.parameters == sum(p.numel() for p in model.parameters())
    assert expected.output_shape == (1, 10)


def test_bf16_is_tried_together_with_the_memory_format():
    model = classifier(Counting)
    layer_table(model, bf16=True)
    assert probe.accepts(model, bf16=True)
    assert probe.accepts(model, channels_last=True, bf16=True)
    assert passes == [1]


def test_a_layer_takes_the_same_memory_however_it_was_tried():
    plain, tried = (summarise(classifier(), bf16=bf16).total for bf16 in (False, True))
    assert plain.output_bytes == tried.output_bytes
    assert plain.multiply_adds == tried.multiply_adds


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
