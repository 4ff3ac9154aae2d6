"""What fit chooses by itself for speed: what it says and records, how to override it, and what it leaves alone."""

import dataclasses
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.backbones import SmallCNN
from vision_zoo.classifier import Classifier
from vision_zoo.training import lightning_patches, performance
from vision_zoo.training.performance import TrainingPrecision, has_fast_bf16, match_layouts
from vision_zoo.types import ImageShape

ROOT = Path(__file__).parents[2]
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
    monkeypatch.setattr(performance, "has_fast_bf16", lambda device: True)


@pytest.fixture
def slow_machine(monkeypatch):
    monkeypatch.setattr(performance, "has_fast_bf16", lambda device: False)


def results(root: Path, run: str = "version_0") -> dict:
    return json.loads((root / "runs" / "default" / run / "results.json").read_text())


def line(capsys) -> str:
    return next(x for x in capsys.readouterr().out.splitlines() if x.startswith("speed "))


# -------------------------------------------------------------------------------------------------------------- choices


def test_the_choices_are_said_in_one_line_and_recorded(fast_machine, here, capsys):
    assert main(LENET) == 0
    assert line(capsys).split(maxsplit=1)[1].strip() == (
        "bf16-mixed autocast in training steps, channels_last, fused Adam"
    )
    assert results(here)["speed"] == {"precision": "bf16-mixed", "channels_last": True, "fused": True}
    assert results(here)["precision"] == "bf16-mixed"


