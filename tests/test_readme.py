"""The three pages of the project: their figures are those of the rows, and every command and program on them works."""

import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts import results
from scripts.benchmark import table
from scripts.benchmark.bench import Row
from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.trust import TRUSTED_PACKAGES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "configs" / "README.md", ROOT / "scripts" / "README.md")

LIMITS = " --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.limit_test_batches 1"
# What a command gets in addition, so that it takes a second: the first text that it contains decides.
APPENDED = {
    "mine.yaml": f"--trainer.max_epochs 1 --data.val_split 20{LIMITS}",
    "--config finetune": f"--trainer.max_epochs 1 --data.image_size 32{LIMITS}",
    "vision_zoo teach": "--image_size 32",
    "vision_zoo study": f"--trainer.max_epochs 1{LIMITS}",
    "vision_zoo fit": f"--trainer.max_epochs 1{LIMITS}",
}
# What stands in another's place.
REPLACED = {
    '{"max_epochs": 1}': '{"max_epochs": 1, "limit_train_batches": 2}',
    "benchmark --write": "benchmark --check",  # would write into the checkout
    "--trials 20": "--trials 2",
    "--image_size 224": "--image_size 32",
}
# What is parsed only, and why.
PARSED_ONLY = {
    "--trainer.devices": "starts processes of its own",
    "pip install": "installs",
    "vision_zoo serve": "serves until it is stopped",
    "vision_zoo reproduce": "trains again, as long as the run did",
    "python3 -m venv": "installs",
    "pytest": "would run this test",
    ".ci/run": "would run this test",
    "soak.py": "takes minutes",
    "versions.py": "installs",
    "_hosts.py": "needs root",
    "gpu_check.py": "needs a GPU",
    "figures.py": "trains for a minute",
    "reproduce.py lenet5_mnist": "trains for minutes",
    "ablation.py": "trains for hours",
    "load.py": "serves for a minute",
    "benchmark --data_root": "measures for a minute",
    "next_labels.py": "trains thousands of heads",
}


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a kind."""
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path) -> list[str]:
    """Command lines, in order: every line of a shell's block, those with a prompt in a console's, and inline ones."""
    found = []
    for kind, text in re.findall(r"```(bash|console)\n(.*?)```", page.read_text().replace("\\\n", " "), re.DOTALL):
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        found += [line for line in lines if line] if kind == "bash" else [s[2:] for s in lines if s.startswith("$ ")]
    inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", page.read_text())]
    found += [code for code in inline if code.startswith(("vision_zoo ", "python ", "bash ", "pytest "))]
    options = [code for code in inline if code.startswith("--trainer.") and " " in code]
    return list(dict.fromkeys([*found, *(f"vision_zoo fit {code} --print_config" for code in options)]))


@pytest.fixture
def folder(here, monkeypatch):
    """What the pages speak of, tiny: datasets in data/, images, a recipe and a network of one's own."""
    for write in (tiny.write_mnist, tiny.write_fashion_mnist, tiny.write_cifar10):
        write(here / "data")
    tiny.write_image_folder(here / "scans", classes=("unsorted",), count=3)
    tiny.write_image_folder(here / "photos", classes=("daisy", "rose"))
    rows = [f"{path},{path.parent.name}" for path in (here / "photos").glob("*/*")]
    (here / "labels.csv").write_text("\n".join(["file,label", *rows]))
    images, labels = tiny.digits(200)
    np.savez(here / "digits.npz", images=images, labels=labels)
    (here / "mine.yaml").write_text(blocks(README, "yaml")[0])
    (here / "my_network.py").write_text(
        "from vision_zoo.backbones import SmallCNN\n\n\nclass MyNetwork(SmallCNN):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    return here


def replaced(text: str) -> str:
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.parent.name != "configs")) for p in PAGES],  # 40 s and 10 s
    ids=lambda page: page.parent.name * (page != README) or "project",
)
def test_every_command_of_a_page_works(page, folder, capsys):
    for command in commands(page):
        words = shlex.split(replaced(command).replace('"$(', "").replace(')"', ""))
        parsed_only = next((text for text in PARSED_ONLY if text in command), None)
        names = [Path(word).name for word in words]
        if "vision_zoo" in names:
            given = words[names.index("vision_zoo") + 1 :]
            more = next((more for text, more in APPENDED.items() if text in command), "")
            asked = "--help" if given[0] in ("serve", "reproduce") else "--print_config"
            given += [asked] if parsed_only else shlex.split(more)
            assert main(given) == 0, f"{command}: {capsys.readouterr().err}"
        elif program := next((word for word in words if word.startswith("scripts/")), None):
            script = [sys.executable, str(ROOT / program)]
            options = words[words.index(program) + 1 :]
            done = subprocess.run(
                [*script, *(["--help"] if parsed_only else options)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"
            unknown = [o for o in options if parsed_only and o.startswith("--") and o not in done.stdout]
            assert not unknown, command
        else:
            assert parsed_only, f"{command} is not tried"


def test_every_reason_not_to_try_a_command_is_needed():
    every = "\n".join(command for page in PAGES for command in commands(page))
    for texts in (APPENDED, PARSED_ONLY, REPLACED):
        for text in texts:
            assert text in every + blocks(README, "python")[-1], text


@pytest.mark.slow  # 5 s
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name * (page != README) or "project")
def test_every_python_block_of_a_page_runs(page, folder):
    for block in blocks(page, "python"):
        exec(compile(replaced(block), str(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name * (page != README) or "project")
def test_a_page_can_be_read_and_its_links_lead_somewhere(page):
    text = page.read_text()
    by_hand = re.sub(r"(?s)<!-- (results|speed) -->.*<!-- /\1 -->", "", text)
    assert [line for line in by_hand.splitlines() if len(line) > 120 and not line.startswith("|")] == []
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"`((?:vision_zoo|tests|configs|scripts|\.ci)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 202


def test_the_headline_figures_are_those_of_the_rows():
    readme = " ".join(README.read_text().split())
    project = results.Project()
    groups = {group.variant or f"{group.recipe} {group.options}".strip(): group for group in results.groups_of(project)}
    lines = re.findall(r"^\| `(\w+)` \| (.*) \|$", README.read_text().partition("## Results")[2], re.MULTILINE)
    assert len(lines) == 3
    for name, cells in lines:
        group = groups[name]
        n = len(group.rows)
        accuracy = f"{group.accuracy} ({n} seed{'s' * (n > 1)})"
        shown = [group.data, accuracy, results.goal(project, group)[1], f"{group.time}, {group.all('hardware')}"]
        assert cells.split(" | ") == shown, name

    rows = [Row(**row) for row in json.loads((ROOT / "configs" / "speed.json").read_text())["rows"]]
    (lenet,) = (row for row in rows if (row.section, row.recipe) == ("d", "lenet5_mnist"))
    reached, published = re.search(r"([\d.]+) \(", lenet.note)[1], re.search(r"[\d.]+ %", lenet.what)[0]
    processor, threads = re.search(r"^(.*?),.* (\d+ threads?)", lenet.machine).groups()
    ratios = table.counted(rows, "c")
    for claim in (
        f"{reached} % test accuracy on MNIST, the median of {lenet.n} runs, after {lenet.ours:.1f} s",
        f"published {published}, takes {lenet.theirs:.0f} s on the same {threads} of an {processor}",
        f"{statistics.geometric_mean(ratios):.1f} times as fast as the tutorials' own loops "
        f"(geometric mean of {len(ratios)} networks",
    ):
        assert claim in readme


def test_the_readme_names_the_packages_that_a_checkpoint_may_name():
    listed = re.search(r"may name classes of ([\w, ]+) only", " ".join(README.read_text().split()))[1]
    assert re.split(", | and ", listed) == list(TRUSTED_PACKAGES)
