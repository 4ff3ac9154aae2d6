"""Macs and Windows, as far as another machine can show it: the package without what they lack."""

import json
import subprocess
import sys

import pytest

from tests import tiny
from tests.lightning_rows.trial import BASE
from tests.training.test_processes import ENVIRONMENT

# Modules, and names of modules, that Windows' Python lacks; a file system may have no hard links anywhere.
MODULES = ("fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios")
NAMES = {
    "os": (
        "fork", "forkpty", "getgid", "getloadavg", "getpgid", "getsid", "getuid", "killpg", "link", "mkfifo", "nice",
        "sched_getaffinity", "sched_setaffinity", "setsid", "statvfs", "uname", "wait",
    ),
    "signal": (
        "SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGTSTP", "SIGUSR1",
        "SIGUSR2", "alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait",
    ),
    "socket": ("AF_UNIX",),
    "time": ("tzset",),
}  # fmt: skip

# Other packages have their own ways on Windows, which they choose when they are imported: so they come first.
PROGRAM = """
import json, signal, sys, types
import filelock, jsonargparse, lightning, matplotlib.pyplot, numpy, PIL.Image, rich.progress, scipy.io, tensorboard
import torch, torch.utils.tensorboard, torchmetrics, torchvision.transforms.v2
import lightning.pytorch.trainer.connectors.signal_connector as connector

modules, names, commands = json.loads(sys.argv[1])
connector.signal = types.SimpleNamespace(**vars(signal))  # Lightning goes by the name of the platform
for module in modules:
    sys.modules[module] = None
for module, gone in names.items():
    for name in gone:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
from vision_zoo.__main__ import main

for words in commands:
    code = main(words)
    if code:
        sys.exit(f"{words[0]} ended with exit code {code}")
"""
COMMANDS = [
    [*BASE, "--test_after_fit", "true", "--trainer.val_check_interval", "2"],
    ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"],
    ["test", "--ckpt_path", "best"],
    ["validate", "--ckpt_path", "last"],
    ["predict", "--ckpt_path", "best", "--images", "pictures"],
    ["report", "--ckpt_path", "best"],
    ["list", "runs"],
]


@pytest.mark.slow  # 9 s
def test_the_commands_work_without_what_windows_lacks(tmp_path):
    tiny.write_npz(tmp_path / "data.npz", 40, 20, (8, 8))
    tiny.write_image_folder(tmp_path / "pictures", count=2)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([MODULES, NAMES, COMMANDS])],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("runs/*/version_*")
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert json.loads((run / "results.json").read_text())["epochs"] == 2
