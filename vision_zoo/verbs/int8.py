"""export --int8: static quantisation, as accurate as the user asks for.

What comes before the first layer, logits and known score stay float. So does a convolution of the images: it has few
weights, and of 1 or 3 channels onnxruntime's integers take up to five times as long; but not where there is a MaxPool,
which takes as much longer behind a float layer. Where accuracy falls too far, layers stay float, too (Wu et al. 2020,
https://arxiv.org/abs/2004.09602): none at first; then the first, the last and what is between layers; then 1, 2, 4, ...
more, those first that change the logits most when they alone are quantised. Each try is measured.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import ConfigError, InputError, refuse
from vision_zoo.formatting import metric_text
from vision_zoo.known import threshold_of
from vision_zoo.types import LabelledImages
from vision_zoo.verbs.checks import check_data
from vision_zoo.verbs.compare.statistics import interval
from vision_zoo.verbs.formats import FORMATS, ExportError, Outputs

CALIBRATED_ON, MEASURED_ON, BATCH = 256, 10_000, 32  # images, at most
LAYERS = ("Conv", "Gemm", "MatMul")  # the operators whose weights make a file large
BETWEEN = ("Add", "Clip", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool")  # for which nothing turns to float


def images_of(datamodule: ImageDataModule | None, model: Classifier) -> tuple[Tensor, LabelledImages]:
    """Training images to calibrate on, uint8 (N, C, H, W), and validation images; a ConfigError without them."""
    needs, moved = "--int8 needs the run's training and validation images", "Where the data have moved, set --data_root"
    try:
        refuse(ConfigError, (datamodule is None, "its checkpoint names none that can be had here"))
        assert datamodule is not None
        check_data(model, datamodule)
        found = datamodule.sample("train", CALIBRATED_ON).images, datamodule.sample("val", MEASURED_ON)
    except (InputError, OSError) as error:
        held = "where none were held out, train with --data.val_split 0.1"
        refuse(ConfigError, (True, f"{needs}: {error}. {moved}; {held}"))
    return found


def quantise(whole: Path, target: Path, model: Classifier, train: Tensor, val: LabelledImages, max_drop: float) -> str:
    """Write the int8 file of a float one, which lies in a temporary folder, and tell in a line what it costs.

    Raises:
        ExportError: if the validation accuracy drops by more points, or nothing can be quantised.
    """
    import onnx  # noqa: PLC0415  # these are of an extra
    from onnxruntime.quantization import QuantType, quantize_static  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    prepared = whole.with_name("prepared.onnx")
    quant_pre_process(whole, prepared, skip_symbolic_shape=True)  # weights that are still computed would stay float
    layers, between, first = _parts(onnx.load(prepared).graph)
    refuse(ExportError, (not layers, f"{model.network_name} has no layer that can be quantised: leave out --int8"))

    def write(nodes: Sequence[str], images: Tensor) -> None:
        batches = iter([{"images": batch.numpy()} for batch in torch.split(images, BATCH)])
        reader: Any = SimpleNamespace(get_next=lambda: next(batches, None))
        # Weights of 7 bits: x86 processors without VNNI add two products of 8 bits in 16, which overflow, so that other
        # machines would not have the accuracy that is measured here. Logits of 8 bits would be ties.
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        options: Any = {**types, "per_channel": True, "reduce_range": True}
        floats = {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]}
        quantize_static(prepared, target, reader, nodes_to_quantize=list(nodes), extra_options=floats, **options)

    def change(layer: str) -> float:
        write([layer], train[:BATCH])
        return float((_run(target, model, train[:BATCH])[0] - _run(whole, model, train[:BATCH])[0]).square().mean())

    logits, *scores = _run(whole, model, val.images)
    right = logits.argmax(1) == val.labels
    for kept in _tries(list(layers), change):
        write([*(name for name in layers if name not in kept), *(() if kept else between)], train)
        logits, *new_scores = _run(target, model, val.images)
        still = logits.argmax(1) == val.labels
        drop = 100 * int(right.sum() - still.sum()) / len(right)
        if drop <= max_drop:
            break
    low, high = interval((right.double() - still.double()).numpy())
    count = f"{len(layers) - len(kept)} of {len(layers) + len(first)} layers"
    was, now = (metric_text("accuracy", float(each.float().mean())) for each in (right, still))
    what = f"{len(right):,} validation images{', which chose the float layers,' * bool(kept)}"
    told = f"accuracy on {what} {was} -> {now}, a drop of {drop:.2f} "
    told += f"points (95 % interval {100 * low:.2f} to {100 * high:.2f})"
    way_out = f"--max_drop {math.ceil(100 * drop) / 100:.2f} would allow it, and without --int8 the file is float"
    refuse(ExportError, (drop > max_drop, f"int8 costs too much, with {count} still: {told}. {way_out}"))
    if model.known is not None:
        threshold, file = threshold_of(new_scores[0], model.known.share), onnx.load(target)
        facts = {**model.known.facts, "threshold": threshold}
        next(each for each in file.metadata_props if each.key == "known").value = json.dumps(facts)
        onnx.save(file, target)
        passed = (scores[0] >= model.known.threshold), (new_scores[0] >= threshold)
        shares = " -> ".join(metric_text("known", float(each.float().mean())) for each in passed)
        told += f"; of them {shares} pass as known, by a threshold of its own"
    size, floats = target.stat().st_size / whole.stat().st_size, ", ".join([*first, *(layers[name] for name in kept)])
    return f"int8: {count}{f' ({floats} float)' * bool(floats)}, {size:.2f} of the size; {told}"


def _parts(graph: Any) -> tuple[dict[str, str], list[str], list[str]]:
    """What the logits come from: layers, with the names of their weights; nodes behind one; convolutions of images."""
    weights, needed, behind, seen = {tensor.name for tensor in graph.initializer}, {"logits"}, set[str](), set[str]()
    for node in reversed(graph.node):  # each comes after those that it needs
        needed |= {*node.input} if needed & {*node.output} else set()
    layers, between, first = dict[str, str](), list[str](), list[str]()
    pools = any(node.op_type == "MaxPool" for node in graph.node)
    for node in (node for node in graph.node if needed & {*node.output}):
        is_layer, follows = node.op_type in LAYERS and node.input[1] in weights, bool(behind & {*node.input})
        name = node.input[1].removeprefix("backbone.").removesuffix(".weight") if is_layer else ""
        is_first = is_layer and node.op_type == "Conv" and not pools and not seen & {*node.input}
        seen |= {*node.output} if is_layer or seen & {*node.input} else set()
        behind |= {*node.output} if follows or (is_layer and not is_first) else set()
        if is_first:
            first.append(name)
        elif is_layer:
            layers[node.name] = name
        elif follows and node.op_type in BETWEEN:
            between.append(node.name)
    return layers, between, first


def _tries(layers: Sequence[str], change: Callable[[str], float]) -> Iterator[Sequence[str]]:
    """The layers that stay float in each try, of which there are at most 2 + log2(layers); one at least is int8."""
    yield ()
    if len(layers) > 2:
        yield (ends := (layers[0], layers[-1]))
        ranked, more = (*ends, *sorted(layers[1:-1], key=change, reverse=True)), 1
        while 2 + more < len(layers):
            yield ranked[: 2 + more]
            more *= 2


def _run(file: Path, model: Classifier, images: Tensor) -> Outputs:
    forward = FORMATS["onnx"].load(file, model)
    return tuple(map(torch.cat, zip(*map(forward, torch.split(images, BATCH)), strict=True)))
