"""The command line: what is layered over what, which names are found, and what is refused with which words."""

import csv
import json
import re
import shlex
import shutil
import signal
import sys
import warnings
from numbers import Real
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import vision_zoo
from tests import tiny
from tests.conftest import QUICK
from vision_zoo.__main__ import main
from vision_zoo.backbones import LeNet5
from vision_zoo.classifier import Classifier
from vision_zoo.cli.messages import explain
from vision_zoo.data import FashionMNIST, MNIST5k
from vision_zoo.errors import ConfigError
from vision_zoo.training import Saving
from vision_zoo.transforms import views


class Foreign(nn.Module):
    """A network from outside the package."""

    def __init__(self, shape, classes, width=4):
        super().__init__()
        channels, height, pixels = shape
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * height * pixels, width), nn.Linear(width, classes)
        )

    def forward(self, images):
        return self.layers(images)


class Stemmed(nn.Module):
    """A network with a part that its options choose."""

    def __init__(self, shape, classes, stem: nn.Module, act: type[nn.Module] = nn.Tanh):
        super().__init__()
        self.stem = nn.Sequential(stem, act())
        channels, height, pixels = shape
        self.head = nn.Linear(channels * height * pixels, classes)

    def forward(self, images):
        return self.head(self.stem(images).flatten(1))


def foreign_function(shape, classes) -> nn.Module:
    return Foreign(shape, classes, 3)


def quoted_function(shape, classes) -> "nn.Module":  # as under `from __future__ import annotations`
    return Foreign(shape, classes, 3)


