"""The command line: what is layered over what, and which names are found."""

import json
import re
import shlex
import shutil
import signal
import sys
import warnings
from pathlib import Path

import pytest
from torch import nn

import vision_zoo
from tests.cli.runs import config_of, fit, newest
from vision_zoo.__main__ import main
from vision_zoo.classifier import Classifier
from vision_zoo.cli.messages import quiet
from vision_zoo.training.saving import Saving

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
    assert config["model"]["loss"]["init_args"]["label_smoothing"] == 0.0
    assert config["model"]["scheduler"] is None, "the schedule of the default recipe leaked into a file of one's own"


def test_of_two_files_the_later_counts_and_the_first_names_the_run(here):
    Path("one.yaml").write_text("model: {backbone: LeNet5}\ndata: {class_path: MNIST5k, init_args: {batch_size: 10}}\n")
    Path("two.yaml").write_text(
        "data: {class_path: MNIST5k, init_args: {batch_size: 20}}\n"
        "model: {loss: {class_path: CrossEntropy, init_args: {label_smoothing: 0.1}}}\n"
    )
    assert fit("--config", "one.yaml", "--config", "two.yaml") == 0
    config = config_of(newest(here, "one"))
    assert config["data"]["init_args"]["batch_size"] == 20
    assert config["model"]["loss"]["class_path"] == "vision_zoo.losses.CrossEntropy"
    assert config["model"]["loss"]["init_args"]["label_smoothing"] == 0.1
    assert config["model"]["backbone"]["class_path"] == "vision_zoo.backbones.LeNet5"


def test_the_order_of_words_does_not_matter(here):
    assert fit("--data.batch_size", "33", "--config", "lenet5_mnist", "--data", "MNIST5k") == 0
    assert config_of(newest(here, "lenet5_mnist"))["data"]["init_args"]["batch_size"] == 33


def test_a_network_with_a_part_of_ones_choice_is_loaded_from_python(here):
    stem = "{class_path: torch.nn.LeakyReLU, init_args: {negative_slope: 0.75}}"
    assert fit("--model.backbone", "tests.cli.own.Stemmed", "--model.backbone.stem", stem) == 0
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


def test_warnings_are_in_words_and_those_of_other_code_have_a_place():
    with quiet():
        names = (vision_zoo.__file__, "mine.py")
        ours, other = (warnings.formatwarning("look", UserWarning, name, 7) for name in names)
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


def test_a_number_with_a_nought_before_it_is_the_same_in_a_file_and_on_the_command_line(here, capsys):
    Path("mine.yaml").write_text("model: {backbone: LeNet5}\ndata: MNIST5k\ntrainer: {max_epochs: 010}\n")
    for words in ([], ["--trainer.max_epochs", "010"]):
        assert main(["fit", "--config", "mine.yaml", *words, "--print_config"]) == 0
        assert "max_epochs: 10\n" in capsys.readouterr().out


def test_one_class_under_another_path_keeps_its_options(here):
    Path("mine.yaml").write_text(
        "model: {backbone: LeNet5, optimizer: {class_path: SGD, init_args: {lr: 0.01, momentum: 0.9}}}\n"
        "data: {class_path: vision_zoo.data.mnist5k.MNIST5k, init_args: {val_split: 500}}\n"
    )
    words = ("--model.optimizer", "torch.optim.sgd.SGD", "--data", "MNIST5k")
    assert fit("--config", "mine.yaml", *words) == 0
    config = config_of(newest(here, "mine"))
    assert config["model"]["optimizer"]["init_args"]["momentum"] == 0.9
    assert config["data"]["init_args"]["val_split"] == 500


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


@pytest.mark.slow  # 5 s
def test_an_option_of_ones_own_may_name_a_file(here):
    (here / "tables").mkdir()
    (here / "tables/labels.csv").write_text("a,1")
    words = ["--data", "tests.cli.own.Labelled", "--data.table", "tables/labels.csv"]
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
    assert fit("--model.backbone", "tests.cli.own.Foreign") == 128 + signal.SIGTERM
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
    words = ["--data.augmentation", "[RandomHorizontalFlip, {class_path: RandomInvert, init_args: {p: 0.2}}]"]
    assert fit("--model.backbone", "LeNet5", *words) == 0
    first, second = config_of(newest(here))["data"]["init_args"]["augmentation"]
    assert first["class_path"] == "vision_zoo.transforms.RandomHorizontalFlip"
    assert second["class_path"] == "torchvision.transforms.v2.RandomInvert"


@pytest.mark.parametrize("backbone", ["Foreign", "foreign_function", "quoted_function"])
def test_a_network_from_outside_works_by_class_path(here, backbone):
    assert fit("--model.backbone", f"tests.cli.own.{backbone}") == 0
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
