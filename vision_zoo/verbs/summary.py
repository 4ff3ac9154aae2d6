"""A network layer by layer, as one image passes through it: output shapes, parameters, multiply-adds, memory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from vision_zoo import probe
from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError, refuse

MB = 1_000_000  # bytes


@dataclass
class Layer:
    """One call of a module; counts are those of the module itself, without the calls inside it."""

    name: str  # dotted, as in the state dict
    kind: str  # name of the class
    depth: int = 0  # how many calls it is inside of; 0 for the backbone
    contains: bool = False  # whether there are calls of other modules inside
    output_shape: tuple[int, ...] = ()  # the batch of one image included
    parameters: int = 0  # first used by this call
    parameter_bytes: int = 0
    multiply_adds: int = 0  # of convolutions and matrix products
    output_bytes: int = 0  # 0 where it shares the input's memory, as after flattening, or is that of a call inside

    @property
    def memory(self) -> int:
        """Bytes of parameters and output."""
        return self.parameter_bytes + self.output_bytes

    @property
    def texts(self) -> tuple[str, str, str]:
        """Parameters, multiply-adds and memory in MB, as a table shows them."""
        return f"{self.parameters:,}", f"{self.multiply_adds:,}", f"{self.memory / MB:,.3f}"

    def add(self, other: "Layer") -> None:
        """Take the counts of another call into this one."""
        for count in ("parameters", "parameter_bytes", "multiply_adds", "output_bytes"):
            setattr(self, count, getattr(self, count) + getattr(other, count))


@dataclass(frozen=True)
class Summary:
    """What one image met on its way through a network."""

    calls: list[Layer]  # in the order in which they began, so that those inside a call follow it
    trainable: int  # number of parameters that an optimizer changes

    @property
    def total(self) -> Layer:
        """All layers as one."""
        return self.rows(0)[0]

    def rows(self, depth: int | None = None, max_rows: int | None = None) -> list[Layer]:
        """Layers in order of execution; each count appears in exactly one row.

        Args:
            depth: show blocks nested this deep as one row; None shows every layer.
            max_rows: choose the greatest depth that gives no more rows than this, but 1 at least.
        """
        deepest = max(1, *(call.depth for call in self.calls))
        if max_rows is not None:
            depth = next((d for d in range(deepest, 1, -1) if len(self.rows(d)) <= max_rows), 1)
        depth = deepest if depth is None else depth
        rows: list[Layer] = []
        for call in self.calls:
            if call.depth > depth:
                rows[-1].add(call)
            elif call.depth == depth or not call.contains:
                rows.append(replace(call))
            elif call.parameters or call.multiply_adds:  # a class token, say, or a product that no submodule computes
                rows.append(replace(call, name=f"{call.name} (itself)".lstrip()))
        return rows


def summary(model: Classifier, depth: int | None = None) -> None:
    """Show a network's layers: shapes, parameters, multiply-adds.

    Args:
        model: the classifier.
        depth: show blocks that are nested this deep as one row each, by default every layer.
    """
    refuse(ConfigError, (depth is not None and depth < 1, f"--depth must be at least 1, got {depth}"))
    Console(highlight=False, soft_wrap=True).print(layer_table(model, depth))


def summarise(model: Classifier) -> Summary:
    """Send one black image through a classifier, which stays as it is, and note what each layer does.

    Raises:
        ConfigError: if the backbone cannot classify images of the classifier's shape.
    """
    calls: list[Layer] = []
    probe.check(model, around=lambda: _watching(model.backbone, calls))
    return Summary(calls, sum(p.numel() for p in model.backbone.parameters() if p.requires_grad))


@contextmanager
def _watching(backbone: nn.Module, calls: list[Layer]) -> Iterator[None]:
    """Note each call of a layer during a pass."""
    names = {module: name for name, module in backbone.named_modules()}
    counter = FlopCounterMode(display=False)
    open_calls: list[tuple[int, int]] = []  # place in the list, and operations before
    counted: set[nn.Parameter] = set()

    def enter(module: nn.Module, args: Any) -> None:
        open_calls.append((len(calls), counter.get_total_flops()))  # a module may be called twice: per call, not module
        calls.append(Layer(names[module], type(module).__name__, len(open_calls) - 1))

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        place, before = open_calls.pop()
        layer, inside = calls[place], calls[place + 1 :]
        layer.contains = bool(inside)
        layer.multiply_adds = (counter.get_total_flops() - before) // 2 - sum(call.multiply_adds for call in inside)
        # Attention uses the weights of its output layer without calling it: without calls inside, all are its own.
        own = set(module.parameters(recurse=not inside)) - counted
        counted.update(own)
        layer.parameters, layer.parameter_bytes = sum(p.numel() for p in own), sum(p.nbytes for p in own)
        outputs = _tensors(output)
        layer.output_shape = tuple(outputs[0].shape) if outputs else ()
        inputs = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        if not inside:
            layer.output_bytes = sum(o.nbytes for o in outputs if o.untyped_storage().data_ptr() not in inputs)

    hooks = [module.register_forward_pre_hook(enter) for module in names]
    hooks += [module.register_forward_hook(leave, with_kwargs=True) for module in names]
    # Fused attention is one operation, of which nothing would be counted: take it as matrix products.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # Without gradients, the counter fails at a view of a weight that is trained, such as a class token's.
    trained = [w.requires_grad_(False) for w in backbone.parameters() if w.requires_grad and not is_lazy(w)]
    try:
        with sdpa_kernel(SDPBackend.MATH), counter:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for weight in trained:
            weight.requires_grad_()
        for hook in hooks:
            hook.remove()
    if left := set(backbone.parameters()) - counted:
        size, nbytes = sum(p.numel() for p in left), sum(p.nbytes for p in left)
        calls.append(Layer("(in no layer)", "", 1, parameters=size, parameter_bytes=nbytes))


def layer_table(model: Classifier, depth: int | None = None, max_rows: int | None = None) -> Table:
    """A table of a classifier's layers in order of execution, with totals; see `Summary.rows` and `summarise`."""
    found = summarise(model)
    rows, total = found.rows(depth, max_rows), found.total
    frozen = total.parameters - found.trainable
    trainable = f"{found.trainable:,} trainable, {frozen:,} frozen" if frozen else "all trainable"
    title = f"{total.kind}, one image of {' x '.join(map(str, model.image_shape))}"
    caption = (
        f"{total.parameters:,} parameters ({trainable}), {total.multiply_adds:,} multiply-adds per image\n"
        f"memory: parameters {total.parameter_bytes / MB:,.3f} MB, outputs of the layers "
        f"{total.output_bytes / MB:,.3f} MB per image"
    )
    if depth is None and len(rows) < len(found.rows()):
        caption += "\nblocks stand for their layers; for each layer: vision_zoo summary"
    counts = (Column(name, justify="right") for name in ("parameters", "multiply-adds", "memory, MB"))
    table = Table("layer", "type", "output shape", *counts, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    table.title, table.title_style, table.title_justify = title, "bold", "left"
    table.caption, table.caption_style, table.caption_justify = caption, "", "left"
    for row in rows:
        shape = str(row.output_shape) if row.output_shape else ""
        table.add_row(row.name or row.kind, row.kind, shape, *row.texts, end_section=row is rows[-1])
    table.add_row("total", "", "", *total.texts)
    # A table is not squeezed into a narrow terminal: cut numbers would be worse than long lines.
    table.width = Console(width=10_000).measure(table).maximum
    return table


def _tensors(value: Any) -> list[Tensor]:
    """Tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return [tensor for item in items for tensor in _tensors(item)]
