"""Train and test on two hosts that are joined by a network, and compare the figures with those of one process.

    sudo .venv/bin/python scripts/two_hosts.py          # about two minutes on two cores
    sudo .venv/bin/python scripts/two_hosts.py --cut    # also: the link between the hosts breaks while they train

The hosts are network namespaces of this machine, each with a private address and nobody else to talk to. They share the
file system, as the nodes of a cluster do. Every namespace and process is removed at the end, however it ends.
Exit code 1 where a figure differs or a host does not end as it should, 2 where this cannot be tried.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NAMES = (f"vz{os.getpid()}a", f"vz{os.getpid()}b")
ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = "29531"
CPU = ["--trainer.accelerator", "cpu"]
TWO = [*CPU, "--trainer.strategy", "ddp", "--trainer.devices", "1", "--trainer.num_nodes", "2"]
EXACT = ("accuracy", "top5_accuracy", "macro_accuracy", "f1")


def ip(*words: str) -> None:
    """Run ip."""
    subprocess.run(["ip", *words], check=True)


def join() -> None:
    """Make two hosts, each with one end of a cable."""
    for name in NAMES:
        ip("netns", "add", name)
    ip("link", "add", NAMES[0], "netns", NAMES[0], "type", "veth", "peer", "name", NAMES[1], "netns", NAMES[1])
    for name, address in zip(NAMES, ADDRESSES, strict=True):
        ip("-n", name, "address", "add", f"{address}/30", "dev", name)
        ip("-n", name, "link", "set", name, "up")
        ip("-n", name, "link", "set", "lo", "up")


def on_host(rank: int, folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start vision_zoo on one of the hosts."""
    environment = {
        **os.environ,
        "MASTER_ADDR": ADDRESSES[0],
        "MASTER_PORT": PORT,
        "NODE_RANK": str(rank),
        "GLOO_SOCKET_IFNAME": NAMES[rank],
        "OMP_NUM_THREADS": "1",
    }
    command = ["ip", "netns", "exec", NAMES[rank], sys.executable, "-m", "vision_zoo", *words, *TWO]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def on_both(folder: Path, *words: str) -> None:
    """Run a command on both hosts."""
    hosts = [on_host(rank, folder, *words) for rank in (0, 1)]
    told = [host.communicate(timeout=300) for host in hosts]
    if any(host.returncode for host in hosts):
        raise RuntimeError(f"vision_zoo {words[0]} ended with {[host.returncode for host in hosts]}: {told}")
    print(f"{words[0]} on two hosts: exit codes 0 and 0; the second printed {len(told[1][0])} characters", flush=True)


def compare(folder: Path) -> int:
    """Train on both hosts, then score on both and on one; the number of figures that differ."""
    on_both(folder, "fit", "--model.backbone", "LeNet5", "--data.val_split", "997", "--trainer.max_epochs", "2")
    on_both(folder, "test", "--ckpt_path", "best", "--output", "two")
    one = [sys.executable, "-m", "vision_zoo", "test", "--ckpt_path", "best", "--output", "one", *CPU]
    subprocess.run(one, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    figures = [json.loads((folder / name / "test.json").read_text()) for name in ("one", "two")]
    wrong = 0
    for name in (*EXACT, "loss"):
        a, b = (figure[f"test/{name}"] for figure in figures)
        same = a == b if name in EXACT else abs(a - b) <= 1e-6 * abs(a)
        wrong += not same
        print(f"test/{name:<14} one process {a:<20} two hosts {b:<20} {'same' if same else 'DIFFERS'}")
    matrices = [(folder / name / "confusion_matrix.csv").read_bytes() for name in ("one", "two")]
    wrong += matrices[0] != matrices[1]
    print("confusion matrix", "same" if matrices[0] == matrices[1] else "DIFFERS")
    return wrong


def cut(folder: Path) -> int:
    """Break the link while both train; the number of hosts that do not end within a minute with their reason."""
    (folder := folder / "cut").mkdir()
    words = ["fit", "--model.backbone", "LeNet5", "--trainer.max_epochs", "1000", "--save_every_minutes", "0.02"]
    hosts = [on_host(rank, folder, *words) for rank in (0, 1)]
    try:
        until = time.monotonic() + 120
        while not list(folder.glob("runs/*/*/checkpoints/last.ckpt")):
            if time.monotonic() > until or any(host.poll() is not None for host in hosts):
                raise RuntimeError("the run to be cut did not start")
            time.sleep(0.2)
        began = time.monotonic()
        ip("-n", NAMES[1], "link", "set", NAMES[1], "down")
        wrong = 0
        for rank, host in enumerate(hosts):
            _, told = host.communicate(timeout=300)
            seconds = time.monotonic() - began
            good = host.returncode == 1 and seconds < 60 and "was lost" in told
            wrong += not good
            print(
                f"link cut: host {rank} ended after {seconds:.1f} s with {host.returncode}: {told.strip()}", flush=True
            )
    finally:
        for host in hosts:
            host.kill()
        ip("-n", NAMES[1], "link", "set", NAMES[1], "up")
    return wrong


def clean_up() -> None:
    """Remove what this script made; a namespace takes its end of the cable along."""
    for name in NAMES:
        inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        for pid in inside.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)


def on_hosts(work: Callable[[Path], int], agreed: str, needs: dict[str, object] | None = None) -> int:
    """Join two hosts and have `work` count in a new folder what is wrong there; the exit code of the script."""
    script = Path(sys.argv[0]).stem
    needs = {"ip, of the package iproute2": shutil.which("ip"), "root: use sudo": os.geteuid() == 0, **(needs or {})}
    if lacks := [need for need, there in needs.items() if not there]:
        print(f"{script}: this needs {'; '.join(lacks)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory() as name:
            try:
                join()
                wrong = work(Path(name))
            finally:
                clean_up()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, RuntimeError) as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 1
    print(f"{wrong} things are wrong" if wrong else agreed)
    return int(wrong > 0)


def main() -> int:
    """Run the comparison; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cut", action="store_true", help="also break the link in the middle of a run")
    given = parser.parse_args()
    return on_hosts(
        lambda folder: compare(folder) + (cut(folder) if given.cut else 0), "two hosts and one process agree"
    )


if __name__ == "__main__":
    sys.exit(main())
