"""What only a GPU can show, by `scripts/gpu_check.py`; without one, its dry run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTIONS = {"recipes", "accuracy", "choice", "resume", "steps", "compile", "airbench", "devices"}


def gpu_is_there() -> bool:
    found = shutil.which("nvidia-smi")
    return found is not None and subprocess.run([found], capture_output=True, check=False).returncode == 0


def check(*words: str) -> dict:
    """The report. (tests/conftest.py hides GPUs from the tests themselves.)"""
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is (done.returncode == 0)
    return report


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_is_there(), reason="no NVIDIA GPU here")
def test_every_section_of_the_check_is_ok_on_a_gpu():
    report = check("--data_root", os.environ.get("VISION_ZOO_DATA", "data"))
    assert report["sections"].keys() == SECTIONS
    assert not {name: section for name, section in report["sections"].items() if not section["ok"]}


@pytest.mark.slow  # 60 s
def test_the_dry_run_does_the_same_on_a_cpu():
    report = check("--device", "cpu", "--only", "choice", "resume", "steps", "airbench", "devices")
    assert report["ok"], report
    assert report["device"].startswith("cpu")
    steps = report["sections"]["steps"]["milliseconds"]
    assert steps.keys() == {"mlp", "lenet5", "resnet18"}
    assert all(value > 0 for times in steps.values() for value in times.values())
