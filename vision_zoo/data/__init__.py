"""The datasets: one line each, so that `--data NAME` finds them."""

from vision_zoo.data.arrays import ArrayFile
from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.cifar import CIFAR10, CIFAR100
from vision_zoo.data.folder import ImageFolder
from vision_zoo.data.mnist import EMNIST, KMNIST, MNIST, QMNIST, FashionMNIST
from vision_zoo.data.mnist5k import MNIST5k
from vision_zoo.data.pack import Pack
from vision_zoo.data.parquet import Parquet
from vision_zoo.data.stl10 import STL10
from vision_zoo.data.svhn import SVHN
from vision_zoo.data.table import ImageTable
from vision_zoo.data.usps import USPS
from vision_zoo.data.webdataset import WebDataset

__all__ = [
    "CIFAR10", "CIFAR100", "EMNIST", "KMNIST", "MNIST", "QMNIST", "STL10", "SVHN", "USPS",
    "ArrayFile", "FashionMNIST", "ImageDataModule", "ImageFolder", "ImageTable", "MNIST5k", "Pack", "Parquet",
    "WebDataset",
]  # fmt: skip
