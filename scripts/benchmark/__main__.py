"""What vision_zoo's speed is, against the loops that tutorials show and against a bare loop on tensors in memory.

    python scripts/benchmark --data_root data                  # everything, five times: hours
    python scripts/benchmark --data_root data --only a,b,e -n 3
    python scripts/benchmark --data_root data --json configs/speed.json
    python scripts/benchmark --write                           # configs/speed.json into scripts/README.md

Both sides of a row run in turn, each turn beginning with another one, in one tree of processes; a row shows the
medians, their ratio and the smallest and largest ratio of a pair. Sections: m machine, a batches, b cost of a step,
c fit against the tutorials and d time to their accuracy (measured together), e augmentation, f the door, g first step,
h memory, i predict, j two processes, k the choice of speed, l few photos against fastai, n packs,
o packs against webdataset and litdata, p airbench against a loop by hand.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # what is measured is the checkout that this file lies in

from scripts.benchmark import table  # noqa: E402  # after the path to it
from scripts.benchmark.bench import Bench  # noqa: E402
from scripts.benchmark.tasks import task  # noqa: E402
from scripts.benchmark.tutorials import SYSTEMS  # noqa: E402
from scripts.results import between  # noqa: E402
from vision_zoo.errors import VisionZooError  # noqa: E402


def main() -> int:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", default="data", help="folder with MNIST, FashionMNIST, cifar-10-batches-py")
    parser.add_argument("--only", help="sections, such as a,b,e")
    parser.add_argument("--systems", help=f"networks of sections b, c and d; all are {','.join(SYSTEMS)}")
    parser.add_argument("-n", type=int, help="runs of each side; 5, or 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="few steps, to see that everything runs")
    parser.add_argument("--json", type=Path, help="file for the rows; those of the same name are replaced")
    parser.add_argument("--write", action="store_true", help="write scripts/README.md from configs/speed.json")
    parser.add_argument("--check", action="store_true", help="exit code 1 where scripts/README.md is out of date")
    parser.add_argument("--fastai", help="Python of an environment with fastai and timm, which section l compares with")
    parser.add_argument("--peers", help="Python of an environment with webdataset and litdata, for section o")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.json and options.quick:
        parser.error("--json keeps what was measured in full: leave out --quick")
    if options.task:
        print(json.dumps(task(options.task, options.data_root, options.words)))
        return 0
    if options.write or options.check:
        path = ROOT / "scripts" / "README.md"
        wanted = between(path, table.BEGIN, table.END, table.speed(ROOT / "configs" / "speed.json"))
        wrong = path.read_text() != wanted
        if options.write:
            path.write_text(wanted)
        elif wrong:
            print(f"{path} is out of date; run: python scripts/benchmark --write", file=sys.stderr)
        return int(wrong and options.check)
    from scripts.benchmark.sections import SECTIONS  # here, for a task measures what it imports

    bench = Bench(options)
    sections = bench.sections or list(SECTIONS)
    if unknown := [s for s in sections if s not in SECTIONS] + [s for s in bench.systems if s not in SYSTEMS]:
        parser.error(f"there is no {', '.join(unknown)}")
    for measure in dict.fromkeys(SECTIONS[section] for section in ["m", *sections]):
        try:
            measure(bench)
        except VisionZooError as error:  # such as images that are not there
            parser.error(str(error))
        if options.json:  # at once, for the next one may take hours
            bench.merge(options.json)
    table.show(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
