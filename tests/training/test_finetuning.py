"""Fine-tuning: what is frozen until when, at which rates layers learn, and that a stopped run goes on the same."""

import itertools
import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from torch import nn

from tests.training.runs import same, state, stop_at
from tests.training.test_processes import DDP, ENVIRONMENT, SIGNALLED, run
from vision_zoo.__main__ import main
from vision_zoo.backbones import EfficientNetLite, FashionCNN, ResNet, Torchvision
from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError
from vision_zoo.finetuning import FineTuning, layers_of

WORDS = [
    "fit", "--model.backbone", "FashionCNN", "--data.image_size", "14", "--data.batch_size", "32",
    "--trainer.max_epochs", "3", "--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1",
    "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1", "--test_after_fit", "false",
    "--model.scheduler", "OneCycleLR", "--model.finetune", "FineTuning",
]  # fmt: skip
THAW_AT_6 = ["--model.finetune.thaw_at", "0.5"]  # of 12 steps, in the middle of the second epoch
HEAD = "backbone.head.3"


def run_of(root: Path) -> Path:
    return root / "runs" / "default" / "version_0"


def watched(root: Path, monkeypatch, *words: str) -> list[dict[str, torch.Tensor]]:
    """Train, and give the state dict before the first step and after each."""
    states: list[dict[str, torch.Tensor]] = []

    def note(self, *_):
        states.append({name: value.clone() for name, value in self.state_dict().items()})

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_start", note)
        patch.setattr(Classifier, "on_train_batch_end", note)
        assert main([*WORDS, *words, "--trainer.default_root_dir", str(root)]) == 0
    return states


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


# --------------------------------------------------------------------------------------------------- frozen, then not


def test_the_head_alone_learns_until_the_step_and_then_all_does(tmp_path, monkeypatch):
    graphs: list[bool] = []
    drops: list[bool] = []
    linear, dropout = nn.Linear.forward, nn.Dropout.forward

    def forward(self, features):
        if self.out_features == 10 and torch.is_grad_enabled():
            graphs.append(features.requires_grad)
        return linear(self, features)

    def drop(self, features):
        if torch.is_grad_enabled():
            drops.append(self.training)
        return dropout(self, features)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    monkeypatch.setattr(nn.Dropout, "forward", drop)
    states = watched(tmp_path, monkeypatch, *THAW_AT_6)
    assert len(states) == 13
    head, all_ = {f"{HEAD}.weight", f"{HEAD}.bias"}, set(states[0])
    steps = [moved(*pair) for pair in itertools.pairwise(states)]
    assert steps[:11] == [head] * 6 + [all_] * 5  # the last step is almost none
    assert graphs == drops == [False] * 6 + [True] * 6


def test_batch_normalisation_may_be_trained_from_the_start(tmp_path, monkeypatch):
    words = ["--model.finetune.freeze_batch_norm", "false", "--model.finetune.thaw_at", "null"]
    states = watched(tmp_path, monkeypatch, *words, "--trainer.max_epochs", "1")
    trained = ("backbone.features.1.", "backbone.features.5.", HEAD)
    assert moved(states[0], states[-1]) == {name for name in states[0] if name.startswith(trained)}


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        ("backbone", ["head.3"]),
        ("features.4", ["features.5", "head"]),
        ("features", ["head"]),
        (1, ["head"]),
        (None, ["features", "head"]),
    ],
)
def test_what_is_frozen_is_chosen_by_name_by_number_or_not_at_all(freeze, trained):
    network = FashionCNN((1, 14, 14), 10)
    begins = tuple(f"{name}." for name in trained)
    names = {name for name, _ in network.named_parameters() if not name.startswith(begins)}
    assert FineTuning(freeze).frozen(network) == names


def test_layers_of_a_library_s_network_are_named_as_there():
    network = Torchvision((3, 32, 32), 5, name="resnet18")
    names = [name.split(".")[1] for name, _ in network.named_parameters()]
    frozen = FineTuning("layer2").frozen(network)
    assert {name.split(".")[1] for name in frozen} == {"conv1", "bn1", "layer1", "layer2"} < set(names)
    assert frozen == FineTuning(3).frozen(network)


