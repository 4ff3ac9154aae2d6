import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from vision_zoo.backbones.shapes import conv_output_size, num_features


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 40),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
)
def test_the_formula_says_what_a_convolution_does(
    size: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    expected = conv_output_size(size, kernel, stride, padding, dilation)
    layer = nn.Conv2d(1, 1, kernel, stride, padding, dilation)
    image = torch.zeros(1, 1, size, size)
    if expected == 0:
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            layer(image)
    else:
        assert layer(image).shape == (1, 1, expected, expected)


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_features_of_oblong_images_are_counted(height: int, width: int) -> None:
    assume(min(height, width) >= 6)
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Sequential(nn.AvgPool2d(2, stride=1)))
    images = torch.zeros(1, 2, height, width)
    assert num_features("net", layers, (2, height, width)) == layers(images).numel()
