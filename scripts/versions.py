"""Run a few tests with the lowest and with the highest supported versions of the packages that change the most.

    python scripts/versions.py                  # both, about a minute each
    python scripts/versions.py --only lowest    # or highest, or lightning==2.6.1,jsonargparse==4.52.0

The bounds are those of pyproject.toml. pip installs the packages into a folder of its own that comes before the
packages of this Python; torch and everything else stay as they are. One line for each, exit code 1 if one fails.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lightning", "jsonargparse", "torchmetrics", "pillow", "optuna", "rich", "jinja2", "filelock")
# The command line, a fit that is stopped and goes on, a refusal in words, test and predict with a checkpoint, a search,
# a page.
TESTS = [
    "tests/cli",
    "tests/training/test_run_folder.py",
    "tests/training/test_resume.py",
    "tests/verbs/test_predict.py",
    "tests/data/test_folder.py",
    "tests/verbs/test_search.py",
    "tests/verbs/test_report.py",
    "-k",
    "named_once or beats or starts_from or run_folder or crashed or longer or batch_size or exactly_those or optimum"
    " or one_page",
]


def bounds() -> dict[str, tuple[str, str]]:
    """For each package the requirement of the lowest and of the highest supported version, as pip reads them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {}
    for line in (*project["dependencies"], *project["optional-dependencies"]["search"]):
        name, bound = re.match(r"([\w-]+)(?:\[.*\])?(.*)", line).groups()
        if name in PACKAGES:
            lowest = re.search(r">=([\d.]+)", bound)[1]
            found[name] = (f"{name}=={lowest}", f"{name}{bound}")
    return found


def combinations(only: str | None) -> list[tuple[str, ...]]:
    """The requirements to install together, a tuple for each combination."""
    known = bounds()
    every = list(zip(*(known[name] for name in PACKAGES), strict=True))
    if only is None:
        return every
    if only in ("lowest", "highest"):
        return [every[0] if only == "lowest" else every[-1]]
    return [tuple(only.split(","))]


def try_out(requirements: tuple[str, ...]) -> bool:
    """Install a combination, run the tests with it, print one line."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
        done = subprocess.run([*pip, *requirements], capture_output=True, text=True, check=False)
        environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
        if done.returncode == 0:
            pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
            done = subprocess.run(pytest, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        code = f"import importlib.metadata as m; print(*map(m.version, {PACKAGES}))"
        python = [sys.executable, "-c", code]
        told = subprocess.run(python, env=environment, capture_output=True, text=True, check=False)
    versions = ", ".join(f"{n} {v}" for n, v in zip(PACKAGES, told.stdout.split(), strict=False)) or requirements
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
    passed = done.returncode == 0
    seconds = time.monotonic() - began
    print(f"{'pass' if passed else 'FAIL'}  {versions}  {seconds:.0f} s  {' '.join(last)}", flush=True)
    if not passed:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    return passed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="lowest, highest, or requirements joined by commas")
    results = [try_out(requirements) for requirements in combinations(parser.parse_args().only)]
    sys.exit(not all(results))
