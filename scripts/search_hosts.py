"""Search on two hosts that share a PostgreSQL: one is killed in the middle of a trial, and the other takes it up.

    sudo .venv/bin/python scripts/search_hosts.py          # about four minutes on two cores

The hosts are those of two_hosts.py. The database runs on the first one, from Debian's package postgresql; the driver is
psycopg2 (pip install psycopg2-binary). Exit code 1 where a trial is lost or tried twice, 2 where this cannot be tried.
"""

import argparse
import csv
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from two_hosts import ADDRESSES, NAMES, on_hosts

TRIALS = 10
URL = f"postgresql+psycopg2://postgres@{ADDRESSES[0]}/postgres"
RECIPE = """model: {backbone: LeNet5, optimizer: {class_path: Adam, init_args: {lr: 0.001}}}
data: MNIST5k
trainer: {max_epochs: 6, enable_progress_bar: false}
"""


def on_host(rank: int, *words: str, **options: object) -> subprocess.Popen[str]:
    """Start a program on one of the hosts."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(["ip", "netns", "exec", NAMES[rank], *words], text=True, env=environment, **options)


def start_database(programs: Path, folder: Path) -> None:
    """Start a PostgreSQL on the first host that both may use without a password."""
    folder.mkdir()
    shutil.chown(folder, "postgres")
    as_user = ("runuser", "-u", "postgres", "--")
    subprocess.run([*as_user, programs / "initdb", "-D", folder, "-A", "trust"], check=True, stdout=subprocess.DEVNULL)
    with (folder / "pg_hba.conf").open("a") as file:
        file.write("host all all 10.213.77.0/30 trust\n")
    words = ["-c", f"listen_addresses={ADDRESSES[0]}", "-c", f"unix_socket_directories={folder}"]
    log = (folder.parent / "postgres.log").open("w")
    on_host(0, *as_user, str(programs / "postgres"), "-D", str(folder), *words, stdout=log, stderr=log)
    for _ in range(100):
        ready = on_host(0, str(programs / "pg_isready"), "-h", ADDRESSES[0], stdout=subprocess.DEVNULL)
        if ready.wait() == 0:
            return
        time.sleep(0.2)
    raise RuntimeError((folder.parent / "postgres.log").read_text())


def worker(rank: int, folder: Path) -> subprocess.Popen[str]:
    """Start the same search on a host; what it prints goes into a file."""
    words = ["study", "mine.yaml", "--search", "model.optimizer.lr=1e-4..1e-1:log", "--trials", str(TRIALS)]
    log = (folder / f"worker{rank}.log").open("w")
    command = [sys.executable, "-m", "vision_zoo", *words, "--storage", URL]
    return on_host(rank, *command, cwd=folder, stdout=log, stderr=log)


def search(folder: Path, programs: Path) -> int:
    """Search with both, kill the second one in its second trial; the number of things that are wrong."""
    folder.chmod(0o755)  # the database is another user's
    start_database(programs, folder / "database")
    (folder / "mine.yaml").write_text(RECIPE)
    workers = [worker(rank, folder) for rank in (0, 1)]
    until = time.monotonic() + 300
    while "val/accuracy" not in (folder / "worker1.log").read_text():
        if time.monotonic() > until or any(process.poll() is not None for process in workers):
            raise RuntimeError("".join((folder / f"worker{rank}.log").read_text() for rank in (0, 1)))
        time.sleep(0.1)
    time.sleep(3)  # into its next trial
    killed = subprocess.run(["ip", "netns", "pids", NAMES[1]], capture_output=True, text=True, check=True)
    for pid in killed.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    print(f"killed {len(killed.stdout.split())} processes of the second host in the middle of a trial", flush=True)
    code = workers[0].wait(timeout=600)
    print((folder / "worker0.log").read_text())
    # From this host the database cannot be reached: the first one is asked.
    ask = f"""import optuna
for trial in optuna.load_study(study_name=None, storage="{URL}").trials:
    print(trial.number, trial.state.name, sep=",")"""
    told = subprocess.PIPE
    states = on_host(0, sys.executable, "-c", ask, stdout=told, stderr=subprocess.DEVNULL).communicate(timeout=60)[0]
    count = Counter(line.split(",")[1] for line in states.split())
    rows = list(csv.DictReader((folder / "studies" / "mine" / "results.csv").open()))
    rates = Counter(row["model.optimizer.lr"] for row in rows)
    print(f"trials of the database: {dict(count)}; rows of the table: {len(rows)}, of {len(rates)} rates; code {code}")
    wrong = [count["COMPLETE"] != TRIALS, count["FAIL"] != 1, len(rows) != TRIALS, len(rates) != TRIALS, code != 0]
    return sum(wrong)


def main() -> int:
    """Try it; see the top of this file."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    needs = {"postgresql": found, "psycopg2": importlib.util.find_spec("psycopg2")}
    return on_hosts(lambda folder: search(folder, found[-1].parent), "no trial was lost, none was made twice", needs)


if __name__ == "__main__":
    sys.exit(main())
