"""Commands run in-process, and what their runs leave."""

from pathlib import Path

import yaml

from vision_zoo.__main__ import main


def config_of(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def newest(here: Path, name: str = "default") -> Path:
    return max((here / "runs" / name).glob("version_*"), key=lambda p: int(p.name.split("_")[1]))


def fit(*words: str) -> int:
    few = [f"--trainer.limit_{part}_batches=2" for part in ("train", "val", "test")]
    return main(["fit", *few, "--trainer.max_epochs", "1", *words])


def refused(capsys, *words: str, code: int = 2) -> str:
    """Run a command that must fail, and give its message."""
    assert main([*words]) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error
