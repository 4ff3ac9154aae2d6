"""Where the network looked in test images, for the report: the surest right, the surest wrong and the least sure."""

import tempfile
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vision_zoo.checkpoints import Checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.data.described import described_data
from vision_zoo.errors import InputError, one_line
from vision_zoo.plots import plot_images
from vision_zoo.verbs.checks import check_data
from vision_zoo.verbs.explain.maps import chosen, maps, overlay

AMONG = 1000  # test images, the first ones, that are chosen from
OF_EACH = 5  # of each kind


def draw_looks(model: Classifier, checkpoint: Checkpoint) -> bytes | str:
    """The picture as PNG, or why there is none, in a sentence."""
    if find_spec("captum") is None:
        return "Pictures of where the network looked need captum: pip install 'vision_zoo[explain]'."
    try:
        data = described_data(checkpoint.data)
        if data is None:
            return "The checkpoint names no data, so there are no pictures of where the network looked."
        data.value_range = model.value_range
        data.in_memory = False  # decode what is shown, not the whole folder
        data.prepare_data()
        check_data(model, data)
        loader = data.loader("test")
        if not len(loader):
            return "There are no test images, so there are no pictures of where the network looked."
        batches = list(islice(loader, -(-AMONG // data.batch_size)))
    except (InputError, OSError) as error:  # moved, removed or changed since
        return f"The test images cannot be shown, so there are no pictures of where it looked: {one_line(error)}."
    images, labels = (torch.cat(column)[:AMONG] for column in zip(*batches, strict=True))
    with torch.no_grad():
        parts = [model.eval()(part.to(model.device)).softmax(1).cpu() for part in torch.split(images, 64)]
    sure, said = torch.cat(parts).max(1)
    order, right = sure.argsort(descending=True, stable=True), said == labels
    kinds = {"surest right": order[right[order]][:OF_EACH], "surest wrong": order[~right[order]][:OF_EACH]}
    rest = order[~torch.isin(order, torch.cat([*kinds.values()]))]
    kinds["least sure"] = rest.flip(0)[:OF_EACH]
    places = torch.cat(list(kinds.values()))
    evidence, names = maps(model, images[places], said[places]), model.class_names
    titles = [
        f"{kind}, {100 * sure[place]:.0f} %\nis {names[labels[place]]}, said {names[said[place]]}"
        for kind, found in kinds.items()
        for place in found.tolist()
    ]
    pairs = torch.stack([_beside(*pair) for pair in zip(images[places], evidence, strict=True)])
    with tempfile.TemporaryDirectory() as folder:
        plot_images(pairs, titles, Path(folder) / "looks.png", f"Evidence for what was said, by {chosen(model)}")
        return (Path(folder) / "looks.png").read_bytes()


def _beside(image: Tensor, evidence: Tensor) -> Tensor:
    """An image, uint8 (C, H, W), and beside it the same below evidence, float (H, W), as uint8 (3, H, 2 W)."""
    plain = image if len(image) == 3 else image.float().mean(0, keepdim=True).byte().expand(3, -1, -1)
    return torch.cat([plain, overlay(image, evidence)], dim=2)
