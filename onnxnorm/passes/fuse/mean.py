"""Reads what a graph computes as a factor times the mean of one tensor over some axes.

ReduceMean, a ReduceSum divided by the count, GlobalAveragePool, means taken axis by axis, axes that are taken away and
put back, casts, scalar factors, a change of sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from onnxnorm.passes.canonicalize.size_entries import is_count
from onnxnorm.passes.fuse.rms_norm_power import (
    FLOAT_TYPES,
    count_of,
    given_axes,
    reduced_axes,
    restored,
    widening_casts,
    without_casts,
)
from onnxnorm.passes.fuse.sizes import expanded_shape, shape_nodes
from onnxnorm.passes.graph import attribute, is_op, scalar_of

_DEEPEST = 10


@dataclass(frozen=True)
class Mean:
    """``factor * mean(source over axes)``.

    Attributes:
        source: what is averaged, before casts that widen it.
        axes: ascending non-negative numbers.
        factor: what the mean is multiplied by.
        nodes: what computes it, last first.
        shared: casts before the reduction, and what computes shapes.
        dtypes: element types on the way.
        dropped: the axes have been taken away (keepdims=0) and not been put back.
        expanded: shapes to which it has been broadcast.
        total: it is the sum, not the mean: the number of values is not known.

    """

    source: ir.Value
    axes: tuple[int, ...]
    factor: float = 1.0
    nodes: tuple[ir.Node, ...] = ()
    shared: tuple[ir.Node, ...] = ()
    dtypes: frozenset[ir.DataType] = field(default_factory=frozenset)
    dropped: bool = False
    expanded: tuple[ir.Shape, ...] = ()
    total: bool = False

    @property
    def broadcasts(self) -> bool:
        """Whether it broadcasts against the source as with keepdims=1: leading axes need not be there."""
        return not self.dropped or self.axes == tuple(range(len(self.axes)))


def read_mean(value: ir.Value | None, opset: int, depth: int = 0) -> Mean | None:
    """What ``value`` is as a mean, None when it is none."""
    node = value.producer() if value is not None else None
    if value is None or node is None or value.dtype not in FLOAT_TYPES or depth > _DEEPEST or not node.inputs:
        return None
    reader = _READERS.get(node.op_type) if is_op(node, node.op_type) else None
    found = None if reader is None else reader(node, opset, depth + 1)
    if found is None:
        return None
    return replace(found, nodes=(node, *found.nodes), dtypes=found.dtypes | {value.dtype})


def _reduction(node: ir.Node, opset: int, depth: int) -> Mean | None:
    source = node.inputs[0]
    if source is None or source.shape is None or source.dtype not in FLOAT_TYPES:
        return None
    rank = len(source.shape)
    axes = reduced_axes(node, opset, rank)
    if not axes:
        return None
    keeps = bool(attribute(node, "keepdims", 1))
    inner = read_mean(source, opset, depth)
    if inner is not None and not inner.expanded and inner.dropped != keeps:
        further = _further(inner, axes, node)
        if further is not None:
            return further
    factor = 1.0
    if node.op_type == "ReduceSum":
        count = count_of(source, axes)
        if count is None:
            return Mean(without_casts(source), axes, shared=widening_casts(source), dropped=not keeps, total=True)
        factor = float(count)
    return Mean(without_casts(source), axes, factor, shared=widening_casts(source), dropped=not keeps)


def _further(inner: Mean, axes: tuple[int, ...], node: ir.Node) -> Mean | None:
    """A mean over some axes, averaged over more of them."""
    rank = len(inner.source.shape or ())
    left = [axis for axis in range(rank) if axis not in inner.axes] if inner.dropped else list(range(rank))
    added = tuple(left[axis] for axis in axes)
    if node.op_type == "ReduceSum" or inner.total or set(added) & set(inner.axes):
        return None
    return replace(inner, axes=tuple(sorted((*inner.axes, *added))))


def _cast(node: ir.Node, opset: int, depth: int) -> Mean | None:
    return read_mean(node.inputs[0], opset, depth)


def _negative(node: ir.Node, opset: int, depth: int) -> Mean | None:
    inner = read_mean(node.inputs[0], opset, depth)
    return None if inner is None else replace(inner, factor=-inner.factor)


def _mul(node: ir.Node, opset: int, depth: int) -> Mean | None:
    for value, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        number = _number(other, value)
        inner = None if number is None else read_mean(value, opset, depth)
        if inner is not None and number is not None:
            return replace(inner, factor=inner.factor * number)
    return None


def _div(node: ir.Node, opset: int, depth: int) -> Mean | None:
    """Also a sum by the number of its values, which is computed where it depends on sizes that are not known."""
    number = _number(node.inputs[1], node.inputs[0])
    inner = read_mean(node.inputs[0], opset, depth)
    if inner is None or number == 0:
        return None
    if number is not None:
        return replace(inner, factor=inner.factor / number)
    counted = inner.total and is_count(node.inputs[1], inner.source, inner.axes)
    shared = (*inner.shared, *shape_nodes(node))
    return replace(inner, total=False, shared=shared) if counted else None


def _number(value: ir.Value | None, beside: ir.Value | None) -> float | None:
    """A scalar constant that leaves the other operand in its shape."""
    return scalar_of(value, len(beside.shape) if beside is not None and beside.shape is not None else 0)


def _unsqueeze(node: ir.Node, opset: int, depth: int) -> Mean | None:
    inner = read_mean(node.inputs[0], opset, depth)
    if inner is None or not inner.dropped or given_axes(node, opset, node.outputs[0]) != inner.axes:
        return None
    return replace(inner, dropped=False)


def _squeeze(node: ir.Node, opset: int, depth: int) -> Mean | None:
    inner = read_mean(node.inputs[0], opset, depth)
    if inner is None or inner.dropped or inner.expanded or given_axes(node, opset, node.inputs[0]) != inner.axes:
        return None
    return replace(inner, dropped=True)


def _reshape(node: ir.Node, opset: int, depth: int) -> Mean | None:
    inner = read_mean(node.inputs[0], opset, depth)
    found = None if inner is None or inner.expanded else restored(inner.source, inner.axes, node)
    if inner is None or found is None:
        return None
    source, axes, shared = found
    return replace(inner, source=source, axes=axes, dropped=False, shared=(*inner.shared, *shared))


def _expand(node: ir.Node, opset: int, depth: int) -> Mean | None:
    inner = read_mean(node.inputs[0], opset, depth)
    shape = None if inner is None else expanded_shape(node, inner.source)
    if inner is None or shape is None or not inner.broadcasts:
        return None
    shared = (*inner.shared, *shape_nodes(node))
    return replace(inner, dropped=False, expanded=(*inner.expanded, shape), shared=shared)


_READERS: dict[str, Callable[[ir.Node, int, int], Mean | None]] = {
    "Cast": _cast,
    "CastLike": _cast,
    "Div": _div,
    "Expand": _expand,
    "GlobalAveragePool": _reduction,
    "Mul": _mul,
    "Neg": _negative,
    "ReduceMean": _reduction,
    "ReduceSum": _reduction,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
