"""The loss is a choice like the optimizer; metrics stay those of the true labels."""

import json
import os
import shutil
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from tests.cli.runs import newest
from vision_zoo.__main__ import main
from vision_zoo.backbones import LeNet5
from vision_zoo.classifier import Classifier
from vision_zoo.losses import BinaryCrossEntropy, CrossEntropy, Distillation, Focal, TrainingLoss

QUICK = ("fit", "--model.backbone", "SmallCNN", "--model.scheduler", "null", "--trainer.max_epochs", "1")
QUICK += ("--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "2", "--test_after_fit", "false")
K = 4


def some(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, K, generator=generator), torch.randint(K, (count,), generator=generator)


def network(classes=K, side=28):
    torch.manual_seed(0)
    return Classifier(LeNet5, (1, side, side), [str(n) for n in range(classes)])


class Data:
    """What a loss asks of the data."""

    def __init__(self, counts=None, mixes=False):
        self.class_counts, self.mixes_labels = counts if counts is None else torch.tensor(counts), mixes


def prepared(build, data=None, model=None):
    loss = TrainingLoss(build)
    loss.prepare(model or network(), data)
    return loss.module


@pytest.mark.parametrize("build", [CrossEntropy, Focal, BinaryCrossEntropy])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classes_and_their_probabilities_cost_the_same(build, weights, smoothing):
    loss = prepared(partial(build, label_smoothing=smoothing, class_weights=weights))
    logits, labels = some(1)  # of one image, for torch divides by the weights where labels are classes
    factor = weights[int(labels)] if weights and build is CrossEntropy else 1.0
    probabilities = F.one_hot(labels, K).float()
    assert float(loss(logits, labels)) * factor == pytest.approx(float(loss(logits, probabilities)), rel=1e-5)


def test_focal_loss_is_that_of_its_paper():
    logits, labels = some()
    p = logits.softmax(1)[range(8), labels]
    assert float(Focal(gamma=1.5)(logits, labels)) == pytest.approx(float((-((1 - p) ** 1.5) * p.log()).mean()))
    assert float(Focal(gamma=0)(logits, labels)) == pytest.approx(float(F.cross_entropy(logits, labels)))


def test_a_sure_network_has_a_gradient_whatever_gamma_is():
    logits = torch.tensor([[60.0, 0, 0, 0]], requires_grad=True)
    Focal(gamma=0.5)(logits, torch.tensor([0])).backward()
    assert torch.isfinite(logits.grad).all()


def test_one_against_all_is_a_sum_of_logistic_regressions():
    logits, labels = some()
    wanted = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, K).float()) * K
    assert float(BinaryCrossEntropy()(logits, labels)) == pytest.approx(float(wanted))
    mixed = torch.full((8, K), 0.25)
    mixed[:, 0], mixed[:, 1] = 0.45, 0.05
    of_mixed = BinaryCrossEntropy(threshold=0.2)(logits, mixed)
    hard = torch.tensor([1.0, 0, 1, 1]).expand(8, K)
    assert float(of_mixed) == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, hard)) * K)


def test_balanced_weights_are_those_of_scikit_learn():
    counts = [50, 10, 30, 10]
    loss = prepared(partial(CrossEntropy, class_weights="balanced"), Data(counts))
    labels = np.repeat(range(K), counts)
    wanted = compute_class_weight("balanced", classes=np.arange(K), y=labels)
    assert loss.weights.tolist() == pytest.approx(wanted.tolist())


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(here):
    from lightning.pytorch import Trainer

    trainer, model = Trainer(logger=False, barebones=True), network()
    trainer.strategy.connect(model)
    trainer.save_checkpoint("teacher.ckpt", weights_only=True)
    images = torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8)
    logits, labels = model.eval()(images), some()[1]
    build = partial(Distillation, teacher="teacher.ckpt", weight=1.0, temperature=3.0)
    assert float(prepared(build, model=model)(logits, labels, images)) == pytest.approx(0, abs=1e-6)
    other = torch.randn(8, K)
    p, q = (logits / 3).softmax(1), (other / 3).softmax(1)
    wanted = 9 * (p * (p.log() - q.log())).sum(1).mean()
    assert float(prepared(build, model=model)(other, labels, images)) == pytest.approx(float(wanted), rel=1e-5)
    half = prepared(partial(build, weight=0.25), model=model)
    mixed = 0.25 * wanted + 0.75 * F.cross_entropy(other, labels)
    assert float(half(other, labels, images)) == pytest.approx(float(mixed), rel=1e-5)
    with pytest.raises(Exception, match=r"other classes \(only one of the two knows 4\)"):
        prepared(build, model=network(classes=5))
    with pytest.raises(Exception, match=r"takes images of shape \(1, 28, 28\), and these are \(1, 32, 32\)"):
        prepared(build, model=network(side=32))


