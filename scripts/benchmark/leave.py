"""The callback of section g, named by its class path on the command line."""

import os
from typing import Any

from lightning.pytorch import Callback


class Leave(Callback):
    """Leave as the interpreter would, without its clearing up."""

    def on_train_batch_end(self, *_: Any) -> None:
        """The first step was taken."""
        os._exit(0)
