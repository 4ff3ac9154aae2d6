"""The command line is read once, in order."""

import pytest

from vision_zoo.cli.argv import Argv
from vision_zoo.errors import ConfigError


def test_options_are_pairs_in_the_order_given():
    argv = Argv.read(["fit", "-c", "a", "--data.root=x=y", "--config", "b", "--print_config", "--lr", "-1"])
    assert argv.verb == "fit"
    assert argv.values("config") == ["a", "b"]
    assert argv.last("data.root") == "x=y"
    assert argv.last("lr") == "-1"
    assert argv.without({"config"}) == ["--data.root=x=y", "--print_config", "--lr=-1"]


def test_numbers_after_the_number_of_an_option_of_a_class_are_a_list_of_it():
    argv = Argv.read(["fit", "--data.image_size", "96", "128", "--data.value_range=-1e3", "700", "--data.mean", "0.5"])
    assert argv.without(()) == ["--data.image_size=[96, 128]", "--data.value_range=[-1e3, 700]", "--data.mean=0.5"]
    assert Argv.read(["predict", "--images", "1", "2"]).stray == ("2",)  # files
    for words in (["scans", "--ckpt_path", "a", "b"], ["--ckpt_path", "a", "b", "--images", "scans"]):
        assert Argv.read(["predict", *words]).checkpoints == ["a", "b"]
    assert Argv.read(["fit", "--data.root", "1", "cnn_mnist", "2x"]).stray == ("cnn_mnist", "2x")


def test_a_switch_takes_no_word_that_is_not_true_or_false():
    argv = Argv.read(["teach", "--refine", "photos"])
    assert (argv.options, argv.stray) == ((("refine", "true"),), ("photos",))
    argv = Argv.read(["teach", "--refine", "false", "photos"])
    assert (argv.options, argv.stray) == ((("refine", "false"),), ("photos",))


def test_what_belongs_to_no_option_is_kept():
    argv = Argv.read(["fit", "cnn_mnist", "--data", "MNIST", "more"])
    assert argv.stray == ("cnn_mnist", "more")
    assert argv.without({"data"}) == ["cnn_mnist", "more"]


@pytest.mark.parametrize("words", [["--data.root", "--trainer.max_epochs", "1"], ["--data.root"]])
def test_an_option_without_its_value_is_named(words):
    with pytest.raises(ConfigError, match=r"^--data\.root needs a value$"):
        Argv.read(["fit", *words])
