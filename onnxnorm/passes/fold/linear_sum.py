"""A sum of tensors, taken apart: what its operands are in terms of maps by constants of a channel.

The sum is a tree of Add, Sub and Sum whose inner results nothing else reads. Each operand is followed backwards through
BatchNormalization in inference, Neg, and Mul, Div, Add, Sub by constants of axis 1, as long as nothing else reads what
is in between: operand = scale[c] * base + shift[c].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.fold.affine_behind import per_channel
from onnxnorm.passes.fold.affine_layout import FloatArray
from onnxnorm.passes.fold.layer_output import is_parameter
from onnxnorm.passes.graph import is_op, rank_of, sole_consumer
from onnxnorm.passes.rule import Context, Refusal

#: A sum of more operands is left alone.
LARGEST_SUM = 256
_MAPS = ("Add", "BatchNormalization", "Div", "Mul", "Neg", "Sub")


@dataclass(frozen=True)
class Operand:
    """One operand.

    Attributes:
        value: what the sum reads.
        reader: the node of the sum that reads it.
        sign: 1, or -1 where it is subtracted.

    """

    value: ir.Value
    reader: ir.Node
    sign: float


@dataclass(frozen=True)
class Mapped:
    """operand = scale * base + shift, (channels,) each; ``maps`` are the nodes in between, from the base on."""

    base: ir.Value
    scale: FloatArray
    shift: FloatArray
    maps: tuple[ir.Node, ...]


def is_sum(node: ir.Node | None) -> bool:
    """Whether the node adds tensors that are computed."""
    if node is None or not any(is_op(node, name) for name in ("Add", "Sub", "Sum")):
        return False
    return not any(value is None or is_parameter(value) for value in node.inputs)


def is_root(node: ir.Node) -> bool:
    """Whether the sum is no operand of another one that takes it apart."""
    reader = sole_consumer(node.outputs[0])
    return not (is_sum(reader) and reader is not None and reader.graph is node.graph)


def operands_of(root: ir.Node) -> tuple[list[ir.Node], list[Operand]]:
    """(the nodes of the sum from the root on, its operands in order); no operands where there are too many."""
    nodes: list[ir.Node] = []
    found: list[Operand] = []
    waiting: list[tuple[ir.Node, float]] = [(root, 1.0)]
    stack: list[Operand | tuple[ir.Node, float]] = list(waiting)
    while stack:
        item = stack.pop()
        if isinstance(item, Operand):
            found.append(item)
            continue
        node, sign = item
        nodes.append(node)
        if len(nodes) > LARGEST_SUM:
            return nodes, []
        for index, value in reversed(list(enumerate(node.inputs))):
            assert value is not None
            by = -sign if index == 1 and is_op(node, "Sub") else sign
            inner = value.producer()
            own = inner is not None and inner.graph is root.graph and is_sum(inner)
            if own and inner is not None and sole_consumer(value) is node:
                stack.append((inner, by))
            else:
                stack.append(Operand(value, node, by))
    return nodes, found


def mapped_from(operand: Operand, channels: int, context: Context) -> Mapped:
    """The operand in terms of what no map makes; of itself where a map is no legal one."""
    value, reader = operand.value, operand.reader
    scale, shift = np.ones(channels), np.zeros(channels)
    maps: list[ir.Node] = []
    while (node := value.producer()) is not None and (data := _data_of(node)) is not None:
        if node.graph is not context.graph or sole_consumer(value) is not reader:
            break
        rank = rank_of(data)
        if rank is None or rank < 3:
            break
        index = np.arange(channels, dtype=np.float64).reshape(1, -1, *(1,) * (rank - 2))
        try:
            by, plus = per_channel(node, data, index, channels, context)
        except Refusal:
            break
        with np.errstate(all="ignore"):  # what is not finite is refused in the end
            scale, shift = scale * by, shift + scale * plus
        maps.insert(0, node)
        value, reader = data, node
    return Mapped(value, scale, shift, tuple(maps))


def _data_of(node: ir.Node) -> ir.Value | None:
    """What the node maps, where it is the only input that is computed."""
    if not any(is_op(node, name) for name in _MAPS):
        return None
    if is_op(node, "BatchNormalization"):
        return node.inputs[0]
    computed = [value for value in node.inputs if value is not None and not is_parameter(value)]
    return computed[0] if len(computed) == 1 else None
