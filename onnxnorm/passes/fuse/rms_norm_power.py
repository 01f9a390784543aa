"""Reads what a graph computes as c * (m + e)^p, where m is the mean of the squares of one tensor over some axes.

Every spelling of a root mean square is of that form: Pow(x, 2), Mul(x, x), ReduceL2, ReduceSumSquare, a sum divided by
the count, Sqrt, Reciprocal, 1 / v, Pow(v, -0.5), scalar factors anywhere. So a rule compares three numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxnorm.passes.graph import attribute, is_op, scalar_of, sole_consumer, tensor_of

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
#: Casts that change no value, and back: what each type holds exactly.
_HOLDS = {
    ir.DataType.DOUBLE: set(FLOAT_TYPES),
    ir.DataType.FLOAT: {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16},
    ir.DataType.FLOAT16: {ir.DataType.FLOAT16},
    ir.DataType.BFLOAT16: {ir.DataType.BFLOAT16},
}
#: Longer chains of operators are not followed.
_DEEPEST = 12
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2"})


def holds(wide: ir.DataType | None, narrow: ir.DataType | None) -> bool:
    """Whether every value of ``narrow`` is one of ``wide``."""
    return narrow is not None and narrow in _HOLDS.get(wide or ir.DataType.UNDEFINED, ())


@dataclass(frozen=True)
class Power:
    """``factor * (mean(source^2 over axes) + epsilon)^exponent``, multiplied by ``weights``.

    Attributes:
        source: the tensor whose squares are averaged, before casts that widen it.
        axes: ascending non-negative numbers.
        nodes: what computes it, last first; each is read by the next one only.
        shared: nodes before the reduction that others may read too.
        weights: tensors that it is multiplied by on the way.
        dtypes: element types on the way.
        dropped: the axes have been taken away (keepdims=0) and not been put back.
        expanded: shapes to which it has been broadcast.
        problem: why it is no part of a root mean square norm, for a Refusal.

    """

    source: ir.Value
    axes: tuple[int, ...]
    factor: float = 1.0
    epsilon: float = 0.0
    exponent: float = 1.0
    nodes: tuple[ir.Node, ...] = ()
    shared: tuple[ir.Node, ...] = ()
    weights: tuple[ir.Value, ...] = ()
    dtypes: frozenset[ir.DataType] = field(default_factory=frozenset)
    dropped: bool = False
    expanded: tuple[ir.Shape, ...] = ()
    problem: str | None = None

    @property
    def broadcasts(self) -> bool:
        """Whether it broadcasts against the source as with keepdims=1: leading axes need not be there."""
        return not self.dropped or self.axes == tuple(range(len(self.axes)))

    def times(self, number: float) -> Power:
        """Multiplied by a scalar."""
        return replace(self, factor=self.factor * number)

    def power(self, exponent: float) -> Power:
        """To that power."""
        if self.weights:
            return replace(self, problem=self.problem or "a weight is inverted")
        if self.factor <= 0 or abs(exponent) > 4:
            return replace(self, problem=self.problem or "its power is not the inverse square root")
        return replace(self, factor=self.factor**exponent, exponent=self.exponent * exponent)

    def plus(self, number: float) -> Power:
        """A scalar added; inside the root it is the epsilon."""
        if number == 0:
            return self
        if self.exponent != 1.0 or self.weights:
            return replace(self, problem=self.problem or "epsilon is added outside the root")
        return replace(self, epsilon=self.epsilon + number / self.factor)

    def at_least(self, number: float) -> Power:
        """Clamped from below; a clamp at 0 or less does nothing to what is never negative."""
        if number <= 0 and self.factor > 0 and self.epsilon >= 0 and not self.weights:
            return self
        return replace(self, problem=self.problem or "the root mean square is clamped, which is no epsilon in the root")


def without_casts(value: ir.Value) -> ir.Value:
    """The value before casts that only widen it."""
    producer = value.producer()
    while producer is not None and _is_cast(producer) and producer.inputs[0] is not None:
        if not holds(value.dtype, producer.inputs[0].dtype):
            break
        value = producer.inputs[0]
        producer = value.producer()
    return value


def read_power(value: ir.Value | None, opset: int, depth: int = 0) -> Power | None:
    """What ``value`` is as a power of a mean square, None when it is none."""
    node = value.producer() if value is not None else None
    if value is None or node is None or value.dtype not in FLOAT_TYPES or depth > _DEEPEST:
        return None
    reader = _READERS.get(node.op_type) if is_op(node, node.op_type) else None
    found = _reduction(node, opset) if node.op_type in _REDUCTIONS and is_op(node, node.op_type) else None
    if found is None and reader is not None:
        found = reader(node, opset, depth + 1)
    if found is None:
        return None
    problem = found.problem
    if sole_consumer(value) is None:
        problem = problem or "an inner value has other readers"
    return replace(found, nodes=(node, *found.nodes), dtypes=found.dtypes | {value.dtype}, problem=problem)


def _is_cast(node: ir.Node) -> bool:
    return is_op(node, "Cast") or is_op(node, "CastLike")


def _number(value: ir.Value | None, beside: ir.Value | None) -> float | None:
    """A scalar constant that leaves the other operand in its shape."""
    rank = len(beside.shape) if beside is not None and beside.shape is not None else 0
    return scalar_of(value, rank)


# --- the mean of squares ------------------------------------------------------------------------------------------


def _reduction(node: ir.Node, opset: int) -> Power | None:
    """A reduction of squares over static axes."""
    inner = node.inputs[0]
    if inner is None or inner.shape is None or inner.dtype not in FLOAT_TYPES:
        return None
    axes = _axes(node, opset, len(inner.shape))
    square = _Square(inner) if node.op_type in ("ReduceSumSquare", "ReduceL2") else _square(inner)
    if not axes or square is None:
        return None
    sizes = [inner.shape[axis] for axis in axes]
    if not all(isinstance(size, int) for size in sizes):
        if node.op_type != "ReduceMean":
            return None  # a sum is a mean times a count that is not known
        sizes = [1]
    count = math.prod(int(size) for size in sizes if isinstance(size, int))
    power = Power(
        without_casts(square.of),
        axes,
        factor=1.0 if node.op_type == "ReduceMean" else float(count),
        shared=square.nodes,
        dtypes=frozenset(square.dtypes),
        dropped=not attribute(node, "keepdims", 1),
    )
    return power.power(0.5) if node.op_type == "ReduceL2" else power


@dataclass(frozen=True)
class _Square:
    """What is squared, with the nodes that do it."""

    of: ir.Value
    nodes: tuple[ir.Node, ...] = ()
    dtypes: tuple[ir.DataType, ...] = ()


def _square(value: ir.Value) -> _Square | None:
    """Pow(x, 2) or Mul(x, x), perhaps cast to another type afterwards; None for anything else."""
    nodes: list[ir.Node] = []
    dtypes: list[ir.DataType] = []
    node = value.producer()
    while node is not None and _is_cast(node) and node.inputs[0] is not None and value.dtype is not None:
        nodes.append(node)
        dtypes.append(value.dtype)
        value = node.inputs[0]
        node = value.producer()
    if node is None or value.dtype is None or node.inputs[0] is None:
        return None
    x = node.inputs[0]
    twice = is_op(node, "Mul") and (x is node.inputs[1])
    squared = is_op(node, "Pow") and _number(node.inputs[1], x) == 2.0
    inner = x.producer()
    nodes.append(node)
    if inner is not None and is_op(inner, "Abs") and inner.inputs[0] is not None:
        nodes.append(inner)
        x = inner.inputs[0]
    return _Square(x, tuple(nodes), (*dtypes, value.dtype)) if twice or squared else None


def _axes(node: ir.Node, opset: int, rank: int) -> tuple[int, ...] | None:
    """The reduced axes as ascending numbers; None when they are not constant."""
    since = 13 if node.op_type == "ReduceSum" else 18
    given: Sequence[int] | None
    if opset >= since:
        value = node.inputs[1] if len(node.inputs) > 1 else None
        array = tensor_of(value)
        if value is not None and array is None:
            return None
        given = None if array is None else [int(axis) for axis in array.reshape(-1)]
        if not given and attribute(node, "noop_with_empty_axes", 0):
            return None
    else:
        given = attribute(node, "axes", None)
        if "axes" in node.attributes and given is None:
            return None
    if not given:
        return tuple(range(rank))
    return tuple(sorted({axis % rank for axis in given})) if all(-rank <= axis < rank for axis in given) else None


# --- what is done to it -------------------------------------------------------------------------------------------


def _passed(node: ir.Node, opset: int, depth: int) -> Power | None:
    """Casts between floats."""
    return read_power(node.inputs[0], opset, depth)


def _sqrt(node: ir.Node, opset: int, depth: int) -> Power | None:
    inner = read_power(node.inputs[0], opset, depth)
    return None if inner is None else inner.power(0.5)


def _reciprocal(node: ir.Node, opset: int, depth: int) -> Power | None:
    inner = read_power(node.inputs[0], opset, depth)
    return None if inner is None else inner.power(-1.0)


def _pow(node: ir.Node, opset: int, depth: int) -> Power | None:
    exponent = _number(node.inputs[1], node.inputs[0])
    inner = None if exponent is None else read_power(node.inputs[0], opset, depth)
    return None if inner is None or exponent is None else inner.power(exponent)


def _mul(node: ir.Node, opset: int, depth: int) -> Power | None:
    for value, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        number = _number(other, value)
        inner = read_power(value, opset, depth)
        if inner is None or other is None:
            continue
        return inner.times(number) if number is not None else _weighted(inner, other)
    return None


def _weighted(power: Power, weight: ir.Value) -> Power | None:
    """Multiplied by a tensor, which is a weight of the norm only behind the root."""
    if not power.broadcasts or power.exponent != -0.5:
        return None
    return replace(power, weights=(*power.weights, weight))


def _div(node: ir.Node, opset: int, depth: int) -> Power | None:
    top, bottom = node.inputs
    number = _number(bottom, top)
    if number is not None:
        inner = read_power(top, opset, depth) if number else None
        return None if inner is None else inner.times(1.0 / number)
    inner = read_power(bottom, opset, depth)
    if inner is None or top is None:
        return None
    number = _number(top, bottom)
    inverse = inner.power(-1.0)
    return inverse.times(number) if number is not None else _weighted(inverse, top)


def _add(node: ir.Node, opset: int, depth: int) -> Power | None:
    for value, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        number = _number(other, value)
        inner = None if number is None else read_power(value, opset, depth)
        if inner is not None and number is not None:
            return inner.plus(number)
    return None


def _clip(node: ir.Node, opset: int, depth: int) -> Power | None:
    """Clip with a lower bound only."""
    if opset < 11 or (len(node.inputs) > 2 and node.inputs[2] is not None) or len(node.inputs) < 2:
        return None
    return _clamped(node.inputs[0], node.inputs[1], opset, depth)


def _max(node: ir.Node, opset: int, depth: int) -> Power | None:
    if len(node.inputs) != 2:
        return None
    first, second = node.inputs
    return _clamped(first, second, opset, depth) or _clamped(second, first, opset, depth)


def _clamped(value: ir.Value | None, bound: ir.Value | None, opset: int, depth: int) -> Power | None:
    number = _number(bound, value)
    inner = None if number is None else read_power(value, opset, depth)
    return None if inner is None or number is None else inner.at_least(number)


def _expand(node: ir.Node, opset: int, depth: int) -> Power | None:
    inner = read_power(node.inputs[0], opset, depth)
    shape = node.outputs[0].shape
    if inner is None or shape is None or not inner.broadcasts:
        return None
    return replace(inner, dropped=False, expanded=(*inner.expanded, shape))


def _unsqueeze(node: ir.Node, opset: int, depth: int) -> Power | None:
    """Puts back the axes that a reduction without keepdims took away."""
    inner = read_power(node.inputs[0], opset, depth)
    shape = node.outputs[0].shape
    given = tensor_of(node.inputs[1]) if opset >= 13 and len(node.inputs) > 1 else attribute(node, "axes", None)
    if inner is None or given is None or shape is None or not inner.dropped:
        return None
    axes = tuple(sorted(int(axis) % len(shape) for axis in np.asarray(given).reshape(-1)))
    return replace(inner, dropped=False) if axes == inner.axes else None


_READERS = {
    "Add": _add,
    "Cast": _passed,
    "CastLike": _passed,
    "Clip": _clip,
    "Div": _div,
    "Expand": _expand,
    "Max": _max,
    "Mul": _mul,
    "Pow": _pow,
    "Reciprocal": _reciprocal,
    "Sqrt": _sqrt,
    "Unsqueeze": _unsqueeze,
}


def is_exact(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], dtype: ir.DataType) -> bool:
    """Whether every number of the array is one of ``dtype``."""
    wide = np.asarray(array).astype(np.float64)
    with np.errstate(over="ignore"):
        kind = ml_dtypes.bfloat16 if dtype == ir.DataType.BFLOAT16 else dtype.numpy()
        return bool(np.array_equal(wide.astype(kind).astype(np.float64), wide))
