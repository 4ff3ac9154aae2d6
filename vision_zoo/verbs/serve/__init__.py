"""serve: a trained network behind a page to try it, and a JSON interface."""

import copy
import gc
import io
import socket
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from itertools import chain

import torch
from PIL import Image
from torch import Tensor

from vision_zoo.checkpoints import open_checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.data.decode import decoding_threads
from vision_zoo.data.described import described_data
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.verbs.explain.maps import maps, overlay
from vision_zoo.verbs.page import rendered
from vision_zoo.verbs.predict import CACHED, answered, device_of, labels_shown, training_mean
from vision_zoo.version import __version__


def serve(
    ckpt_path: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    top_k: int | None = None,
    batch_size: int = CACHED,
    max_megabytes: float = 20.0,
    max_megapixels: float = 50.0,
    max_waiting: int = 256,
    max_seconds: float = 30.0,
    accelerator: str = "auto",
    trusted_packages: Sequence[str] = (),
) -> None:
    """Serve a page to try a network on, and a JSON interface.

    POST /predict takes the bytes of an image, or a form with files, and gives for each the labels, their
    probabilities, and "none of these" where the network was trained with --known. POST /explain takes one image, and
    gives a PNG of where the network looked. GET /health and GET /metrics tell how it is. An image that cannot be
    classified has an error in its place, and fails no other. Ctrl-C ends it.

    Args:
        ckpt_path: a checkpoint, a run folder (its best), or best or last of the newest run.
        host: address to listen at; 0.0.0.0 lets other machines in, without a password: put a reverse proxy before it.
        port: where to listen; 0 takes a free one.
        top_k: labels for each image, by default 5 or all where there are fewer.
        batch_size: images that the network takes at a time, at most.
        max_megabytes: of a request; a larger one gets the status 413.
        max_megapixels: of an image; a larger one gets the status 413 before it is decoded.
        max_waiting: images on their way at a time; one more gets the status 503.
        max_seconds: that an upload (408) and its answer (503) may take.
        accelerator: cpu, cuda, mps, gpu for either of these two, or auto for the fastest that there is.
        trusted_packages: packages whose classes the checkpoint may name.
    """
    try:
        import uvicorn  # noqa: PLC0415  # of the extra "serve"

        from vision_zoo.verbs.serve.app import make_app  # noqa: PLC0415
        from vision_zoo.verbs.serve.batching import Batcher, reader  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs the package {error.name}: pip install 'vision_zoo[serve]'") from error
    limits = {"batch_size": batch_size, "max_megabytes": max_megabytes, "max_megapixels": max_megapixels}
    limits |= {"max_waiting": max_waiting, "max_seconds": max_seconds}
    refuse(ConfigError, *((value <= 0, f"--{name} must be above 0, got {value}") for name, value in limits.items()))
    checkpoint = open_checkpoint(ckpt_path, trusted_packages)
    datamodule = described_data(checkpoint.data)
    model = Classifier.from_checkpoint(checkpoint.content).to(device_of(accelerator))
    labels = labels_shown(model, top_k)

    def classify(network: Classifier, pixels: Tensor) -> list[dict[str, object]]:
        return [_row(*answer) for answer in answered(network, pixels.to(network.device), labels)]

    def look(pixels: Tensor) -> bytes:
        label = answered(model, pixels[None].to(model.device), 1)[0][0][0]
        evidence = maps(model, pixels[None], torch.tensor([model.class_names.index(label)]))[0]
        file, drawn = io.BytesIO(), overlay(pixels, evidence).permute(1, 2, 0).numpy()
        Image.fromarray(drawn).save(file, "PNG")
        return file.getvalue()

    classify(model, torch.zeros(1, *model.image_shape, dtype=torch.uint8))  # which makes kernels: nobody waits for it
    # A network for each thread, since hooks are of a network; all of them have the same weights.
    weights = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    classifiers = [partial(classify, copy.deepcopy(model, {**weights})) for _ in range(decoding_threads())]
    resize, interpolation = checkpoint.resizing
    read = reader(model.image_shape, resize=resize, value_range=model.value_range, interpolation=interpolation)
    batcher = Batcher(classifiers, read, batch_size, max_waiting, max_megapixels * 1e6)
    facts: dict[str, object] = {
        "network": model.network_name,
        "classes": list(model.class_names),
        "version": __version__,
    }
    facts |= {"image_shape": list(model.image_shape), "known": model.known is not None}
    explains = find_spec("captum") is not None
    page = rendered(model, training_mean(model, datamodule), facts={"explains": explains})
    app = make_app(batcher, look if explains else None, page, facts, int(max_megabytes * 2**20), max_seconds)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=3
    )
    gc.freeze()  # or the collector looks at all that torch made again and again, and everybody waits a quarter second
    sys.setswitchinterval(3e-4)  # s, that the thread which answers waits for one that computes
    with _listening(host, port) as place, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")  # odd but readable images
        address = f"[{host}]" if ":" in host else host
        print(f"http://{address}:{place.getsockname()[1]}/  serves {model.network_name}; Ctrl-C ends it", flush=True)
        uvicorn.Server(config).run(sockets=[place])


def _row(labels: Sequence[str], probabilities: Sequence[float], answer: str, score: float) -> dict[str, object]:
    """The answer for one image as JSON has it."""
    top = [{"label": label, "probability": p} for label, p in zip(labels, probabilities, strict=True)]
    row: dict[str, object] = {"label": labels[0], "probability": probabilities[0], "top": top}
    return row | ({"answer": answer, "known_score": score} if answer else {})


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} --port {port}: nothing can listen there ({reason}); try --port 0") from error
