"""The networks of the tutorials, their data and the loops that they show."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

ON_CPU = ("--trainer.accelerator", "cpu")  # as the loops that tutorials show
WARM_UP = 5  # steps of the tutorial's loop before its clock starts, where some steps stand for an epoch
SHORT_TEST = 0.2  # of the test images, after training that is too short for its accuracy to say much


@dataclass(frozen=True)
class System:
    """One network as its tutorial trains it."""

    config: str
    data: str
    backbone: str
    batch: int
    epochs: int
    optimizer: str = "Adam"
    lr: float = 0.001
    images: int = 60_000  # of training
    steps: int | None = None  # stand for an epoch where one takes minutes
    iterations: int | None = None  # of the tutorial, where its epochs are of more images than ours

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return (3, 32, 32) if self.data == "CIFAR10" else (1, 28, 28)


SYSTEMS = {
    "small_cnn": System("small_cnn_mnist", "MNIST", "SmallCNN", 50, 1),
    "mlp": System("mlp_mnist", "MNIST", "MLP", 100, 5, "SGD", 0.01),
    "simple_cnn": System("simple_cnn_mnist", "MNIST", "SimpleCNN", 100, 5, lr=0.01),
    "lenet5": System("lenet5_mnist", "MNIST", "LeNet5", 100, 5),
    "dnn_fashion": System("dnn_fashion_mnist", "FashionMNIST", "DNN", 100, 6, images=55_000, iterations=3000),
    "cnn_fashion": System("cnn_fashion_mnist", "FashionMNIST", "FashionCNN", 100, 6, images=55_000, iterations=3000),
    "cnn": System("cnn_mnist", "MNIST", "CNN", 128, 20, images=48_000, steps=100),
    "alexnet": System("alexnet_cifar10", "CIFAR10", "AlexNet", 32, 50, images=50_000, steps=200),
    "resnet18": System("resnet18_cifar10", "CIFAR10", "ResNet", 32, 50, images=50_000, steps=40),
}


class OneByOne(Dataset[tuple[Any, int]]):
    """Images in memory, given out one by one as PIL images, as torchvision's datasets do."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Any], Tensor]) -> None:
        self.images, self.labels, self.transform = images.permute(0, 2, 3, 1).numpy(), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def tutorial_data(system: System, root: str, train: bool) -> Dataset[Any]:
    """The dataset as tutorials build it."""
    to_tensor = torchvision.transforms.ToTensor()
    datamodule(system, root)  # its files are torchvision's
    if system.data != "CIFAR10":
        return getattr(torchvision.datasets, system.data)(root, train=train, transform=to_tensor)
    half = torchvision.transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    both = torchvision.transforms.Compose([to_tensor, half])
    try:
        return torchvision.datasets.CIFAR10(root, train=train, transform=both)
    except RuntimeError:  # files that are not the published ones byte for byte
        return OneByOne(*datamodule(system, root).split_images("train" if train else "test"), both)


def tutorial(system: System, root: str, steps: int | None, seed: int) -> dict[str, float]:
    """Train for an epoch, or for some steps of it, and test, as the tutorials do."""
    torch.manual_seed(seed)
    train: Dataset[Any] = Subset(tutorial_data(system, root, True), range(system.images))
    train_loader = DataLoader(train, batch_size=system.batch, shuffle=True)
    test = tutorial_data(system, root, False)
    if steps:
        test = Subset(test, range(round(len(test) * SHORT_TEST)))  # type: ignore[arg-type]  # they have a length
    test_loader = DataLoader(test, batch_size=system.batch)
    model = network(system)
    criterion = nn.CrossEntropyLoss()
    optimizer = getattr(torch.optim, system.optimizer)(model.parameters(), lr=system.lr)

    seen, began = 0, time.perf_counter()
    model.train()
    for step, (images, labels) in enumerate(train_loader):
        if step == steps:
            break
        optimizer.zero_grad()
        outputs = model(images)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        seen += len(labels)
        if steps and step + 1 == WARM_UP:
            seen, began = 0, time.perf_counter()
    seconds = time.perf_counter() - began

    correct = total = 0
    model.eval()
    with torch.no_grad():
        for images, labels in test_loader:
            predicted = model(images).argmax(1)
            correct += int((predicted == labels).sum())
            total += len(labels)
    return {"images_per_second": seen / seconds, "accuracy": correct / total}


def network(system: System) -> nn.Module:
    """The network alone, a plain module."""
    from vision_zoo import backbones

    return getattr(backbones, system.backbone)(system.shape, 10)


def datamodule(system: System, root: str) -> Any:
    """The data as vision_zoo reads it, downloaded where it is missing."""
    from vision_zoo import data

    found = getattr(data, system.data)(root=root, batch_size=system.batch, val_split=0)
    found.prepare_data()
    return found
