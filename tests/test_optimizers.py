"""Optimizers of our own, against what they are made of and against steps by hand; groups of weights; averages."""

import itertools
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from tests.test_classifier import classifier
from tests.training.runs import PLAIN, rows
from tests.training.test_lightning_callbacks import FASHION, assert_checkpoints_hold_what_was_validated, run_of
from tests.training.test_processes import DDP, ENVIRONMENT
from vision_zoo.__main__ import main
from vision_zoo.backbones import FashionCNN
from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError
from vision_zoo.optimizers import SAM, AdamWScheduleFree, MuonWith, SGDScheduleFree
from vision_zoo.optimizers.building import build_optimizer, companions
from vision_zoo.optimizers.groups import weight_groups
from vision_zoo.schedules import LinearDecayLR
from vision_zoo.training.lightning_callbacks import EMA

WITH_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


def weights_and_gradients(*shapes: tuple[int, ...]) -> tuple[list[nn.Parameter], list[list[torch.Tensor]]]:
    """Weights, and gradients for three steps, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(shape, generator=generator) for shape in shapes]
    return [nn.Parameter(w) for w in draw], [[torch.randn(s, generator=generator) for s in shapes] for _ in range(3)]


def train(optimizer, weights, gradients) -> None:
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize(
    ("optimizer", "options", "message"),
    [
        pytest.param(MuonWith, {"momentum": 1.5}, r"momentum must be in \[0, 1\), got 1.5", marks=WITH_MUON),
        (AdamWScheduleFree, {"betas": (0.0, 0.9)}, r"betas must be in \(0, 1\) and \[0, 1\), got 0 and 0.9"),
    ],
)
def test_options_that_would_divide_by_nothing_or_end_in_no_number_are_refused(optimizer, options, message):
    with pytest.raises(ValueError, match=message):
        optimizer([torch.nn.Parameter(torch.zeros(2, 2))], **options)


# ----------------------------------------------------------------------------------------------------------- MuonWith


@WITH_MUON
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_muon_takes_matrices_and_flattened_filters_and_the_other_takes_the_rest(order, monkeypatch):
    shapes = ((6, 4), (8, 3, 3, 3), (5,), (1, 7))
    weights, gradients = weights_and_gradients(*shapes)
    weights[1].data = weights[1].data.contiguous(memory_format=order)
    options = {"lr": 0.1, "momentum": 0.8, "ns_steps": 4, "weight_decay": 0.2, "adjust_lr_fn": "match_rms_adamw"}
    other = {"lr": 0.05, "momentum": 0.9, "nesterov": True}
    train(MuonWith(weights, **options, other="SGD", other_options=other), weights, gradients)

    # On a CPU ours computes in float32, and torch's in bfloat16.
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda matrix: matrix.to(torch.float32, copy=True))
    expected, gradients = weights_and_gradients(*shapes)
    matrices = [expected[0], nn.Parameter(expected[1].detach().reshape(8, 27))]
    flat = [[step[0], step[1].reshape(8, 27)] for step in gradients]
    train(torch.optim.Muon(matrices, **options), matrices, flat)
    train(torch.optim.SGD(expected[2:], **other), expected[2:], [step[2:] for step in gradients])
    for weight, right in zip(weights, [*matrices, *expected[2:]], strict=True):
        assert torch.equal(weight, right.view(weight.shape))
    assert weights[1].is_contiguous(memory_format=order)


@WITH_MUON
def test_muon_may_scale_each_matrix_before_its_step(monkeypatch):
    weights, gradients = weights_and_gradients((8, 3, 2, 2))
    train(MuonWith(weights, lr=0.1, weight_decay=0.0, normalize=True), weights, gradients[:1])
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda matrix: matrix.to(torch.float32, copy=True))
    (matrix,), _ = weights_and_gradients((8, 3, 2, 2))
    matrix = nn.Parameter((matrix.detach() * 8**0.5 / matrix.detach().norm()).reshape(8, 12))
    train(torch.optim.Muon([matrix], lr=0.1, weight_decay=0.0), [matrix], [[gradients[0][0].reshape(8, 12)]])
    torch.testing.assert_close(weights[0].reshape(8, 12), matrix)


@WITH_MUON
@pytest.mark.parametrize("around", ["", pytest.param("SAM", marks=pytest.mark.slow)])
def test_muon_leaves_the_head_norms_and_biases_to_the_other_in_a_run(around, here):
    """A second for SAM around it."""
    choice = ["--model.optimizer", "SAM", "--model.optimizer.base", "MuonWith"] if around else []
    choice = choice or ["--model.optimizer", "MuonWith", "--model.optimizer.other_options.lr", "0.03"]
    words = [*FASHION, *choice, "--model.optimizer.lr", "0.02", "--trainer.max_epochs", "1"]
    words[words.index("--model.scheduler") + 1] = "LinearDecayLR"
    assert main(words) == 0
    checkpoint = torch.load(run_of(here) / "checkpoints/last.ckpt", weights_only=True)
    optimizer = checkpoint["optimizer_states"][0]
    names = [name for name in checkpoint["state_dict"] if name.endswith(("weight", "bias"))]
    groups = {group["muon"]: group for group in reversed(optimizer["param_groups"])}
    places = dict(itertools.chain(*(zip(g["params"], itertools.repeat(g["muon"])) for g in optimizer["param_groups"])))
    shapes = {n: tuple(s["momentum_buffer"].shape) for n, s in optimizer["state"].items() if places[n]}
    assert sorted(shapes.values()) == sorted([(32, 9), (64, 32 * 9), (600, 256), (120, 600)])
    assert len(places) == len(names) == 14
    # One of the six steps is left of the line.
    assert groups[True]["lr"] == 0
    assert groups[True]["initial_lr"] == 0.02
    assert around or groups[False]["initial_lr"] == 0.03


# ---------------------------------------------------------------------------------------------------------------- SAM


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_steps_by_the_gradient_at_the_highest_point_nearby(adaptive):
    first, second = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([3.0]))
    optimizer = SAM([first, second], lr=0.1, rho=0.5, adaptive=adaptive, base_options={"momentum": 0.9})

    def loss(a, b):
        return (a**4).sum() + a.prod() * b.sum() ** 3

    def closure():
        optimizer.zero_grad()
        value = loss(first, second)
        value.backward()
        return value

    a, b, velocity = torch.tensor([1.0, -2.0]), torch.tensor([3.0]), 0
    for _ in range(2):
        g_a, g_b = torch.func.grad(loss, (0, 1))(a, b)
        t_a, t_b = (a.abs(), b.abs()) if adaptive else (1, 1)
        norm = ((t_a * g_a).square().sum() + (t_b * g_b).square().sum()).sqrt()
        g_a, g_b = torch.func.grad(loss, (0, 1))(a + 0.5 * t_a**2 * g_a / norm, b + 0.5 * t_b**2 * g_b / norm)
        velocity = 0.9 * velocity + torch.cat([g_a, g_b])
        a, b = a - 0.1 * velocity[:2], b - 0.1 * velocity[2:]
        optimizer.step(closure)
        torch.testing.assert_close(torch.cat([first, second]).detach(), torch.cat([a, b]))


def test_sam_in_a_run_clips_and_counts_each_batch_once(here, monkeypatch):
    norms = []
    original = torch.optim.SGD.step

    def step(self, closure=None):
        norms.append(torch.stack([w.grad.norm() for g in self.param_groups for w in g["params"]]).norm())
        return original(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    words = ["--model.optimizer", "SAM", "--trainer.gradient_clip_val", "0.01", "--trainer.precision", "bf16-mixed"]
    assert main([*PLAIN, *words, "--trainer.max_epochs", "1"]) == 0
    norms = norms[-6:]  # before are trials
    assert all(float(norm) == pytest.approx(0.01, rel=0.01) for norm in norms)
    seen = torch.load(run_of(here) / "checkpoints/last.ckpt", weights_only=True)
    assert seen["global_step"] == 6
    assert len([row for row in rows(run_of(here)) if row["train/loss_step"]]) == 6


# ------------------------------------------------------------------------------------------------------ ScheduleFree


@pytest.mark.parametrize(("name", "ours"), [("SGD", SGDScheduleFree), ("AdamW", AdamWScheduleFree)])
def test_schedule_free_steps_are_those_of_its_package(name, ours):
    import schedulefree

    weights, gradients = weights_and_gradients((3, 2), (4,))
    optimizer = ours(weights, lr=0.1, warmup_steps=2, weight_decay=0.1)
    train(optimizer, weights, gradients)
    optimizer.eval()
    expected, gradients = weights_and_gradients((3, 2), (4,))
    theirs = getattr(schedulefree, f"{name}ScheduleFree")(expected, lr=0.1, warmup_steps=2, weight_decay=0.1)
    theirs.train()
    train(theirs, expected, gradients)
    theirs.eval()
    assert all(map(torch.equal, weights, expected))


def test_a_schedule_free_run_validates_saves_and_loads_its_average(tmp_path, monkeypatch, capsys):
    words = [*FASHION, "--model.optimizer", "AdamWScheduleFree", "--trainer.val_check_interval", "3"]
    assert main([*words, "--trainer.max_epochs", "2", "--trainer.default_root_dir", str(tmp_path)]) == 0
    run = run_of(tmp_path)
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    states = last["optimizer_states"][0]["state"]
    trained = [name for name in last["state_dict"] if name.endswith(("weight", "bias"))]
    for number, name in enumerate(trained):  # y is beta1 of the way from z to x
        y, x = last["current_model_state"][name], last["state_dict"][name]
        torch.testing.assert_close(y, states[number]["z"].lerp(x, 0.9))
        assert not torch.equal(x, y)
    assert_checkpoints_hold_what_was_validated(run, monkeypatch, capsys)


# ------------------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SAM", "--trainer.accumulate_grad_batches", "2"], "SAM and LBFGS compute a batch's gradient anew"),
        (["LBFGS", "--trainer.accumulate_grad_batches", "2"], "do not work with accumulated ones: leave that out"),
        (
            [
                "SAM",
                "--trainer.callbacks",
                "[{class_path: GradientAccumulationScheduler, init_args: {scheduling: {1: 2}}}]",
            ],
            "do not work with accumulated ones: leave that out",
        ),
        (["SAM", "--model.optimizer.base", "Adan"], "--model.optimizer.base Adan: unknown; did you mean Adam"),
        (["SAM", "--model.optimizer.rho", "0"], "rho must be above 0 and below 1000, got 0"),
        (["MuonWith", "--model.optimizer.other", "Muoon"], "--model.optimizer.other Muoon: unknown"),
        (["MuonWith", "--model.optimizer.other_options.rate", "1"], "unexpected keyword argument 'rate'"),
        (["AdamWScheduleFree", "--trainer.callbacks", "EMA"], "EMA does not work with a schedule-free optimizer"),
        (["AdamWScheduleFree", "--model.scheduler", "LinearDecayLR"], "needs no schedule: set --model.scheduler null"),
        (["Adam", "--model.scheduler", "LinearDecayLR", "--model.scheduler.total_steps", "3"], "ends after 3 steps"),
        (
            ["Adam", "--trainer.callbacks.class_path", "EMA", "--trainer.callbacks.decay", "1"],
            "decay must be in [0, 1)",
        ),
    ],
)
def test_what_would_be_silently_wrong_is_refused_in_one_line(words, message, here, capsys):
    assert main([*PLAIN, "--model.optimizer", *words]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line]
    assert message in error[-1]
    assert len([line for line in error if line.startswith("vision_zoo:")]) == 1


@pytest.mark.parametrize("optimizer", [MuonWith, SAM, AdamWScheduleFree, SGDScheduleFree])
def test_a_network_in_pieces_is_refused(optimizer):
    trainer = SimpleNamespace(strategy=FSDPStrategy(), callbacks=[], accumulate_grad_batches=1, precision="32-true")
    (companion,) = companions(optimizer)
    with pytest.raises(ConfigError, match="does not work with FSDPStrategy, which shards the network: use ddp"):
        companion.setup(trainer, None, "fit")


def test_a_missing_package_and_a_torch_without_muon_are_named(here, monkeypatch, capsys):
    monkeypatch.setattr("vision_zoo.optimizers.schedule_free.is_package", lambda name: False)
    assert main([*PLAIN, "--model.optimizer", "SGDScheduleFree"]) == 2
    assert "needs the package schedulefree: pip install 'vision_zoo[schedulefree]'" in capsys.readouterr().err
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    assert main([*PLAIN, "--model.optimizer", "MuonWith"]) == 2
    assert "MuonWith needs torch 2.9" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- groups


class OwnGroups(FashionCNN):
    """Its first bias stops early, its head learns faster."""

    def parameter_groups(self):
        head = list(self.head[-1].parameters())
        rest = [w for w in self.parameters() if all(w is not other for other in [*head, self.features[0].bias])]
        return [
            {"params": [self.features[0].bias], "until": 0.5, "weight_decay": 0.3},
            {"params": head, "lr_share": 10},
            {"params": rest},
        ]


def test_a_network_may_say_its_groups_and_when_their_rate_ends():
    model = classifier(OwnGroups, optimizer=lambda w: torch.optim.SGD(w, lr=0.5, weight_decay=0.1))
    optimizer = build_optimizer(model.optimizer, model._weights(), fused=False)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2, 11]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.1, 0.1]
    schedule, rates = LinearDecayLR(optimizer, total_steps=8, warmup=1), []
    for _ in range(8):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    rest = [0.25, *(0.5 * (8 - step) / 7 for step in range(1, 8))]
    assert [rate[2] for rate in rates] == pytest.approx(rest)
    assert [rate[1] for rate in rates] == pytest.approx([10 * rate for rate in rest])
    assert [rate[0] for rate in rates] == pytest.approx([0.25, 0.5, 0.5 * 2 / 3, 0.5 / 3, 0, 0, 0, 0])


def test_one_option_leaves_norms_and_biases_without_decay(here):
    words = ["--model.optimizer", "AdamW", "--model.optimizer.weight_decay", "0.3", "--trainer.max_epochs", "1"]
    assert main([*FASHION, *words, "--model.decay_vectors", "false"]) == 0
    checkpoint = torch.load(run_of(here) / "checkpoints/last.ckpt", weights_only=True)
    groups = [(len(g["params"]), g["weight_decay"]) for g in checkpoint["optimizer_states"][0]["param_groups"]]
    assert groups == [(5, 0.3), (9, 0.0)]


def test_without_options_an_optimizer_gets_the_plain_weights_in_their_order():
    network = FashionCNN((1, 28, 28), 10)
    groups = weight_groups(network, torch.optim.Adam, None, decay_vectors=True)
    assert all(a is b for a, b in zip(groups, network.parameters(), strict=True))


# ----------------------------------------------------------------------------------------------------------- averages


def test_an_exponential_average_is_what_checkpoints_hold(here, monkeypatch):
    seen = []

    def note(self, *_):
        seen.append({name: value.clone() for name, value in self.state_dict().items()})

    monkeypatch.setattr(Classifier, "on_train_batch_end", note)
    choice = "[{class_path: EMA, init_args: {decay: 0.3}}]"
    assert main([*FASHION, "--trainer.max_epochs", "1", "--trainer.callbacks", choice]) == 0
    average = seen[0]
    for step, state in enumerate(seen[1:], 1):
        decay = min(0.3, (1 + step) / (10 + step))  # 2/11, 1/4, and then 0.3
        average = {n: decay * average[n] + (1 - decay) * v if v.is_floating_point() else v for n, v in state.items()}
    path = run_of(here) / "checkpoints/last.ckpt"
    saved = torch.load(path, weights_only=True)
    torch.testing.assert_close(saved["state_dict"], average)
    assert torch.equal(saved["current_model_state"]["backbone.head.3.weight"], seen[-1]["backbone.head.3.weight"])
    loaded = Classifier.load_from_checkpoint(run_of(here)).state_dict()
    torch.testing.assert_close(loaded, average)


def test_without_a_warm_up_the_decay_is_that_of_the_option():
    average = EMA(decay=0.75, warmup=False)
    parts = [torch.tensor([4.0, 8.0]), torch.tensor([7])]
    for part, new in zip(parts, (torch.tensor([8.0, 0.0]), torch.tensor([9])), strict=True):
        average._kwargs["multi_avg_fn"]([part], [new], torch.tensor(1))
    assert [part.tolist() for part in parts] == [[5.0, 6.0], [9]]


def test_stochastic_averaging_keeps_the_ratios_of_fine_tuned_layers(here):
    swa = (
        "[{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.01, swa_epoch_start: 1, annealing_epochs: 1}}]"
    )
    tuning = ["--model.finetune", "FineTuning", "--model.finetune.layer_decay", "0.5", "--model.finetune.thaw_at", "2"]
    assert main([*FASHION, *tuning, "--trainer.max_epochs", "2", "--trainer.callbacks", swa]) == 0
    checkpoint = torch.load(run_of(here) / "checkpoints/last.ckpt", weights_only=True)
    rates = sorted({group["lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]})
    assert rates == pytest.approx([0.01 / 16, 0.01 / 8, 0.01 / 4, 0.01 / 2, 0.01])


# ---------------------------------------------------------------------------------------------------------- processes


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["SAM", "AdamWScheduleFree", pytest.param("MuonWith", marks=WITH_MUON)])
def test_two_processes_step_like_one_with_the_whole_batch(optimizer, tmp_path):
    """30 seconds each on one core."""
    last = []
    for folder, size, more in (("one", "32", []), ("two", "16", [*DDP, "2"])):
        words = [*PLAIN, "--model.optimizer", optimizer, "--data.batch_size", size, "--trainer.precision", "32-true"]
        words += [*more, "--trainer.max_epochs", "2", "--trainer.default_root_dir", str(tmp_path / folder)]
        command = [sys.executable, "-m", "vision_zoo", *words, "--data.augmentation", "null"]
        result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
        assert result.returncode == 0, result.stderr
        last.append(torch.load(run_of(tmp_path / folder) / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    # Sums in another order differ in the last digit.
    apart = {name: float((value - last[1][name]).norm() / value.norm()) for name, value in last[0].items()}
    assert max(apart.values()) < 1e-4, apart
