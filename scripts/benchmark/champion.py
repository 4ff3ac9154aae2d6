"""Section p: the recipe airbench_cifar10 against the same algorithm, written by hand as one loop on tensors."""

import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.benchmark.bench import Bench, fit, seeds
from scripts.benchmark.tutorials import WARM_UP, System, datamodule

BATCH, STEPS = 2000, 15
# Of the recipe: what the head's rate is of that of the norms, and where the whitening's bias stops.
HEAD, WHITENING_UNTIL = 0.67 / 0.053, 3 / 8


def against_port(bench: Bench) -> None:
    """Images per second of training, the test apart."""
    steps = 3 if bench.quick else STEPS
    limits = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", str(steps)]
    limits += ["--trainer.limit_test_batches", "1", "--tta", "none"]
    ours, theirs = bench.turns(
        lambda seed: fit("--config", "airbench_cifar10", "--data.root", bench.root, *seeds(seed), *limits),
        lambda seed: bench.child("port", str(steps), str(seed)),
    )
    losses = ([f["metrics"]["train/loss"] for f in ours], [f["loss"] for f in theirs])
    means = " against ".join(f"{statistics.mean(side):.3f}" for side in losses)
    rates = ([f["train_images_per_second"] for f in ours], [f["images_per_second"] for f in theirs])
    bench.row("p", f"airbench_cifar10 {BATCH}", *rates, "images/s", f"{steps} steps", means, recipe="airbench_cifar10")


def port(root: str, steps: int, seed: int) -> dict[str, float]:
    """Images per second of the loop, after WARM_UP steps where there are more, and the mean loss of its steps."""
    from vision_zoo.backbones import Airbench
    from vision_zoo.data import CIFAR10

    torch.manual_seed(seed)
    data = datamodule(System("airbench_cifar10", "CIFAR10", "Airbench", BATCH, 8), root)
    images, labels = data.split_images("train")
    mean, std = (torch.tensor(values)[:, None, None] for values in (CIFAR10.mean, CIFAR10.std))
    images = (images / 255 - mean) / std
    network = Airbench((3, 32, 32), 10)
    network.start_from(images[:5000])
    network = network.to(memory_format=torch.channels_last).train()
    filters = [weight for weight in network.features.parameters() if weight.ndim == 4]
    biases = [weight for weight in network.features.parameters() if weight.ndim == 1 and weight.requires_grad]
    groups = [
        {"params": [network.whiten.bias], "lr": 106.0, "weight_decay": 3.8e-5},
        {"params": biases, "lr": 106.0, "weight_decay": 3.8e-5},
        {"params": [network.head.weight], "lr": 106.0 * HEAD, "weight_decay": 3e-6},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    momenta = [torch.zeros(len(filter_), filter_[0].numel()) for filter_ in filters]
    total = 8 * len(images) // BATCH

    images = torch.where(torch.rand(len(images))[:, None, None, None] < 0.5, images.flip(3), images)
    padded = F.pad(images, (2,) * 4, "reflect")
    order = torch.randperm(len(images))
    losses: list[float] = []
    counted = steps - WARM_UP if steps > WARM_UP else steps
    for step in range(steps):
        if step == steps - counted:
            began = time.perf_counter()
        left = 1 - step / total
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("first", group["lr"]) * left
        optimizer.param_groups[0]["lr"] = 106.0 * max(0.0, 1 - step / (WHITENING_UNTIL * total))
        chosen = order[step * BATCH : (step + 1) * BATCH]
        batch = _cropped(padded[chosen]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch)
        loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.2)
        losses.append(loss.item())
        network.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        _muon(filters, momenta, 0.24 * left)
    return {"images_per_second": counted * BATCH / (time.perf_counter() - began), "loss": statistics.mean(losses)}


def _cropped(images: Tensor) -> Tensor:
    """Windows of 32 x 32 from images of 36 x 36, (B, 3, 36, 36), each at a place of its own."""
    found = torch.empty(len(images), 3, 32, 32)
    down, right = torch.randint(5, (2, len(images)))
    for top in range(5):
        for left in range(5):
            here = (down == top) & (right == left)
            found[here] = images[here, :, top : top + 32, left : left + 32]
    return found


@torch.no_grad()
def _muon(filters: list[nn.Parameter], momenta: list[Tensor], rate: float) -> None:
    """One step of Muon: Nesterov's momentum, made orthogonal by three steps of Newton and Schulz in bfloat16."""
    for filter_, momentum in zip(filters, momenta, strict=True):
        assert filter_.grad is not None
        gradient = filter_.grad.reshape(momentum.shape)
        momentum.lerp_(gradient, 0.4)
        x = gradient.lerp(momentum, 0.6).bfloat16()
        x = x.T if len(x) > x.shape[1] else x
        x = x / (x.norm() + 1e-7)
        for _ in range(3):
            gram = x @ x.T
            x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
        x = x.T if len(momentum) > momentum.shape[1] else x
        filter_.mul_(len(filter_) ** 0.5 / filter_.norm())
        filter_.sub_(x.view(filter_.shape), alpha=rate * max(1, len(momentum) / momentum.shape[1]) ** 0.5)