class Fixed(FashionCNN):
    """Has a weight that is never trained."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(image_shape, num_classes)
        self.features[0].bias.requires_grad = False


def test_a_weight_that_the_network_never_trains_is_not_thawed(tmp_path, monkeypatch):
    words = ["--model.backbone", "tests.training.test_finetuning.Fixed", "--model.finetune.thaw_at", "1"]
    states = watched(tmp_path, monkeypatch, *words, "--trainer.max_epochs", "1")
    assert set(states[0]) - moved(states[0], states[-1]) == {"backbone.features.0.bias"}


# ---------------------------------------------------------------------------------------------------- rates of layers


def test_rates_fall_towards_the_input_and_vectors_have_no_weight_decay(tmp_path):
    words = ["--model.optimizer", "AdamW", "--model.optimizer.lr", "0.004", "--model.optimizer.weight_decay", "0.1"]
    words += ["--model.finetune.layer_decay", "0.5", "--model.scheduler", "null", "--trainer.max_epochs", "1"]
    assert main([*WORDS, *words, "--trainer.default_root_dir", str(tmp_path)]) == 0
    checkpoint = torch.load(run_of(tmp_path) / "checkpoints/last.ckpt", weights_only=True)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        *((0.004, 0.1), (0.004, 0.0), (0.002, 0.1), (0.002, 0.0), (0.001, 0.1), (0.001, 0.0)),  # head
        *((0.0005, 0.1), (0.0005, 0.0), (0.00025, 0.1), (0.00025, 0.0)),  # features
    ]
    assert sum(len(group["params"]) for group in groups) == 14


@pytest.mark.parametrize("schedule", ["OneCycleLR", "CosineAnnealingLR"])
def test_a_schedule_moves_all_rates_alike_and_a_new_peak_keeps_their_ratios(schedule, tmp_path, monkeypatch):
    words = ["--model.scheduler", schedule, "--model.finetune.layer_decay", "0.5", "--model.optimizer.lr", "0.004"]
    rates: list[list[float]] = []

    def note(self, *_):
        rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        if self.global_step == 4:
            self.lr = 0.008

    monkeypatch.setattr(Classifier, "on_train_batch_end", note)
    assert main([*WORDS, *words, "--trainer.default_root_dir", str(tmp_path)]) == 0
    for now in rates[:-1]:  # the last is almost zero
        assert [rate / now[0] for rate in now[::2]] == pytest.approx([1, 0.5, 0.25, 0.125, 0.0625], rel=0.02)
    assert max(now[0] for now in rates) > 0.004


def test_a_found_learning_rate_is_the_head_s(tmp_path):
    finder = "[{class_path: LearningRateFinder, init_args: {min_lr: 0.0001, num_training_steps: 30}}]"
    words = ["--model.scheduler", "CosineAnnealingLR", "--trainer.callbacks", finder, "--trainer.max_epochs", "1"]
    words += ["--trainer.limit_train_batches", "40", "--trainer.val_check_interval", "40"]
    assert main([*WORDS, *words, "--trainer.default_root_dir", str(tmp_path)]) == 0
    run = run_of(tmp_path)
    found = json.loads((run / "lr_finder.json").read_text())["suggestion"]
    groups = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["initial_lr"] for group in groups[::2]] == pytest.approx([found * 0.8**n for n in range(5)])


def begins(layers: list[list[str]]) -> list[str]:
    return [layer[0] for layer in layers]


def test_layers_are_the_blocks_of_a_network_in_its_order():
    assert begins(layers_of(FashionCNN((1, 14, 14), 10))) == [
        *("features.0.weight", "features.4.weight", "head.0.weight", "head.2.weight", "head.3.weight"),
    ]
    lite = EfficientNetLite((3, 32, 32), 5)
    assert len(layers_of(lite)) == 1 + 16 + 1 + 1  # stem, blocks, last convolution, head
    assert len(layers_of(lite, coarse=True)) == 1 + 7 + 1 + 1
    assert begins(layers_of(ResNet((3, 32, 32), 10)))[1] == "features.0.residual.0.weight"
    resnet = Torchvision((3, 32, 32), 5, name="resnet18")
    assert [name.split(".")[1] for name in begins(layers_of(resnet, coarse=True))] == [
        *("conv1", "layer1", "layer2", "layer3", "layer4", "fc"),
    ]
    transformer = layers_of(Torchvision((3, 32, 32), 5, name="vit_b_32"))
    assert len(transformer) == 1 + 12 + 1
    assert transformer[0] == [
        *("network.class_token", "network.conv_proj.weight", "network.conv_proj.bias", "network.encoder.pos_embedding"),
    ]


def test_timm_says_what_the_layers_of_its_networks_are():
    network = nn.ModuleDict({"network": timm.create_model("vit_tiny_patch16_224", depth=2)})
    layers, names = layers_of(network), [name for name, _ in network.named_parameters()]
    assert sorted(itertools.chain(*layers)) == sorted(names)
    assert len(layers) == 1 + 2 + 1
    assert layers[0][:2] == ["network.cls_token", "network.pos_embed"]
    assert layers[-1] == ["network.head.weight", "network.head.bias"]


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    assert main([*WORDS, *THAW_AT_6, "--trainer.default_root_dir", str(root)]) == 0
    return run_of(root)


@pytest.mark.slow  # 4 s
@pytest.mark.parametrize(("step", "how"), [(5, "SIGTERM"), (6, "SIGINT"), (7, "crash")])
def test_a_run_stopped_before_at_or_after_the_thaw_ends_like_one_that_was_not(
    step, how, undisturbed, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_at(patch, step, how)
        code = main([*WORDS, *THAW_AT_6, "--trainer.default_root_dir", str(tmp_path)])
        assert code == {"SIGTERM": 143, "SIGINT": 130, "crash": 1}[how]
    assert main(["fit", "--ckpt_path", str(run_of(tmp_path))]) == 0
    assert_same_run(run_of(tmp_path), undisturbed)


def assert_same_run(run: Path, other: Path) -> None:
    assert (run / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        assert same(state(run / "checkpoints" / name), state(other / "checkpoints" / name)), name


def test_a_fine_tuned_network_is_tested_and_loaded_like_any_other(undisturbed, capsys):
    assert main(["test", "--ckpt_path", str(undisturbed), "--trainer.limit_test_batches", "1"]) == 0
    model = Classifier.load_from_checkpoint(undisturbed)
    assert vars(model.freezing.options) == {
        "freeze": "backbone", "thaw_at": 0.5, "layer_decay": 0.8, "freeze_batch_norm": True,
    }  # fmt: skip
    assert not any(module.training for module in model.modules())
    options = yaml.safe_load((undisturbed / "config.yaml").read_text())["model"]["finetune"]["init_args"]
    assert options == vars(model.freezing.options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.finetune.thaw_at", "2"], "--model.finetune.thaw_at: 0.5 -> 2"),
        (["--model.finetune.layer_decay", "1"], "--model.finetune.layer_decay: 0.8 -> 1.0"),
        (["--model.finetune", "null"], "--model.finetune: "),
        (["--trainer.max_epochs", "4"], "was laid out for max_epochs 3, which cannot become 4"),
    ],
)
def test_how_a_run_freezes_cannot_change_when_it_goes_on(words, message, undisturbed, capsys):
    assert main(["fit", "--ckpt_path", str(undisturbed), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_run_without_a_schedule_is_laid_out_by_the_thaw_too(tmp_path, capsys):
    words = ["--model.scheduler", "null", "--trainer.max_epochs", "1", "--trainer.default_root_dir", str(tmp_path)]
    assert main([*WORDS, *words]) == 0
    capsys.readouterr()
    assert main(["fit", "--ckpt_path", str(run_of(tmp_path)), "--trainer.max_epochs", "2"]) == 2
    told = "the run's thaw_at of --model.finetune was laid out for max_epochs 1, which cannot become 2"
    assert told in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_network_that_is_frozen_at_random_weights_is_told(here, recwarn):
    once = ["--trainer.max_epochs", "1"]
    for words, told in (
        ([*WORDS, *once], True),
        ([*WORDS, *once, "--model.finetune.freeze", "null"], False),
        ([*WORDS, *once, "--model.weights", "runs/default/version_0/checkpoints/best.ckpt"], False),
        (["fit", "--ckpt_path", "runs/default/version_0"], False),
    ):
        recwarn.clear()
        assert main(words) == 0
        said = "--model.finetune freezes FashionCNN, whose weights are random: set --model.weights to a checkpoint"
        assert any(str(warning.message).startswith(said) for warning in recwarn) == told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model.finetune.freeze", "featurs.4"],
            "freeze featurs.4: there is no layer of this name; did you mean fea",
        ),
        (["--model.finetune.thaw_at", "12"], "thaw_at 12 is not within the run, which has 12 steps: set it lower"),
        (["--model.finetune", "FineTunin"], "--model.finetune FineTunin: unknown; did you mean FineTuning?"),
        (["--model.optimizer", "LBFGS"], "--model.optimizer cannot be used so: LBFGS doesn't support per-parameter"),
        (
            ["--trainer.callbacks", "[BackboneFinetuning]"],
            "BackboneFinetuning would both freeze the network: leave one",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_words(words, message, here, capsys):
    assert main([*WORDS, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"freeze": "stage"},
            "freeze stage: there is no layer of this name. There are backbone, features, features.0,",
        ),
        ({"freeze": 2}, "freeze must be a number from 1 to 1, got 2: this network has 2 stages, which begin with fea"),
        ({"freeze": "head"}, "freeze head: nothing would be left to train"),
        ({"thaw_at": 1.5}, r"thaw_at must be a fraction in \(0, 1\) or a number of steps from 1 on, got 1.5"),
        ({"thaw_at": float("nan")}, "thaw_at must be a fraction"),
        ({"thaw_at": 0}, "number of steps from 1 on, got 0"),
        ({"thaw_at": 0.5}, "thaw_at is a fraction of a run without an end: set --trainer.max_epochs, or a number"),
        ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\], got 0.0"),
        ({"layer_decay": 1.1}, r"layer_decay must be in \(0, 1\], got 1.1"),
        ({"layer_decay": float("nan")}, "layer_decay must be in"),
    ],
)
def test_python_is_refused_likewise(options, message):
    def use():
        FineTuning(**options).groups(FashionCNN((1, 14, 14), 10))
        FineTuning(**options).thaw_step(float("inf"))

    with pytest.raises(ConfigError, match=message):
        use()


class NoRate(torch.optim.Optimizer):
    def __init__(self, params) -> None:
        super().__init__(params, {})


def test_an_optimizer_without_a_rate_takes_one_for_all_layers():
    def check(decay: float) -> None:
        finetune = FineTuning(layer_decay=decay)
        Classifier(FashionCNN, (1, 14, 14), "0123456789", optimizer=NoRate, finetune=finetune).check_optimizer()

    check(1.0)
    with pytest.raises(ConfigError, match="has no lr that could differ by layer; set its layer_decay to 1"):
        check(0.5)


# ---------------------------------------------------------------------------------------------------------------- slow


def killed(folder: Path, words: list[str], *, times: int, moments: random.Random) -> int:
    """Run a command, with SIGKILL at so many random steps at most, to its end; how many times it was killed."""
    (folder / "sitecustomize.py").write_text(SIGNALLED)
    path = os.pathsep.join([str(folder), ENVIRONMENT["PYTHONPATH"]])
    count = 0
    while True:
        given = {"SIGNALLED": f"all SIGKILL {moments.randint(1, 12)}"} if count < times else {}
        go_on = ["fit", "--ckpt_path", "last"] if list(folder.rglob("last.ckpt")) else words
        result = run(folder, sys.executable, "-m", "vision_zoo", *go_on, PYTHONPATH=path, **given)
        if result.returncode == 0:
            return count
        assert result.returncode == -9, result.stderr
        count += 1


@pytest.mark.slow
@pytest.mark.parametrize(("times", "more"), [(20, []), (3, [*DDP, "2"])])
def test_kills_at_random_steps_change_nothing(times, more, tmp_path):
    """Two minutes; half a minute by two processes."""
    words = [*WORDS, *THAW_AT_6, "--save_every_minutes", "0.00001", *more]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    result = run(whole, sys.executable, "-m", "vision_zoo", *words)
    assert (result.returncode, result.stderr) == (0, "")
    moments, count = random.Random(0), 0
    while count < times:
        shutil.rmtree(cut / "runs", ignore_errors=True)
        count += killed(cut, words, times=times - count, moments=moments)
        assert_same_run(run_of(cut), run_of(whole))


# Imported by every process: each writes its weights at the end.
WEIGHTS = """
import torch
from vision_zoo.classifier import Classifier

def on_train_end(self):
    torch.save(self.state_dict(), f"rank{self.global_rank}.pt")

Classifier.on_train_end = on_train_end
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path):
    """10 seconds."""
    (tmp_path / "sitecustomize.py").write_text(WEIGHTS)
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    result = run(tmp_path, sys.executable, "-m", "vision_zoo", *WORDS, *THAW_AT_6, *DDP, "2", PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    different = {name for name in moved(one, two) if "running" not in name}  # each counts its own batches
    assert not different
