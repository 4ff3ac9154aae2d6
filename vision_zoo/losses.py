"""Losses of a training batch, by its logits and labels; and how a run has one."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_zoo.errors import CheckpointError, ConfigError, refuse
from vision_zoo.specs import class_and_arguments, copyable, options_of

ClassWeights = Literal["balanced"] | list[float] | None
Trained: TypeAlias = Any  # a Classifier, whose module imports this one

_OPTION = "--model.loss"
# What torch raises about options and labels that a loss cannot take.
_UNFIT = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


class CrossEntropy(nn.Module):
    """Cross-entropy of the softmax of the logits, averaged over the images.

    Args:
        label_smoothing: share of each label that is spread over all classes, in [0, 1)
            (https://arxiv.org/abs/1512.00567).
        class_weights: a weight for each class, or balanced: in inverse proportion to the images of the class in the
            training part, such that the mean over its images is 1. With labels that are classes, the mean over a batch
            is that of weighted losses, divided by their weights.

    Raises:
        ConfigError: if an option is out of its range.
    """

    weights: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, class_weights: ClassWeights = None) -> None:
        super().__init__()
        self.label_smoothing = _share("label_smoothing", label_smoothing)
        self.class_weights = _checked(class_weights)
        self.register_buffer("weights", None)

    def prepare(self, model: Trained, class_counts: Tensor | None) -> None:
        """Take the class weights that are meant; called once, when training begins."""
        self.weights = weights_of(self.class_weights, model, class_counts)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss, a scalar, of logits float (B, K) and labels int64 (B,) or probabilities float (B, K)."""
        return F.cross_entropy(logits, labels, self.weights, label_smoothing=self.label_smoothing)


class Focal(CrossEntropy):
    """Cross-entropy that counts less the surer the network is (Lin et al. 2017, https://arxiv.org/abs/1708.02002).

    Args:
        gamma: how much less, at least 0: a class of probability p counts (1 - p) ** gamma; 0 is cross-entropy.
        label_smoothing: as of CrossEntropy.
        class_weights: likewise; the paper's alpha.

    Raises:
        ConfigError: if an option is out of its range.
    """

    def __init__(self, gamma: float = 2.0, label_smoothing: float = 0.0, class_weights: ClassWeights = None) -> None:
        super().__init__(label_smoothing, class_weights)
        bad = f"{_OPTION}.gamma must be at least 0 and finite, got {gamma}"
        refuse(ConfigError, (not 0 <= gamma < math.inf, bad))
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss, a scalar, of logits float (B, K) and labels int64 (B,) or probabilities float (B, K)."""
        targets = smoothed(labels, logits.shape[1], self.label_smoothing)
        logs = logits.log_softmax(1)
        # Away from 0, where a power below 1 has no gradient.
        terms = -targets * (1 - logs.exp()).clamp(min=1e-6) ** self.gamma * logs
        return (terms if self.weights is None else terms * self.weights).sum(1).mean()


class BinaryCrossEntropy(CrossEntropy):
    """One logistic regression for each class against all others, summed over classes, averaged over images.

    As "ResNet strikes back" trains (Wightman et al. 2021, https://arxiv.org/abs/2110.00476), where a mixed image
    belongs to both of its classes.

    Args:
        label_smoothing: as of CrossEntropy.
        class_weights: likewise.
        threshold: labels of a higher probability count as 1 and all others as 0, in [0, 1); null takes them as they
            are.

    Raises:
        ConfigError: if an option is out of its range.
    """

    def __init__(
        self, label_smoothing: float = 0.0, class_weights: ClassWeights = None, threshold: float | None = None
    ) -> None:
        super().__init__(label_smoothing, class_weights)
        self.threshold = None if threshold is None else _share("threshold", threshold)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss, a scalar, of logits float (B, K) and labels int64 (B,) or probabilities float (B, K)."""
        targets = smoothed(labels, logits.shape[1], self.label_smoothing)
        if self.threshold is not None:
            targets = (targets > self.threshold).float()
        terms = F.binary_cross_entropy_with_logits(logits, targets, weight=self.weights, reduction="none")
        return terms.sum(1).mean()


class Distillation(nn.Module):
    """Learns from the probabilities of a trained network (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    The teacher sees the same augmented images, in evaluation mode.

    Args:
        teacher: run folder, for its best checkpoint, or checkpoint of a network with the same classes and image shape.
        temperature: both networks' logits are divided by it, above 0.
        weight: of the teacher, in [0, 1]; the rest is that of the labels' cross-entropy.

    Raises:
        ConfigError: if an option is out of its range.
    """

    def __init__(self, teacher: str, temperature: float = 4.0, weight: float = 0.9) -> None:
        super().__init__()
        refuse(
            ConfigError,
            (not 0 < temperature < math.inf, f"{_OPTION}.temperature must be above 0, got {temperature}"),
            (not 0 <= weight <= 1, f"{_OPTION}.weight must be in [0, 1], got {weight}"),
        )
        self.teacher, self.temperature, self.weight = teacher, temperature, weight
        self.network: nn.Module | None = None

    def prepare(self, model: Trained, class_counts: Tensor | None) -> None:
        """Load the teacher; one that does not know the same classes, or takes other images, is a CheckpointError."""
        network = type(model).load_from_checkpoint(self.teacher, trusted_packages=model.loss.trusted_packages)
        differ = ", ".join(sorted({*network.class_names} ^ {*model.class_names})[:5])
        what = f"{_OPTION}.teacher {self.teacher}"
        shapes = f"{what} takes images of shape {network.image_shape}, and these are {model.image_shape}"
        refuse(
            CheckpointError,
            (bool(differ), f"{what} has other classes (only one of the two knows {differ}): choose another"),
            (network.class_names != model.class_names, f"{what} has the same classes in another order"),
            (network.image_shape != model.image_shape, f"{shapes}: choose another, or set --data.image_size"),
        )
        self.network = network.requires_grad_(False)

    def forward(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The mean loss, a scalar, of logits float (B, K) of raw images, uint8 (B, C, H, W), and their labels."""
        assert self.network is not None, "prepare() comes first"
        with torch.no_grad():
            taught = (self.network(images).float() / self.temperature).softmax(1)
        learnt = (logits / self.temperature).log_softmax(1)
        # The square keeps the size of the gradient when the temperature changes (the paper's section 2).
        divergence = F.kl_div(learnt, taught, reduction="batchmean") * self.temperature**2
        return self.weight * divergence + (1 - self.weight) * F.cross_entropy(logits, labels)


class TrainingLoss:
    """The loss of a run: built, tried and prepared when training begins. It is no part of the network or its weights.

    A loss has what `nn.Module` has, takes logits and labels, and also the images if its forward names a parameter
    ``images``. It may have ``prepare(model, class_counts)``, called with the classifier and the images of each class
    in the training part, int64 (K,) or None where nothing tells.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self.build = copyable(build)
        self.module: nn.Module = nn.Identity()  # until training begins
        self.trusted_packages: Sequence[str] = ()  # whose classes a teacher may name
        self.takes_images = False  # so that features of them will not do
        self._device: torch.device | None = None

    def check(self) -> None:
        """Build the loss; options that it cannot take, and weights of its own, are a ConfigError."""
        made = f"{_OPTION} is built for each run: give a class, or partial(CLASS, option=value), and no object"
        refuse(ConfigError, (isinstance(self.build, nn.Module), made))
        try:
            self.module = self.build()
        except _UNFIT as error:
            raise ConfigError(f"{_OPTION} cannot be built: {str(error) or type(error).__name__}") from error
        self.takes_images = "images" in inspect.signature(self.module.forward).parameters
        learns = any(weight.requires_grad for weight in self.module.parameters())
        refuse(ConfigError, (learns, f"{_OPTION} has weights of its own, which no optimizer would train"))

    def prepare(self, model: Trained, data: Any) -> None:
        """Build it for a classifier and the data of its run, and try it; one that does not work is a ConfigError."""
        self.check()
        soft = bool(getattr(data, "mixes_labels", False))
        hint = "; labels are probabilities, float (B, K), where --data.augmentation mixes images" * soft
        try:
            if callable(prepare := getattr(self.module, "prepare", None)):
                prepare(model, getattr(data, "class_counts", None))
            self._try(model, soft)
        except _UNFIT as error:
            raise ConfigError(f"{_OPTION} cannot be used so: {str(error) or type(error).__name__}{hint}") from error

    def _try(self, model: Trained, soft: bool) -> None:
        """Compute the loss of two images that nobody has."""
        count, device = model.num_classes, model.device
        labels = torch.arange(2, device=device)
        labels = F.one_hot(labels, count).float() if soft else labels
        with torch.random.fork_rng(devices=[]):
            logits = torch.randn(2, count, device=device, requires_grad=True)
            loss = self(logits, labels, torch.zeros(2, *model.image_shape, dtype=torch.uint8, device=device))
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        refuse(
            ValueError,
            (shape != (), f"it must return a scalar, got {shape}"),
            (not loss.requires_grad, "it has no gradient, so that nothing would be learned"),
        )

    def __call__(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        if logits.device != self._device:
            self.module, self._device = self.module.to(logits.device), logits.device
        loss: Tensor = self.module(logits, labels, *(images,) * self.takes_images)
        return loss

    def describe(self) -> str:
        """Its name, and its options that are not the defaults, in one line."""
        class_, options = class_and_arguments(self.build)
        usual = options_of(class_)
        words = ", ".join(f"{name} {value}" for name, value in options.items() if value != usual.get(name))
        return f"{class_.__name__}{f': {words}' * bool(words)}"


def smoothed(labels: Tensor, num_classes: int, share: float) -> Tensor:
    """Labels, int64 (B,) or probabilities (B, K), as probabilities, float (B, K), of which a share goes to all."""
    targets = labels if labels.is_floating_point() else F.one_hot(labels, num_classes).float()
    return targets * (1 - share) + share / num_classes


def weights_of(given: ClassWeights, model: Trained, class_counts: Tensor | None) -> Tensor | None:
    """Class weights, float (K,), on the model's device; a number that is not that of the classes is a ConfigError."""
    if given is None:
        return None
    option, count = f"{_OPTION}.class_weights", model.num_classes
    few = isinstance(given, Sequence) and not isinstance(given, str) and len(given) != count
    unknown = f"{option} balanced needs one of vision_zoo's data modules, which count their labels: give a list"
    refuse(
        ConfigError,
        (few, f"{option} has {len(given)} values, but there are {count} classes: {', '.join(model.class_names[:20])}"),
        (given == "balanced" and class_counts is None, unknown),
    )
    if class_counts is None or given != "balanced":
        return torch.tensor(given, dtype=torch.float32, device=model.device)
    empty = [name for name, images in zip(model.class_names, class_counts.tolist(), strict=True) if not images]
    none = f"{option} balanced: there is no training image of {', '.join(empty[:5])}, so that it has no weight"
    refuse(ConfigError, (bool(empty), f"{none}: give a list of weights"))
    weights: Tensor = class_counts.sum() / (count * class_counts)
    return weights.float().to(model.device)


def _share(name: str, value: float) -> float:
    refuse(ConfigError, (not 0 <= value < 1, f"{_OPTION}.{name} must be in [0, 1), got {value}"))
    return value


def _checked(weights: ClassWeights) -> ClassWeights:
    values = weights if isinstance(weights, list) else []
    bad = not all(0 <= value < math.inf for value in values) or (isinstance(weights, list) and not any(values))
    message = f"{_OPTION}.class_weights must be balanced, or finite numbers from 0 on, not all 0, got {weights}"
    refuse(ConfigError, (bad, message))
    return weights
