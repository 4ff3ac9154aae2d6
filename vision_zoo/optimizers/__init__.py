"""Optimizers of our own, and how any is built and tried."""

from vision_zoo.optimizers.muon import MuonWith
from vision_zoo.optimizers.sam import SAM
from vision_zoo.optimizers.schedule_free import AdamWScheduleFree, SGDScheduleFree

__all__ = ["SAM", "AdamWScheduleFree", "MuonWith", "SGDScheduleFree"]
