"""What fit chooses by itself for speed: what it says and records, how to override it, and what it leaves alone."""

import itertools
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from vision_zoo.__main__ import main
from vision_zoo.backbones import SmallCNN
from vision_zoo.classifier import Classifier
from vision_zoo.training import performance, speed_trial
from vision_zoo.training.performance import TrainingPrecision, has_fast_bf16, match_layouts
from vision_zoo.training.speed_trial import Trial, Way, fastest
from vision_zoo.types import ImageShape

SHORT = ["fit", "--data.batch_size", "32", "--trainer.limit_train_batches", "6", "--trainer.max_epochs", "1",
         "--trainer.limit_val_batches", "4", "--trainer.limit_test_batches", "4"]  # fmt: skip
LENET = [*SHORT, "--model.backbone", "LeNet5"]


class Viewing(nn.Module):
    """A network of somebody's own, which calls `view` on its features, as tutorials do."""

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(image_shape[0], 4, 3)
        self.pool = nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6 * 24 * 24, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(self.conv(images))
        return self.head(x.view(x.size(0), -1))


class Flattening(Viewing):
    """The same with `flatten`, which takes any order in memory; notes what it saw."""

    seen: list[tuple[bool, torch.dtype]] = []  # noqa: RUF012

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(self.conv(images))
        self.seen.append((x.is_contiguous(memory_format=torch.channels_last), x.dtype))
        return self.head(x.flatten(1))


