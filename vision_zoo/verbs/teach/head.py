"""The last layer of a network, fitted to features: a multinomial logistic regression, calibrated."""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

FOLDS = 4  # of the cross-validation, or as many as the smallest class has images
STRENGTHS = [10**half for half in np.arange(4, -1.5, -0.5).tolist()]  # of the L2 penalty, the strongest first
ROUGH = 1e-2  # largest gradient of heads that only tell strengths apart
USUAL = 300.0  # strength where a class has one image, so that nothing can be held out


class Data(NamedTuple):
    """Features with their labels."""

    values: Tensor  # float32 (N, D)
    labels: Tensor  # int64 (N,)

    def of(self, chosen: Tensor) -> "Data":
        """Those of these indices, int64 (M,), or where a mask, bool (N,), is true."""
        return Data(self.values[chosen], self.labels[chosen])


class Head(NamedTuple):
    """A linear layer."""

    weight: Tensor  # float32 (K, D)
    bias: Tensor  # float32 (K,)

    def logits(self, values: Tensor) -> Tensor:
        """Float32 (N, K) of features (N, D)."""
        return F.linear(values, self.weight, self.bias)


class Fitter:
    """Fits heads to the same features, from a strong penalty to weaker ones; each begins with the last."""

    def __init__(self, data: Data, tolerance: float = 1e-4, classes: int = 0) -> None:
        # One scale for all features: those that vary more say more, and to be standardised would take that from them.
        self.mean = data.values.mean(0)
        self.scale = data.values.var(0, correction=0).mean().sqrt().clamp(min=1e-12)
        self.values, self.labels = (data.values - self.mean) / self.scale, data.labels
        self.tolerance = tolerance
        classes = max(classes, int(self.labels.max()) + 1)
        self.weight = torch.zeros(classes, self.values.shape[1], requires_grad=True)
        self.bias = torch.zeros(classes, requires_grad=True)

    def fit(self, strength: float) -> Head:
        """The head with this penalty, on the features as they come."""
        optimizer = torch.optim.LBFGS(
            [self.weight, self.bias], max_iter=1000, tolerance_grad=self.tolerance, history_size=10,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def loss() -> float:
            optimizer.zero_grad()
            value = F.cross_entropy(F.linear(self.values, self.weight, self.bias), self.labels)
            value = value + strength / (2 * len(self.labels)) * self.weight.square().sum()
            torch.autograd.backward(value)
            return value.item()

        cast(Any, optimizer).step(loss)
        weight = self.weight.detach() / self.scale
        return Head(weight, self.bias.detach() - weight @ self.mean)


def cross_validate(data: Data, seed: int, fold_of: Tensor | None = None) -> tuple[float, Tensor | None]:
    """The strength of the penalty whose heads give images that they were not fitted to the highest likelihood.

    Beside it the logits of those heads, float32 (N, K); None where nothing can be held out.

    It goes from strong to weak, and ends where that gets worse. The strength stands before half the squared norm of the
    weights, beside the sum of the images' losses; features are scaled to a mean variance of one. `fold_of` says which
    fold each image is held out with, int64 (N,), in place of `folds_of`.
    """
    fold_of = folds_of(data.labels, FOLDS, seed) if fold_of is None else fold_of
    if fold_of is None:  # nothing can be held out
        return USUAL, None
    held_out = [fold_of == fold for fold in range(int(fold_of.max()) + 1)]
    classes = int(data.labels.max()) + 1
    pairs = [(held, Fitter(data.of(~held), ROUGH, classes)) for held in held_out]
    best, least = (USUAL, torch.empty(0)), float("inf")
    for strength in STRENGTHS:
        logits = torch.empty(len(data.labels), classes)
        for held, fitter in pairs:
            logits[held] = fitter.fit(strength).logits(data.values[held])
        loss = float(F.cross_entropy(logits, data.labels))
        if loss >= least:
            break
        best, least = (strength, logits), loss
    return best


def folds_of(labels: Tensor, most: int, seed: int) -> Tensor | None:
    """The fold of each image, int64 (N,): each class is dealt evenly; None where a class has but one image.

    There are as many folds as the smallest class has images, and `most` of them at most.
    """
    folds = min(most, int(labels.bincount().min()))
    if folds < 2:
        return None
    fold_of = torch.empty(len(labels), dtype=torch.int64)
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels)
    for fold, (_, held) in enumerate(parts):
        fold_of[torch.from_numpy(held)] = fold
    return fold_of


def temperature_of(logits: Tensor, labels: Tensor) -> float:
    """What to divide logits (N, K) by for the highest likelihood (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    The labels are smoothed as if one more image had been wrong (Platt 1999), so that few images, all of them right, do
    not make the network sure of everything.
    """
    smoothing = 1 / (len(labels) + 1)

    def loss(exponent: float) -> float:
        return float(F.cross_entropy(logits.double() / 2**exponent, labels, label_smoothing=smoothing))

    return float(2 ** minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)
