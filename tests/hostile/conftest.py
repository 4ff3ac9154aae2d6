import sys
from typing import Any

import pytest
import torch


@pytest.fixture
def good(trained_run) -> dict[str, Any]:
    return torch.load(trained_run / "checkpoints" / "best.ckpt", weights_only=True)


@pytest.fixture
def evil_package(here, monkeypatch):
    """A package on the path that leaves the marker as soon as it is imported."""
    (here / "evil_package").mkdir()
    (here / "evil_package/__init__.py").write_text("open('MARKER', 'w')\nclass Net: pass\nclass Callback: pass\n")
    monkeypatch.syspath_prepend(str(here))
    yield
    sys.modules.pop("evil_package", None)