@pytest.mark.parametrize(("amx", "avx512", "fast"), [(True, False, True), (False, True, True), (False, False, False)])
def test_a_processor_with_either_unit_for_bf16_is_fast(amx, avx512, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert has_fast_bf16(torch.device("cpu")) is fast
    assert not has_fast_bf16(torch.device("meta"))


def test_a_machine_without_bf16_trains_in_float32(slow_machine, here, capsys):
    assert main([*LENET, "--test_after_fit", "false"]) == 0
    assert "32-true (this cpu has no fast bf16), channels_last, fused Adam" in line(capsys)


@pytest.mark.parametrize(
    ("words", "said", "recorded"),
    [
        (["--trainer.precision", "32-true"], "32-true (as asked), channels_last, fused Adam", ("32-true", True, True)),
        (["--trainer.precision", "bf16-mixed"], "bf16-mixed (as asked)", ("bf16-mixed", True, True)),
        (["--channels_last", "false"], "in training steps, fused Adam", ("bf16-mixed", False, True)),
        (["--model.optimizer.fused", "false"], "channels_last, Adam", ("bf16-mixed", True, False)),
        (["--model.optimizer.foreach", "true"], "channels_last, Adam", ("bf16-mixed", True, False)),
        (["--model.optimizer", "RMSprop"], "channels_last, RMSprop", ("bf16-mixed", True, False)),
        (["--model.optimizer", "SGD"], "channels_last, fused SGD", ("bf16-mixed", True, True)),
        (["--model.backbone", "MLP"], "in training steps, fused Adam", ("bf16-mixed", False, True)),
        (["--data.batch_size", "31"], "32-true (batches below 32 images gain", ("32-true", True, True)),
        (
            ["--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", "1"],
            "channels_last, Adam",
            ("bf16-mixed", True, False),
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
    assert tuple(results(here)["speed"].values()) == recorded


# ------------------------------------------------------------------------------------------- networks of one's own


def own(name: str) -> list[str]:
    return [*SHORT, "--model.backbone", f"{__name__}.{name}", "--test_after_fit", "false"]


def test_a_network_of_ones_own_gains_the_same_and_is_evaluated_in_float32(fast_machine, here, monkeypatch):
    monkeypatch.setattr(Flattening, "seen", [])
    assert main(own("Flattening")) == 0
    assert results(here)["speed"] == {"precision": "bf16-mixed", "channels_last": True, "fused": True}
    assert Flattening.seen.count((True, torch.bfloat16)) >= 6, "training steps"
    assert (False, torch.float32) in Flattening.seen, "validation"


def test_a_network_that_needs_the_plain_layout_keeps_it(fast_machine, here):
    assert main(own("Viewing")) == 0
    assert results(here)["speed"] == {"precision": "bf16-mixed", "channels_last": False, "fused": True}


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
    assert results(here)["speed"] == {"precision": "bf16-mixed", "channels_last": False, "fused": False}
    assert main(["fit", "--ckpt_path", "last", "--trusted_packages", __name__, "--trainer.max_epochs", "2"]) == 0
    last = torch.load("runs/default/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["state"]["count"] == last["global_step"]


def test_a_network_that_cannot_run_in_bf16_trains_in_float32(fast_machine, here, capsys):
    assert main(own("SinglePrecision")) == 0
    assert "32-true (the network does not run in bf16), channels_last" in line(capsys)


# ------------------------------------------------------------------------------------------------------------ exactness


def test_figures_of_the_run_are_exactly_those_of_its_loaded_checkpoint(fast_machine, here, capsys):
    assert main(LENET) == 0
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
    assert all(value.is_contiguous() for value in loaded.state_dict().values())


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


def test_a_continued_run_keeps_its_choices_on_another_machine(here, monkeypatch, capsys):
    words = [*LENET, "--model.scheduler", "null", "--test_after_fit", "false", "--channels_last", "false"]
    monkeypatch.setattr(performance, "has_fast_bf16", lambda device: True)
    assert main([*words, "--trainer.max_epochs", "1"]) == 0
    monkeypatch.setattr(performance, "has_fast_bf16", lambda device: False)
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", "--test_after_fit", "false"]) == 0
    assert "bf16-mixed autocast in training steps (as the run began), fused Adam" in capsys.readouterr().out
    assert results(here)["speed"] == {"precision": "bf16-mixed", "channels_last": False, "fused": True}


def test_a_run_of_before_the_choices_goes_on_as_it_was(fast_machine, here):
    words = [*LENET, "--model.scheduler", "null", "--test_after_fit", "false", "--trainer.max_epochs", "1"]
    assert main(words) == 0
    last = here / "runs/default/version_0/checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["callbacks"]["Performance"]
    torch.save(checkpoint, last)
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", "--test_after_fit", "false"]) == 0
    assert results(here)["speed"] == {"precision": "32-true", "channels_last": False, "fused": False}


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


def test_hooks_that_somebody_wrote_are_called_and_idle_ones_are_not():
    class Watched(Classifier):
        def on_train_batch_end(self, *arguments):
            pytest.fail("asked for by nobody here")

    model = Watched(Flattening, (3, 28, 28), "ab")
    lightning_patches.skip_idle_hooks(model)
    assert callable(model.on_train_batch_end)
    assert model.on_train_batch_start is None


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
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_a_step_computes_in_freed_memory_unless_the_environment_says_otherwise(environment, kept, here):
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    words = [sys.executable, "-c", KEPT, *LENET, "--test_after_fit", "false"]
    done = subprocess.run(words, env=inherited | environment, capture_output=True, text=True, check=True)
    cleared = int(done.stdout.rpartition("pages cleared: ")[2])
    assert (cleared < 100) is kept  # of 65,536 pages, or 128 huge ones


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "scripts" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def slow_network(monkeypatch):
    """SmallCNN takes 50 ms longer; the method that does."""
    original = SmallCNN.forward

    def slow(network, images):
        time.sleep(0.05)
        return original(network, images)

    monkeypatch.setattr(SmallCNN, "forward", slow)
    return slow


@pytest.mark.parametrize("kind", ["full", "lightning", "bare"])
def test_what_a_loop_costs_leaves_out_the_time_in_the_network(benchmark, here, slow_network, kind):
    bench = SimpleNamespace(root=str(tiny.write_mnist(here / "data", train=300)))
    whole, outside = benchmark.in_process(bench, benchmark.SYSTEMS["small_cnn"], 6, kind)
    assert whole >= 50
    assert 0 < outside <= whole - 50
    assert SmallCNN.forward is slow_network  # given back


def test_the_time_outside_of_the_network_is_told_by_whose_code_it_passes_in(benchmark, here, slow_network):
    bench = SimpleNamespace(root=str(tiny.write_mnist(here / "data", train=600)))
    samples = Counter()
    _, outside = benchmark.in_process(bench, benchmark.SYSTEMS["small_cnn"], 12, "full", samples)
    assert {"vision_zoo", "lightning", "torch"} <= set(samples) <= set(benchmark.PACKAGES)
    assert samples.total() * benchmark.SAMPLED_EVERY < 12 * outside / 1000 < 12 * 0.05
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL  # given back


def test_operations_are_those_of_products_and_convolutions_forth_and_back(benchmark):
    system = benchmark.SYSTEMS["mlp"]
    weights = sum(w.numel() for w in benchmark.network(system).parameters() if w.dim() == 2)
    first = next(w.numel() for w in benchmark.network(system).parameters() if w.dim() == 2)
    assert benchmark.operations(system) == 2 * 100 * (3 * weights - first) / 1e6  # images need no gradient


def step(whole=0.0, ours=0.0, outside=0.0, ours_outside=0.0):
    return {"a step": whole, "ours of a step": ours, "outside": outside, "ours outside": ours_outside}


@pytest.mark.parametrize(
    ("section", "what", "ratio", "figures", "short"),
    [
        ("a", "batches", 99, {}, {"ratio": "99.00x"}),
        ("a", "batches", 101, {}, {}),
        ("b", "mlp 100, step", 0.75, step(0.55, 0.15, 0.55, 0.15), {}),
        ("b", "mlp 100, step", 0.71, step(), {"ratio": "0.71x"}),
        ("b", "mlp 100, step", 0.77, step(ours=0.154), {"ours of a step": "+0.15 ms"}),
        ("b", "mlp 100, step", 0.77, step(ours_outside=0.2), {"ours outside": "+0.20 ms"}),
        ("b", "resnet18 32, step", 0.97, step(1.0), {"ratio": "0.97x", "a step": "+1.00 ms"}),
        ("b", "resnet18 32, step", 1.01, step(-1.0, -2.0, 0.6, 0.1), {"outside": "+0.60 ms"}),
        ("b", "dnn_fashion 100, step", 0.62, step(0.5, -0.1, 0.5, -0.1), {}),
        ("c", "mlp 100, training", 0.5, {}, {}),
        ("e", "flip + crop", 20, {"share of a step": 6}, {"share of a step": "+6.00 %"}),
        ("h", "mlp, memory of fit", 0.5, {"more memory": 99}, {}),
        ("h", "mlp, memory of fit", 0.5, {"more memory": 101}, {"more memory": "+101.00 MB"}),
        ("i", "predict 10,000 JPEGs of 32 px", 4.0, {}, {"ratio": "4.00x"}),
        ("i", "predict 10,000 JPEGs of 500 px", 4.0, {}, {}),
    ],
)
def test_the_benchmark_tells_which_targets_are_missed(benchmark, section, what, ratio, figures, short):
    row = benchmark.Row(section, what, 1, 1, "", ratio, 0, 0, 5, figures=figures)
    assert benchmark.missed(row) == short


def test_some_targets_hold_where_the_processor_has_amx(benchmark):
    row = benchmark.Row("c", "mlp 100, training", 1, 1, "images/s", 1.3, 0, 0, 5)
    assert (benchmark.missed(row), benchmark.missed(row, amx=True)) == ({}, {"ratio": "1.30x"})
    assert [benchmark.missed_mean("c", [2.0, 2.3], amx) for amx in (False, True)] == [[], ["the mean"]]
    assert benchmark.missed_mean("d", [7.0, 8.5], False) == ["the mean"]


def test_runs_that_are_not_in_turn_are_all_compared_with_each_other(benchmark):
    bench = benchmark.Bench(SimpleNamespace(data_root=".", n=5, quick=False, only=None, systems=None))
    bench.row("d", "cnn", [2.0, 4.0, 1.0], [8.0, 12.0], "s", in_turn=False)
    (row,) = bench.rows
    assert (row.ratio, row.lowest, row.highest, row.n) == (5, 2, 12, 2)


def test_every_turn_begins_with_another_side(benchmark):
    bench = benchmark.Bench(SimpleNamespace(data_root=".", n=3, quick=False, only=None, systems=None))
    called = []
    kept = bench.turns(*(lambda turn, side=side: called.append(side) or (side, turn) for side in "abc"))
    assert "".join(called) == "abcbcacab"
    assert kept == [[(side, turn) for turn in range(3)] for side in "abc"]


def test_the_means_that_have_a_target_are_of_the_networks_that_it_was_set_for(benchmark):
    rows = [
        benchmark.Row("d", f"{name}, to 90 %", 1, 4, "s", ratio, 0, 0, 5)
        for name, ratio in (("mlp", 2.0), ("dnn_fashion", 100.0), ("lenet5", 8.0))
    ]
    assert benchmark.means(rows) == ["d: geometric mean 4.00x, lowest 2.00x of 2"]


def test_what_a_section_misses_is_told_figure_by_figure(benchmark):
    figures = [step(outside=0.7), step(0.6, outside=0.8), step()]
    rows = [
        benchmark.Row("b", f"{name}, step", 1, 1, "ms", 1.0, 0, 0, 5, figures=missed)
        for name, missed in zip(("mlp 100", "cnn 128", "lenet5 100"), figures, strict=True)
    ]
    assert benchmark.all_missed(rows, set()) == "outside: mlp 100 +0.70 ms, cnn 128 +0.80 ms; a step: cnn 128 +0.60 ms"


def test_a_recipe_measured_anew_takes_the_place_of_its_row_whatever_its_target(benchmark, tmp_path):
    bench = benchmark.Bench(SimpleNamespace(data_root=".", n=1, quick=False, only=None, systems=None))
    for target, ours in (("72.08 %", 4.0), ("75.08 %", 2.0)):
        bench.rows = []
        bench.row("d", f"alexnet, to {target}", [ours], [8.0], "s", recipe="alexnet_cifar10")
        bench.row("f", "vision_zoo list", [ours], [8.0], "s")
        benchmark.merge(tmp_path / "speed.json", bench)
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [(row["what"], row["ratio"]) for row in rows] == [("alexnet, to 75.08 %", 4.0), ("vision_zoo list", 4.0)]


def test_the_first_steps_of_a_tutorials_loop_are_no_part_of_a_short_epochs_time(benchmark, here, monkeypatch):
    original, called = SmallCNN.forward, []

    def cold(network, images):
        called.append(None)
        time.sleep(0.2 if len(called) <= benchmark.WARM_UP else 0)
        return original(network, images)

    monkeypatch.setattr(SmallCNN, "forward", cold)
    root = str(tiny.write_mnist(here / "data", train=1000))
    small = dataclasses.replace(benchmark.SYSTEMS["small_cnn"], images=1000)
    assert benchmark.tutorial(small, root, 15, seed=0)["images_per_second"] > 15 * 50 / (0.2 * benchmark.WARM_UP)


def test_the_words_above_the_table_are_computed_from_it_and_wait_for_every_network(benchmark):
    rows = [benchmark.Row(**row) for row in json.loads((ROOT / "configs" / "speed.json").read_text())["rows"]]
    ratios = benchmark.counted(rows, "d")
    (resnet,) = (row.ratio for row in rows if row.section == "d" and row.what.startswith("resnet18"))
    less = statistics.geometric_mean([resnet * 15 / 50 if ratio == resnet else ratio for ratio in ratios])
    assert f"its {resnet:.1f}x are {resnet * 15 / 50:.1f}x, and the mean is {less:.1f}x." in "".join(
        benchmark.in_words(rows)
    )
    assert benchmark.in_words([row for row in rows if not row.what.startswith("resnet18")]) == []


def test_the_readme_shows_the_figures_that_the_benchmark_measured(benchmark):
    assert (ROOT / "README.md").read_text() == benchmark.readme(ROOT), "python scripts/benchmark.py --write"
    recipes = {system.config for system in benchmark.SYSTEMS.values()}
    assert all((ROOT / "configs" / f"{recipe}{kind}.yaml").is_file() for recipe in recipes for kind in ("", "_fast"))
