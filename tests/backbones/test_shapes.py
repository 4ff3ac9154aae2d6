import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from vision_zoo.backbones.shapes import num_features


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_features_of_oblong_images_are_counted(height: int, width: int) -> None:
    assume(min(height, width) >= 6)
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Sequential(nn.AvgPool2d(2, stride=1)))
    images = torch.zeros(1, 2, height, width)
    assert num_features("net", layers, (2, height, width)) == layers(images).numel()
