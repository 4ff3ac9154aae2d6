"""The networks: each takes the image shape and the number of classes, then its own options with defaults."""

from vision_zoo.backbones.airbench import Airbench
from vision_zoo.backbones.alexnet import AlexNet
from vision_zoo.backbones.cnn import CNN
from vision_zoo.backbones.conv4 import Conv4
from vision_zoo.backbones.conv_net import ConvNet
from vision_zoo.backbones.efficientnet_lite import EfficientNetLite
from vision_zoo.backbones.fashion import DNN, FashionCNN
from vision_zoo.backbones.fully_connected import FullyConnected
from vision_zoo.backbones.lenet import LeNet5
from vision_zoo.backbones.mlp import MLP
from vision_zoo.backbones.resnet import ResNet
from vision_zoo.backbones.simple_cnn import SimpleCNN
from vision_zoo.backbones.small_cnn import SmallCNN
from vision_zoo.backbones.timm import Timm
from vision_zoo.backbones.torchvision import Torchvision

__all__ = [
    "CNN",
    "DNN",
    "MLP",
    "Airbench",
    "AlexNet",
    "Conv4",
    "ConvNet",
    "EfficientNetLite",
    "FashionCNN",
    "FullyConnected",
    "LeNet5",
    "ResNet",
    "SimpleCNN",
    "SmallCNN",
    "Timm",
    "Torchvision",
]
