"""A network layer by layer, as one image passes through it: output shapes, parameters, multiply-adds, memory."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vision_zoo import probe
from vision_zoo.classifier import Classifier
from vision_zoo.types import ImageShape

MB = 1_000_000  # bytes


@dataclass
class Layer:
    """One call of a module; counts are those of the module itself, without the calls inside it.

    Attributes:
        name: dotted, as in the state dict.
        kind: name of the class.
        output_shape: shape of the output, the batch of one image included.
        parameters: number of parameters first used by this call.
        parameter_bytes: memory of these.
        multiply_adds: of convolutions and matrix products.
        output_bytes: memory that the output takes; 0 where it shares that of the input, as after flattening.
        inside: calls of other modules, in order of execution.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] = ()
    parameters: int = 0
    parameter_bytes: int = 0
    multiply_adds: int = 0
    output_bytes: int = 0
    inside: list["Layer"] = field(default_factory=list)

    @property
    def memory(self) -> int:
        """Bytes of parameters and output."""
        return self.parameter_bytes + self.output_bytes

    def rows(self, depth: int | None = None) -> "list[Layer]":
        """Calls that contain no others, in order of execution; each count appears in exactly one row.

        Args:
            depth: calls nested deeper than this are summed up in the one that contains them.
        """
        if not self.inside or depth == 0:
            return [self.summed()]
        rows = [row for layer in self.inside for row in layer.rows(None if depth is None else depth - 1)]
        if self.parameters or self.multiply_adds:  # a class token, say, or a product that no submodule computes
            shape = self.output_shape
            own = (self.parameters, self.parameter_bytes, self.multiply_adds)
            rows.insert(0, Layer(f"{self.name} (itself)".lstrip(), self.kind, shape, *own))
        return rows

    def summed(self) -> "Layer":
        """The call with everything inside it as one row."""
        result = Layer(self.name, self.kind, self.output_shape)
        for layer in self._all():
            result.parameters += layer.parameters
            result.parameter_bytes += layer.parameter_bytes
            result.multiply_adds += layer.multiply_adds
            # The output of a block is that of its last layer: counted there.
            result.output_bytes += 0 if layer.inside else layer.output_bytes
        return result

    def _all(self) -> "Iterator[Layer]":
        yield self
        for layer in self.inside:
            yield from layer._all()


@dataclass(frozen=True)
class Summary:
    """What a walk through a network found.

    Attributes:
        network: the call of the backbone, with those of its layers inside.
        image_shape: (channels, height, width) of the image.
        trainable: number of parameters that an optimizer changes.
    """

    network: Layer
    image_shape: ImageShape
    trainable: int

    @property
    def total(self) -> Layer:
        """All layers as one."""
        return self.network.summed()

    def rows(self, depth: int | None = None, max_rows: int | None = None) -> list[Layer]:
        """Layers in order of execution.

        Args:
            depth: show blocks nested this deep as one row; None shows every layer.
            max_rows: choose the greatest depth that gives no more rows than this, but 1 at least.
        """
        rows = self.network.rows(depth)
        if max_rows is None or len(rows) <= max_rows:
            return rows
        rows, deeper, depth = self.network.rows(1), self.network.rows(2), 2
        # A depth that changes nothing (a wrapper around a single network) does not end the search.
        while len(deeper) <= max_rows:
            rows, deeper, depth = deeper, self.network.rows(depth + 1), depth + 1
        return rows


def summarise(model: Classifier, bf16: bool = False) -> Summary:
    """Send one black image through a classifier and note what each layer does; see `probe.check`, whose pass it is.

    Args:
        model: the classifier; it stays as it is, and random states are put back.
        bf16: try bfloat16 autocast with it; memory is told as in float32.

    Raises:
        ConfigError: if the backbone cannot classify images of the classifier's shape.
    """
    backbone = model.backbone
    walks: list[_Walk] = []

    def walk() -> AbstractContextManager[None]:
        walks.append(_Walk(backbone))
        return walks[-1].watching()

    devices = [model.scale.device] if model.scale.is_cuda else []
    with torch.random.fork_rng(devices):
        probe.check(model, bf16=bf16, around=walk)
    network = walks[-1].outer.inside[0]
    left = set(backbone.parameters()) - walks[-1].counted
    if left:
        size = sum(p.numel() for p in left)
        network.inside.append(Layer("(in no layer)", "", (), size, sum(map(_bytes, left))))
    return Summary(network, model.image_shape, sum(p.numel() for p in backbone.parameters() if p.requires_grad))


