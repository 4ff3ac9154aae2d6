"""How simple the project is, in figures: lines, files, refusals, private names of libraries.

python scripts/measures.py            # of this checkout
python scripts/measures.py OTHER      # of another one, such as a worktree of an earlier commit
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The two files that may touch private names of lightning, torch and jsonargparse.
PRIVATE_ALLOWED = ("training/lightning_patches.py", "cli/parser.py")
LIBRARIES = ("lightning", "pytorch_lightning", "torch", "torchvision", "torchmetrics", "jsonargparse", "argparse")


def package_files(root: Path) -> list[Path]:
    """The Python files of the package, sorted."""
    return sorted((root / "vision_zoo").rglob("*.py"))


def lines(path: Path) -> int:
    """How many lines a file has."""
    return len(path.read_text(encoding="utf-8").splitlines())


def count(root: Path, pattern: str) -> int:
    """How many lines of the package match a pattern."""
    return sum(len(re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)) for path in package_files(root))


def raises(root: Path) -> int:
    """How many raise statements the package has."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in package_files(root))
    return sum(isinstance(node, ast.Raise) for tree in trees for node in ast.walk(tree))


def class_lines(path: Path, name: str) -> int:
    """How many lines a class has, its docstrings included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return (node.end_lineno or 0) - node.lineno + 1


def private_names(root: Path) -> Iterator[tuple[Path, int, str]]:
    """Every use of an underscore name that the package does not define itself: file, line, name."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in package_files(root)}
    own = {name for tree in trees.values() for node in ast.walk(tree) for name in _defined(node)}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            used: list[str] = []
            if isinstance(node, ast.Attribute):
                used = (
                    [] if getattr(node.value, "id", "") in ("os", "sys") else [node.attr]
                )  # os._exit, of Python itself
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
                used = [alias.name for alias in node.names]
                used += (node.module or "").split(".")
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
                used = [
                    arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
                ]
            for name in used:
                if re.match(r"_[^_]", name) and name not in own:
                    yield path, node.lineno, name


def _defined(node: ast.AST) -> Iterator[str]:
    """Underscore names that a node defines: functions, classes, constants, attributes of self."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    for target in targets:
        for part in ast.walk(target):
            if isinstance(part, ast.Name):
                yield part.id
            elif isinstance(part, ast.Attribute) and getattr(part.value, "id", "") in ("self", "cls"):
                yield part.attr


def main() -> None:
    """Print the figures of a checkout."""
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    files = sorted(package_files(root), key=lines)
    tests = sorted((root / "tests").rglob("*.py"), key=lines)
    foreign = list(private_names(root))
    places = sorted({str(path.relative_to(root / "vision_zoo")) for path, _, _ in foreign})
    figures = {
        "lines of the package": f"{sum(map(lines, files)):,} in {len(files)} files",
        "files above 350 lines": sum(lines(file) > 350 for file in files),
        "largest files": ", ".join(f"{file.relative_to(root)} {lines(file)}" for file in files[-3:]),
        "lines of Classifier": class_lines(root / "vision_zoo" / "classifier.py", "Classifier"),
        "tests above 500 lines": sum(lines(file) > 500 for file in tests),
        "largest test": f"{tests[-1].relative_to(root)} {lines(tests[-1])}",
        "raise": raises(root),
        "type: ignore": count(root, "# type: ignore"),
        "private names of libraries": f"{len(foreign)} in {len(places)} files: {', '.join(places)}",
        "lines of README.md": lines(root / "README.md"),
    }
    for name, figure in figures.items():
        print(f"{name:<28}{figure}")


if __name__ == "__main__":
    main()
