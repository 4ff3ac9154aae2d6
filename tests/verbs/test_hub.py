"""export --format hub: a folder for the hub, its upload, and hf:// in place of a checkpoint; the hub is on loopback."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from tests import hub_server, tiny
from tests.conftest import QUICK
from vision_zoo.__main__ import main
from vision_zoo.checkpoints import Checkpoint, open_checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.data import MNIST5k

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def made(trained_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "digits"
    assert main(["export", "--ckpt_path", str(trained_run), "--format", "hub", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def folder(made, here) -> Path:
    """A copy, to be changed, far from the run."""
    return Path(shutil.copytree(made, here / "digits"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that huggingface_hub talks to, as with HF_ENDPOINT, which it reads once."""
    with hub_server.running() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield server


def logits_of(path) -> torch.Tensor:
    with torch.no_grad():
        return Classifier.load_from_checkpoint(path)(MNIST5k().sample("test", 20).images)


def test_a_folder_is_a_card_a_description_and_weights_and_nothing_else(made, trained_run):
    assert sorted(path.name for path in made.parent.rglob("*")) == ["README.md", "config.json", "digits", FILES[2]]
    front, text = (made / "README.md").read_text().split("---\n")[1:3]
    metadata = yaml.safe_load(front)
    assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["library_name"] == "vision_zoo"
    results = json.loads((trained_run / "results.json").read_text())
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": results["metrics"]["test/accuracy"]}]
    assert result["dataset"]["name"] == "MNIST5k"
    assert "vision_zoo test --ckpt_path digits" in text
    config = json.loads((made / "config.json").read_text())
    described = config["hyper_parameters"]
    assert described["class_names"] == list("0123456789")
    assert described["image_shape"] == [1, 28, 28]
    assert described["backbone"]["class_path"] == "vision_zoo.backbones.lenet.LeNet5"
    everything = "".join(path.read_bytes().decode(errors="replace") for path in made.iterdir())
    assert str(trained_run.parents[2]) not in everything  # no folder of the maker's machine
    assert "default_root_dir" not in everything


def test_a_folder_gives_the_runs_own_answers(folder, trained_run):
    assert torch.equal(logits_of(folder), logits_of(trained_run))


@pytest.mark.parametrize(
    "commands",
    [
        [["validate"], ["predict", "--images", "image.png"], ["summary"]],
        pytest.param(
            [
                ["test", "--output", "tested"],
                ["export", "--output", "again.onnx"],
                ["export", "--format", "hub", "--output", "again"],
                ["explain", "--images", "image.png", "--output", "why", "--method", "occlusion"],
                ["report", "--output", "page"],
            ],
            marks=pytest.mark.slow,  # 5 s
        ),
    ],
)
def test_commands_read_a_folder_as_they_read_a_checkpoint(folder, here, capsys, commands):
    (here / "image.png").write_bytes(tiny_png())
    for words in commands:
        assert main([words[0], "--ckpt_path", "digits", *words[1:]]) == 0, capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert main(["fit", "--ckpt_path", "digits"]) == 2
    assert "lies in no run folder, and fit continues a run in its own" in capsys.readouterr().err


def tiny_png() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(MNIST5k().sample("test", 1).images[0, 0].numpy()).save(file, "png")
    return file.getvalue()


def test_a_copy_of_a_folder_keeps_its_name_and_never_replaces_it(folder, here, monkeypatch, capsys):
    export = ["export", "--ckpt_path", "digits", "--format", "hub", "--output"]
    card = (folder / "README.md").read_bytes()
    assert main([*export, "digits"]) == 2
    assert "is the checkpoint itself" in capsys.readouterr().err
    assert (folder / "README.md").read_bytes() == card
    assert main([*export, "again"]) == 0
    assert "\n# default\n" in (here / "again/README.md").read_text()
    (here / "here").mkdir()
    monkeypatch.chdir("here")
    assert main(["export", "--ckpt_path", str(folder), "--format", "hub", "--output", "."]) == 0
    assert "vision_zoo test --ckpt_path here" in Path("README.md").read_text()


