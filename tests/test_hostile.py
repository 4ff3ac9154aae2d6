"""Files made to do harm: none of their payloads runs, and each is refused by name.

Every payload would leave a marker in the working directory. What a checkpoint names is tried through the commands and
through ``load_from_checkpoint`` alike.
"""

import bz2
import copy
import gzip
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from tests import tiny
from tests.conftest import QUICK
from vision_zoo.__main__ import main
from vision_zoo.classifier import Classifier
from vision_zoo.data import USPS, ArrayFile
from vision_zoo.data.mnist import read_idx
from vision_zoo.errors import CheckpointError, DataError

COMMAND = "touch MARKER"
Mutation = Callable[[dict[str, Any]], object]


class Calls:
    """Pickles to a call of whatever it is given."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Network(nn.Module):
    """Harmless, but from a package that nobody vouched for."""

    def __init__(self, shape, classes):
        super().__init__()
        self.layer = nn.Linear(784, classes)

    def forward(self, images):
        return self.layer(images.flatten(1))


def refused(capsys, words: list[str]) -> str:
    """Run a command that must be refused, with nothing run and nothing written."""
    before = sorted(Path().rglob("*"))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert [line.startswith("vision_zoo: ") for line in error.splitlines()].count(True) == 1
    assert "Traceback" not in error
    assert "internal error" not in error
    assert not list(Path().rglob("MARKER"))
    assert sorted(path for path in Path().rglob("*") if "cache" not in path.parts) == [
        path for path in before if "cache" not in path.parts
    ]
    return error


def refused_everywhere(capsys, path: str, message: str) -> None:
    """A hostile checkpoint is refused by every command that reads one, and by Python."""
    for verb in ("test", "predict", "export", "report", "summary", "fit"):
        error = refused(capsys, [verb, "--ckpt_path", path])
        assert message in error, (verb, error)
        assert Path(path).name in error
    with pytest.raises(CheckpointError) as caught:
        Classifier.load_from_checkpoint(path)
    assert message in str(caught.value)
    assert not list(Path().rglob("MARKER"))


@pytest.fixture
def good(trained_run) -> dict[str, Any]:
    return torch.load(trained_run / "checkpoints" / "best.ckpt", weights_only=True)


@pytest.fixture
def evil_package(here, monkeypatch):
    """A package on the path that leaves the marker as soon as it is imported."""
    (here / "evil_package").mkdir()
    (here / "evil_package/__init__.py").write_text("open('MARKER', 'w')\nclass Net: pass\nclass Callback: pass\n")
    monkeypatch.syspath_prepend(str(here))
    yield
    sys.modules.pop("evil_package", None)


def save(checkpoint: object, name: str = "run/checkpoints/evil.ckpt") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, name)
    return name


# ------------------------------------------------------------------------------------------------------------- pickles

GADGETS = {
    "os.system": Calls(os.system, COMMAND),
    "builtins.eval": Calls(eval, f"__import__('os').system({COMMAND!r})"),
    "builtins.exec": Calls(exec, "open('MARKER', 'w')"),
    "subprocess.Popen": Calls(subprocess.Popen, ["touch", "MARKER"]),
    "getattr chain": Calls(getattr, Calls(__import__, "evil_package"), "Net"),
    "pickle in pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, COMMAND))),
    "torch.load": Calls(torch.load, "inner.pt"),
    "torch.hub.load": Calls(torch.hub.load, ".", "evil", "local"),
    "importlib": Calls(__import__, "evil_package"),
    "a module with hooks": nn.Linear(2, 2),
}


@pytest.mark.parametrize("name", GADGETS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_that_calls_something_is_not_run(name, legacy, good, here, capsys, evil_package):
    torch.save(Calls(os.system, COMMAND), "inner.pt")
    good["hyper_parameters"]["mean"] = GADGETS[name]
    torch.save(good, "evil.ckpt", _use_new_zipfile_serialization=not legacy)
    assert "evil.ckpt is not a checkpoint that can be loaded safely" in refused(
        capsys, ["test", "--ckpt_path", "evil.ckpt"]
    )
    with pytest.raises(CheckpointError, match="can be loaded safely"):
        Classifier.load_from_checkpoint("evil.ckpt")
    torch.save({"head.2.weight": GADGETS[name]}, "evil.pth", _use_new_zipfile_serialization=not legacy)
    words = ["fit", "--model.backbone", "LeNet5", "--model.weights", "evil.pth"]
    assert "evil.pth is not a checkpoint that can be loaded safely" in refused(capsys, words)


@pytest.mark.parametrize("name", GADGETS)
def test_a_cifar_batch_that_calls_something_is_not_run(name, here, capsys, evil_package):
    tiny.write_cifar10(here / "data", 50, 20)
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], "more": GADGETS[name]}
    (here / "data/cifar-10-batches-py/data_batch_3").write_bytes(pickle.dumps(batch))
    error = refused(capsys, ["fit", "--data", "CIFAR10", "--model.backbone", "SmallCNN"])
    assert "data_batch_3 is broken (it names " in error
    assert "which has no place in this dataset" in error


def test_a_bare_pickle_is_not_run(here, capsys):
    Path("evil.ckpt").write_bytes(pickle.dumps(Calls(os.system, COMMAND)))
    assert "can be loaded safely" in refused(capsys, ["predict", "--ckpt_path", "evil.ckpt", "--images", "."])


# --------------------------------------------------------------------------------------- what a checkpoint may name

SHELL = {"class_path": "os.system", "init_args": {"command": COMMAND}}
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "MARKER"]}}
EVAL = {"class_path": "builtins.eval", "init_args": {"source": "open('MARKER', 'w')"}}
HUB = {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": ".", "model": "evil", "source": "local"}}


def hparam(name: str, value: object) -> Mutation:
    return lambda c: c["hyper_parameters"].update({name: value})


def model(name: str, value: object) -> Mutation:
    return lambda c: c["vision_zoo"]["config"]["model"].update({name: value})


def data(value: object) -> Mutation:
    return lambda c: c["vision_zoo"]["config"].update({"data": value})


def data_option(name: str, value: object) -> Mutation:
    return lambda c: c["vision_zoo"]["config"]["data"]["init_args"].update({name: value})


def trainer(name: str, value: object) -> Mutation:
    return lambda c: c["vision_zoo"]["config"]["trainer"].update({name: value})


def with_options(class_path: str, **options: object) -> dict[str, object]:
    return {"class_path": class_path, "init_args": options}


DDP = "lightning.pytorch.strategies.DDPStrategy"
STARTER = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.SubprocessHandler"
STARTS = with_options(
    STARTER, entrypoint="touch", args=["MARKER"], env={}, stdout=None, stderr=None, local_rank_id=0, numa_options=None
)
CALLED = "names torch.hub.load as trainer.|, to be called while training"
ADMIT = "code of a package that is not trusted. If you trust it, admit it with --trusted_packages"
NAMES: list[tuple[str, Mutation, str]] = [
    ("shell as backbone", hparam("backbone", SHELL), f"names os.system, {ADMIT} os"),
    ("shell as backbone, config", model("backbone", SHELL), f"names os.system, {ADMIT} os"),
    ("shell as optimizer", hparam("optimizer", SHELL), f"names os.system, {ADMIT} os"),
    ("shell as optimizer, config", model("optimizer", SHELL), f"names os.system, {ADMIT} os"),
    ("process as scheduler", hparam("scheduler", POPEN), f"names subprocess.Popen, {ADMIT} subprocess"),
    ("process as scheduler, config", model("scheduler", POPEN), f"names subprocess.Popen, {ADMIT} subprocess"),
    ("eval as data", data(EVAL), f"names builtins.eval, {ADMIT} builtins"),
    ("eval as augmentation", data_option("augmentation", [EVAL]), f"names builtins.eval, {ADMIT} builtins"),
    ("untrusted callback", trainer("callbacks", [{"class_path": "evil_package.Callback"}]), f"{ADMIT} evil_package"),
    ("untrusted logger", trainer("logger", [with_options("evil_package.Callback")]), f"{ADMIT} evil_package"),
    ("untrusted strategy", trainer("strategy", with_options("evil_package.Callback")), f"{ADMIT} evil_package"),
    ("untrusted plugin as a word", trainer("plugins", ["evil_package.Callback"]), f"{ADMIT} evil_package"),
    ("untrusted backbone as a word", model("backbone", "evil_package.Net"), f"{ADMIT} evil_package"),
    (
        "class in a text",
        model("optimizer", '{"class_path": "evil_package\\u002eNet"}'),
        "has options written as a text",
    ),
    (
        "class in a text, as augmentation",
        data_option("augmentation", 'class_path: "evil_package\\u002eNet"'),
        "has options written as a text",
    ),
    (
        "class in a text, as strategy",
        trainer("strategy", "{class_path: evil_package.Net}"),
        "options written as a text",
    ),
    ("name in quotes", model("backbone", '"evil_package\\u002eNet"'), f"{ADMIT} evil_package"),
    ("name in blanks", trainer("plugins", [" evil_package.Net "]), f"{ADMIT} evil_package"),
    ("nested without an end, as a text", trainer("plugins", ["[" * 5000]), "is nested without an end"),
    (
        "torch.load within a backbone",
        model("backbone", with_options("torch.nn.Linear", device=with_options("torch.load", f="inner.pt"))),
        "names torch.load among the options of a class, which is not a Module class",
    ),
    (
        "hub within a backbone",
        model("backbone", with_options("torch.nn.Linear", device=HUB)),
        "names torch.hub.load among the options",
    ),
    (
        "command line within a network",
        model("backbone", with_options("torch.nn.Linear", device=with_options("lightning.pytorch.cli.LightningCLI"))),
        "names lightning.pytorch.cli.LightningCLI among the options",
    ),
    (
        "hub within an augmentation",
        data_option("augmentation", [with_options("torchvision.transforms.v2.Lambda", lambd=HUB)]),
        "names torch.hub.load among the options",
    ),
    (
        "hub within an optimizer",
        model("optimizer", with_options("torch.optim.Adam", lr=HUB)),
        "names torch.hub.load among the options",
    ),
    (
        "process within a strategy",
        trainer("strategy", with_options(DDP, ddp_comm_state=STARTS)),
        f"names {STARTER} among",
    ),
    (
        "process within a callback",
        trainer("callbacks", [with_options("lightning.pytorch.callbacks.Timer", duration=STARTS)]),
        f"names {STARTER} among the options",
    ),
    (
        "process within what a callback passes on",
        trainer("callbacks", [{"class_path": "lightning.pytorch.callbacks.Timer", "dict_kwargs": {"a": STARTS}}]),
        f"names {STARTER} among the options",
    ),
    ("hub as hook", trainer("strategy", with_options(DDP, ddp_comm_hook="torch.hub.load")), CALLED),
    ("hub as hook, in quotes", trainer("strategy", with_options(DDP, ddp_comm_hook='"torch\\u002ehub.load"')), CALLED),
    (
        "hub as callback's function",
        trainer("callbacks", [with_options("lightning.pytorch.callbacks.LambdaCallback", setup="torch.hub.load")]),
        CALLED,
    ),
    ("set of names in a list", trainer("plugins", "[!!set {evil_package.Net}]"), f"{ADMIT} evil_package"),
    ("set of names", trainer("plugins", "!!set {evil_package.Net}"), f"{ADMIT} evil_package"),
    (
        "class beside an impossible date",
        model("optimizer", '{class_path: "evil_package\\u002eNet", init_args: {a: 2024-99-99}}'),
        "has options written as a text",
    ),
    ("text within text", trainer("plugins", ["a" + "\n" * 2000 + "b"]), "is text within text"),
    ("class deep in a text", trainer("plugins", ['[{a: ["{class_path: evil_package.Net}"]}]']), "written as a text"),
    ("name deep in a text", trainer("plugins", ['{a: ["evil_package.Net"]}']), f"{ADMIT} evil_package"),
    ("untrusted data", data(with_options("evil_package.Net")), f"{ADMIT} evil_package"),
    ("nested in a backbone", hparam("backbone", with_options("vision_zoo.backbones.LeNet5", inner=SHELL)), "os.system"),
    (
        "nested in a list",
        data_option("augmentation", [with_options("torch.nn.Sequential", args=[[SHELL]])]),
        "os.system",
    ),
    ("behind a state_dict", model("backbone", with_options("torch.nn.Linear", state_dict=SHELL)), "os.system"),
    (
        "function as argument",
        data_option("augmentation", [with_options("torchvision.transforms.v2.Lambda", lambd="os.system")]),
        f"names os.system, {ADMIT} os",
    ),
    (
        "function through torch",
        data_option("augmentation", [with_options("torchvision.transforms.v2.Lambda", lambd="torch.os.system")]),
        "names torch.os.system, which is posix.system",
    ),
    (
        "module that torch imports",
        hparam("backbone", with_options("torch.serialization.os")),
        "which is os, code of a package",
    ),
    (
        "function that torch imports",
        hparam("optimizer", with_options("torch.os.system", command=COMMAND)),
        "which is posix.system",
    ),
    ("hub as backbone", hparam("backbone", HUB), "names torch.hub.load as backbone, which is no Module class"),
    ("hub as backbone, config", model("backbone", HUB), "names torch.hub.load as backbone, which is no Module class"),
    ("hub as optimizer", hparam("optimizer", HUB), "names torch.hub.load as optimizer, which is no Optimizer class"),
    (
        "hub as optimizer, config",
        model("optimizer", HUB),
        "names torch.hub.load as optimizer, which is no Optimizer class",
    ),
    ("hub as scheduler", model("scheduler", HUB), "as scheduler, which is no LRScheduler or ReduceLROnPlateau class"),
    ("hub as data", data(HUB), "names torch.hub.load as data, which is no LightningDataModule class"),
    ("hub as callback", trainer("callbacks", [HUB]), "names torch.hub.load as callbacks, which is no Callback class"),
    (
        "hub as augmentation",
        data_option("augmentation", [HUB]),
        "names torch.hub.load as augmentation, which is no Module",
    ),
    (
        "torch.load as optimizer",
        hparam("optimizer", with_options("torch.load", f="inner.pt")),
        "which is no Optimizer class",
    ),
    (
        "optimizer as backbone",
        hparam("backbone", with_options("torch.optim.SGD")),
        "as backbone, which is no Module class",
    ),
    ("not a class", hparam("backbone", with_options("torch.nn.functional")), "as backbone, which is no Module class"),
    (
        "method",
        hparam("backbone", with_options("torch.nn.Module.__init__")),
        "names torch.nn.Module.__init__ as backbone",
    ),
    ("nothing there", hparam("backbone", with_options("torch.nn.Lineal")), "torch.nn.Lineal cannot be imported"),
    ("empty name", hparam("backbone", with_options("")), "has '' as class_path, which is not a package.module.Class"),
    ("number", hparam("backbone", {"class_path": 7}), "has '7' as class_path"),
    ("list", hparam("optimizer", {"class_path": ["os.system"]}), "as class_path, which is not a package.module.Class"),
    ("fullwidth letters", hparam("backbone", with_options("torch.nn.\uff2cinear")), "as class_path, which is not a"),
    ("other script", hparam("backbone", with_options("t\u043erch.nn.Linear")), "as class_path, which is not a"),
    ("dots", hparam("backbone", with_options("..os.system")), "as class_path, which is not a"),
    ("line break", hparam("backbone", with_options("os.system\n")), "as class_path, which is not a"),
    ("a word", hparam("backbone", "os.system"), "os.system, code of a package that is not trusted"),
    ("no backbone", hparam("backbone", None), "'None' describes no backbone"),
    ("a class alone", hparam("backbone", "torch.nn.Identity"), "'torch.nn.Identity' describes no backbone"),
    ("options a list", hparam("backbone", {"class_path": "torch.nn.Linear", "init_args": [1]}), "are not options"),
    ("hparams a list", lambda c: c.update(hyper_parameters=[1]), "it describes no backbone"),
    ("config a list", lambda c: c["vision_zoo"].update(config=[1]), "its configuration has no model and data"),
    (
        "data class of the module",
        lambda c: c["datamodule_hyper_parameters"].update(_class_path="evil_package.Net"),
        ADMIT,
    ),
    (
        "file as options",
        lambda c: c["vision_zoo"]["config"]["model"].update(backbone="./evil.yaml"),
        "names the file ./evil.yaml",
    ),
    ("run named elsewhere", lambda c: c["vision_zoo"].update(name="../../evil"), "it names its run '../../evil'"),
    ("unknown hyperparameter", hparam("weights", "/etc/passwd"), "it has the hyperparameters weights"),
    ("image beyond measure", hparam("image_shape", [1, 10**9, 10**9]), "are beyond all measure"),
    ("image of many channels", hparam("image_shape", [30_000, 80, 80]), "its network has"),
    ("image in words", hparam("image_shape", ["1", "28", "28"]), "image_shape is ['1', '28', '28']"),
    ("image below zero", hparam("image_shape", [1, -28, 28]), "image_shape is [1, -28, 28]"),
    ("image of two sides", hparam("image_shape", [28, 28]), "image_shape is [28, 28]"),
    (
        "network beyond measure",
        hparam("backbone", with_options("vision_zoo.backbones.MLP", hidden=10**9)),
        "its network has",
    ),
    (
        "network beyond measure, config",
        model("backbone", with_options("vision_zoo.backbones.MLP", hidden=10**9)),
        "its network has",
    ),
    ("class names no names", hparam("class_names", [1, 2]), "class_names is not a list of names"),
    ("no class", hparam("class_names", []), "it has 0 classes"),
    ("mean in words", hparam("mean", ["a"]), "mean is not a list of numbers"),
    ("state no state", lambda c: c.update(state_dict={"a": "b"}), "its state_dict is not one"),
    ("nested without end", lambda c: c["hyper_parameters"].update(mean=nested(200)), "are nested without an end"),
    ("within itself", lambda c: c["hyper_parameters"].update(std=within_itself()), "are nested without an end"),
    ("a million lists", lambda c: c["hyper_parameters"].update(std=doubled(40)), "are nested without an end"),
]


def nested(depth: int) -> list[Any]:
    node: list[Any] = []
    for _ in range(depth):
        node = [node]
    return node


def within_itself() -> list[Any]:
    node: list[Any] = []
    node.append(node)
    return node


def doubled(times: int) -> list[Any]:
    node: list[Any] = [0]
    for _ in range(times):
        node = [node, node]
    return node


@pytest.mark.parametrize(("mutate", "message"), [case[1:] for case in NAMES], ids=[case[0] for case in NAMES])
def test_what_a_checkpoint_names_is_refused_before_it_is_called(mutate, message, good, here, capsys, evil_package):
    Path("hubconf.py").write_text("def evil(*_, **__):\n    open('MARKER', 'w')\n")
    Path("evil.yaml").write_text("class_path: evil_package.Net\n")
    torch.save({}, "inner.pt")
    mutate(good)
    path = save(good)
    error = refused(capsys, ["fit", "--ckpt_path", path])  # which builds what the trainer's options name, too
    assert any(part in error for part in message.split("|")), error
    assert "evil.ckpt" in error
    with pytest.raises(CheckpointError) as caught:
        Classifier.load_from_checkpoint(path)
    assert any(part in str(caught.value) for part in message.split("|"))
    assert not Path("MARKER").exists()


@pytest.mark.parametrize("mutate", [hparam("backbone", SHELL), trainer("callbacks", [HUB]), model("optimizer", HUB)])
def test_every_command_refuses_alike(mutate, good, here, capsys):
    mutate(good)
    refused_everywhere(capsys, save(good), "evil.ckpt names ")


@pytest.mark.parametrize("section", ["hyper_parameters", "config"])
def test_a_checkpoint_of_plain_python_is_checked_alike(section, good, here, capsys):
    """Without the command line's part, the hyperparameters become the configuration."""
    del good["vision_zoo"]
    if section == "config":
        good["datamodule_hyper_parameters"]["augmentation"] = [SHELL]
    else:
        good["hyper_parameters"]["optimizer"] = SHELL
    refused_everywhere(capsys, save(good), f"names os.system, {ADMIT} os")


