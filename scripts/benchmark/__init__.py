"""What vision_zoo's speed is; see ``python scripts/benchmark --help``."""
