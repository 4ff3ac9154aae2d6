"""Schedules that span the run: their peak, their warm-up, their length."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.optim import SGD, Adam, Rprop
from torch.optim import lr_scheduler as theirs

from tests.conftest import QUICK
from tests.test_classifier import classifier, trainer
from vision_zoo.__main__ import main
from vision_zoo.backbones import SmallCNN
from vision_zoo.data import MNIST5k
from vision_zoo.schedules import CosineAnnealingLR, LinearDecayLR, OneCycleLR, open_length


def course(schedule, steps, optimizer=SGD, lr=1.0):
    """The learning rate of each step."""
    chosen = optimizer([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = schedule(chosen), []
    for _ in range(steps):
        rates.append(chosen.param_groups[0]["lr"])
        chosen.step()
        scheduler.step()
    return rates


def test_one_cycle_is_torch_s_with_the_optimizer_s_rate_as_its_peak():
    ours = course(partial(OneCycleLR, total_steps=20), 20, Adam, 0.3)
    assert ours == course(partial(theirs.OneCycleLR, max_lr=0.3, total_steps=20), 20, Adam, 0.3)
    assert max(course(partial(OneCycleLR, total_steps=20, max_lr=2.0), 20)) == pytest.approx(2.0, rel=0.01)


def test_a_short_course_given_in_epochs_is_taken(here):
    words = (
        "--model.scheduler",
        "OneCycleLR",
        "--model.scheduler.epochs",
        "1",
        "--model.scheduler.steps_per_epoch",
        "3",
    )
    short = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--test_after_fit", "false")
    assert main(["fit", "--model.backbone", "SmallCNN", *words, *short]) == 0


def test_a_length_in_epochs_is_one_in_steps():
    length = {"epochs": 4, "steps_per_epoch": 5}
    for warmup in (None, 4, 0.25, 0):
        expected = course(partial(OneCycleLR, total_steps=20, warmup=warmup), 20)
        assert course(partial(OneCycleLR, warmup=warmup, **length), 20) == expected


@pytest.mark.parametrize(("warmup", "peak"), [(4, 4), (0.25, 5), (1, 1), (0, 0), (50, 18)])
def test_the_warm_up_of_one_cycle_ends_at_its_peak(warmup, peak):
    rates = course(partial(OneCycleLR, total_steps=20, warmup=warmup), 20)
    assert rates.index(max(rates)) == peak
    assert rates[:peak] == sorted(rates[:peak])


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("warmup", [0, 0.1, 1, 5])
def test_a_warm_up_fits_runs_of_any_length(steps, warmup):
    for schedule in (partial(OneCycleLR, total_steps=steps), partial(CosineAnnealingLR, T_max=steps)):
        assert all(math.isfinite(rate) and rate >= 0 for rate in course(partial(schedule, warmup=warmup), steps))


def test_one_cycle_leaves_the_momentum_alone_where_there_is_none():
    assert len(course(partial(OneCycleLR, total_steps=5), 5, Rprop)) == 5


def test_a_cosine_is_torch_s():
    ours = course(partial(CosineAnnealingLR, T_max=10, eta_min=0.1), 10)
    assert ours == pytest.approx(course(partial(theirs.CosineAnnealingLR, T_max=10, eta_min=0.1), 10))


def test_a_cosine_rises_by_equal_steps_then_falls():
    rates = course(partial(CosineAnnealingLR, T_max=10, warmup=4), 10)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == pytest.approx([(1 + math.cos(math.pi * i / 6)) / 2 for i in range(1, 6)])
    assert course(partial(CosineAnnealingLR, T_max=10, warmup=0.4), 10) == pytest.approx(rates)


@pytest.mark.parametrize("schedule", [partial(CosineAnnealingLR, T_max=10), partial(OneCycleLR, total_steps=10)])
@pytest.mark.parametrize("optimizer", [partial(SGD, momentum=0.9), Adam, SGD])
def test_a_group_that_a_callback_adds_keeps_the_rate_that_it_is_given(schedule, optimizer):
    chosen = optimizer([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(chosen)
    chosen.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5})
    seen = []
    for given in (0.5, 0.5, 0.25, 0.25):
        chosen.param_groups[1]["lr"] = given
        chosen.step()
        scheduler.step()
        seen.append(chosen.param_groups[0]["lr"])
        assert chosen.param_groups[1]["lr"] == given
    assert len(set(seen)) == 4


@pytest.mark.parametrize(
    "schedule", [partial(OneCycleLR, total_steps=9), partial(CosineAnnealingLR, T_max=9, warmup=2)]
)
def test_the_state_of_a_schedule_is_plain_and_continues_it(schedule, tmp_path):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    torch.save({"schedule": scheduler.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    continued = schedule(again)
    again.load_state_dict(state["optimizer"])
    continued.load_state_dict(state["schedule"])
    for scheduled in (optimizer, again):
        scheduled.step()
    scheduler.step()
    continued.step()
    assert continued.get_last_lr() == scheduler.get_last_lr()


def test_a_negative_warm_up_and_a_missing_length_are_refused():
    for schedule in (partial(OneCycleLR, total_steps=9), partial(CosineAnnealingLR, T_max=9)):
        with pytest.raises(ValueError, match="warmup must be a fraction of the run or a number of steps, got -1"):
            course(partial(schedule, warmup=-1), 1)
    with pytest.raises(ValueError, match="CosineAnnealingLR needs T_max"):
        course(CosineAnnealingLR, 1)


@pytest.mark.parametrize(
    ("schedule", "options", "length"),
    [
        (OneCycleLR, {}, "total_steps"),
        (OneCycleLR, {"total_steps": 5}, None),
        (theirs.OneCycleLR, {"epochs": 2, "steps_per_epoch": 3}, None),
        (CosineAnnealingLR, {"T_max": None}, "T_max"),
        (theirs.CosineAnnealingLR, {"T_max": 0}, "T_max"),  # as configurations of old runs have it
        (theirs.StepLR, {"step_size": 1}, None),
    ],
)
def test_the_length_that_is_left_to_the_run(schedule, options, length):
    assert open_length(schedule, options) == length


# --------------------------------------------------------------------------------------------------------- in a run


def learning_rates(scheduler, epochs=2, steps=5):
    model = classifier(SmallCNN, scheduler=scheduler, optimizer=lambda parameters: SGD(parameters, lr=1.0))
    rates = []

    original = model.training_step

    def step(batch, batch_idx):
        rates.append(model.trainer.optimizers[0].param_groups[0]["lr"])
        return original(batch, batch_idx) * 0

    model.training_step = step
    trainer(max_epochs=epochs, limit_train_batches=steps, limit_val_batches=1).fit(model, MNIST5k())
    return rates


@pytest.mark.parametrize("schedule", [CosineAnnealingLR, theirs.CosineAnnealingLR, partial(CosineAnnealingLR, T_max=0)])
def test_a_cosine_without_t_max_falls_to_its_end_with_the_run(schedule, here):
    expected = [0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]
    assert learning_rates(schedule) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("schedule", [partial(OneCycleLR, max_lr=2.0), partial(theirs.OneCycleLR, max_lr=2.0)])
def test_one_cycle_covers_the_run_step_by_step(schedule, here):
    rates = learning_rates(schedule)
    assert max(rates) == pytest.approx(2.0, rel=0.05)
    assert rates[-1] < 0.2
    assert len(set(rates)) == 10


def test_a_cosine_with_t_max_moves_with_epochs(here):
    rates = learning_rates(partial(CosineAnnealingLR, T_max=2))
    assert rates == pytest.approx([1.0] * 5 + [0.5] * 5)


def test_an_epoch_schedule_moves_with_epochs(here):
    assert learning_rates(partial(theirs.StepLR, step_size=1, gamma=0.1)) == pytest.approx([1.0] * 5 + [0.1] * 5)


class Falling(theirs.LinearLR):
    """Somebody's own, whose length must be given."""

    def __init__(self, optimizer, total_steps: int):
        super().__init__(optimizer, 1.0, 0.1, total_iters=total_steps)


