"""What `export --int8` costs and gains: accuracy, size and speed of each run, as int8 and as float ONNX.

python scripts/int8_figures.py runs/lenet5_mnist/version_0 runs/cnn_mnist/version_0
python scripts/int8_figures.py runs/* --data_root data    # where the data have moved

For each run: what export says (layers, size, validation accuracy before and after), then images/s of onnxruntime on
the CPU, int8 over float, for batches of 1 and 64 images and one thread and two. The two files take turns; a figure is
the median of five, with the least and the most. Asked for: at most 0.2 points, .3 of the size, 1.5 times the speed.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

EXPORT = [sys.executable, "-m", "vision_zoo", "export"]
TURNS, SECONDS = 5, 0.4  # of each file


def main() -> None:
    """Measure each run, and print a row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders or checkpoints")
    parser.add_argument("--data_root", help="where the data of all these runs are")
    parser.add_argument("--max_drop", default="0.2", help="points of accuracy that int8 may cost")
    parser.add_argument("--keep", help="folder for the files, by default none; those that are there are not made again")
    given = parser.parse_args()
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    print(f"onnxruntime {onnxruntime.__version__}, {'with' if 'vnni' in flags else 'WITHOUT'} VNNI")
    with tempfile.TemporaryDirectory() as temporary:
        for run in given.runs:
            measure(run, Path(given.keep or temporary), given)


def measure(run: str, folder: Path, given: argparse.Namespace) -> None:
    """Export a run twice, and tell what int8 makes of it."""
    name = "_".join(Path(run).parts[-4:])  # a checkpoint is four below its runs
    files = [folder / f"{name}.{kind}.onnx" for kind in ("float", "int8")]
    options = ["--int8", "--max_drop", given.max_drop, *(["--data_root", given.data_root] if given.data_root else [])]
    for file, words in zip(files, ([], options), strict=True):
        if not file.is_file():
            command = [*EXPORT, "--ckpt_path", run, "--output", str(file), *words]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                print(f"{name}: {made.stderr.strip()}", flush=True)
                return
            file.with_suffix(".txt").write_text(made.stdout)
    print(f"{name}: {files[1].with_suffix('.txt').read_text().splitlines()[0]}", flush=True)
    for threads in (1, 2):
        sessions = [session(file, threads) for file in files]
        for size in (1, 64):
            rates = [[speed(each, size) for each in sessions] for _ in range(TURNS)]
            ratios = sorted(small / large for large, small in rates)
            large, small = (statistics.median(column) for column in zip(*rates, strict=True))
            spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(
                f"  batches of {size:>2}, threads {threads}: {statistics.median(ratios):.2f} times {spread}; "
                f"{small:,.0f} against {large:,.0f} images/s",
                flush=True,
            )


def session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """The network of a file, as many would run it, with a number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def speed(network: onnxruntime.InferenceSession, size: int) -> float:
    """Images per second in batches of a size."""
    shape = [size, *network.get_inputs()[0].shape[1:]]
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    network.run(None, {"images": images})
    began, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < SECONDS:
        network.run(None, {"images": images})
        count += size
    return count / taken


if __name__ == "__main__":
    main()
