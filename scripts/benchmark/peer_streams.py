"""A network of ours trained on streams of webdataset or litdata, in an environment of their own that has torch.

    PYTHON scripts/benchmark/peer_streams.py JOB.json

The job has "task", "peer", the "images" as a .npz file, the "folder" for the peer's own files, "workers" and "steps".
"write" writes these files; "speed" tells images/s behind the first steps; "resume" trains once without a break, and
once with a process that saves in mid-epoch, as the peer documents it, and is killed, and one that goes on; it tells
whether both end with the same weights. Leaves answer.json.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch
import webdataset
from torch import Tensor, nn

from vision_zoo.backbones import LeNet5

BATCH, WARM_UP, PER_SHARD, SEED = 64, 5, 1000, 42
STATE, WEIGHTS = "state.pt", "weights_{}.pt"


@cache
def photos(path: str) -> tuple[Any, list[int]]:
    """uint8 (N, C, H, W) in [0, 255], and labels."""
    content = np.load(path)
    return content["images"].transpose(0, 3, 1, 2), content["labels"].tolist()


def sample(path: str, n: int) -> dict[str, Any]:
    """A photo as litdata takes it."""
    images, labels = photos(path)
    return {"image": torch.from_numpy(np.ascontiguousarray(images[n])), "class": labels[n]}


def write(job: dict[str, Any]) -> None:
    """The photos as uint8 arrays, in a mixed order, in shards of about 50 MB: nothing need be decoded."""
    images, labels = photos(job["images"])
    order, folder = np.random.default_rng(0).permutation(len(labels)).tolist(), Path(job["folder"])
    if job["peer"] == "litdata":
        one = partial(sample, job["images"])
        litdata.optimize(fn=one, inputs=order, output_dir=str(folder), chunk_bytes="64MB", num_workers=1, verbose=False)
        return
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=PER_SHARD, verbose=0) as shards:
        for n in order:
            shards.write({"__key__": f"{n:06}", "npy": np.ascontiguousarray(images[n]), "cls": labels[n]})


def loader(job: dict[str, Any]) -> Any:
    """Their batches, as their pages show it, with all seeds given that they take."""
    folder = Path(job["folder"])
    if job["peer"] == "litdata":
        data = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=True, seed=SEED)
        return litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=job["workers"])
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    stream = webdataset.WebDataset(shards, shardshuffle=len(shards), detshuffle=True, seed=SEED, empty_check=False)
    stream = stream.shuffle(PER_SHARD, seed=SEED).decode().to_tuple("npy", "cls").batched(BATCH, partial=False)
    return webdataset.WebLoader(stream, batch_size=None, num_workers=job["workers"])


def train(job: dict[str, Any], stop: int = -1) -> tuple[float, nn.Module]:
    """Images/s of so many steps in float32, over as many epochs as they take, and the network.

    At the step `stop` the process saves what there is to save and kills itself; a state that is there is gone on from.
    """
    torch.manual_seed(0)
    network = LeNet5((3, 128, 128), 5)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.002, fused=True)
    criterion, batches, step = nn.CrossEntropyLoss(label_smoothing=0.05), loader(job), 0
    resumable = hasattr(batches, "state_dict")  # webdataset has no state
    if Path(STATE).exists():
        state = torch.load(STATE, weights_only=False)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        if resumable:
            batches.load_state_dict(state["loader"])
    began, seen = time.perf_counter(), 0
    while step < job["steps"]:
        for batch in batches:
            images, labels = (batch["image"], batch["class"]) if isinstance(batch, dict) else batch
            images, labels = torch.as_tensor(images), torch.as_tensor(labels)
            optimizer.zero_grad()
            loss: Tensor = criterion(network((images.float() - 127.5) / 63.75), labels)
            loss.backward()
            optimizer.step()
            step, seen = step + 1, seen + len(labels)
            if step == WARM_UP:
                began, seen = time.perf_counter(), 0
            if step == stop:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save({**state, "loader": batches.state_dict() if resumable else None}, STATE)
                os.kill(os.getpid(), signal.SIGKILL)
            if step == job["steps"]:
                break
    return seen / (time.perf_counter() - began), network


def resume(job: dict[str, Any]) -> str:
    """Whether weights are the same after a kill."""
    for name, stop in (("calm", -1), ("killed", job["steps"] // 2), ("killed", -1)):
        Path("part.json").write_text(json.dumps({**job, "task": "part", "name": name, "stop": stop}))
        code = subprocess.run([sys.executable, __file__, "part.json"], check=False).returncode
        assert code == (0 if stop < 0 else -signal.SIGKILL), code
    calm, killed = (torch.load(WEIGHTS.format(name)) for name in ("calm", "killed"))
    return "the same" if all(torch.equal(value, killed[name]) for name, value in calm.items()) else "other"


def main(job: dict[str, Any]) -> None:
    """Do the task."""
    if job["task"] == "part":
        torch.save(train(job, job["stop"])[1].state_dict(), WEIGHTS.format(job["name"]))
        return
    tasks: dict[str, Any] = {"write": write, "resume": resume, "speed": lambda job: train(job)[0]}
    Path("answer.json").write_text(json.dumps(tasks[job["task"]](job)))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
