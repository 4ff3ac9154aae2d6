"""Checkpoints that name what must not be called: each is refused by name, by the commands and by Python alike.

Every payload would leave a marker in the working directory.
"""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from tests import tiny
from tests.conftest import QUICK
from tests.hostile.helpers import (
    COMMAND,
    Mutation,
    data,
    data_option,
    hparam,
    model,
    refused,
    refused_everywhere,
    save,
    trainer,
    with_options,
)  # fmt: skip
from vision_zoo.__main__ import main
from vision_zoo.classifier import Classifier
from vision_zoo.errors import CheckpointError


class Network(nn.Module):
    """Harmless, but from a package that nobody vouched for."""

    def __init__(self, shape, classes):
        super().__init__()
        self.layer = nn.Linear(784, classes)

    def forward(self, images):
        return self.layer(images.flatten(1))


# --------------------------------------------------------------------------------------- what a checkpoint may name

SHELL = {"class_path": "os.system", "init_args": {"command": COMMAND}}
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "MARKER"]}}
EVAL = {"class_path": "builtins.eval", "init_args": {"source": "open('MARKER', 'w')"}}
HUB = {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": ".", "model": "evil", "source": "local"}}


DDP = "lightning.pytorch.strategies.DDPStrategy"
STARTER = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.SubprocessHandler"
STARTS = with_options(
    STARTER, entrypoint="touch", args=["MARKER"], env={}, stdout=None, stderr=None, local_rank_id=0, numa_options=None
)
HUB_WITHIN = "names torch.hub.load as "
WORD = "which is no plain word"
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
        WORD,
    ),
    (
        "class in a text, as augmentation",
        data_option("augmentation", 'class_path: "evil_package\\u002eNet"'),
        WORD,
    ),
    (
        "class in a text, as strategy",
        trainer("strategy", "{class_path: evil_package.Net}"),
        WORD,
    ),
    ("name in quotes", model("backbone", '"evil_package\\u002eNet"'), WORD),
    ("name in blanks", trainer("plugins", [" evil_package.Net "]), WORD),
    ("nested without an end, as a text", trainer("plugins", ["[" * 5000]), WORD),
    (
        "torch.load within a backbone",
        model("backbone", with_options("torch.nn.Linear", device=with_options("torch.load", f="inner.pt"))),
        "names torch.load as device, which is no Module class",
    ),
    (
        "hub within a backbone",
        model("backbone", with_options("torch.nn.Linear", device=HUB)),
        HUB_WITHIN,
    ),
    (
        "command line within a network",
        model("backbone", with_options("torch.nn.Linear", device=with_options("lightning.pytorch.cli.LightningCLI"))),
        "names lightning.pytorch.cli.LightningCLI as device, which is no",
    ),
    (
        "hub within an augmentation",
        data_option("augmentation", [with_options("torchvision.transforms.v2.Lambda", lambd=HUB)]),
        HUB_WITHIN,
    ),
    (
        "hub within an optimizer",
        model("optimizer", with_options("torch.optim.Adam", lr=HUB)),
        HUB_WITHIN,
    ),
    (
        "process within a strategy",
        trainer("strategy", with_options(DDP, ddp_comm_state=STARTS)),
        f"names {STARTER} as ",
    ),
    (
        "process within a callback",
        trainer("callbacks", [with_options("lightning.pytorch.callbacks.Timer", duration=STARTS)]),
        f"names {STARTER} as ",
    ),
    (
        "process within what a callback passes on",
        trainer("callbacks", [{"class_path": "lightning.pytorch.callbacks.Timer", "dict_kwargs": {"a": STARTS}}]),
        f"names {STARTER} as ",
    ),
    (
        "hub as hook",
        trainer("strategy", with_options(DDP, ddp_comm_hook="torch.hub.load")),
        HUB_WITHIN,
    ),
    ("hub as hook, in quotes", trainer("strategy", with_options(DDP, ddp_comm_hook='"torch\\u002ehub.load"')), WORD),
    (
        "hub as callback's function",
        trainer("callbacks", [with_options("lightning.pytorch.callbacks.LambdaCallback", setup="torch.hub.load")]),
        HUB_WITHIN,
    ),
    ("set of names in a list", trainer("plugins", "[!!set {evil_package.Net}]"), WORD),
    ("set of names", trainer("plugins", "!!set {evil_package.Net}"), WORD),
    (
        "class beside an impossible date",
        model("optimizer", '{class_path: "evil_package\\u002eNet", init_args: {a: 2024-99-99}}'),
        WORD,
    ),
    ("text within text", trainer("plugins", ["a" + "\n" * 2000 + "b"]), WORD),
    ("class deep in a text", trainer("plugins", ['[{a: ["{class_path: evil_package.Net}"]}]']), WORD),
    ("name deep in a text", trainer("plugins", ['{a: ["evil_package.Net"]}']), WORD),
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
    ("a word", hparam("backbone", "os.system"), "'os.system' describes no backbone"),
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
        "has './evil.yaml' as model.backbone, which is no plain word",
    ),
    ("run named elsewhere", lambda c: c["vision_zoo"].update(name="../../evil"), "it names its run '../../evil'"),
    ("made with a list", lambda c: c["vision_zoo"].update(made_with=[1]), "what it was made with is in no form"),
    ("made of data in words", lambda c: c["vision_zoo"].update(made_with={"data": "x"}), "what it was made with is in"),
    ("shell as loss", hparam("loss", SHELL), f"names os.system, {ADMIT} os"),
    ("optimizer as loss", hparam("loss", with_options("torch.optim.SGD")), "as loss, which is no Module class"),
    ("unknown hyperparameter", hparam("weights", "/etc/passwd"), "it has the hyperparameters weights"),
    ("image beyond measure", hparam("image_shape", [1, 10**9, 10**9]), "are beyond all measure"),
    ("image of many channels", hparam("image_shape", [30_000, 80, 80]), "its network has"),
    ("image in words", hparam("image_shape", ["1", "28", "28"]), "image_shape is ['1', '28', '28']"),
    ("image below zero", hparam("image_shape", [1, -28, 28]), "image_shape is [1, -28, 28]"),
    ("range of one value", hparam("value_range", [1]), "value_range is [1]"),
    ("range in words", hparam("value_range", ["0", "os.system"]), "value_range is ['0', 'os.system']"),
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
    assert message in error
    assert "evil.ckpt" in error
    with pytest.raises(CheckpointError) as caught:
        Classifier.load_from_checkpoint(path)
    assert message in str(caught.value)
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
    description = {"class_path": "tests.hostile.test_what_checkpoints_name.Network"}
    good["hyper_parameters"]["backbone"] = description
    good["vision_zoo"]["config"]["model"]["backbone"] = description
    path = save(good)
    refused_everywhere(capsys, path, f"names tests.hostile.test_what_checkpoints_name.Network, {ADMIT} tests")
    assert main(["summary", "--ckpt_path", path, "--trusted_packages", "tests"]) == 0
    model = Classifier.load_from_checkpoint(path, trusted_packages=["tests"])
    assert type(model.backbone).__name__ == "Network"
    good["hyper_parameters"]["backbone"] = {"class_path": "tests.hostile.test_what_checkpoints_name.refused"}
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
    """Without a logger, Lightning has a profiler write into the root; here it writes into the run."""
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
    assert list(Path(path).parents[1].glob("fit-x*")), "the profiler has written"
    assert not list((here / "victim").iterdir())


