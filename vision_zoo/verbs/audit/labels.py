"""Labels that are likely wrong, by confident learning (Northcutt et al. 2021, https://arxiv.org/abs/1911.00068)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vision_zoo.verbs.teach.head import Data, cross_validate, folds_of, temperature_of

FOLDS = 5
# Weight of the small images beside the features: strokes of digits say more in them, and photos do not mind.
_OF_PIXELS = 0.5


class Suspects(NamedTuple):
    """Images whose label is likely wrong, the likeliest first."""

    places: Tensor  # int64 (M,)
    likelier: Tensor  # int64 (M,), the likeliest label
    self_confidence: Tensor  # float64 (M,), the probability of the label that they have


def held_out_probabilities(
    features: Tensor, small: Tensor, labels: Tensor, copy_of: Tensor, seed: int
) -> Tensor | None:
    """Class probabilities of each image by heads that were not fitted to it; None where a class has but one image.

    Args:
        features: float32 (N, D).
        small: the images at a small size, float32 (N, S).
        labels: int64 (N,), of which each up to the largest is there.
        copy_of: int64 (N,), equal for copies of one image: heads that know one of them would believe its label.
        seed: decides the folds.

    Returns:
        float64 (N, K), calibrated; rows sum to 1.
    """
    alone, first = np.unique(copy_of.numpy(), return_index=True, return_inverse=True)[1:]  # one of the copies each
    least = labels[alone].bincount(minlength=int(labels.max()) + 1).min()
    if least < 2 or int(labels.max()) < 1:
        return None
    fold_of = folds_of(labels[alone], FOLDS, seed)
    assert fold_of is not None
    values = torch.cat([_scaled(features), _OF_PIXELS * _scaled(small)], dim=1)
    _, logits = cross_validate(Data(values, labels), seed, fold_of[torch.from_numpy(first)])
    assert logits is not None
    return (logits.double() / temperature_of(logits, labels)).softmax(1)


def _scaled(values: Tensor) -> Tensor:
    """Values with mean zero, whose squares sum to one on average."""
    centred = values - values.mean(0)
    return centred / centred.square().sum(1).mean().sqrt().clamp(min=1e-12)


def confident_joint(probabilities: Tensor, labels: Tensor) -> Tensor:
    """How many images of each label (row) are confidently of each class (column), int64 (K, K).

    An image is counted for a class if its probability reaches what images with that label have on average; of
    several such classes, for the likeliest.
    """
    classes = probabilities.shape[1]
    thresholds = torch.stack([probabilities[labels == k, k].mean() for k in range(classes)])
    reached = probabilities.where(probabilities >= thresholds, -1.0)
    highest, column = reached.max(1)
    counted = highest >= 0
    return (labels[counted] * classes + column[counted]).bincount(minlength=classes**2).reshape(classes, classes)


def suspects(probabilities: Tensor, labels: Tensor) -> Suspects:
    """As many images as the joint of labels and true classes has beside its diagonal: those of least self-confidence.

    The joint is the confident one, each row of which is scaled to the images that have its label. None is suspected
    whose label is the likeliest one.

    Args:
        probabilities: float64 (N, K), of heads that were not fitted to the image.
        labels: int64 (N,); each of [0, K) is there.
    """
    joint = confident_joint(probabilities, labels).double()
    shares = joint / joint.sum(1, keepdim=True).clamp(min=1)
    wrong = (labels.bincount(minlength=len(joint))[:, None] * shares).fill_diagonal_(0).sum()
    confidence = probabilities[torch.arange(len(labels)), labels]
    order = confidence.argsort(stable=True)[: round(float(wrong))]
    likelier = probabilities.argmax(1)
    order = order[likelier[order] != labels[order]]
    return Suspects(order, likelier[order], confidence[order])
