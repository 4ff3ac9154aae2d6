"""fastai's `fine_tune` on the same photos from the same weights, in an environment of its own that has fastai and timm.

    PYTHON scripts/benchmark/peer_fastai.py JOB.json

The job: the paths of the photos of "train" and "test", each in the folder of its class, the file of "weights", "side",
"seed" and "epochs" after the frozen one. Leaves answer.json with the test accuracy.
"""

import json
import sys
from pathlib import Path

import pandas as pd
import torch
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)


def main(job: dict) -> None:
    """Train and test."""
    set_seed(job["seed"], reproducible=True)
    rows = [(path, Path(path).parent.name, part == "test") for part in ("train", "test") for path in job[part]]
    frame = pd.DataFrame(rows, columns=["name", "label", "is_valid"])
    transforms = [*aug_transforms(size=job["side"]), Normalize.from_stats([0.5] * 3, [0.5] * 3)]
    data = ImageDataLoaders.from_df(
        frame,
        path="/",
        valid_col="is_valid",
        item_tfms=Resize(job["side"]),
        batch_tfms=transforms,
        bs=64,
        num_workers=2,
    )
    learner = vision_learner(data, "tf_efficientnet_lite0", pretrained=False, normalize=False, metrics=accuracy)
    body = learner.model[0].model
    state = torch.load(job["weights"], map_location="cpu", weights_only=True)
    theirs = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in body.state_dict() if not name.endswith("num_batches_tracked")]
    loaded = dict(zip(names, theirs, strict=False))  # theirs has a head more
    missing, unexpected = body.load_state_dict(loaded, strict=False)
    assert not unexpected
    assert all("num_batches" in name for name in missing)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(job["epochs"], 2e-3)
    _, correct = learner.validate()
    Path("answer.json").write_text(json.dumps({"accuracy": float(correct)}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
