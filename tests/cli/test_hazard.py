"""A program that calls the command is never started again by it, whatever processes the command starts."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.lightning_rows.trial import BASE
from tests.training.test_processes import ENVIRONMENT

WORDS = [*BASE, "--trainer.accelerator", "cpu", "--trainer.devices", "2"]

# A program that does not look whether it is the first process; if it were started again, it would start itself again.
CALLS_MAIN = """
import sys
from vision_zoo.__main__ import main

with open("started", "a") as file:
    file.write("once\\n")
sys.exit(main({words!r}) or main({words!r}))
"""
MOST_PROCESSES = 6  # two that train, and what Python and torch start beside them


@pytest.mark.slow  # 10 s
def test_a_program_that_calls_fit_with_two_devices_is_not_started_again(tmp_path):
    tiny.write_npz(tmp_path / "data.npz", 40, 20, (8, 8))
    (tmp_path / "program.py").write_text(CALLS_MAIN.format(words=WORDS))
    most, code = watch_processes([sys.executable, "program.py"], tmp_path)
    assert most <= MOST_PROCESSES, f"{most} processes at once"
    assert code == 0, (tmp_path / "told").read_text()
    assert (tmp_path / "started").read_text() == "once\n"
    assert {path.name for path in tmp_path.glob("runs/*/version_*")} == {"version_0", "version_1"}
    assert [json.loads((run / "results.json").read_text())["devices"] for run in tmp_path.glob("runs/*/*")] == [2, 2]


def watch_processes(words: list[str], folder: Path) -> tuple[int, int | None]:
    """Run a program in a session of its own, which is ended when it has too many processes or takes too long.

    Returns:
        The most processes that were seen at once, and the exit code, None if the program had to be ended.
    """
    with (folder / "told").open("w") as file:
        process = subprocess.Popen(
            words, cwd=folder, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        most, until = 1, time.monotonic() + 90
        try:
            while process.poll() is None and most <= MOST_PROCESSES and time.monotonic() < until:
                groups = subprocess.run(["ps", "-eo", "pgid="], capture_output=True, text=True, check=True).stdout
                most = max(most, groups.split().count(str(process.pid)))
                time.sleep(0.1)
        finally:
            code = process.poll()
            with contextlib.suppress(ProcessLookupError):  # all have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return most, code
