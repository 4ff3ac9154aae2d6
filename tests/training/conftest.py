from pathlib import Path

import pytest

from tests.training.runs import STATEFUL
from vision_zoo.__main__ import main


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Path:
    """A run with every source of state at once that nothing stopped."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert main([*STATEFUL, "--trainer.default_root_dir", str(root)]) == 0
    return root / "runs" / "default" / "version_0"
