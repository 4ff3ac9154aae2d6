"""export --int8: integers that are integers, an accuracy that is measured, and nothing left where it cannot be held."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tests import tiny
from tests.conftest import QUICK
from vision_zoo.__main__ import main
from vision_zoo.classifier import Classifier
from vision_zoo.data import MNIST5k
from vision_zoo.verbs import int8

ROOT = Path(__file__).parents[2]
TOLD = re.compile(
    r"int8: (\d+) of (\d+) layers.*, (\d\.\d\d) of the size; accuracy on (\d+) validation images"
    r"(?:, which chose the float layers,)? (\S+) % -> (\S+) %, a drop of (\S+) points \(95 % interval (\S+) to (\S+)\)"
)


@pytest.fixture(scope="module")
def made(trained_run, tmp_path_factory) -> tuple[Path, str]:
    """The int8 file of a run, and what was told."""
    file, told = tmp_path_factory.mktemp("int8") / "int8.onnx", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words: told.append(" ".join(map(str, words))))
        words = ["--output", str(file), "--int8", "--max_drop", "5"]
        assert main(["export", "--ckpt_path", str(trained_run), *words]) == 0
    assert list(file.parent.iterdir()) == [file]
    return file, "\n".join(told)


def test_the_weights_of_every_layer_but_the_first_are_int8_with_a_scale_for_each_channel(made):
    graph = onnx.load(made[0]).graph
    stored, makers = {t.name: t for t in graph.initializer}, {n.output[0]: n for n in graph.node}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(layers) == 5
    assert stored[layers[0].input[1]].data_type == onnx.TensorProto.FLOAT  # a convolution of one channel
    for layer in layers[1:]:
        weight = makers[layer.input[1]]
        assert weight.op_type == "DequantizeLinear"
        values, scales = (onnx.numpy_helper.to_array(stored[name]) for name in weight.input[:2])
        assert values.dtype == np.int8
        assert scales.shape == (values.shape[0],)
        assert makers[layer.input[0]].op_type == "DequantizeLinear"  # activations are integers too
    floats = [t for t in stored.values() if t.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(np.prod(t.dims)) for t in floats) < 1000  # scales, and the normalisation


def test_the_runtime_computes_with_integers(made, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "as_run.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(made[0], options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "as_run.onnx").graph.node]
    assert kinds.count("Conv") == 1
    assert sum(kind.startswith(("QLinearConv", "QGemm")) for kind in kinds) == 4


def test_the_file_is_small_takes_raw_images_and_describes_itself(made):
    assert made[0].stat().st_size < 0.35 * 4 * 61_706
    file = onnx.load(made[0])
    onnx.checker.check_model(file)
    assert str(ROOT) not in str(file)  # nothing of the machine that made it
    facts = {entry.key: entry.value for entry in file.metadata_props}
    assert json.loads(facts["class_names"]) == list("0123456789")
    assert file.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    session = onnxruntime.InferenceSession(made[0])
    for size in (1, 7):
        images = MNIST5k().sample("test", size).images
        assert session.run(None, {"images": images.numpy()})[0].shape == (size, 10)


def test_what_is_told_is_what_another_program_measures(made, trained_run):
    data = MNIST5k().split_images("val")
    with torch.no_grad():
        before = Classifier.load_from_checkpoint(trained_run)(data.images).argmax(1) == data.labels
    (logits,) = onnxruntime.InferenceSession(made[0]).run(None, {"images": data.images.numpy()})
    after = torch.from_numpy(logits).argmax(1) == data.labels
    layers, of, size, count, was, now, drop, low, high = TOLD.search(made[1]).groups()
    assert (layers, of, int(count)) == ("4", "5", len(data.labels))
    assert float(size) == pytest.approx(made[0].stat().st_size / (4 * 61_706), rel=0.05)
    shares = [100 * float(right.float().mean()) for right in (before, after)]
    assert [float(was), float(now)] == pytest.approx(shares, abs=0.005)
    assert float(drop) == pytest.approx(shares[0] - shares[1], abs=0.005)
    assert float(low) < float(drop) < float(high)


# ------------------------------------------------------------------------------------------------- layers stay float


@pytest.fixture(scope="module")
def trained_cnn(tmp_path_factory) -> Path:
    """The best checkpoint of a network with six layers: conv, conv, conv, conv, linear, linear."""
    folder = tmp_path_factory.mktemp("cnn")
    fit = ["fit", "--model.backbone", "CNN", "--model.backbone.widths", "[4, 8]", "--trainer.limit_train_batches", "20"]
    place = ["--trainer.default_root_dir", str(folder), "--test_after_fit", "false"]
    assert main([*fit, *place, "--trainer.max_epochs", "2"]) == 0
    return folder / "runs/default/version_0/checkpoints/best.ckpt"


def with_outliers(checkpoint: Path, places: int) -> str:
    """The same function, but 8 bits cannot hold the images that the first so many layers behind the first are given.

    One channel is ten thousand times as large as the others, and the weights that read it as much smaller.
    """
    content = torch.load(checkpoint, weights_only=True)
    norms, layers = ("0.2", "0.5", "1.2", "1.5"), ("features.0.3", "features.1.0", "features.1.3", "head.0")
    for norm, layer in list(zip(norms, layers, strict=True))[:places]:
        scale, weight = (content["state_dict"][f"backbone.{name}.weight"] for name in (f"features.{norm}", layer))
        weight[:, : weight.shape[1] // len(scale)] *= 1e-4  # pixels of the channel, of the linear layer
        for name in ("weight", "bias"):
            content["state_dict"][f"backbone.features.{norm}.{name}"][0] *= 1e4
    torch.save(content, "fragile.ckpt")
    return "fragile.ckpt"


@pytest.mark.slow  # 3 s
def test_layers_that_cost_too_much_stay_float(trained_cnn, here, capsys):
    fragile = with_outliers(trained_cnn, 1)
    assert main(["export", "--ckpt_path", fragile, "--int8", "--max_drop", "2", "--output", "net.onnx"]) == 0
    out = capsys.readouterr().out
    assert "int8: 3 of 6 layers (features.0.0, features.0.3, head.3 float), " in out
    assert " validation images, which chose the float layers, " in out
    assert float(TOLD.search(out)[7]) <= 2
    weights = [t for t in onnx.load("net.onnx").graph.initializer if len(t.dims) > 1]
    assert [t.data_type for t in weights].count(onnx.TensorProto.INT8) == 3


def test_what_cannot_be_held_is_refused_and_the_file_of_before_is_kept(trained_cnn, here, capsys):
    fragile = with_outliers(trained_cnn, 4)
    Path("net.onnx").write_text("the one of yesterday")
    assert main(["export", "--ckpt_path", fragile, "--int8", "--output", "net.onnx"]) == 1
    error = capsys.readouterr().err
    assert re.search(r"int8 costs too much, with 1 of 6 layers still: accuracy on 500 .*--max_drop \d+\.\d\d", error)
    assert Path("net.onnx").read_text() == "the one of yesterday"
    assert sorted(path.name for path in here.iterdir()) == ["fragile.ckpt", "net.onnx"]


def test_the_tries_are_few_and_the_ones_that_change_most_come_first():
    layers = [f"layer{number}" for number in range(20)]
    tries = list(int8._tries(layers, lambda name: int(name[5:]) % 7))
    assert [len(kept) for kept in tries] == [0, 2, 3, 4, 6, 10, 18]
    assert set(tries[1]) == {"layer0", "layer19"}
    assert tries[2][2] in ("layer6", "layer13")
    assert list(int8._tries(["a", "b"], lambda _: 0)) == [()]


# ------------------------------------------------------------------------------------------------- other networks


@pytest.mark.slow  # 3 s
def test_normalisation_and_known_score_stay_float_and_both_shares_are_told(here, capsys):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--test_after_fit", "false", "--known", "0.9"]) == 0
    capsys.readouterr()
    assert main(["export", "--ckpt_path", "best", "--int8", "--max_drop", "20", "--output", "net.onnx"]) == 0
    assert re.search(r"; of them \d\d\.\d\d % -> \d\d\.\d\d % pass as known", capsys.readouterr().out)
    graph = onnx.load("net.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}

    def before(name, stop):
        node = makers.get(name)
        if node is None or node.op_type == stop:
            return []
        return [node.op_type, *(kind for one in node.input for kind in before(one, stop))]

    behind_images = [before(node.input[0], "") for node in graph.node if node.op_type == "QuantizeLinear"]
    assert set(min(behind_images, key=len)) == {"Cast", "Mul", "Add", "Conv", "Tanh", "AveragePool"}
    score = before("known_score", "DequantizeLinear")
    assert "MatMul" in score
    assert "QuantizeLinear" not in score
    model = Classifier.load_from_checkpoint("runs/default/version_0")
    images = MNIST5k().sample("test", 50).images
    got = onnxruntime.InferenceSession("net.onnx").run(["known_score"], {"images": images.numpy()})[0]
    with torch.no_grad():
        expected = model.answer(images)[1].numpy()
    assert np.corrcoef(got, expected)[0, 1] > 0.95


@pytest.mark.slow  # 3 s
def test_the_chosen_share_of_known_images_passes_by_the_file_s_own_threshold(here):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--test_after_fit", "false", "--known", "0.9"]) == 0
    for name, options in (("float.onnx", ()), ("int8.onnx", ("--int8", "--max_drop", "20"))):
        assert main(["export", "--ckpt_path", "best", *options, "--output", name]) == 0
    float_, known = (json.loads(known_of(name)) for name in ("float.onnx", "int8.onnx"))
    assert known["share"] == float_["share"] == 0.9
    assert known["threshold"] != float_["threshold"]
    assert Path("int8.onnx").stat().st_size < Path("float.onnx").stat().st_size  # the axes stand in it once
    images = MNIST5k().sample("val", 10_000).images.numpy()
    scores = onnxruntime.InferenceSession("int8.onnx").run(["known_score"], {"images": images})[0]
    assert 0 <= (scores >= known["threshold"]).mean() - 0.9 < 2 / len(images)


def known_of(file: str) -> str:
    return next(entry.value for entry in onnx.load(file).metadata_props if entry.key == "known")


class Mixed(nn.Module):
    """Batch normalisation, a sum of two branches, and a linear layer on tokens, which ONNX has as a product."""

    def __init__(self, image_shape, num_classes) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(image_shape[0], 32, 3, 4), nn.BatchNorm2d(32), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32))
        self.tokens, self.head = nn.Linear(32, 256), nn.Linear(256, num_classes)

    def forward(self, images):
        x = self.stem(images)
        x = torch.relu(x + self.branch(x))
        return self.head(nn.functional.gelu(self.tokens(x.flatten(2).transpose(1, 2))).mean(1))


@pytest.mark.slow  # 5 s
def test_networks_of_many_kinds_of_layers_are_int8_behind_the_first(here, capsys):
    data = tiny.write_npz(here / "data.npz", 100, 20, (32, 32, 3))
    trust = ["--trusted_packages", "tests"]
    fit = ["fit", "--model.backbone", "tests.verbs.test_int8.Mixed", "--data", "ArrayFile", "--data.path", str(data)]
    assert main([*fit, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0
    words = ["export", "--ckpt_path", "best", *trust, "--int8", "--max_drop", "50"]
    assert main([*words, "--output", "net.onnx"]) == 0
    told = TOLD.search(capsys.readouterr().out)
    assert (told[1], told[2]) == ("3", "4")
    graph = onnx.load("net.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert "BatchNormalization" not in kinds
    assert "MatMul" in kinds
    int8s = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
    assert sum(int(np.prod(t.dims)) for t in int8s) == 9 * 32 * 32 + 32 * 256 + 256 * 10
    data.rename("elsewhere.npz")
    assert main([*words, "--output", "other.onnx"]) == 2
    error = capsys.readouterr().err
    assert "--int8 needs the run's training and validation images: " in error
    assert "Where the data have moved, set --data_root" in error
    assert not Path("other.onnx").exists()
    assert main([*words, "--output", "other.onnx", "--data_root", "elsewhere.npz"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--int8", "--format", "torch_export"], "--int8 goes with --format onnx, not torch_export"),
        (["--max_drop", "1"], "--max_drop and --data_root go with --int8"),
        (["--int8", "--max_drop", "-1"], "--max_drop is in points, from 0 to below 100, got -1.0"),
        (["--push", "me/digits"], "--push goes with --format hub, not onnx"),
    ],
)
def test_options_that_do_not_go_together_are_refused(trained_run, here, capsys, words, message):
    assert main(["export", "--ckpt_path", str(trained_run), *words]) == 2
    assert message in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.slow  # 1 s
def test_a_run_without_validation_images_is_refused_with_a_reason(here, capsys):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--test_after_fit", "false", "--data.val_split", "0"]) == 0
    assert main(["export", "--ckpt_path", "best", "--int8"]) == 2
    assert "--data.val_split is 0, so that nothing is held out" in capsys.readouterr().err


@pytest.mark.slow  # 4 s
def test_an_ensemble_is_int8_as_well(trained_run, here, capsys):
    words = [
        "export",
        "--ckpt_path",
        str(trained_run),
        str(shutil.copytree(trained_run, "other")),
        "--output",
        "e.onnx",
    ]
    assert main([*words, "--int8", "--max_drop", "5"]) == 0
    told = TOLD.search(capsys.readouterr().out)
    assert int(told[2]) - int(told[1]) == 1  # the first convolution
    assert int(told[1]) > 5  # the two are alike, and onnxruntime lets them share what they can
    assert len(json.loads({p.key: p.value for p in onnx.load("e.onnx").metadata_props}["members"])) == 2
