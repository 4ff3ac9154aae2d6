"""What a network makes of images before its last layer: computed once, kept on the disk by what it depends on."""

import copy
import hashlib
import io
import time
from contextlib import ExitStack, suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_zoo import probe
from vision_zoo.backbones.fitting import head_of
from vision_zoo.checkpoints import read_torch_file
from vision_zoo.classifier import Classifier, set_memory_format
from vision_zoo.data.decode import decoding_threads
from vision_zoo.data.sources import Files, InMemory, Source, pump
from vision_zoo.errors import CheckpointError, ConfigError, DataError, TrainingError, refuse
from vision_zoo.files import lock_file, release, user_cache, write_file
from vision_zoo.known import with_features
from vision_zoo.specs import describe
from vision_zoo.training.performance import has_fast_bf16
from vision_zoo.training.random_states import kept_random_states
from vision_zoo.training.speed_trial import Trial, Way

BATCH, TRIED = 32, 16  # images at a time, whose feature maps stay near the processor, and those of a trial of speed
AHEAD = 4  # batches that are decoded at a time
ALIKE = 0.999  # least cosine of an image's features in bfloat16 and in float32
MOST_KEPT = 4 * 2**30  # bytes on the disk; the oldest go


class Features(NamedTuple):
    """The features of the images that can be read."""

    values: Tensor  # float32 (N, D)
    places: Tensor  # int64 (N,), which images of their source they are of
    seconds: float = 0.0  # that computing took; 0 where they were on the disk


def features_of(model: Classifier, source: Source, indices: Tensor | None = None, exact: bool = False) -> Features:
    """The features of images of a source, by default of all, from the disk where they were computed before.

    They depend on the weights before the last layer, how images are prepared, and the images: the pixels of those in
    memory, names, sizes and times of files. They are computed in the fastest way whose features are those of float32;
    if `exact`, in float32 and the plain order. Of several processes that want the same ones, one computes them.

    Raises:
        ConfigError: if the network does not end in a linear layer.
        DataError: if no image can be read.
    """
    indices = torch.arange(len(source)) if indices is None else indices
    file = user_cache("features") / f"{_identity(model, source, indices, exact)}.pt"
    with ExitStack() as held:
        with suppress(OSError):  # where there can be no lock, each process computes
            file.parent.mkdir(parents=True, exist_ok=True)
            held.callback(release, cast(Any, lock_file(file.with_suffix(".lock"), wait=True)))
        with suppress(CheckpointError, KeyError):  # it is not there, or not whole
            kept = read_torch_file(file)
            with suppress(OSError):  # of another user
                file.touch()
            unread = source.fetch(indices[~torch.isin(indices, kept["places"])])
            source.report(unread.failures, last=True)  # each time
            return Features(kept["values"], kept["places"])
        began = time.monotonic()
        found = _compute(model, source, indices, exact)
        content = io.BytesIO()
        torch.save({"values": found.values, "places": found.places}, content)
        with suppress(OSError, TrainingError):  # a home that cannot be written to: they are computed anew each time
            write_file(file, content.getvalue())
            _drop_oldest(file.parent)
        return Features(found.values, found.places, time.monotonic() - began)


def _drop_oldest(folder: Path) -> None:
    room = MOST_KEPT
    for file in sorted(folder.glob("*.pt"), key=lambda file: -file.stat().st_mtime):
        room -= file.stat().st_size
        if room < 0:
            file.unlink(missing_ok=True)


def _identity(model: Classifier, source: Source, indices: Tensor, exact: bool) -> str:
    """A name for all that the features of a source depend on."""
    head, found = head_of(model.backbone), hashlib.sha256()
    tensors = {name: value for name, value in model.backbone.state_dict().items() if not name.startswith(f"{head}.")}
    tensors["indices"] = indices
    if isinstance(source, InMemory):
        tensors["images"] = source.images
        facts: Any = ()
    else:
        assert isinstance(source, Files)
        facts = (source.stamps(indices), source.image_shape, source.resize, source.value_range, source.interpolation)
    how = (model.scale.flatten().tolist(), model.shift.flatten().tolist(), describe(model.backbone), exact, facts)
    found.update(repr(how).encode())
    for name, value in tensors.items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()


def _compute(model: Classifier, source: Source, indices: Tensor, exact: bool) -> Features:
    network, way = model.backbone, Way() if exact else fastest_way(model)
    set_memory_format(network, torch.channels_last if way.channels_last else torch.contiguous_format)
    numbered = copy.copy(source)
    numbered.labels = torch.arange(len(source))
    batches = torch.split(indices, BATCH)
    values, places = list[Tensor](), list[Tensor]()
    with probe.evaluating(model), torch.inference_mode():
        for images, numbers, failures in pump(numbered.fetch, batches, decoding_threads(), AHEAD, take_turns=True):
            source.report(failures)
            if not len(images):
                continue
            pixels = images.to(model.device) * model.scale + model.shift
            pixels = pixels.contiguous(memory_format=torch.channels_last) if way.channels_last else pixels
            features = _features(network, pixels, way)
            if way.bf16 and not values:
                plain = _features(network, pixels, Way())
                if not (F.cosine_similarity(features, plain) >= ALIKE).all():
                    way, features = Way(False, way.channels_last), plain
            values.append(features.cpu())
            places.append(numbers)
    model.set_memory_format(model.channels_last)
    source.report((), last=True)
    refuse(DataError, (not values, "none of the images can be read: give files in a common format, PNG or JPEG"))
    return Features(torch.cat(values), torch.cat(places))


def _features(network: nn.Module, pixels: Tensor, way: Way) -> Tensor:
    with torch.autocast(pixels.device.type, torch.bfloat16, way.bf16):
        features = with_features(network, partial(network, pixels))[1]
    none = "features are what a last linear layer is given, and this network has none: take another --model.backbone"
    refuse(ConfigError, (not features.shape[1], none))
    return features.float()


def follows_from_features(model: Classifier, network: nn.Module) -> bool:
    """Whether a network, in its modes, gives what its head does, and the head the features that evaluation has."""
    with kept_random_states(), probe.evaluating(model), ExitStack() as held:
        pixels = torch.randn(8, *model.image_shape, device=model.device)
        _, expected = with_features(model.backbone, partial(model.backbone, pixels))
        if not expected.shape[1]:
            return False
        given = torch.randn(8, model.num_classes, device=model.device)  # in place of what the head would give
        held.callback(network.get_submodule(head_of(network)).register_forward_hook(lambda *_: given).remove)
        logits, features = with_features(network, partial(network, pixels))
        return torch.equal(logits, given) and torch.allclose(features, expected, rtol=1e-3, atol=1e-4)


def fastest_way(model: Classifier, autocasts: bool = True) -> Way:
    """The fastest way of the network's evaluation, by the better of two steps of each after a first one."""
    shape, device, times = (TRIED, *model.image_shape), model.device, {}
    trial = Trial(model.backbone, shape, model.num_classes, device, training=False)
    for bf16, last in product([False, True][: 1 + (autocasts and has_fast_bf16(device))], (False, True)):
        way = Way(bf16, last)
        with suppress(*probe.REFUSALS):  # such as a `view` of features in channels_last
            trial.seconds(way)
            times[way] = min(trial.seconds(way), trial.seconds(way))
    return min(times, key=lambda way: times[way])
