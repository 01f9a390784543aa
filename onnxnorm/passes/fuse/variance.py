"""Reads what a graph computes as c * max(v + e, f)^p, where v is the variance of one tensor over some axes.

    v = mean((x - mean(x))^2)        or        v = mean(x^2) - mean(x)^2

both over the same axes, in every spelling that ``rms_norm_power`` and ``mean`` read; the unbiased variance is one with
a factor. What is squared may be centred by its own operators, or twice, as onnxnorm's function bodies do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxnorm.passes.fuse.mean import Mean, read_mean
from onnxnorm.passes.fuse.product import same_shape
from onnxnorm.passes.fuse.rms_norm_power import Power, PowerWalk, widening_casts, without_casts
from onnxnorm.passes.graph import is_op, scalar_of
from onnxnorm.runtime.arrays import float_info

#: By how many eps of the tensor's type the product of n and a rounded 1/n may be off: half of one, and some room.
_ROUNDING = 0.75
#: A tensor is centred that many times at most.
_CENTRED_AT_MOST = 3
#: Longer chains of operators between a mean and its square are not followed.
_DEEPEST = 4


@dataclass(frozen=True)
class Centred:
    """A tensor less its mean, or the mean less the tensor.

    Attributes:
        x: the tensor, before casts that widen it.
        axes: what the mean is over.
        nodes: what computes it, last first.
        shared: casts of x, and what computes shapes.
        dtypes: element types on the way.

    """

    x: ir.Value
    axes: tuple[int, ...]
    nodes: tuple[ir.Node, ...]
    shared: tuple[ir.Node, ...]
    dtypes: frozenset[ir.DataType]


class VarianceWalk(PowerWalk):
    """Reads powers of variances; ``centred`` tells them from those of mean squares."""

    def __init__(self, opset: int) -> None:
        super().__init__(opset, private=False)

    def variance(self, value: ir.Value | None) -> Power | None:
        """What ``value`` is as a power of a variance without weights, None when it is none."""
        found = self.read(value)
        return found if found is not None and found.centred and not found.weights else None

    def start(self, node: ir.Node) -> Power | None:
        """A mean of squares, of what is centred where it is; or the mean of squares less the square of the mean."""
        if is_op(node, "Sub") or is_op(node, "Add"):
            return _difference(node, self)
        found = super().start(node)
        if found is None or found.centred:
            return found
        centred = read_centred(found.source, self.opset)
        if centred is None or centred.axes != found.axes:
            return found
        return replace(
            found,
            source=centred.x,
            centred=True,
            shared=(*found.shared, *centred.nodes, *centred.shared),
            dtypes=found.dtypes | centred.dtypes,
        )


def read_centred(value: ir.Value, opset: int, depth: int = 0) -> Centred | None:
    """What ``value`` is as a tensor less its mean, or the mean less the tensor; None when it is neither."""
    node = value.producer()
    if node is None or value.dtype is None or depth > _CENTRED_AT_MOST:
        return None
    for whole, other, sign in _sides(node):
        mean = read_mean(other, opset)
        if whole is None or mean is None or not is_near(mean.factor, sign, value.dtype) or not fits(mean, whole):
            continue
        x = without_casts(whole)
        if mean.source is not x:
            continue
        nodes, shared = (node, *mean.nodes), (*mean.shared, *widening_casts(whole))
        dtypes = frozenset({value.dtype}) | mean.dtypes
        first = read_centred(x, opset, depth + 1)
        if first is None or first.axes != mean.axes or any(use.node not in {*nodes, *shared} for use in x.uses()):
            return Centred(x, mean.axes, nodes, shared, dtypes)
        return Centred(first.x, first.axes, (*nodes, *first.nodes), (*shared, *first.shared), dtypes | first.dtypes)
    return None


def _sides(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None, float]]:
    """What may be the tensor and its mean, with the sign that makes the sum a difference."""
    if is_op(node, "Sub"):
        return [(node.inputs[0], node.inputs[1], 1.0), (node.inputs[1], node.inputs[0], 1.0)]
    if is_op(node, "Add"):
        return [(node.inputs[0], node.inputs[1], -1.0), (node.inputs[1], node.inputs[0], -1.0)]
    return []


def is_near(factor: float, wanted: float, dtype: ir.DataType | None, roundings: int = 1) -> bool:
    """Whether the factor is the wanted one, but for that many roundings of 1/n to the type."""
    eps = float(float_info((dtype or ir.DataType.FLOAT).numpy()).eps)
    return math.isclose(factor, wanted, rel_tol=roundings * _ROUNDING * eps)


def fits(mean: Mean, whole: ir.Value) -> bool:
    """Whether it is a mean that meets each value of the tensor that it is the mean of, and leaves its shape."""
    return mean.broadcasts and not mean.total and all(same_shape(shape, whole.shape) for shape in mean.expanded)


def _difference(node: ir.Node, walk: PowerWalk) -> Power | None:
    """``mean(x^2) - mean(x)^2``, also with the same factor before both, or an epsilon there already."""
    for first, second, sign in _sides(node)[: 2 if is_op(node, "Add") else 1]:
        squared = _square_of_mean(second, walk.opset)
        power = None if squared is None else walk.read(first)
        if squared is None or power is None or power.centred or power.exponent != 1.0 or power.floor or power.weights:
            continue
        mean, factor, nodes = squared
        if mean.total or mean.source is not power.source or mean.axes != power.axes or mean.dropped != power.dropped:
            continue
        if power.total or power.problem or not is_near(sign * factor, power.factor, node.outputs[0].dtype, 3):
            continue
        return replace(
            power,
            centred=True,
            raw=True,
            nodes=(*power.nodes, *nodes, *mean.nodes),
            shared=(*power.shared, *mean.shared),
            expanded=(*power.expanded, *mean.expanded),
            dtypes=power.dtypes | mean.dtypes,
        )
    return None


def _square_of_mean(
    value: ir.Value | None, opset: int, depth: int = 0
) -> tuple[Mean, float, tuple[ir.Node, ...]] | None:
    """The mean whose square the value is, what that is multiplied by, and the nodes behind the mean."""
    node = value.producer() if value is not None else None
    if node is None or not node.inputs or node.inputs[0] is None or depth > _DEEPEST:
        return None
    first = node.inputs[0]
    rank = len(first.shape) if first.shape is not None else 0
    second = node.inputs[1] if len(node.inputs) > 1 else None
    if is_op(node, "Cast") or is_op(node, "Neg"):
        inner, sign = _square_of_mean(first, opset, depth + 1), -1.0 if node.op_type == "Neg" else 1.0
        return None if inner is None else (inner[0], sign * inner[1], (node, *inner[2]))
    if is_op(node, "Pow") and scalar_of(second, rank) == 2.0:
        mean = read_mean(first, opset)
        return None if mean is None else (mean, mean.factor**2, (node,))
    if not is_op(node, "Mul") or second is None:
        return None
    mean, other = read_mean(first, opset), read_mean(second, opset)
    if mean is not None and other is not None and mean.source is other.source and mean.axes == other.axes:
        return mean, mean.factor * other.factor, (node, *other.nodes)
    for inside, beside in ((first, second), (second, first)):
        number = scalar_of(beside, len(inside.shape) if inside.shape is not None else 0)
        squared = None if number is None else _square_of_mean(inside, opset, depth + 1)
        if squared is not None and number is not None:
            return squared[0], squared[1] * number, (node, *squared[2])
    return None