def test_a_report_never_replaces_the_card_of_a_folder(folder, here, monkeypatch, capsys):
    shutil.copytree(folder, here / "mine")
    monkeypatch.chdir(here / "mine")
    card = Path("README.md").read_bytes()
    assert main(["report", "--ckpt_path", ".", "--explain", "false"]) == 2
    assert "is the card of a hub folder, with results that are known there alone" in capsys.readouterr().err
    assert Path("README.md").read_bytes() == card
    assert main(["report", "--ckpt_path", ".", "--explain", "false", "--output", str(here)]) == 0
    page = (here / "report.html").read_text()
    assert "never tested" not in page
    assert "config.yaml holds" not in page


def test_a_teachers_place_stays_at_home(trained_run, here):
    teacher = ["--model.loss", "Distillation", "--model.loss.teacher", str(trained_run)]
    assert main([*QUICK, *teacher, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0
    assert main(["export", "--ckpt_path", "last", "--format", "hub", "--output", "digits"]) == 0
    assert str(trained_run.parents[2]) not in Path("digits/config.json").read_text()
    assert main(["validate", "--ckpt_path", "digits"]) == 0


def test_a_card_of_other_weights_than_the_best_says_whose_the_metrics_are(trained_run, here, monkeypatch):
    shutil.copytree(trained_run, "run", symlinks=False)
    best, last = Path("run/checkpoints/best.ckpt"), Path("run/checkpoints/last.ckpt")
    last.unlink()
    shutil.copy(best, last)  # another file
    monkeypatch.chdir("run")
    assert main(["export", "--ckpt_path", "checkpoints/last.ckpt", "--format", "hub", "--output", "digits"]) == 0
    assert "metrics are of best.ckpt, not of last.ckpt" in Path("digits/README.md").read_text()


def test_what_is_uploaded_comes_back_from_its_address(hub, trained_run, here, capsys):
    words = ["export", "--ckpt_path", str(trained_run), "--format", "hub", "--output", "digits"]
    assert main([*words, "--push", "me/digits"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.address}/me/digits"
    assert hub.repos["me/digits"] == {path.name: path.read_bytes() for path in Path("digits").iterdir()}
    assert "hf://me/digits" in hub.repos["me/digits"]["README.md"].decode()
    assert torch.equal(logits_of("hf://me/digits"), logits_of(trained_run))
    assert main(["summary", "--ckpt_path", "hf://me/digits@main"]) == 0
    assert "61,706" in capsys.readouterr().out
    shutil.rmtree("digits")
    before = len(hub.asked)
    hub.repos["me/digits"]["pytorch_model.bin"] = b"never asked for"
    assert torch.equal(logits_of("hf://me/digits"), logits_of(trained_run))
    assert not any("bin" in path for path in hub.asked[before:])


def test_what_cannot_be_fetched_is_one_line_with_a_way_out(hub, here, capsys):
    for address in ("hf://me/nothing", "hf://a/b/c", "hf://"):
        assert main(["test", "--ckpt_path", address]) == 2
        error = capsys.readouterr().err
        assert f"--ckpt_path {address} cannot be fetched: " in error
        assert "or copy it here" in error
        assert len(error.splitlines()) == 1


def test_an_upload_without_a_token_is_refused_before_any_work(hub, trained_run, here, monkeypatch, capsys):
    words = ["export", "--ckpt_path", str(trained_run), "--format", "hub", "--output", "digits"]
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(here / "none"))
    assert main([*words, "--push", "me/digits"]) == 2
    assert (
        "--push me/digits needs the extra hub (pip install 'vision_zoo[hub]') and a token: set HF_TOKEN"
        in capsys.readouterr().err
    )
    assert main([*words, "--push", "digits"]) == 2
    assert "--push digits: names on the hub are OWNER/NAME" in capsys.readouterr().err
    assert not Path("digits").exists()
    assert hub.asked == []


def test_a_failed_upload_leaves_the_folder_and_says_how_to_go_on(hub, trained_run, here, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    words = ["export", "--ckpt_path", str(trained_run), "--format", "hub", "--output", "digits"]
    assert main([*words, "--push", "me/digits"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vision_zoo: --push me/digits failed: Client error '401 Unauthorized'")
    assert line.endswith("hf upload me/digits digits uploads it, too")
    assert sorted(path.name for path in Path("digits").iterdir()) == FILES


def test_a_folder_of_another_origin_is_not_replaced(folder, trained_run, here, capsys):
    words = ["export", "--ckpt_path", str(trained_run), "--format", "hub", "--output", "digits"]
    assert main(words) == 0
    with (folder / "README.md").open("a") as file:
        file.write("my own words")
    assert main(words) == 2
    assert "digits holds a network of another origin, or edited since: set --output" in capsys.readouterr().err
    assert (folder / "README.md").read_text().endswith("my own words")


def test_wrong_weights_are_a_failure_and_leave_nothing(trained_run, here, monkeypatch, capsys):
    from vision_zoo.verbs import formats

    def forgetful(model):
        return {name: torch.zeros_like(tensor) for name, tensor in model.backbone.state_dict().items()}

    monkeypatch.setattr(formats, "_own_tensors", forgetful)
    assert main(["export", "--ckpt_path", str(trained_run), "--format", "hub"]) == 1
    assert "its logits differ" in capsys.readouterr().err
    assert list(here.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ hostile ones


class Payload:
    def __reduce__(self):
        return os.system, ("touch MARKER",)


def changed(folder, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def names_a_shell(config) -> None:
    config["hyper_parameters"]["backbone"] = {"class_path": "os.system", "init_args": {"command": "touch MARKER"}}


def names_another_package(config) -> None:
    config["vision_zoo"]["config"]["model"]["backbone"] = {"class_path": "elsewhere.Net", "init_args": {}}


def names_huge_images(config) -> None:
    config["hyper_parameters"]["image_shape"] = [1, 10**6, 10**6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (names_a_shell, "names os.system, code of a package that is not trusted"),
        (names_another_package, "admit it with --trusted_packages elsewhere"),
        (names_huge_images, "are beyond all measure"),
        (lambda config: config.pop("hyper_parameters"), "is not a vision_zoo checkpoint"),
        (lambda config: config.update(known={"share": 0.9}), "does not describe a network"),
        (lambda config: config.update(global_step="abc"), "its global_step is not a number of steps"),
    ],
)
def test_a_hostile_description_is_refused_as_a_hostile_checkpoint_is(folder, here, capsys, change, message):
    changed(folder, change)
    for verb in ("test", "predict", "export", "summary"):
        assert main([verb, "--ckpt_path", "digits", *["--images", "."] * (verb == "predict")]) == 2
        assert message in capsys.readouterr().err
    assert not list(here.rglob("MARKER"))


@pytest.mark.parametrize("text", ["[1]", "3", "{", "[" * 100_000, '{"known": 1, "hyper_parameters": {}}'])
def test_a_description_of_another_form_is_refused(folder, capsys, text):
    (folder / "config.json").write_text(text)
    assert main(["summary", "--ckpt_path", "digits"]) == 2
    error = capsys.readouterr().err
    assert "config.json does not describe a network" in error or "is not a vision_zoo checkpoint" in error


def test_pickled_weights_are_not_read(folder, here, capsys):
    for content in (pickle.dumps(Payload()), b""):
        (folder / "model.safetensors").write_bytes(content)
        assert main(["test", "--ckpt_path", "digits"]) == 2
        assert "is not a whole safetensors file" in capsys.readouterr().err
    torch.save(load_file, folder / "model.safetensors")
    assert main(["test", "--ckpt_path", "digits"]) == 2
    assert "is not a whole safetensors file" in capsys.readouterr().err
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    assert main(["test", "--ckpt_path", "digits"]) == 2
    assert not list(here.rglob("MARKER"))


def test_weights_of_another_network_are_refused(folder, capsys):
    save_file({"head.weight": torch.zeros(3, 3)}, folder / "model.safetensors")
    assert main(["summary", "--ckpt_path", "digits"]) == 2
    assert "vision_zoo: " in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- other networks


@pytest.mark.slow  # 2 s
def test_none_of_these_preprocessing_and_value_range_come_along(here, capsys):
    import numpy as np

    data = tiny.write_npz(here / "data.npz", 100, 10, (32, 32, 3))
    arrays = dict(np.load(data))
    np.savez(data, **{n: a.astype(np.uint16) * 257 if "images" in n else a for n, a in arrays.items()})
    quick = ["--trainer.max_epochs", "1", "--test_after_fit", "false", "--known", "0.9"]
    words = ["fit", "--model.backbone", "SmallCNN", "--data", "ArrayFile", "--data.path", str(data), *quick]
    assert main(words) == 0
    assert main(["export", "--ckpt_path", "best", "--format", "hub", "--output", "mine"]) == 0
    ours, theirs = (Classifier.load_from_checkpoint(path) for path in ("runs/default/version_0", "mine"))
    images = torch.arange(4 * 3 * 32 * 32).reshape(4, 3, 32, 32).to(torch.uint8)
    with torch.no_grad():
        for one, other in zip(ours.answer(images), theirs.answer(images), strict=True):
            assert torch.equal(one, other)
    assert theirs.known.threshold == ours.known.threshold
    assert 'answers "none of these" to other images' in Path("mine/README.md").read_text()
    assert theirs.value_range == ours.value_range
    assert theirs.value_range is not None
    config = json.loads(Path("mine/config.json").read_text())
    assert config["datamodule_hyper_parameters"]["path"] == "data.npz"
    assert config["known"]["share"] == 0.9
    capsys.readouterr()
    assert main(["validate", "--ckpt_path", "mine"]) == 0  # data.npz is looked for in the working directory


class Own(nn.Module):
    """A network of a package that its reader must trust."""

    def __init__(self, image_shape, num_classes) -> None:
        super().__init__()
        self.layer = nn.Linear(784, num_classes)

    def forward(self, images):
        return self.layer(images.flatten(1))


@pytest.mark.slow  # 1 s
def test_networks_of_your_own_need_trust_on_the_other_side_too(here, capsys):
    fit = [*QUICK, "--model.backbone", "tests.verbs.test_hub.Own", "--trainer.max_epochs", "1"]
    assert main([*fit, "--test_after_fit", "false"]) == 0
    export = ["export", "--ckpt_path", "best", "--format", "hub", "--output", "mine"]
    assert main(export) == 2
    assert main([*export, "--trusted_packages", "tests"]) == 0
    capsys.readouterr()
    assert main(["validate", "--ckpt_path", "mine"]) == 2
    assert "admit it with --trusted_packages tests" in capsys.readouterr().err
    assert main(["validate", "--ckpt_path", "mine", "--trusted_packages", "tests"]) == 0


@pytest.mark.slow  # 15 s
def test_the_environments_endpoint_is_the_hub(trained_run, here):
    with hub_server.running() as server:
        env = {**os.environ, "HF_ENDPOINT": server.address, "HF_TOKEN": hub_server.TOKEN, "HF_HOME": str(here / "hf")}
        export = ["export", "--ckpt_path", str(trained_run), "--format", "hub", "--push", "me/digits"]
        for words in (export, ["validate", "--ckpt_path", "hf://me/digits"]):
            subprocess.run([sys.executable, "-m", "vision_zoo", *words], env=env, check=True, cwd=here)
        assert sorted(server.repos["me/digits"]) == FILES


def test_nobody_s_token_is_read_without_a_push(trained_run, here, monkeypatch):
    def unreadable():
        raise PermissionError(13, "Permission denied", "token")

    monkeypatch.setattr("huggingface_hub.get_token", unreadable)
    words = ["export", "--ckpt_path", str(trained_run), "--format", "hub", "--output", "mine"]
    assert main(words) == 0
    assert main([*words, "--push", "me/mine"]) == 1


def test_options_of_ones_own_data_that_are_called_like_ours_are_none_of_ours(trained_run):
    content = {**open_checkpoint(str(trained_run)).content, "vision_zoo": None}
    content["datamodule_hyper_parameters"] = {"resize": 224, "interpolation": ["a"], "_class_path": "my.Data"}
    found = Checkpoint(trained_run / "checkpoints/best.ckpt", content)
    assert found.resizing == ("crop", "bilinear")
    content["datamodule_hyper_parameters"] = {"resize": "pad", "interpolation": "bicubic", "_class_path": "my.Data"}
    assert found.resizing == ("pad", "bicubic")
