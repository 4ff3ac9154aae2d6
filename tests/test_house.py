"""The house stays as simple as it is: sizes of files, private names of libraries, refusals."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("measures", ROOT / "scripts" / "measures.py")
measures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(measures)


def names(paths) -> list[str]:
    return [f"{path.relative_to(ROOT)}: {measures.lines(path)}" for path in paths]


def test_no_file_is_longer_than_a_reader_takes_in():
    assert not names(path for path in measures.package_files(ROOT) if measures.lines(path) > 350)
    assert not names(path for path in (ROOT / "tests").rglob("*.py") if measures.lines(path) > 500)
    assert not names(path for path in (ROOT / "scripts").rglob("*.py") if measures.lines(path) > 350)
    assert measures.lines(ROOT / "README.md") <= 202
    assert measures.class_lines(ROOT / "vision_zoo" / "classifier.py", "Classifier") <= 250


def test_the_package_stays_small():
    # 10,068 when the house was in order; the rest is what it can do since.
    assert sum(map(measures.lines, measures.package_files(ROOT))) <= 19_987
    assert measures.raises(ROOT) <= 140
    assert measures.count(ROOT, "# type: ignore") <= 5


def test_private_names_of_libraries_are_touched_in_two_files_only():
    """A new version of lightning, torch or jsonargparse may change them: then there are two files to look at."""
    elsewhere = [
        f"{path.relative_to(ROOT / 'vision_zoo')}:{line}: {name}"
        for path, line, name in measures.private_names(ROOT)
        if str(path.relative_to(ROOT / "vision_zoo")) not in measures.PRIVATE_ALLOWED
    ]
    assert not elsewhere


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("trainer.fit_loop._iteration_based_training = 1", ["_iteration_based_training"]),
        ("from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher", ["_SubprocessScriptLauncher"]),
        ("getattr(trainer, '_results')", ["_results"]),
        ("class A:\n    def _own(self):\n        self._kept = 1\n\n\nA()._own()\nA()._kept", []),
    ],
)
def test_a_private_name_is_noticed(text, found, tmp_path):
    (tmp_path / "vision_zoo").mkdir()
    (tmp_path / "vision_zoo" / "a.py").write_text(text)
    assert [name for _, _, name in measures.private_names(tmp_path)] == found


def test_the_tests_for_other_versions_exist():
    text = (ROOT / "scripts" / "versions.py").read_text()
    named = re.findall(r'"(tests/[^"]+)"', text)
    assert named
    assert all((ROOT / name).exists() for name in named), named