def config_of(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def newest(here: Path, name: str = "default") -> Path:
    return max((here / "runs" / name).glob("version_*"), key=lambda p: int(p.name.split("_")[1]))


def fit(*words: str) -> int:
    few = [f"--trainer.limit_{part}_batches=2" for part in ("train", "val", "test")]
    return main(["fit", *few, "--trainer.max_epochs", "1", *words])


def refused(capsys, *words: str, code: int = 2) -> str:
    """Run a command that must fail, and give its message."""
    assert main([*words]) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


# ------------------------------------------------------------------------------------------------------- precedence


def test_the_command_line_beats_the_file_and_the_file_the_default(here):
    Path("mine.yaml").write_text(
        "model: {backbone: LeNet5, optimizer: {class_path: SGD, init_args: {lr: 0.5}}}\n"
        "data: {class_path: MNIST5k, init_args: {batch_size: 77, val_split: 100}}\n"
    )
    assert fit("--config", "mine.yaml", "--data.batch_size", "55") == 0
    config = config_of(newest(here, "mine"))
    assert config["data"]["init_args"]["batch_size"] == 55
    assert config["data"]["init_args"]["val_split"] == 100
    assert config["model"]["optimizer"]["class_path"] == "torch.optim.SGD"
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.5
    assert config["model"]["label_smoothing"] == 0.0
    assert config["model"]["scheduler"] is None, "the schedule of the default recipe leaked into a file of one's own"


def test_of_two_files_the_later_counts_and_the_first_names_the_run(here):
    Path("one.yaml").write_text("model: {backbone: LeNet5}\ndata: {class_path: MNIST5k, init_args: {batch_size: 10}}\n")
    Path("two.yaml").write_text(
        "data: {class_path: MNIST5k, init_args: {batch_size: 20}}\nmodel: {label_smoothing: 0.1}\n"
    )
    assert fit("--config", "one.yaml", "--config", "two.yaml") == 0
    config = config_of(newest(here, "one"))
    assert config["data"]["init_args"]["batch_size"] == 20
    assert config["model"]["label_smoothing"] == 0.1
    assert config["model"]["backbone"]["class_path"] == "vision_zoo.backbones.LeNet5"


def test_the_order_of_words_does_not_matter(here):
    assert fit("--data.batch_size", "33", "--config", "lenet5_mnist", "--data", "MNIST5k") == 0
    assert config_of(newest(here, "lenet5_mnist"))["data"]["init_args"]["batch_size"] == 33


def test_a_network_with_a_part_of_ones_choice_is_loaded_from_python(here):
    stem = "{class_path: torch.nn.LeakyReLU, init_args: {negative_slope: 0.75}}"
    assert fit("--model.backbone", "tests.test_cli.Stemmed", "--model.backbone.stem", stem) == 0
    path = newest(here) / "checkpoints/best.ckpt"
    model = Classifier.load_from_checkpoint(path, trusted_packages=["tests"])
    assert model.backbone.stem[0].negative_slope == 0.75
    assert isinstance(model.backbone.stem[1], nn.Tanh)
    assert main(["test", "--ckpt_path", "best", "--trusted_packages", "tests"]) == 0


def test_a_recipe_is_found_beside_a_folder_of_its_name(here):
    Path("lenet5_mnist").mkdir()
    assert fit("--config", "lenet5_mnist", "--data", "MNIST5k") == 0


def test_runs_in_a_folder_below_home_are_found_again(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    root = "--trainer.default_root_dir=~/experiments"
    assert fit("--model.backbone", "LeNet5", root) == 0
    assert (here / "home/experiments/runs/default/version_0").is_dir()
    assert main(["test", "--ckpt_path", "best", root]) == 0


def test_paths_below_home_are_found_behind_an_equals_sign(here, trained_run, monkeypatch):
    """The shell leaves a ~ alone there."""
    monkeypatch.setenv("HOME", str(here / "home"))
    shutil.copytree(trained_run, here / "home/run")
    for words in (
        ("test", "--output=~/figures"),
        ("report", "--output=~/page"),
        ("export", "--format=state_dict", "--output=~/net.pt"),
    ):
        assert main([*words, "--ckpt_path=~/run"]) == 0
    assert {path.name for path in (here / "home").iterdir()} == {"run", "figures", "page", "net.pt"}
    assert fit("--config=~/run/config.yaml", "--trainer.max_epochs", "1") == 0
    assert not (here / "~").exists()


def test_a_notice_about_the_files_is_shown(here, data_root):
    with pytest.warns(UserWarning, match="are not the published ones"):
        assert fit("--model.backbone", "SmallCNN", "--data", "CIFAR10", "--data.root", str(data_root)) == 0


def test_warnings_are_in_words_and_those_of_other_code_have_a_place(here):
    assert fit("--model.backbone", "LeNet5") == 0
    ours, other = (warnings.formatwarning("look", UserWarning, name, 7) for name in (vision_zoo.__file__, "mine.py"))
    assert (ours, other) == ("vision_zoo: look\n", "mine.py:7: UserWarning: look\n")


def test_a_list_is_appended_to_one_by_one(here):
    words = ["--data.augmentation+=RandomHorizontalFlip", "--data.augmentation.p=0.25"]
    words += ["--data.augmentation+", "RandomErasing"]
    assert fit("--model.backbone", "LeNet5", "--data.augmentation", "[]", *words) == 0
    flip, erasing = config_of(newest(here))["data"]["init_args"]["augmentation"]
    assert (flip["class_path"], flip["init_args"]["p"]) == ("vision_zoo.transforms.RandomHorizontalFlip", 0.25)
    assert erasing["class_path"] == "vision_zoo.transforms.RandomErasing"


def test_a_file_may_name_the_run_to_continue(here):
    Path("mine.yaml").write_text("model: {backbone: LeNet5}\ndata: MNIST5k\n")
    assert fit("--config", "mine.yaml") == 0
    Path("more").mkdir()
    Path("more/mine.yaml").write_text("ckpt_path: last\n" + Path("mine.yaml").read_text())
    assert fit("--config", "more/mine.yaml", "--trainer.max_epochs", "2") == 0
    assert [path.name for path in (here / "runs" / "mine").iterdir()] == ["version_0"]
    assert json.loads((newest(here, "mine") / "results.json").read_text())["epochs"] == 2


def test_another_optimizer_starts_from_its_own_defaults(here):
    Path("mine.yaml").write_text(
        "model: {backbone: LeNet5, optimizer: {class_path: AdamW, init_args: {lr: 0.003, weight_decay: 0.25}}}\n"
        "data: MNIST5k\n"
    )
    assert fit("--config", "mine.yaml", "--model.optimizer", "torch.optim.SGD") == 0
    options = config_of(newest(here, "mine"))["model"]["optimizer"]["init_args"]
    assert options["lr"] == 0.001  # SGD's own
    assert options["weight_decay"] == 0


def test_naming_the_same_class_again_keeps_its_options(here):
    Path("mine.yaml").write_text(
        "model: {backbone: {class_path: FullyConnected, init_args: {n_layers: 3}}, "
        "optimizer: {class_path: AdamW, init_args: {lr: 0.003, weight_decay: 0.25}}}\ndata: MNIST5k\n"
    )
    words = ("--model.optimizer", "AdamW", "--model.optimizer.lr", "0.1", "--model.backbone", "FullyConnected")
    assert fit("--config", "mine.yaml", *words) == 0
    model = config_of(newest(here, "mine"))["model"]
    assert model["optimizer"]["init_args"]["weight_decay"] == 0.25
    assert model["optimizer"]["init_args"]["lr"] == 0.1
    assert model["backbone"]["init_args"]["n_layers"] == 3


def test_another_backbone_in_a_later_file_leaks_nothing(here):
    Path("one.yaml").write_text(
        "model: {backbone: {class_path: AlexNet, init_args: {drop_rate: 0.9}}}\n"
        "data: {class_path: MNIST5k, init_args: {image_size: 32}}\n"
    )
    Path("two.yaml").write_text("model: {backbone: SimpleCNN}\n")
    assert fit("--config", "one.yaml", "--config", "two.yaml") == 0
    backbone = config_of(newest(here, "one"))["model"]["backbone"]
    assert backbone["class_path"] == "vision_zoo.backbones.SimpleCNN"
    assert backbone["init_args"]["drop_rate"] == 0.2


def test_another_data_set_keeps_what_belongs_to_the_experiment(here):
    assert fit("--config", "cnn_mnist", "--data", "MNIST5k") == 0
    options = config_of(newest(here, "cnn_mnist"))["data"]["init_args"]
    assert options["batch_size"] == 128
    assert options["val_split"] == 0.2
    assert options["mean"] == [0.0]
    assert options["std"] == [1.0]


def test_a_number_of_held_out_images_does_not_move_to_another_data_set(here):
    assert fit("--config", "cnn_mnist_fast", "--data", "MNIST5k") == 0
    assert config_of(newest(here, "cnn_mnist_fast"))["data"]["init_args"]["val_split"] == 500  # its own


@pytest.mark.parametrize("optimizer", ["Adagrad", "Rprop"])
def test_an_optimizer_without_momentum_trains_by_the_default_schedule(optimizer, here):
    assert fit("--model.backbone", "LeNet5", "--model.optimizer", optimizer) == 0
    assert config_of(newest(here))["model"]["scheduler"]["class_path"].endswith("OneCycleLR")


def test_mean_and_std_of_other_channels_do_not_move_to_another_data_set(here):
    assert fit("--config", "resnet18_cifar10", "--data", "MNIST5k", "--model.backbone", "LeNet5") == 0
    assert config_of(newest(here, "resnet18_cifar10"))["data"]["init_args"]["mean"] is None


def halved(epoch: int) -> float:
    """A schedule's function of one's own."""
    return 0.5**epoch


def test_a_function_of_ones_own_is_named_with_the_option_that_admits_it(here, capsys):
    words = ["--model.scheduler", "LambdaLR", "--model.scheduler.lr_lambda", f"{__name__}.halved"]
    assert fit("--model.backbone", "LeNet5", *words) == 0
    assert f"need --trusted_packages {__name__.partition('.')[0]}, since" in capsys.readouterr().out
    run = str(newest(here))
    assert main(["test", "--ckpt_path", run]) == 2
    assert main(["test", "--ckpt_path", run, "--trusted_packages", __name__.partition(".")[0]]) == 0


class Labelled(MNIST5k):
    """A data set with an option that names a file."""

    def __init__(self, table: str | Path = "", **options):
        super().__init__(**options)
        self.hparams["table"] = str(table)
        assert Path(table).is_file()


def test_an_option_of_ones_own_may_name_a_file(here):
    (here / "tables").mkdir()
    (here / "tables/labels.csv").write_text("a,1")
    words = ["--data", "tests.test_cli.Labelled", "--data.table", "tables/labels.csv"]
    assert fit(*words, "--model.scheduler", "null") == 0
    run = newest(here)
    options = config_of(run)["data"]["init_args"]
    assert options["batch_size"] == 64  # the experiment's, which the class hands on
    words = ["--ckpt_path", str(run), "--trusted_packages", "tests"]
    assert main(["test", *words]) == 0
    assert main(["fit", *words, "--trainer.max_epochs", "2"]) == 0
    assert main(["test", "--ckpt_path", str(run)]) == 2
    Classifier.load_from_checkpoint(run / "checkpoints" / "best.ckpt", trusted_packages=["tests"])


def test_commands_that_a_run_names_admit_code_of_ones_own(here, monkeypatch, capsys):
    monkeypatch.setattr(Saving, "_wants", lambda *_: signal.SIGTERM)
    assert fit("--model.backbone", "tests.test_cli.Foreign") == 128 + signal.SIGTERM
    (command,) = re.findall(r"continue with: vision_zoo (.*)", capsys.readouterr().err)
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert main(shlex.split(command)) == 0
    assert main(["report", "--ckpt_path", "best", "--trusted_packages", "tests"]) == 0
    card = (newest(here) / "README.md").read_text()
    (command,) = re.findall(r"vision_zoo (test .*)", card)
    assert main(shlex.split(command)) == 0
    code = card.partition("```python\n")[2].partition("```")[0]
    exec(code)


def test_short_names_mean_ours_first(here):
    words = ["--data.augmentation", "[RandomHorizontalFlip, {class_path: ColorJitter, init_args: {brightness: 0.2}}]"]
    assert fit("--model.backbone", "LeNet5", *words) == 0
    first, second = config_of(newest(here))["data"]["init_args"]["augmentation"]
    assert first["class_path"] == "vision_zoo.transforms.RandomHorizontalFlip"
    assert second["class_path"] == "torchvision.transforms.v2.ColorJitter"


@pytest.mark.parametrize("backbone", ["Foreign", "foreign_function", "quoted_function"])
def test_a_network_from_outside_works_by_class_path(here, backbone):
    assert fit("--model.backbone", f"tests.test_cli.{backbone}") == 0
    # Its checkpoint is code of a package that nobody vouched for.
    run = str(newest(here))
    assert main(["test", "--ckpt_path", run]) == 2
    assert main(["test", "--ckpt_path", run, "--trusted_packages", "tests"]) == 0


def test_a_network_in_the_working_directory_is_found(here, monkeypatch):
    monkeypatch.setattr("sys.path", [place for place in sys.path if place])
    (here / "my_function.py").write_text(
        "import math\n"
        "from torch import nn\n"
        "def linear(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), num_classes))\n"
    )
    assert fit("--model.backbone", "my_function.linear") == 0
    assert main(["test", "--ckpt_path", "last", "--trusted_packages", "my_function"]) == 0


# -------------------------------------------------------------------------------------------------------- checkpoints


def test_test_needs_nothing_but_the_run_folder(trained_run, here, capsys):
    assert main(["test", "--ckpt_path", str(trained_run), "--output", "out"]) == 0
    tested = json.loads(Path("out/test.json").read_text())
    fitted = json.loads((trained_run / "results.json").read_text())["metrics"]
    about = {"checkpoint": "best.ckpt", "step": 20, "data": "MNIST5k", "images": str(trained_run.parents[2] / "data")}
    assert tested == {name: value for name, value in fitted.items() if name.startswith("test/")} | about
    assert {p.name for p in Path("out").iterdir()} >= {"confusion_matrix.png", "confusion_matrix.csv", "per_class.csv"}
    assert f"{100 * tested['test/accuracy']:.2f} %" in capsys.readouterr().out


def test_the_figures_of_a_test_are_those_that_a_count_by_hand_gives(trained_run, here):
    assert main(["test", "--ckpt_path", str(trained_run), "--output", "out"]) == 0
    model = Classifier.load_from_checkpoint(trained_run / "checkpoints" / "best.ckpt")
    images, labels = MNIST5k().split_images("test")
    with torch.no_grad():
        shares = model(images).softmax(1)
    said = shares.argmax(1)
    counts = [[int(((labels == t) & (said == p)).sum()) for p in range(10)] for t in range(10)]
    with Path("out/confusion_matrix.csv").open(newline="") as file:
        assert [[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]] == counts
    with Path("out/per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    f1 = []
    for k, row in enumerate(rows):
        hits, predicted, actual = counts[k][k], sum(line[k] for line in counts), sum(counts[k])
        assert int(row["images"]) == actual
        assert float(row["precision"]) == pytest.approx(hits / max(predicted, 1))
        assert float(row["recall"]) == pytest.approx(hits / actual)
        f1.append(2 * hits / (predicted + actual))
        assert float(row["f1"]) == pytest.approx(f1[-1])
    figures = json.loads(Path("out/test.json").read_text())
    top5 = (shares.topk(5).indices == labels[:, None]).any(1).float().mean()
    confidence, right = shares.max(1).values, (said == labels).float()
    bins = (confidence * 15).long().clamp(max=14)
    error = sum(abs(float((confidence - right)[bins == b].sum())) for b in range(15)) / len(labels)
    assert figures["test/accuracy"] == pytest.approx(float(right.mean()))
    assert figures["test/f1"] == pytest.approx(sum(f1) / 10, abs=1e-6)
    assert figures["test/top5_accuracy"] == pytest.approx(float(top5))
    assert figures["test/nll"] == pytest.approx(float(-shares.log()[range(len(labels)), labels].mean()), rel=1e-5)
    assert figures["test/calibration_error"] == pytest.approx(error, abs=1e-5)


def test_best_and_last_of_the_newest_run_are_found(trained_run, here, monkeypatch, capsys):
    monkeypatch.chdir(trained_run.parents[2])
    for name in ("best", "last"):
        assert main(["validate", "--ckpt_path", name]) == 0
    assert main(["test", "--ckpt_path", str(trained_run / "checkpoints" / "last.ckpt"), "--output", str(here)]) == 0


def test_the_newest_run_is_the_last_that_trained_and_a_configuration_picks_its_own(here, capsys):
    for name in ("old", "new"):
        Path(f"{name}.yaml").write_text("model: {backbone: LeNet5}\ndata: MNIST5k\n")
        assert fit("--config", f"{name}.yaml") == 0
    capsys.readouterr()
    for verb in ("best", "last"):
        assert main(["report", "--ckpt_path", verb]) == 0
        assert capsys.readouterr().out.startswith(str(here / "runs/new/version_0"))
    assert fit("--config", "old.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2") == 0
    assert json.loads((here / "runs/old/version_0/results.json").read_text())["epochs"] == 2
    assert json.loads((here / "runs/new/version_0/results.json").read_text())["epochs"] == 1


def test_a_printed_configuration_is_one(here, capsys):
    assert fit("--model.backbone", "LeNet5", "--data.batch_size", "37", "--print_config") == 0
    printed = capsys.readouterr().out
    assert not (here / "runs").exists()
    Path("printed.yaml").write_text(printed)
    assert main(["fit", "--config", "printed.yaml"]) == 0
    assert config_of(newest(here, "printed"))["data"]["init_args"]["batch_size"] == 37


def test_the_readmes_recipe_trains_and_its_python_classifies(here, data_root, capsys):
    readme = (Path(vision_zoo.__file__).parents[1] / "README.md").read_text()
    [recipe] = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    Path("lenet5_mnist.yaml").write_text(recipe)
    words = ["--config", "./lenet5_mnist.yaml", "--data.root", str(data_root), "--data.val_split", "50"]
    assert fit(*words) == 0
    Image.new("L", (28, 28), 7).save("digit.png")
    program, network = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    Path("my_network.py").write_text(network)
    assert fit("--model.backbone", "my_network.MyNetwork", "--model.backbone.width", "8") == 0
    assert main(["test", "--ckpt_path", "runs/default/version_0", "--trusted_packages", "my_network"]) == 0
    capsys.readouterr()
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in FashionMNIST.class_names + MNIST5k.class_names


def test_what_the_command_line_changed_against_the_checkpoint_is_printed(trained_run, here, capsys):
    assert main(["test", "--ckpt_path", str(trained_run), "--data.batch_size", "7", "--output", "out"]) == 0
    assert "changed against the checkpoint: --data.batch_size: 64 -> 7" in capsys.readouterr().err


def test_the_configuration_of_a_run_serves_other_commands(trained_run, here, capsys):
    config = ["--config", str(trained_run / "config.yaml")]
    assert main(["summary", *config]) == 0
    assert main(["show", *config]) == 0
    assert main(["test", "--ckpt_path", str(trained_run), *config, "--output", "out"]) == 0
    assert main(["summary", *config, "--deterministic", "true"]) == 2
    assert "there is no option --deterministic" in capsys.readouterr().err


def test_another_mean_is_said_to_be_of_no_effect_on_a_trained_network(trained_run, here, capsys):
    words = ["validate", "--ckpt_path", str(trained_run)]
    assert main(words) == 0
    before = capsys.readouterr().out
    assert main([*words, "--data.mean", "[0.9]"]) == 0
    shown = capsys.readouterr()
    assert shown.out == before
    assert "--data.mean: None -> [0.9], ignored: the network keeps its own" in shown.err


def test_cutting_the_parts_anew_is_said_to_mix_trained_and_scored_images(here, trained_run, capsys):
    tiny.write_image_folder(here / "pictures", count=30)
    words = ["--data", "ImageFolder", "--data.root", "pictures", "--data.image_size", "28", "--data.channels", "1"]
    assert main([*QUICK, *words, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0
    warning = "images that the network was trained with may be among those that are scored"
    for verb, option, value in (("test", "test_split", "0.5"), ("test", "seed", "1"), ("validate", "val_split", "0.5")):
        capsys.readouterr()
        assert main([verb, "--ckpt_path", "best", f"--data.{option}", value]) == 0
        assert f"--data.{option}: {warning}" in capsys.readouterr().err
    tiny.write_image_folder(here / "others", count=4)
    assert main(["test", "--ckpt_path", "best", "--data.root", "others", "--data.test_split", "1.0"]) == 0
    told = capsys.readouterr()
    assert "--data.test_split: unless these are other images, some that the network was trained with" in told.err
    assert "on the part that --data.test_split cuts out" not in told.out
    with (here / "runs/default/version_0/test/per_class.csv").open(newline="") as file:
        assert [row["images"] for row in csv.DictReader(file)] == ["4", "4"]
    assert main(["test", "--ckpt_path", "best", "--data.val_split", "0.5"]) == 0
    assert main(["test", "--ckpt_path", str(trained_run), "--data.seed", "1", "--output", "out"]) == 0
    assert warning not in capsys.readouterr().err


@pytest.mark.parametrize(
    "transform",
    [
        "{class_path: RandomRotation, init_args: {degrees: 10}}",
        "{class_path: RandomApply, init_args: {transforms: [{class_path: torchvision.transforms.v2.RandomAffine, "
        "init_args: {degrees: 7.5}}]}}",
    ],
)
def test_an_augmentation_of_torchvision_is_the_same_in_a_later_run(transform, here):
    words = [*QUICK, "--trainer.max_epochs", "1", "--test_after_fit", "false"]
    assert main([*words, "--data.augmentation", f"[{transform}]"]) == 0
    run = here / "runs" / "default" / "version_0"
    assert main(["validate", "--ckpt_path", str(run)]) == 0
    assert main(["fit", "--config", str(run / "config.yaml"), "--test_after_fit", "false"]) == 0
    again = here / "runs" / "default" / "version_1"
    assert config_of(again) == config_of(run)
    assert (again / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


class Unwritable(nn.Module):
    """A transform with an option that no file can hold."""

    def __init__(self, turn: Real = 1.0) -> None:
        super().__init__()
        self.turn = turn

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


@pytest.mark.parametrize(
    ("words", "peak"),
    [
        ([], 0.002),  # the recipe's
        (["--model.optimizer.lr", "1e-4"], 1e-4),
        (["--model.optimizer", "SGD", "--model.optimizer.lr", "0.1"], 0.1),
        (["--model.optimizer", "{class_path: SGD, init_args: {lr: 0.1}}"], 0.1),
        (["--model.optimizer.lr", "0.1", "--model.scheduler.max_lr", "0.3"], 0.3),
        (["--model.optimizer", "SGD"], 0.001),  # torch's
        (["--config", "own.yaml"], 0.07),
        (["--config", "cnn_mnist5k", "--config", "other.yaml"], 0.05),
        (["--config", "cnn_mnist5k", "--config", "same.yaml"], 0.002),
        (["--config", "cnn_mnist5k", "--config", "peak.yaml"], 0.4),
    ],
)
def test_a_learning_rate_is_the_peak_of_a_one_cycle_schedule(words, peak, here, monkeypatch):
    Path("own.yaml").write_text(
        "model: {backbone: LeNet5, optimizer: {class_path: SGD, init_args: {lr: 0.07}}, scheduler: OneCycleLR}\n"
        "data: MNIST5k\n"
    )
    Path("other.yaml").write_text("model: {optimizer: {class_path: SGD, init_args: {lr: 0.05}}}\n")
    Path("same.yaml").write_text("model: {optimizer: {class_path: Adam, init_args: {weight_decay: 0.1}}}\n")
    Path("peak.yaml").write_text("model: {optimizer: SGD, scheduler: {init_args: {max_lr: 0.4}}}\n")
    peaks = []

    def check(self):
        optimizer = self.optimizer(self.parameters())
        self.scheduler(optimizer, total_steps=10)
        peaks.append(optimizer.param_groups[0]["max_lr"])
        raise ConfigError("seen")

    monkeypatch.setattr("vision_zoo.classifier.Classifier.check_optimizer", check)
    assert main(["fit", *words]) == 2
    assert peaks == [peak]


def test_a_folder_that_the_embedded_images_do_not_use_is_told(here, capsys):
    assert main(["summary", "--data.root", "photos"]) == 0
    assert "--data.root is not used" in capsys.readouterr().err


def test_an_option_that_no_file_can_hold_is_refused_before_training(here, capsys):
    assert (
        main([*QUICK, "--data.augmentation", f"[{{class_path: {__name__}.Unwritable, init_args: {{turn: 2}}}}]"]) == 2
    )
    assert "turn" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_file_beats_the_checkpoint_and_the_command_line_the_file(trained_run, here, capsys):
    Path("more.yaml").write_text("data: {class_path: MNIST5k, init_args: {batch_size: 9, num_workers: 0}}\n")
    words = ["test", "--ckpt_path", str(trained_run), "--config", "more.yaml", "--output", "out"]
    assert main(words) == 0
    assert "--data.batch_size: 64 -> 9" in capsys.readouterr().err
    assert main([*words, "--data.batch_size", "11"]) == 0
    assert "--data.batch_size: 64 -> 11" in capsys.readouterr().err


def test_preprocessing_is_the_checkpoints_own(trained_run, here, data_root):
    """Another data set has another mean; the network goes on with the one it was trained with."""
    words = ["--data", "FashionMNIST", "--data.root", str(data_root), "--output", "out"]
    assert main(["test", "--ckpt_path", str(trained_run), *words]) == 0
    model = Classifier.load_from_checkpoint(trained_run / "checkpoints" / "best.ckpt")
    data = FashionMNIST(root=str(data_root))
    images, labels = data.split_images("test")
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    assert json.loads(Path("out/test.json").read_text())["test/accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(("kind", "count"), [("flip", 2), ("shift", 5), ("flip+shift", 10)])
def test_test_time_augmentation_averages_views_and_says_so(kind, count, trained_run, here, capsys):
    assert main(["test", "--ckpt_path", str(trained_run), "--tta", kind, "--output", "out"]) == 0
    figures = json.loads(Path("out/test.json").read_text())
    assert figures["test_time_augmentation"] == kind
    assert f"with test-time augmentation: {kind}" in capsys.readouterr().out
    model = Classifier.load_from_checkpoint(trained_run / "checkpoints" / "best.ckpt")
    images, labels = MNIST5k().split_images("test")
    seen = views(images, kind)
    assert len(seen) == count
    assert torch.equal(seen[0], images)
    with torch.no_grad():
        mean = torch.stack([model(view).softmax(1) for view in seen]).mean(0)
    assert figures["test/accuracy"] == pytest.approx((mean.argmax(1) == labels).float().mean().item())


def test_the_test_that_ends_a_fit_averages_views_too(here, capsys):
    words = ["--model.scheduler", "null", "--trainer.max_epochs", "1", "--tta", "flip"]
    assert main([*QUICK, *words]) == 0
    assert "tested with test-time augmentation: flip" in capsys.readouterr().out
    run = here / "runs" / "default" / "version_0"
    stored = json.loads((run / "results.json").read_text())
    assert stored["test_time_augmentation"] == "flip"
    assert json.loads((run / "test.json").read_text())["test_time_augmentation"] == "flip"
    config = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run)]
    for words in (["--ckpt_path", str(run)], config):
        assert main(["test", *words, "--output", "out"]) == 0
        figures = json.loads(Path("out/test.json").read_text())
        assert figures["test_time_augmentation"] == "flip"
        assert figures["test/loss"] == stored["metrics"]["test/loss"]
    assert main(["test", "--ckpt_path", str(run), "--tta", "none", "--output", "plain"]) == 0
    assert json.loads(Path("plain/test.json").read_text())["test/loss"] != figures["test/loss"]
    assert main(["validate", *config]) == 0  # which has no such option
    assert main(["report", "--ckpt_path", str(run)]) == 0
    assert "flip: predictions averaged over views" in (run / "README.md").read_text()
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_epochs", "2"]) == 0
    assert json.loads((run / "results.json").read_text())["test_time_augmentation"] == "flip"


def test_another_data_set_that_does_not_fit_the_checkpoint_is_refused(trained_run, here, data_root, capsys):
    message = refused(
        capsys, "test", "--ckpt_path", str(trained_run), "--data", "CIFAR10", "--data.root", str(data_root)
    )
    assert "takes images of shape (1, 28, 28), CIFAR10 has (3, 32, 32)" in message


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_state_dict_starts_a_network_and_leaves_no_path_in_the_checkpoint(save, here):
    own = LeNet5((1, 28, 28), 10)
    save(own.state_dict(), "own.weights")
    words = ("--model.backbone", "LeNet5", "--model.weights", "own.weights", "--model.optimizer.lr", "1e-30")
    assert fit(*words, "--model.scheduler", "null") == 0
    checkpoint = torch.load(newest(here) / "checkpoints" / "last.ckpt", weights_only=True)
    assert torch.equal(checkpoint["state_dict"]["backbone.head.2.weight"], own.state_dict()["head.2.weight"])
    assert "own.weights" not in str(checkpoint)


def test_weights_are_taken_from_a_run_folder(trained_run, here):
    assert fit("--model.backbone", "LeNet5", "--model.weights", str(trained_run), "--model.optimizer.lr", "1e-30") == 0
    ours, its = (
        torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for run in (newest(here), trained_run)
    )
    assert torch.equal(ours["backbone.head.2.weight"], its["backbone.head.2.weight"])


# ----------------------------------------------------------------------------------------------------------- refusals


def test_memory_that_python_itself_lacks_is_told_too():
    message, code = explain(MemoryError())  # which has no text
    assert (message, code) == (
        "there is not enough memory: set --data.batch_size or --data.image_size lower, or take a smaller network "
        "(MemoryError)",
        1,
    )


def test_the_images_of_a_step_are_told_factor_by_factor(here, capsys):
    assert fit("--data.batch_size", "16", "--trainer.accumulate_grad_batches", "2") == 0
    assert "32 images per step = 16 x 2 batches; the learning" in " ".join(capsys.readouterr().out.split())


def test_a_decoding_process_that_was_lost_is_no_bug():
    message, code = explain(RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."))
    assert (code, "set --data.num_workers lower" in message) == (1, True)


def test_pictures_for_a_network_of_gray_ones_are_refused_with_both_options(trained_run, here, capsys):
    tiny.write_image_folder(here / "pictures")
    words = ["--data", "ImageFolder", "--data.root", "pictures", "--data.test_split", "1.0"]
    message = refused(capsys, "test", "--ckpt_path", str(trained_run), *words)
    assert "set --data.channels 1 --data.image_size 28" in message
    turned = ["--data.channels", "1", "--data.image_size", "28"]
    message = refused(capsys, "test", "--ckpt_path", str(trained_run), *words, *turned)
    assert "knows 10 classes, ImageFolder has 2 in " in message
    assert message.rstrip().endswith("choose another --data.root")


def test_a_bug_is_called_a_bug(here, capsys, monkeypatch):
    original = LeNet5.forward

    def broken(self, images):
        return self.nothing_of_the_kind if self.training else original(self, images)

    monkeypatch.setattr(LeNet5, "forward", broken)
    error = refused(capsys, "fit", "--model.backbone", "LeNet5", code=1)
    assert "internal error, AttributeError" in error
    monkeypatch.setenv("VISION_ZOO_DEBUG", "1")
    with pytest.raises(AttributeError):
        main([*QUICK])


def test_a_saved_configuration_is_a_configuration(trained_run, here):
    assert fit("--config", str(trained_run / "config.yaml")) == 0
    ours, again = config_of(trained_run), config_of(newest(here))  # named after the run that it is of
    assert ours["model"] == again["model"]
    assert ours["data"]["class_path"] == again["data"]["class_path"]


def test_processes_that_a_launcher_started_are_to_be_counted_in_words(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = ValueError("You set `devices=1` in Lightning, but the product does not match the world size (2)")
    message, code = explain(error)
    assert code == 2
    assert message.startswith("the launcher started 2 processes in all: say so with --trainer.devices")


def test_all_options_are_explained_on_request(capsys):
    assert main(["fit", "--help_all"]) == 0
    text = capsys.readouterr().out
    assert "--model.label_smoothing" in text
    assert "of the training loss" in text
