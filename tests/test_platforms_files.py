"""Files, locks and data on a platform that lacks what POSIX has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
ELSEWHERE = """
import os, signal, sys, tarfile, threading
from pathlib import Path
from lightning import Trainer  # torch may use what it finds; what comes after may not
for name in [name for name in sys.modules if name.split(".")[0] == "filelock"]:
    del sys.modules[name]
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # importing it fails
for module, names in ((os, ("link", "sched_getaffinity", "fchmod", "geteuid")), (signal, ("SIGUSR1", "SIGKILL"))):
    for name in names:
        delattr(module, name)

from vision_zoo.data import ImageFolder, MNIST
from vision_zoo.data.decode import decoding_threads
from vision_zoo.data.fetch import fetch
from vision_zoo.files import lock_file, new_file, release, write_file

write_file(Path("a.txt"), b"a")
with new_file(Path("a.txt")) as temporary:
    temporary.write_bytes(b"b")
assert Path("a.txt").read_bytes() == b"b"

held = lock_file(Path("held"), wait=False)
assert held is not None and lock_file(Path("held"), wait=False) is None
waiting = threading.Thread(target=lambda: release(lock_file(Path("held"), wait=True)))
waiting.start()
waiting.join(0.3)
assert waiting.is_alive()
release(held)
waiting.join(10)
assert not waiting.is_alive() and not Path("held").exists()

fetch(lambda root: (root / "file").write_text("x"), Path("root"), lambda: ["file"])
assert sorted(x.name for x in Path("root").iterdir()) == ["file"]

assert decoding_threads() >= 1
data = ImageFolder(root="images", image_size=16, in_memory=False, batch_size=4)
data.setup()
assert sum(len(labels) for _, labels in data.train_dataloader()) == data.sizes["train"]
print("done")
"""


@pytest.mark.slow  # 6 s
def test_files_and_data_work_without_what_only_posix_has(tmp_path):
    tiny.write_image_folder(tmp_path / "images")
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE]
    ended = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stdout.splitlines()[-1:] == ["done"], ended.stderr


def test_no_module_of_the_files_or_the_data_imports_what_only_posix_has():
    package = Path(__file__).parents[1] / "vision_zoo"
    for path in [package / "files.py", *package.glob("data/*.py"), *package.glob("backbones/*.py")]:
        words = path.read_text(encoding="utf-8").split()
        assert not {"fcntl", "resource", "pwd", "grp"} & set(words), path
