"""Sizes of tensors that are numbers, symbols or unknown: which are surely equal, and what runs along the channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.passes.canonicalize.size_entries import is_joined_shape
from onnxnorm.passes.graph import attribute, is_op
from onnxnorm.passes.rule import Refusal, constant_array

FloatArray = npt.NDArray[np.float64]


def same_size(first: Any, second: Any) -> bool:
    """Whether two sizes are surely equal: the same number, or the same symbol."""
    if isinstance(first, int) or isinstance(second, int):
        return isinstance(first, int) and isinstance(second, int) and first == second
    return first.value is not None and first.value == second.value


def same_sizes(first: Sequence[Any], second: Sequence[Any], unproven: int = 1) -> bool:
    """Whether two shapes with equally many elements are surely the same.

    Args:
        first, second: sizes.
        unproven: how many pairs may be not known to be equal: of one pair the number of elements tells that it is.
            Two different numbers are never equal.

    """
    if len(first) != len(second):
        return False
    doubtful = [pair for pair in zip(first, second, strict=True) if not same_size(*pair)]
    return len(doubtful) <= unproven and not any(isinstance(a, int) and isinstance(b, int) for a, b in doubtful)


def is_shape_of(shape: ir.Value | None, x: ir.Value) -> bool:
    """Whether the value is Shape(x), whole, or joined from the sizes of x."""
    node = shape.producer() if shape is not None else None
    if node is None or not is_op(node, "Shape") or node.inputs[0] is not x:
        return is_joined_shape(shape, x)
    return attribute(node, "start", 0) == 0 and attribute(node, "end", None) is None


def expanded_shape(expand: ir.Node, x: ir.Value) -> ir.Shape | None:
    """The shape to which an Expand brings a statistic of x."""
    return x.shape if is_shape_of(expand.inputs[1], x) else expand.outputs[0].shape


def keeps_shape(reshape: ir.Node, x: ir.Value) -> bool:
    """Whether a Reshape of as many elements as x has surely gives the shape of x."""
    made = reshape.outputs[0].shape
    if is_shape_of(reshape.inputs[1], x):
        return True
    return made is not None and x.shape is not None and same_sizes(list(made), list(x.shape))


def shape_nodes(node: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes of its graph that compute the shape which a Reshape or Expand reads, back to Shape."""
    found: dict[ir.Node, None] = {}
    waiting = list(node.inputs[1:])
    while waiting:
        value = waiting.pop()
        producer = None if value is None else value.producer()
        if producer is None or producer.graph is not node.graph or producer in found:
            continue
        found[producer] = None
        if not is_op(producer, "Shape"):
            waiting += producer.inputs
    return tuple(found)


def reads_shape_only(node: ir.Node) -> bool:
    """Whether the node asks for the shape of what it reads alone."""
    return is_op(node, "Shape") or is_op(node, "Size")


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value's numbers, None when there are several or it is a graph output.

    What reads its shape does not count: that must go, too, when the value does.
    """
    readers = [use.node for use in value.uses() if not reads_shape_only(use.node)]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def position_axes(rank: int, channels_last: bool) -> tuple[int, ...]:
    """The axes of (N, C, *) or (N, *, C) that are neither items nor channels."""
    return tuple(range(1, rank - 1)) if channels_last else tuple(range(2, rank))


def channel_count(x: ir.Value, channels_last: bool) -> int:
    """C; Refusal where it is not known, or 0."""
    size = None if x.shape is None or len(x.shape) < 2 else x.shape[-1 if channels_last else 1]
    if not isinstance(size, int) or size == 0:
        raise Refusal("the number of channels is not known or 0", x=str(x.shape))
    return size


def along_channels(shape: Sequence[Any] | ir.Shape, x: ir.Value, channels_last: bool) -> bool:
    """Whether a tensor of that shape broadcasts over x and varies along its channels only."""
    rank = len(x.shape or ())
    spread = [1] * (rank - len(shape)) + list(shape)
    axis = rank - 1 if channels_last else 1
    if len(spread) != rank or not rank:
        return False
    channels = x.shape[axis] if x.shape is not None else None
    return all(size == 1 or (index == axis and size == channels) for index, size in enumerate(spread))


def channel_vector(value: ir.Value | None, x: ir.Value, channels_last: bool, role: str) -> FloatArray:
    """The constant as one number per channel of x, in float64.

    Raises:
        Refusal: it is no constant of floats that no caller can override, or varies along another axis, or would
            broaden x.

    """
    array = constant_array(value, role)
    if not along_channels(array.shape, x, channels_last):
        raise Refusal(f"its {role} does not vary along the channels alone", shape=list(array.shape), x=str(x.shape))
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channel_count(x, channels_last),)).copy()


def names_channels(value: ir.Value, x: ir.Value, channels_last: bool) -> bool:
    """Whether the value has the axis of the channels of x, in their number, and otherwise axes of size 1."""
    if value.shape is None or x.shape is None:
        return False
    rank = len(x.shape)
    place = len(value.shape) - (1 if channels_last else rank - 1)
    return (
        0 <= place < len(value.shape)
        and same_size(value.shape[place], x.shape[rank - 1 if channels_last else 1])
        and along_channels(value.shape, x, channels_last)
    )
