"""Several checkpoints as one: the mean of their probabilities, wherever a checkpoint is used."""

import csv
import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from PIL import Image

from tests.verbs.test_compare import write_run
from vision_zoo.__main__ import main
from vision_zoo.api import load
from vision_zoo.checkpoints import open_checkpoints
from vision_zoo.data import MNIST5k


@pytest.fixture(scope="module")
def members(trained_run, tmp_path_factory) -> Path:
    """A folder of three runs, one of which normalises otherwise."""
    folder = tmp_path_factory.mktemp("members")
    for seed in range(3):
        write_run(folder / f"fold_{seed}", trained_run, seed, 0.3)
    path = folder / "fold_2" / "checkpoints" / "best.ckpt"
    content = torch.load(path)
    content["hyper_parameters"]["mean"] = [0.5]
    torch.save(content, path)
    return folder


def mean_of(folder: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([load(folder / f"fold_{n}")(images).softmax(1) for n in range(3)]).mean(0)


@pytest.mark.parametrize(
    "pattern", ["three", pytest.param("{}", marks=pytest.mark.slow), pytest.param("{}/fold_*", marks=pytest.mark.slow)]
)
def test_the_metrics_are_those_of_the_mean_probability(members, here, pattern):
    """Of three words, and in 4 s more of a folder and a pattern."""
    words = [str(members / f"fold_{n}") for n in range(3)] if pattern == "three" else [pattern.format(members)]
    assert main(["test", "--ckpt_path", *words]) == 0
    images, labels = MNIST5k().split_images("test")
    expected, told = mean_of(members, images), json.loads((here / "test" / "test.json").read_text())
    assert told["test/accuracy"] == pytest.approx(float((expected.argmax(1) == labels).double().mean()))
    assert told["test/loss"] == pytest.approx(float(-expected[range(1000), labels].log().mean()), rel=1e-5)
    assert [member.split("/")[-3] for member in told["members"]] == ["fold_0", "fold_1", "fold_2"]
    assert "checkpoint" not in told


def test_a_network_that_is_named_twice_counts_once(trained_run):
    assert len(open_checkpoints([str(trained_run), f"{trained_run.parent}/*", str(trained_run)])) == 1


def test_predict_gives_the_mean_probability_for_a_folder_of_runs(members, here):
    images = MNIST5k().sample("test", 7).images
    Image.fromarray(images[3, 0].numpy()).save("digit.png")
    assert main(["predict", "--ckpt_path", str(members), "--images", "digit.png", "--top_k", "10"]) == 0
    (row,) = csv.DictReader(Path("predictions.csv").read_text().splitlines())
    expected = mean_of(members, images)
    assert row["label"] == str(int(expected[3].argmax()))
    assert float(row["probability"]) == pytest.approx(float(expected[3].max()), abs=1e-5)


@pytest.mark.slow
def test_exported_programs_give_the_mean_probability(members, here):
    """9 s, of which torch takes most to write the files."""
    images = MNIST5k().sample("test", 7).images
    assert main(["export", "--ckpt_path", str(members), "--format", "torch_export"]) == 0
    logits = torch.export.load("ensemble.pt2").module()(images)
    torch.testing.assert_close(logits.softmax(1), mean_of(members, images), rtol=1e-4, atol=1e-5)
    assert main(["export", "--ckpt_path", str(members)]) == 0
    session = onnxruntime.InferenceSession("ensemble.onnx")
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits).softmax(1), mean_of(members, images), rtol=1e-4, atol=1e-5)
    assert len(json.loads(session.get_modelmeta().custom_metadata_map["members"])) == 3


def test_what_cannot_be_averaged_is_refused_in_a_line(members, trained_run, here, capsys):
    two = [str(members / "fold_0"), str(members / "fold_1")]
    assert main(["export", "--ckpt_path", *two, "--format", "safetensors"]) == 2
    assert "holds the weights of one network" in capsys.readouterr().err
    assert main(["test", "--ckpt_path", *two, "--model.backbone", "MLP"]) == 2
    assert "--model.backbone is of one network, and several are averaged" in capsys.readouterr().err
    write_run(here / "letters", trained_run, 0, 0.1)
    content = torch.load("letters/checkpoints/best.ckpt")
    content["hyper_parameters"]["class_names"] = list("abcdefghij")
    torch.save(content, "letters/checkpoints/best.ckpt")
    Image.new("L", (28, 28)).save("black.png")
    assert main(["predict", "--ckpt_path", *two, "letters", "--images", "black.png"]) == 2
    assert "only networks of the same classes and images can be averaged" in capsys.readouterr().err
    assert main(["fit", "--ckpt_path", *two]) == 2


def test_no_network_is_scored_with_what_it_was_trained_with(members, trained_run, here, capsys):
    write_run(here / "other", trained_run, 0, 0.1, data_seed=1)
    words = ["--ckpt_path", str(members / "fold_0"), "other"]
    assert main(["validate", *words]) == 2
    err = capsys.readouterr().err
    assert "held other images out than" in err
    assert "(--data.seed 1, not 0), and was trained with what would be scored" in err
    assert main(["test", *words, "--data.batch_size", "500"]) == 0  # whose images are the same for each seed


def test_thresholds_of_known_images_are_left_out(members, trained_run, here, capsys):
    for name in ("a", "b"):
        write_run(here / name, trained_run, 0, 0.1)
        content = torch.load(here / name / "checkpoints" / "best.ckpt")
        numbers = {"share": 0.95, "threshold": 1.0, "weight": 0.0}
        content["known"] = {**numbers, "center": torch.zeros(0), "axes": torch.zeros(0, 0)}
        torch.save(content, here / name / "checkpoints" / "best.ckpt")
    Image.new("L", (28, 28)).save("black.png")
    assert main(["predict", "--ckpt_path", "a", "b", "--images", "black.png"]) == 0
    assert "without none of these" in capsys.readouterr().err
    assert "answer" not in Path("predictions.csv").read_text().splitlines()[0]