def test_a_length_in_steps_that_is_given_is_counted_in_steps(here):
    rates = learning_rates(partial(Falling, total_steps=9))
    assert rates == pytest.approx([1.0 - 0.1 * step for step in range(10)])


def test_a_line_whose_length_stands_in_a_function_is_counted_in_steps(here):
    rates = learning_rates(lambda optimizer: LinearDecayLR(optimizer, total_steps=10))
    assert rates == pytest.approx([1.0 - 0.1 * step for step in range(10)])


def test_plateau_watches_the_validation_loss(here):
    # The weights do not change, so no validation is better than the first.
    rates = learning_rates(partial(theirs.ReduceLROnPlateau, patience=0, factor=0.5), epochs=3)
    assert rates == pytest.approx([1.0] * 10 + [0.5] * 5)


def last(run):
    return torch.load(Path(run) / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize("name", ["OneCycleLR", "CosineAnnealingLR"])
def test_the_command_line_takes_a_warm_up_and_continues_the_run(name, here):
    words = [*QUICK, "--model.scheduler", name, "--model.scheduler.warmup", "3", "--test_after_fit", "false"]
    assert main([*words, "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"]) == 0
    run = here / "runs/default/version_0"
    scheduler = yaml.safe_load((run / "config.yaml").read_text())["model"]["scheduler"]
    assert scheduler["class_path"] == f"vision_zoo.schedules.{name}"
    assert scheduler["init_args"]["warmup"] == 3
    rows = (run / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("lr")
    rates = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert rates.index(max(rates)) == 3
    assert max(rates) == pytest.approx(0.002)


def test_a_schedule_of_torch_by_its_full_path_continues_as_it_began(here):
    path = "torch.optim.lr_scheduler.OneCycleLR"
    words = [*QUICK, "--model.scheduler", path, "--model.scheduler.max_lr", "0.004", "--test_after_fit", "false"]
    assert main([*words, "--trainer.max_epochs", "2"]) == 0
    run = here / "runs/default/version_0"
    assert last(run)["lr_schedulers"][0]["total_steps"] == 20
    assert main(["fit", "--ckpt_path", str(run)]) == 0
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_epochs", "3"]) == 2


def test_a_learning_rate_that_is_set_reaches_options_hyperparameters_and_checkpoints():
    model = classifier(optimizer=partial(SGD, lr=0.5, momentum=0.9))
    assert model.lr == 0.5
    model.lr = 0.25
    assert model.lr == 0.25
    assert model.hparams["optimizer"]["init_args"] == {"lr": 0.25, "momentum": 0.9}
    assert model.optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.25
    assert json.dumps(dict(model.hparams))
    assert classifier(optimizer=Adam).lr == 0.001  # torch's
    assert not hasattr(classifier(optimizer=None), "lr")


@pytest.mark.parametrize("schedule", [OneCycleLR, CosineAnnealingLR, None])
def test_lightning_s_finder_sets_the_rate_that_training_goes_by(schedule, here):
    from lightning.pytorch.callbacks import LearningRateFinder

    finder = LearningRateFinder(num_training_steps=30, early_stop_threshold=None)
    model = classifier(SmallCNN, scheduler=schedule, optimizer=partial(SGD, lr=0.5))
    run = trainer(max_epochs=1, limit_train_batches=40, limit_val_batches=0, callbacks=[finder])
    run.fit(model, MNIST5k(batch_size=16))
    found = finder.optimal_lr.suggestion()
    assert model.lr == found != 0.5
    group = run.optimizers[0].param_groups[0]
    peak = {OneCycleLR: "max_lr", CosineAnnealingLR: "initial_lr", None: "lr"}[schedule]
    assert group[peak] == pytest.approx(found)
