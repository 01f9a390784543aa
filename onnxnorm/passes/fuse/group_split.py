"""Reads how a Reshape cuts a tensor's channels into groups, and follows what is standardized to the Reshape back.

(N, C, *) -> (N, G, ...)          statistics over all behind G; the channels of a group lie side by side
(N, C, *) -> (N * G, ...)         likewise
(N, *, C) -> (N, ..., G, C / G)   statistics over all but N and G
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.fuse.sizes import FloatArray, keeps_shape, same_size, shape_nodes, sole_reader
from onnxnorm.passes.fuse.standardized import Standardized
from onnxnorm.passes.graph import constant_tensor, is_op

#: Longer chains of operators between the norm and the Reshape back are not followed.
_MOST_STEPS = 8


@dataclass(frozen=True)
class Layout:
    """Where the groups are in the cut shape.

    Attributes:
        groups: G.
        channels: C.
        channels_last: the layout of the whole tensor.
        axes: of the cut shape: that of the groups, and that of a group's channels; None where there is none of its own.

    """

    groups: int
    channels: int
    channels_last: bool
    axes: tuple[int | None, int | None]


@dataclass(frozen=True)
class Split:
    """A norm between two Reshapes.

    Attributes:
        x: the tensor before it is cut.
        layout: how it is cut.
        factor, shift: what follows the standardized values, per channel.
        nodes: what stands behind these, the Reshape back last.
        shared: the Reshape that cuts, and what computes shapes.

    """

    x: ir.Value
    layout: Layout
    factor: FloatArray
    shift: FloatArray
    nodes: tuple[ir.Node, ...]
    shared: tuple[ir.Node, ...]


def find_split(found: Standardized) -> Split | None:
    """The Reshapes around what is standardized; None where there are none, or what is in between varies otherwise."""
    split = found.x.producer()
    if split is None or not is_op(split, "Reshape") or found.x.shape is None:
        return None
    x = split.inputs[0]
    if x is None or x.shape is None:
        return None
    layout = _layout(list(x.shape), list(found.x.shape), found.axes)
    if layout is None:
        return None
    affine = _Affine(layout, len(found.x.shape), found.factor)
    for weight in found.weights:
        if not affine.meets("Mul", weight):
            return None
    for shift, below in found.shifts:
        if not affine.meets("Sub" if below else "Add", shift):
            return None
    value: ir.Value = found.root.outputs[0]
    nodes: list[ir.Node] = []
    while len(nodes) < _MOST_STEPS:
        node = sole_reader(value)
        if node is None or node.graph is not found.root.graph:
            return None
        nodes.append(node)
        if is_op(node, "Reshape"):
            if node.inputs[0] is not value or not keeps_shape(node, x):
                return None
            shared = (split, *shape_nodes(split), *shape_nodes(node))
            return Split(x, layout, affine.factor, affine.shift, tuple(nodes), shared)
        if not is_op(node, "Cast") and not affine.follows(node, value):
            return None
        value = node.outputs[0]
    return None


def _layout(whole: list[Any], parts: list[Any], axes: tuple[int, ...]) -> Layout | None:
    """How a shape is cut; None where that does not make groups of channels."""
    rank = len(parts)
    if len(whole) < 2 or rank < 2 or not axes:
        return None
    kept = [axis for axis in range(rank) if axis not in axes]
    if kept == [0, 1] and same_size(parts[0], whole[0]):
        return _checked(parts[1], whole[1], False, parts, (1, 2 if rank > 2 else None))
    if kept == [0, rank - 2] and rank > 3 and same_size(parts[0], whole[0]):
        layout = _checked(parts[-2], whole[-1], True, parts, (rank - 2, rank - 1))
        return layout if layout is not None and layout.axes[1] is not None else None
    if kept and kept == list(range(len(kept))) and all(size == 1 for size in parts[: kept[-1]]):
        items = whole[0]
        if isinstance(items, int) and isinstance(parts[kept[-1]], int) and items and parts[kept[-1]] % items == 0:
            return _checked(parts[kept[-1]] // items, whole[1], False, parts, (None, None))
        values = [*whole[1:], *parts[kept[-1] + 1 :]]
        if all(isinstance(size, int) and size > 0 for size in values):
            of_item, of_group = math.prod(whole[1:]), math.prod(parts[kept[-1] + 1 :])
            return (
                _checked(of_item // of_group, whole[1], False, parts, (None, None)) if of_item % of_group == 0 else None
            )
    return None


def _checked(
    groups: Any, channels: Any, last: bool, parts: list[Any], axes: tuple[int | None, int | None]
) -> Layout | None:
    if not isinstance(groups, int) or not isinstance(channels, int) or groups < 1 or channels < 1 or channels % groups:
        return None
    own = axes[1] is not None and parts[axes[1]] == channels // groups
    return Layout(groups, channels, last, (axes[0], axes[1] if own else None))


class _Affine:
    """Scale and shift per channel that the steps behind the norm add up to."""

    def __init__(self, layout: Layout, rank: int, factor: float) -> None:
        self._layout = layout
        self._rank = rank
        self.factor: FloatArray = np.full(layout.channels, factor, np.float64)
        self.shift: FloatArray = np.zeros(layout.channels)

    def follows(self, node: ir.Node, value: ir.Value) -> bool:
        """Takes in a node that reads the value; False where it is no step with a constant."""
        if node.op_type not in ("Mul", "Div", "Add", "Sub") or not is_op(node, node.op_type):
            return False
        first, second = node.inputs
        if second is value and first is not None and first is not value:
            if node.op_type == "Div":
                return False
            if node.op_type == "Sub":
                self.factor, self.shift = -self.factor, -self.shift
                return self.meets("Add", first)
            return self.meets(node.op_type, first)
        return first is value and second is not None and second is not value and self.meets(node.op_type, second)

    def meets(self, op_type: str, other: ir.Value) -> bool:
        """Takes in a step with that operand; False where it is no constant with one value per channel."""
        vector = self._per_channel(other)
        if vector is None:
            return False
        with np.errstate(all="ignore"):
            if op_type in ("Mul", "Div"):
                vector = vector if op_type == "Mul" else 1.0 / vector
                self.factor, self.shift = self.factor * vector, self.shift * vector
            else:
                self.shift = self.shift + (vector if op_type == "Add" else -vector)
        return True

    def _per_channel(self, other: ir.Value) -> FloatArray | None:
        tensor = constant_tensor(other)
        if tensor is None or not tensor.dtype.is_floating_point() or len(tensor.shape) > self._rank:
            return None
        array = np.asarray(tensor.numpy()).astype(np.float64)
        spread = array.reshape((1,) * (self._rank - array.ndim) + array.shape)
        of_group, own = self._layout.axes
        if any(size != 1 and axis not in (of_group, own) for axis, size in enumerate(spread.shape)):
            return None
        groups = self._layout.groups
        sizes = (groups, self._layout.channels // groups)
        shape = tuple(1 if axis is None else spread.shape[axis] for axis in (of_group, own))
        if any(size not in (1, wanted) for size, wanted in zip(shape, sizes, strict=True)):
            return None
        return np.broadcast_to(spread.reshape(shape), sizes).reshape(-1)