def test_weights_may_be_whole_numbers():
    logits, labels = some()
    whole, real = (prepared(partial(CrossEntropy, class_weights=[one, 2, 3, 4])) for one in (1, 1.0))
    assert whole(logits, labels) == real(logits, labels)


def test_a_teacher_may_be_a_network_of_ones_own_that_is_trusted(here, monkeypatch, capsys):
    monkeypatch.setattr("sys.path", [place for place in sys.path if place])
    (here / "my_teacher.py").write_text("from vision_zoo.backbones import SmallCNN\nclass Net(SmallCNN): pass\n")
    assert main([*QUICK[:1], "--model.backbone", "my_teacher.Net", *QUICK[3:]]) == 0
    words = [*QUICK, "--model.loss", "Distillation", "--model.loss.teacher", str(newest(here))]
    assert main(words) == 2
    assert "admit it with --trusted_packages my_teacher" in capsys.readouterr().err
    assert main([*words, "--trusted_packages", "my_teacher"]) == 0


def test_a_trained_network_teaches_another_and_is_no_part_of_it(here, trained_run, capsys):
    words = ("--model.loss", "Distillation", "--model.loss.teacher", os.path.relpath(trained_run))
    assert main([*QUICK, *words]) == 0
    assert "Distillation: teacher" in capsys.readouterr().out
    run = newest(here)
    loss = yaml.safe_load((run / "config.yaml").read_text())["model"]["loss"]
    assert loss["init_args"]["teacher"] == str(trained_run)  # from wherever it is continued
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("backbone.") for name in state)
    shutil.copytree(trained_run, "moved")
    capsys.readouterr()
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_epochs", "2", "--model.loss.teacher", "moved"]) == 0
    assert f"teacher: {trained_run} -> {here / 'moved'}" in capsys.readouterr().err
    assert main(["test", "--ckpt_path", str(run)]) == 0


def test_validation_counts_the_cross_entropy_of_the_true_labels(here):
    values = {}
    for loss in ("CrossEntropy", "MultiMarginLoss"):
        assert main([*QUICK, "--model.optimizer.lr", "1e-12", "--model.loss", loss]) == 0
        values[loss] = json.loads((newest(here) / "results.json").read_text())["metrics"]
    assert values["CrossEntropy"]["val/loss"] == pytest.approx(values["MultiMarginLoss"]["val/loss"], rel=1e-6)
    assert values["CrossEntropy"]["train/loss"] != pytest.approx(values["MultiMarginLoss"]["train/loss"], rel=0.01)


OWN = """
from torch import nn


class Own(nn.Module):
    def __init__(self, power: float = 2.0):
        super().__init__()
        self.power = power

    def forward(self, logits, labels, images):
        assert images.shape[1:] == (1, 28, 28)
        return (logits.softmax(1)[range(len(labels)), labels] - 1).abs().pow(self.power).mean()


class Learning(nn.Module):
    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(nn.init.zeros_(nn.Parameter().new_empty(3)))

    def forward(self, logits, labels):
        return logits.mean() + self.centre.sum()


class Constant(nn.Module):
    def forward(self, logits, labels):
        return logits.detach().mean()
"""


@pytest.fixture
def own(here, monkeypatch):
    (here / "own_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(here))


def test_a_loss_of_ones_own_may_look_at_the_images(here, own):
    assert main([*QUICK, "--model.loss", "own_losses.Own", "--model.loss.power", "3"]) == 0
    words = ["--ckpt_path", str(newest(here)), "--trusted_packages", "own_losses"]
    assert main(["test", *words]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [("Learning", "has weights of its own, which no optimizer would train"), ("Constant", "it has no gradient")],
)
def test_a_loss_that_would_teach_nothing_is_refused(here, own, capsys, name, message):
    assert main([*QUICK, "--model.loss", f"own_losses.{name}"]) == 2
    assert message in capsys.readouterr().err


def test_a_loss_that_takes_classes_alone_is_refused_for_mixed_labels():
    with pytest.raises(Exception, match=r"--model\.loss cannot be used so: .*labels are probabilities"):
        prepared(nn.MultiMarginLoss, Data(mixes=True))


def test_a_run_with_mixed_images_is_refused_a_loss_of_classes(here, capsys):
    assert main([*QUICK, "--data.augmentation+", "MixUp", "--model.loss", "MultiMarginLoss"]) == 2
    assert "labels are probabilities, float (B, K), where --data.augmentation mixes images" in capsys.readouterr().err