class SinglePrecision(Flattening):
    """Computes with an operation that knows no bfloat16."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.head(self.pool(self.conv(images)).flatten(1))
        if features.dtype == torch.bfloat16:
            raise RuntimeError('"own_operation" not implemented for BFloat16')
        return features


@pytest.fixture
def fast_machine(monkeypatch):
    """Pretends that bf16 and channels_last take half the time each, and that no run is too short for a trial."""
    seconds = Trial.seconds

    def pretended(trial, way, count=1):
        seconds(trial, way)
        return 1 / (1 + way.bf16) / (1 + way.channels_last)

    monkeypatch.setattr(performance, "has_fast_bf16", lambda device: True)
    monkeypatch.setattr(speed_trial, "SECONDS", math.inf)
    monkeypatch.setattr(speed_trial, "LARGEST_SHARE", math.inf)
    monkeypatch.setattr(Trial, "seconds", pretended)


@pytest.fixture
def slow_machine(monkeypatch):
    monkeypatch.setattr(performance, "has_fast_bf16", lambda device: False)


def results(root: Path, run: str = "version_0") -> dict:
    return json.loads((root / "runs" / "default" / run / "results.json").read_text())


def chosen(root: Path) -> tuple[str, bool, bool]:
    speed = results(root)["speed"]
    return speed["precision"], speed["channels_last"], speed["fused"]


def line(capsys) -> str:
    """What is said of the speed, in one line, however the terminal wraps it."""
    lines = iter(capsys.readouterr().out.splitlines())
    first = next(x for x in lines if x.startswith("speed "))
    return " ".join([first.strip(), *(x.strip() for x in itertools.takewhile(lambda x: x.startswith(" " * 9), lines))])


# -------------------------------------------------------------------------------------------------------------- choices


def test_the_choices_are_said_in_one_line_and_recorded(fast_machine, here, capsys):
    assert main(LENET) == 0
    assert line(capsys).split(maxsplit=1)[1].strip() == (
        "bf16-mixed autocast in training steps, channels_last, fused Adam; "
        "tried: bf16 channels_last 128, float32 channels_last 64, bf16 64, float32 32 images/s"
    )
    assert results(here)["speed"] == {
        "precision": "bf16-mixed",
        "channels_last": True,
        "fused": True,
        "evaluation_channels_last": True,
        "tried": {"bf16 channels_last": 128.0, "float32 channels_last": 64.0, "bf16": 64.0, "float32": 32.0},
        "tried_evaluation": {"float32 channels_last": 64.0, "float32": 32.0},
    }
    assert results(here)["precision"] == "bf16-mixed"


@pytest.mark.parametrize(("amx", "avx512", "fast"), [(True, False, True), (False, True, True), (False, False, False)])
def test_a_processor_with_either_unit_for_bf16_is_fast(amx, avx512, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert has_fast_bf16(torch.device("cpu")) is fast
    assert not has_fast_bf16(torch.device("meta"))


def test_a_machine_without_bf16_trains_in_float32(slow_machine, here, capsys):
    assert main([*LENET, "--test_after_fit", "false"]) == 0
    assert "32-true (this cpu has no fast bf16), fused Adam" in line(capsys)
    assert main([*LENET, "--test_after_fit", "false", "--channels_last", "true"]) == 0
    assert "32-true (this cpu has no fast bf16), channels_last, fused Adam" in line(capsys)


@pytest.mark.parametrize(
    ("words", "said", "recorded"),
    [
        (["--trainer.precision", "32-true"], "32-true (as asked), channels_last, fused Adam", ("32-true", True, True)),
        (
            ["--trainer.precision", "bf16-mixed"],
            "in training steps (as asked), channels_last",
            ("bf16-mixed", True, True),
        ),
        (["--channels_last", "false"], "in training steps, fused Adam", ("bf16-mixed", False, True)),
        (["--model.optimizer.fused", "false"], "channels_last, Adam", ("bf16-mixed", True, False)),
        (["--model.optimizer.foreach", "true"], "channels_last, Adam", ("bf16-mixed", True, False)),
        (["--model.optimizer", "RMSprop"], "channels_last, RMSprop", ("bf16-mixed", True, False)),
        (["--model.optimizer", "SGD"], "channels_last, fused SGD", ("bf16-mixed", True, True)),
        (["--model.backbone", "MLP"], "in training steps, fused Adam", ("bf16-mixed", False, True)),
        (
            ["--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", "1"],
            "channels_last, fused Adam",
            ("bf16-mixed", True, True),
        ),
        (
            ["--model.optimizer", "LBFGS", "--model.scheduler", "null"],
            "in training steps, LBFGS",
            ("bf16-mixed", False, False),
        ),
        (["--trainer.gradient_clip_val", "1"], "channels_last, fused Adam", ("bf16-mixed", True, True)),
    ],
)
def test_one_option_overrides_each_choice(words, said, recorded, fast_machine, here, capsys):
    assert main([*LENET, *words, "--test_after_fit", "false"]) == 0
    assert said in line(capsys)
    assert chosen(here) == recorded


# ------------------------------------------------------------------------------------------- networks of one's own


def own(name: str) -> list[str]:
    return [*SHORT, "--model.backbone", f"{__name__}.{name}", "--test_after_fit", "false"]


def test_a_network_of_ones_own_gains_the_same_and_is_evaluated_in_float32(fast_machine, here, monkeypatch):
    monkeypatch.setattr(Flattening, "seen", [])
    assert main(own("Flattening")) == 0
    assert chosen(here) == ("bf16-mixed", True, True)
    assert Flattening.seen.count((True, torch.bfloat16)) >= 6, "training steps"
    assert Flattening.seen.count((True, torch.float32)) >= 4, "validation"


def test_a_network_that_needs_the_plain_layout_keeps_it(fast_machine, here):
    assert main(own("Viewing")) == 0
    assert chosen(here) == ("bf16-mixed", False, True)


class Rows(torch.optim.Optimizer):
    """Looks at each gradient as a matrix, which takes the plain order; has no lr, and a state that is of no weight."""

    def __init__(self, params, rate: float = 0.01) -> None:
        super().__init__(params, {"rate": rate})
        self.state["count"] = torch.zeros(1)

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        self.state["count"] += 1
        for group in self.param_groups:
            for weight in group["params"]:
                weight.sub_(group["rate"] * weight.grad.view(len(weight), -1).view_as(weight))
        return loss


def test_an_optimizer_of_ones_own_trains_and_goes_on(fast_machine, here):
    words = ["--model.optimizer", f"{__name__}.Rows", "--model.scheduler", "null"]  # it has no learning rate to log
    words += ["--trainer.log_every_n_steps", "1"]
    assert main([*own("Flattening"), *words, "--trainer.max_epochs", "1"]) == 0
    assert chosen(here) == ("bf16-mixed", False, False)
    assert main(["fit", "--ckpt_path", "last", "--trusted_packages", __name__, "--trainer.max_epochs", "2"]) == 0
    last = torch.load("runs/default/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["state"]["count"] == last["global_step"]


def test_a_network_that_cannot_run_in_bf16_trains_in_float32(fast_machine, here, capsys):
    assert main(own("SinglePrecision")) == 0
    assert "32-true, channels_last, fused Adam; tried: float32 channels_last 64, float32 32 images/s" in line(capsys)


# ------------------------------------------------------------------------------------------------------------ the trial


class Noisy(nn.Module):
    """Has all that a training step changes: batch statistics, dropout and weights."""

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(image_shape[0], 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 26 * 26, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.dropout(self.norm(self.conv(images)).flatten(1), 0.5, self.training))


@pytest.mark.parametrize("training", [True, False])
def test_a_trial_changes_nothing_and_draws_nothing(training):
    network = Noisy((1, 28, 28), 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trial = Trial(network, (4, 1, 28, 28), 10, torch.device("cpu"), training)
    times = trial.fastest([Way(), Way(channels_last=True)], 1e6)
    assert set(times) == {Way(), Way(channels_last=True)}
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is None and weight.is_contiguous() for weight in network.parameters())


def test_the_fastest_way_wins_and_of_equal_ones_the_simplest(monkeypatch):
    ways = [Way(False, False), Way(False, True), Way(True, False), Way(True, True)]
    trial = Trial(Noisy((1, 28, 28), 10), (4, 1, 28, 28), 10, torch.device("cpu"))
    for seconds, first in (((4, 3, 2, 1), ways[3]), ((1, 2, 1, 2), ways[0]), ((1.01, 2, 2, 1), ways[0])):
        monkeypatch.setattr(trial, "seconds", lambda way, *_, s=seconds: 1e-6 * s[ways.index(way)])
        assert next(iter(trial.fastest(ways, 1e9))) == first


@pytest.mark.parametrize(
    ("seconds", "steps", "tried"),
    [(1e-4, 10_000, {32}), (0.02, 170, set(range(4, 16))), (0.02, 20, set()), (0.1, 30, set()), (1e-4, 170, set())],
)
def test_a_short_run_of_slow_steps_has_a_trial_with_smaller_ones(seconds, steps, tried, monkeypatch):
    ways, spent = [Way(bf16, last) for bf16 in (False, True) for last in (False, True)], dict[int, float]()
    trial = Trial(Noisy((1, 28, 28), 10), (32, 1, 28, 28), 10, torch.device("cpu"))

    def taken(way, count=1):
        took = seconds * trial.size * (1 - 0.2 * way.channels_last)
        spent[trial.size] = spent.get(trial.size, 0) + took * count
        return took

    monkeypatch.setattr(trial, "seconds", taken)
    monkeypatch.setattr(speed_trial.time, "perf_counter", lambda: sum(spent.values()))
    times = trial.fastest(ways, steps)
    assert bool(times) == bool(tried)
    if tried:
        assert trial.size in tried
        assert next(iter(times)) == ways[1]
        assert times[ways[1]] == pytest.approx(0.8 * seconds), "of an image"
        assert sum(spent.values()) < 2 * max(2.0, 0.02 * seconds * 32 * steps)


class Uncopied(Noisy):
    """A network that cannot be copied for a trial."""

    def __deepcopy__(self, memo: object) -> "Uncopied":
        raise RuntimeError("there is but one of it")


def test_a_trial_that_fails_is_told_and_ends_no_run(fast_machine, here, capsys):
    with pytest.warns(UserWarning, match=r"trial of speed failed, .* in float32: there is but one of it"):
        assert main(own("Uncopied")) == 0
    assert "32-true (others were not tried)" in line(capsys)


def test_a_run_that_is_too_short_is_not_held_up():
    trial = Trial(Noisy((1, 28, 28), 10), (4, 1, 28, 28), 10, torch.device("cpu"))
    assert trial.fastest([Way(), Way(channels_last=True)], steps=10) == {}


# ------------------------------------------------------------------------------------------------------------ exactness


def test_a_large_batch_is_tried_by_a_part_of_it():
    """Whole ones would be too dear for a run of few steps, which large batches make."""
    ways = [Way(), Way(channels_last=True)]
    model = Classifier(SmallCNN, (1, 28, 28), [str(digit) for digit in range(10)])
    _, figures = fastest(model, 4096, torch.device("cpu"), ways, steps=30)
    assert figures.keys() == {"float32", "float32 channels_last"}


@pytest.mark.parametrize("given", [[], ["--trainer.precision", "bf16-mixed"]], ids=["chosen", "given"])
def test_figures_of_the_run_are_exactly_those_of_its_loaded_checkpoint(given, fast_machine, here, capsys):
    assert main([*LENET, *given]) == 0
    best = str(here / "runs/default/version_0/checkpoints/best.ckpt")
    during = results(here)["metrics"]
    options = ["--ckpt_path", best, "--trainer.limit_test_batches", "4", "--output", "again"]
    assert main(["test", *options]) == 0
    after = json.loads((here / "again" / "test.json").read_text())
    tested = [{n: v for n, v in figures.items() if n.startswith("test/")} for figures in (during, after)]
    assert tested[0] == tested[1]
    stored = torch.load(best, weights_only=True)["state_dict"]
    loaded = Classifier.load_from_checkpoint(best)
    assert all(torch.equal(value, stored[name]) for name, value in loaded.state_dict().items())


def test_validation_within_training_is_exactly_that_of_the_loaded_checkpoint(fast_machine, here, capsys):
    assert main([*LENET, "--test_after_fit", "false"]) == 0
    during = results(here)["metrics"]["val/loss"]
    capsys.readouterr()
    assert main(["validate", "--ckpt_path", "best", "--trainer.limit_val_batches", "4"]) == 0
    assert f"{during:.4f}" in capsys.readouterr().out


def test_precision_contexts_are_null_in_evaluation():
    plugin = TrainingPrecision("cpu")
    a = torch.ones(2, 2)
    with plugin.train_step_context():
        assert (a @ a).dtype == torch.bfloat16
    for context in (plugin.val_step_context, plugin.test_step_context, plugin.predict_step_context):
        with context():
            assert (a @ a).dtype == torch.float32


def test_a_continued_run_keeps_its_choices_on_another_machine(fast_machine, here, monkeypatch, capsys):
    words = [*LENET, "--model.scheduler", "null", "--test_after_fit", "false", "--channels_last", "false"]
    assert main([*words, "--trainer.max_epochs", "1"]) == 0
    monkeypatch.setattr(performance, "has_fast_bf16", lambda device: False)
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", "--test_after_fit", "false"]) == 0
    assert "bf16-mixed autocast in training steps (as the run began), fused Adam" in capsys.readouterr().out
    assert chosen(here) == ("bf16-mixed", False, True)


def test_a_run_of_before_the_choices_goes_on_as_it_was(fast_machine, here):
    words = [*LENET, "--model.scheduler", "null", "--test_after_fit", "false", "--trainer.max_epochs", "1"]
    assert main(words) == 0
    last = here / "runs/default/version_0/checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["callbacks"]["Performance"]
    torch.save(checkpoint, last)
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", "--test_after_fit", "false"]) == 0
    assert chosen(here) == ("32-true", False, False)


def test_the_configuration_of_a_run_says_how_it_was_computed(fast_machine, here):
    words = [*LENET, "--test_after_fit", "false", "--trainer.max_epochs", "1"]
    assert main([*words, "--channels_last", "false", "--deterministic", "false"]) == 0
    run = here / "runs" / "default" / "version_0"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["channels_last"], config["deterministic"]) == (False, False)
    assert main(["fit", "--config", str(run / "config.yaml"), "--test_after_fit", "false"]) == 0
    again = json.loads((here / "runs" / "default" / "version_1" / "results.json").read_text())
    assert again["speed"]["channels_last"] is False
    assert again["metrics"] == results(here)["metrics"]


@pytest.mark.parametrize("weight_layout", [torch.channels_last, torch.contiguous_format])
def test_a_fused_step_is_right_whatever_the_layout_of_its_restored_state(weight_layout):
    start, gradient = torch.randn(2, 8, 3, 5, 5)

    def steps(fused: bool, restored: torch.memory_format) -> Tensor:
        weight = nn.Parameter(start.clone(memory_format=weight_layout))
        optimizer = torch.optim.Adam([weight], fused=fused)
        for number in range(3):
            weight.grad = (gradient * (number + 1)).clone(memory_format=weight_layout)
            optimizer.step()
            state = optimizer.state[weight]
            state["exp_avg"] = state["exp_avg"].clone(memory_format=restored)
            match_layouts(optimizer)
        return weight.detach()

    for restored in (torch.channels_last, torch.contiguous_format):
        torch.testing.assert_close(steps(True, restored), steps(False, torch.contiguous_format))


def test_the_layout_changes_no_logit_beyond_rounding():
    torch.manual_seed(0)
    model = Classifier(Flattening, (3, 28, 28), [str(i) for i in range(10)]).eval()
    images = torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        plain = model(images)
        model.set_memory_format(channels_last=True)
        torch.testing.assert_close(model(images), plain)
        model.set_memory_format(channels_last=False)
        assert torch.equal(model(images), plain)
    assert F.cross_entropy(plain, torch.zeros(4, dtype=torch.long)).isfinite()


# In a process of its own: one in which an allocation has failed, as it does in other tests, gets its memory elsewhere.
KEPT = """
import resource, sys, torch
from vision_zoo.__main__ import main
assert main(sys.argv[1:]) == 0
cleared = []
for _ in range(8):  # the first ones may find a hole too small and take new memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**26)  # 256 MB
    cleared.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    if cleared[-1] < 100:
        break
print("pages cleared:", min(cleared))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how other C libraries keep memory is theirs to say")
@pytest.mark.parametrize(
    ("environment", "kept"),
    [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)],
)
@pytest.mark.slow  # 7 s each
def test_a_step_computes_in_freed_memory_unless_the_environment_says_otherwise(environment, kept, here):
    """8 seconds."""
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    words = [sys.executable, "-c", KEPT, *LENET, "--test_after_fit", "false"]
    done = subprocess.run(words, env=inherited | environment, capture_output=True, text=True, check=True)
    cleared = int(done.stdout.rpartition("pages cleared: ")[2])
    assert (cleared < 100) is kept  # of 65,536 pages, or 128 huge ones