class _Walk:
    """One pass of an image through a network, layer by layer."""

    def __init__(self, backbone: nn.Module) -> None:
        self.names = {module: name for name, module in backbone.named_modules()}
        self.counter = FlopCounterMode(display=False)
        self.outer = Layer("", "")
        self.stack, self.flops_before = [self.outer], [0]
        self.counted: set[nn.Parameter] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note each call of a layer."""
        hooks = [module.register_forward_pre_hook(self.enter) for module in self.names]
        hooks += [module.register_forward_hook(self.leave, with_kwargs=True) for module in self.names]
        # Fused attention is one operation, of which nothing would be counted: take it as matrix products.
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH), self.counter:
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for hook in hooks:
                hook.remove()

    def enter(self, module: nn.Module, args: Any) -> None:
        """Note where a call begins."""
        self.stack.append(Layer(self.names[module], type(module).__name__))
        self.flops_before.append(self.counter.get_total_flops())

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Note what a call did."""
        layer = self.stack.pop()
        self.stack[-1].inside.append(layer)
        within = sum(inner.multiply_adds for inner in layer._all())  # its own are still 0
        layer.multiply_adds = (self.counter.get_total_flops() - self.flops_before.pop()) // 2 - within
        # Attention uses the weights of its output layer without calling it: without calls inside, all are its own.
        own = set(module.parameters(recurse=not layer.inside)) - self.counted
        self.counted.update(own)
        layer.parameters, layer.parameter_bytes = sum(p.numel() for p in own), sum(map(_bytes, own))
        outputs = list(_tensors(output))
        layer.output_shape = tuple(outputs[0].shape) if outputs else ()
        if isinstance(module, nn.Flatten):  # shares the memory of its input, but in channels_last
            return
        inputs = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        layer.output_bytes = sum(_bytes(o) for o in outputs if o.untyped_storage().data_ptr() not in inputs)


def layer_table(model: Classifier, depth: int | None = None, max_rows: int | None = None, bf16: bool = False) -> Table:
    """A table of a classifier's layers in order of execution, with totals.

    Args:
        model: the classifier; it stays as it is.
        depth: show blocks nested this deep as one row; None shows every layer.
        max_rows: shorten the table to about this many rows.
        bf16: see `summarise`.

    Raises:
        ConfigError: if the backbone cannot classify images of the classifier's shape.
    """
    summary = summarise(model, bf16)
    rows, total = summary.rows(depth, max_rows), summary.total
    frozen = total.parameters - summary.trainable
    trainable = f"{summary.trainable:,} trainable, {frozen:,} frozen" if frozen else "all trainable"
    deep = depth is None and len(rows) < len(summary.rows())
    shortened = "\nblocks stand for their layers; for each layer: vision_zoo summary" if deep else ""
    channels, height, width = summary.image_shape
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
        title=f"{total.kind}, one image of {channels} x {height} x {width}",
        title_justify="left",
        title_style="bold",
        caption=(
            f"{total.parameters:,} parameters ({trainable}), {total.multiply_adds:,} multiply-adds per image\n"
            f"memory: parameters {total.parameter_bytes / MB:,.3f} MB, outputs of the layers "
            f"{total.output_bytes / MB:,.3f} MB per image{shortened}"
        ),
        caption_justify="left",
        caption_style="",
    )
    for heading in ("layer", "type", "output shape"):
        table.add_column(heading, no_wrap=True)
    for heading in ("parameters", "multiply-adds", "memory, MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in [*rows, total]:
        last = row is total
        table.add_row(
            "total" if last else row.name or row.kind,
            "" if last else row.kind,
            str(row.output_shape) if row.output_shape and not last else "",
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
            f"{row.memory / MB:,.3f}",
            end_section=row is rows[-1],
        )
    # A table is not squeezed into a narrow terminal: cut numbers would be worse than long lines.
    table.width = Console(width=10_000).measure(table).maximum
    return table


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * (4 if tensor.dtype == torch.bfloat16 else tensor.element_size())


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