@pytest.mark.parametrize("class_path", ["CSVLogger", "TensorBoardLogger"])
def test_a_run_that_goes_on_may_write_into_the_working_directory(class_path, good, here):
    for place, code in (("logs", 0), ("../logs", 2), (str(here), 0), (str(here.parent), 2)):
        logger = with_options(f"lightning.pytorch.loggers.{class_path}", save_dir=place)
        good["vision_zoo"]["config"]["trainer"]["logger"] = [logger]
        assert main(["fit", "--ckpt_path", save(good, "run/checkpoints/last.ckpt")]) == code


@pytest.mark.draws
def test_class_names_may_hold_anything_and_do_nothing(good, here, capsys):
    names = ["=cmd|' /C calc'!A0", "[/red]", "[link=file:///etc/passwd]x", "</script><script>", "../../x", "a,b\"c",
             "{0}",
             "%s", "日本", "os.system"]  # fmt: skip
    good["hyper_parameters"]["class_names"] = names
    path = save(good)
    Image.new("L", (28, 28)).save("a.png")
    tiny.write_npz(here / "a.npz", shape=(28, 28))  # of classes without names
    assert main(["test", "--ckpt_path", path, "--data", "ArrayFile", "--data.path", "a.npz", "--output", "out"]) == 0
    assert main(["predict", "--ckpt_path", path, "--images", "a.png"]) == 0
    assert main(["summary", "--ckpt_path", path]) == 0
    assert "internal error" not in capsys.readouterr().err
    assert {p.name for p in here.iterdir()} <= {"run", "out", "cache", "a.png", "a.npz", "predictions.csv"}
