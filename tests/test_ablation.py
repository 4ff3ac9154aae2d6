"""The table of what each method is worth is made of rows, and its options are the command line's."""

import shlex

import pytest

from scripts import ablation
from scripts.results import Group
from vision_zoo.__main__ import main


def group(options, *accuracies):
    rows = tuple(
        {"seed": str(seed), "test/accuracy": str(value), "fit_seconds": "60"} for seed, value in enumerate(accuracies)
    )
    return Group(ablation.RECIPE, "CIFAR10", shlex.join(shlex.split(options)), rows)  # as rows are written


def test_methods_are_compared_with_the_plain_recipe_the_best_first():
    groups = [group("", 0.80, 0.82, 0.9), group(ablation.METHODS["MixUp"], 0.79, 0.80), group("--tta flip", 0.85, 0.87)]
    lines = ablation.lines(groups)
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert rows == [
        "| TTA flip | 86.00 +- 1.41 % (2) | +5.00 +- 0.00 | 60 s |",
        "| plain | 84.00 +- 5.29 % (3) |  | 60 s |",
        "| MixUp | 79.50 +- 0.71 % (2) | -1.50 +- 0.50 | 60 s |",
    ]
    assert lines[-1].startswith("Not measured yet: RandomHorizontalFlip, ")


def test_without_the_plain_recipe_there_is_nothing_to_compare_with():
    assert ablation.lines([group("--tta flip", 0.85)]) == []


@pytest.mark.slow  # 10 s
@pytest.mark.parametrize("method", ablation.METHODS)
def test_the_options_of_a_method_are_understood(method, here, capsys):
    assert main(["fit", "--config", ablation.RECIPE, *shlex.split(ablation.METHODS[method]), "--print_config"]) == 0