def test_trusting_a_package_admits_its_networks_both_ways_and_nothing_else(good, here, capsys):
    net = Network((1, 28, 28), 10)
    good["state_dict"] = OrderedDict((f"backbone.{key}", value) for key, value in net.state_dict().items())
    description = {"class_path": "tests.test_hostile.Network"}
    good["hyper_parameters"]["backbone"] = description
    good["vision_zoo"]["config"]["model"]["backbone"] = description
    path = save(good)
    refused_everywhere(capsys, path, f"names tests.test_hostile.Network, {ADMIT} tests")
    assert main(["summary", "--ckpt_path", path, "--trusted_packages", "tests"]) == 0
    model = Classifier.load_from_checkpoint(path, trusted_packages=["tests"])
    assert type(model.backbone).__name__ == "Network"
    good["hyper_parameters"]["backbone"] = {"class_path": "tests.test_hostile.refused"}
    refused(capsys, ["summary", "--ckpt_path", save(good), "--trusted_packages", "tests"])
    good["hyper_parameters"]["backbone"] = SHELL
    refused(capsys, ["summary", "--ckpt_path", save(good), "--trusted_packages", "tests"])


@pytest.mark.parametrize(
    ("class_path", "options"),
    [
        ("ModelCheckpoint", {"dirpath": "OUT", "filename": "model", "enable_version_counter": False}),
        ("ModelCheckpoint", {"filename": "../../../model"}),
    ],
)
def test_a_run_that_goes_on_writes_elsewhere_only_where_the_user_says_so(
    class_path, options, good, trained_run, here, capsys
):
    (here / "work").mkdir()
    os.chdir(here / "work")
    options = {name: str(value).replace("OUT", str(here)) for name, value in options.items()}
    callback = with_options(f"lightning.pytorch.callbacks.{class_path}", **options)
    good["vision_zoo"]["config"]["trainer"]["callbacks"] = [callback]
    path = save(good, "run/checkpoints/last.ckpt")
    assert "would have --trainer.callbacks write to " in refused(capsys, ["fit", "--ckpt_path", path])
    Path("mine.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    assert main(["fit", "--ckpt_path", path, "--config", "mine.yaml"]) == 0


def test_a_run_that_goes_on_takes_no_root_but_its_own(here):
    """Without a logger, a profiler writes into the root."""
    words = ["--model.scheduler", "null", "--trainer.max_epochs", "1", "--test_after_fit", "false"]
    assert main([*QUICK, *words]) == 0
    (here / "victim").mkdir()
    path = "runs/default/version_0/checkpoints/last.ckpt"
    changed = torch.load(path, weights_only=True)
    profiler = with_options("lightning.pytorch.profilers.AdvancedProfiler", filename="x")
    changed["vision_zoo"]["config"]["trainer"].update(
        default_root_dir=str(here / "victim"), logger=False, profiler=profiler, max_epochs=2
    )
    torch.save(changed, path)
    assert main(["fit", "--ckpt_path", path]) == 0
    assert list(here.glob("fit-x*")), "the profiler has written"
    assert not list((here / "victim").iterdir())


@pytest.mark.parametrize("class_path", ["CSVLogger", "TensorBoardLogger"])
def test_a_run_that_goes_on_may_write_into_the_working_directory(class_path, good, here):
    for place, code in (("logs", 0), ("../logs", 2), (str(here), 0), (str(here.parent), 2)):
        logger = with_options(f"lightning.pytorch.loggers.{class_path}", save_dir=place)
        good["vision_zoo"]["config"]["trainer"]["logger"] = [logger]
        assert main(["fit", "--ckpt_path", save(good, "run/checkpoints/last.ckpt")]) == code


def test_class_names_may_hold_anything_and_do_nothing(good, here, capsys):
    names = ["=cmd|' /C calc'!A0", "[/red]", "[link=file:///etc/passwd]x", "</script><script>", "../../x", "a,b\"c",
             "{0}",
             "%s", "日本", "os.system"]  # fmt: skip
    good["hyper_parameters"]["class_names"] = names
    path = save(good)
    Image.new("L", (28, 28)).save("a.png")
    assert main(["test", "--ckpt_path", path, "--output", "out"]) == 0
    assert main(["predict", "--ckpt_path", path, "--images", "a.png"]) == 0
    assert main(["summary", "--ckpt_path", path]) == 0
    assert "internal error" not in capsys.readouterr().err
    assert {p.name for p in here.iterdir()} <= {"run", "out", "cache", "a.png", "predictions.csv"}


# ------------------------------------------------------------------------------------- bombs: small files, huge content


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(good, here, capsys):
    torch.save(good, "plain.ckpt")
    with zipfile.ZipFile("plain.ckpt") as plain, zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in plain.namelist():
            bomb.writestr(entry, plain.read(entry))
        bomb.writestr("plain/data/999", bytes(20_000_000))
    assert "a compressed archive of 2" in refused(capsys, ["test", "--ckpt_path", "bomb.ckpt"])


def test_a_tensor_that_claims_to_be_huge_is_refused(good, here, capsys):
    good["state_dict"]["backbone.head.2.weight"] = torch.zeros(1).expand(10**6, 10**6)
    assert "do not fit" in refused(capsys, ["test", "--ckpt_path", save(good)])
    with pytest.raises(CheckpointError, match="do not fit"):
        Classifier.load_from_checkpoint("run/checkpoints/evil.ckpt")


def array_file(**headers: tuple[int, ...]) -> None:
    with zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in headers.items():
            stream = io.BytesIO()
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", stream.getvalue() + bytes(100))


def test_an_array_that_announces_more_than_it_holds_is_refused(here, capsys):
    array_file(images=(10**6, 1000, 1000), labels=(100,))
    words = ["fit", "--data", "ArrayFile", "--data.path", "a.npz"]
    assert "announces the shape (1000000, 1000, 1000), but holds" in refused(capsys, words)


def test_an_array_that_unpacks_to_more_than_the_memory_is_refused(here, monkeypatch):
    array_file(images=(10, 28, 28), labels=(10,))
    original = zipfile.ZipFile.getinfo

    def huge(self, name):
        entry = copy.copy(original(self, name))
        entry.file_size = 2**40
        return entry

    monkeypatch.setattr(zipfile.ZipFile, "getinfo", huge)
    with pytest.raises(DataError, match=r"a\.npz is broken .*would unpack from .* bytes to 1,099,511,627,776"):
        ArrayFile("a.npz").class_names  # noqa: B018  # reading it raises


def test_an_array_of_objects_is_not_unpickled(here, capsys):
    np.savez("a.npz", images=np.array([Calls(os.system, COMMAND)] * 4, dtype=object), labels=np.arange(4))
    words = ["fit", "--data", "ArrayFile", "--data.path", "a.npz"]
    assert "allow_pickle" in refused(capsys, words)


def test_packed_files_are_not_unpacked_without_an_end(here, monkeypatch):
    monkeypatch.setattr("vision_zoo.data.mnist.MOST_BYTES", 10**6)
    Path("a-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(2 * 10**6)))
    with pytest.raises(ValueError, match="more than 1,000,000 bytes"):
        read_idx(Path("a-idx3-ubyte.gz"), 3)
    monkeypatch.setattr("vision_zoo.data.usps.MOST_BYTES", 10**6)
    Path("usps.bz2").write_bytes(bz2.compress(bytes(2 * 10**6)))
    with pytest.raises(DataError, match=r"usps\.bz2 is broken \(more than 1,000,000 bytes"):
        USPS(".").load("train")


def picture_bomb(path: str) -> None:
    """A PNG of 60,000 x 60,000 pixels in its header, in a hundred bytes."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    Path(path).write_bytes(content)


def test_a_picture_bomb_is_refused_by_predict_and_left_out_of_a_folder(trained_run, here, capsys):
    picture_bomb("bomb.png")
    words = ["predict", "--ckpt_path", str(trained_run), "--images", "bomb.png"]
    error = refused(capsys, words)
    assert "bomb.png: Image size (3600000000 pixels) exceeds limit" in error
    tiny.write_image_folder(here / "pictures", count=4)
    picture_bomb("pictures/cat/bomb.png")
    words = ["fit", "--data", "ImageFolder", "--data.root", "pictures", "--data.image_size", "32", "--data.strict",
             "true", "--model.backbone", "SmallCNN", "--data.val_split", "2", "--data.test_split", "0"]  # fmt: skip
    assert "bomb.png cannot be decoded (Image size (3600000000 pixels) exceeds limit" in refused(capsys, words)


def test_a_large_picture_is_only_warned_about(trained_run, here, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("L", (40, 40)).save("large.png")  # between once and twice the limit
    assert main(["predict", "--ckpt_path", str(trained_run), "--images", "large.png"]) == 0


# ---------------------------------------------------------------------------------------------------------------- YAML

TAGS = [
    "!!python/object/apply:os.system ['touch MARKER']",
    "!!python/object/new:subprocess.Popen [['touch', 'MARKER']]",
    "!!python/name:os.system ''",
    "!!python/module:evil_package ''",
    "!!python/object/apply:builtins.exec [\"open('MARKER', 'w')\"]",
]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_tags_are_not_run(tag, here, capsys, evil_package):
    Path("evil.yaml").write_text(f"model: {{backbone: {tag}}}\ndata: MNIST5k\n")
    assert "evil.yaml is not valid YAML" in refused(capsys, ["fit", "--config", "evil.yaml"])
    refused(capsys, ["fit", "--model.backbone", f"{{class_path: {tag}}}"])
    refused(capsys, ["fit", "--data.augmentation", f"[{tag}]"])
