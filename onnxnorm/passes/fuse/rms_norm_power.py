"""Reads what a graph computes as c * max(m + e, f)^p, where m is the mean of the squares of one tensor over some axes.

Every spelling of a root mean square is of that form: Pow(x, 2), Mul(x, x), ReduceL2, ReduceSumSquare, a sum divided by
the count, means taken axis by axis, GlobalAveragePool, Sqrt, Reciprocal, 1 / v, Pow(v, -0.5), a clamp, scalar factors
anywhere. So a rule compares four numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxnorm.passes.canonicalize.size_entries import is_count
from onnxnorm.passes.fuse.sizes import expanded_shape, same_sizes, shape_nodes, sole_reader
from onnxnorm.passes.graph import attribute, constant_tensor, is_op, scalar_of, tensor_of

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
#: Casts that change no value, and back: what each type holds exactly.
_HOLDS = {
    ir.DataType.DOUBLE: set(FLOAT_TYPES),
    ir.DataType.FLOAT: {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16},
    ir.DataType.FLOAT16: {ir.DataType.FLOAT16},
    ir.DataType.BFLOAT16: {ir.DataType.BFLOAT16},
}
#: Clip's own upper bound before opset 11.
_LARGEST = float(np.finfo(np.float32).max)
#: Longer chains of operators are not followed.
_DEEPEST = 12
#: Larger constants are not looked at.
_MOST_EVEN = 1 << 16
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "GlobalAveragePool"})
_MEANS = ("ReduceMean", "GlobalAveragePool")
#: A problem of a power.
OTHER_READERS = "an inner value has other readers"


def holds(wide: ir.DataType | None, narrow: ir.DataType | None) -> bool:
    """Whether every value of ``narrow`` is one of ``wide``."""
    return narrow is not None and narrow in _HOLDS.get(wide or ir.DataType.UNDEFINED, ())


@dataclass(frozen=True)
class Power:
    """``factor * max(mean(source^2 over axes) + epsilon, floor)^exponent``, multiplied by ``weights``.

    Attributes:
        source: the tensor whose squares are averaged, before casts that widen it.
        axes: ascending non-negative numbers.
        floor: what the mean with epsilon is clamped to from below; 0 where it is not.
        total: it is the sum, not the mean: the number of values is not known.
        nodes: what computes it, last first; each is read by the next one only.
        shared: nodes before the reduction that others may read too, and those that compute shapes.
        weights: tensors that it is multiplied by on the way.
        dtypes: element types on the way.
        dropped: the axes have been taken away (keepdims=0) and not been put back.
        expanded: shapes to which it has been broadcast.
        problem: why it is no part of a root mean square norm, for a Refusal.
        centred: it is the variance of the source, not the mean of its squares; see ``variance``.
        raw: that was computed as the mean of the squares less the square of the mean.

    """

    source: ir.Value
    axes: tuple[int, ...]
    factor: float = 1.0
    epsilon: float = 0.0
    exponent: float = 1.0
    floor: float = 0.0
    total: bool = False
    nodes: tuple[ir.Node, ...] = ()
    shared: tuple[ir.Node, ...] = ()
    weights: tuple[ir.Value, ...] = ()
    dtypes: frozenset[ir.DataType] = field(default_factory=frozenset)
    dropped: bool = False
    expanded: tuple[ir.Shape, ...] = ()
    problem: str | None = None
    centred: bool = False
    raw: bool = False

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
        if self.floor:
            return replace(self, problem=self.problem or "epsilon is added to what has been clamped")
        return replace(self, epsilon=self.epsilon + number / self.factor)

    def at_least(self, number: float) -> Power:
        """Clamped from below; a clamp at 0 or less does nothing to what is never negative."""
        if self.weights or self.factor <= 0:
            return replace(self, problem=self.problem or "the root mean square is clamped behind a weight")
        if number <= 0 and self.epsilon >= 0:
            return self
        if number <= 0 or self.exponent <= 0:
            return replace(self, problem=self.problem or "the inverse of the root mean square is clamped")
        return replace(self, floor=max(self.floor, (number / self.factor) ** (1.0 / self.exponent)))

    @property
    def count(self) -> int | None:
        """How many values the mean is over; None where that is not known."""
        return count_of(self.source, self.axes)


def count_of(x: ir.Value, axes: tuple[int, ...]) -> int | None:
    """How many values those axes hold; None where that is not known."""
    sizes = [] if x.shape is None else [x.shape[axis] for axis in axes]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if known and len(known) == len(axes) else None


def widening_casts(value: ir.Value) -> tuple[ir.Node, ...]:
    """The casts right before the value that only widen it, last first."""
    found: list[ir.Node] = []
    producer = value.producer()
    while producer is not None and _is_cast(producer) and producer.inputs[0] is not None:
        if not holds(value.dtype, producer.inputs[0].dtype):
            break
        found.append(producer)
        value = producer.inputs[0]
        producer = value.producer()
    return tuple(found)


def without_casts(value: ir.Value) -> ir.Value:
    """The value before casts that only widen it."""
    casts = widening_casts(value)
    return value if not casts or casts[-1].inputs[0] is None else casts[-1].inputs[0]


class PowerWalk:
    """Reads values of one graph, each of them once.

    Args:
        opset: version of the standard domain.
        private: whether it is a problem when an inner value has several readers.

    """

    def __init__(self, opset: int, private: bool = True) -> None:
        self.opset = opset
        self._private = private
        self._depth = 0
        self._known: dict[ir.Value, Power | None] = {}

    def read(self, value: ir.Value | None) -> Power | None:
        """What ``value`` is as a power of a mean square, None when it is none."""
        node = value.producer() if value is not None else None
        if value is None or node is None or value.dtype not in FLOAT_TYPES or self._depth > _DEEPEST:
            return None
        if value not in self._known:
            self._depth += 1
            self._known[value] = self._read(value, node)
            self._depth -= 1
        return self._known[value]

    def start(self, node: ir.Node) -> Power | None:
        """What the node is where its operands are none: the mean of squares itself."""
        return _reduction(node, self) if node.op_type in _REDUCTIONS else None

    def _read(self, value: ir.Value, node: ir.Node) -> Power | None:
        if not is_op(node, node.op_type):
            return None
        found = self.start(node)
        reader = _READERS.get(node.op_type)
        if found is None and reader is not None:
            found = reader(node, self)
        if found is None:
            return None
        problem = found.problem
        if self._private and self._depth > 1 and not _has_one_reader(value):
            problem = problem or OTHER_READERS
        dtypes = found.dtypes if value.dtype is None else found.dtypes | {value.dtype}
        return replace(found, nodes=(node, *found.nodes), dtypes=dtypes, problem=problem)


def read_power(value: ir.Value | None, opset: int, private: bool = True) -> Power | None:
    """What ``value`` is as a power of a mean square, None when it is none.

    Args:
        value: the value to read.
        opset: version of the standard domain.
        private: whether it is a problem when ``value`` itself has several readers, as it is for inner values.

    """
    found = PowerWalk(opset).read(value)
    if found is None or value is None or not private or sole_reader(value) is not None:
        return found
    return replace(found, problem=found.problem or OTHER_READERS)


def _has_one_reader(value: ir.Value) -> bool:
    """Whether one node reads the value's numbers, perhaps twice."""
    readers = {use.node for use in value.uses()}
    return sole_reader(value) is not None or (len(readers) == 1 and not value.is_graph_output())


def _is_cast(node: ir.Node) -> bool:
    return is_op(node, "Cast") or is_op(node, "CastLike")


def _number(value: ir.Value | None, beside: ir.Value | None) -> float | None:
    """A scalar constant that leaves the other operand in its shape."""
    rank = len(beside.shape) if beside is not None and beside.shape is not None else 0
    return scalar_of(value, rank)


def _even_number(value: ir.Value | None, beside: ir.Value | None) -> float | None:
    """As ``_number``, also of a constant of equal numbers: an epsilon for each channel."""
    number = _number(value, beside)
    if number is not None:
        return number
    shape = [] if beside is None or beside.shape is None else list(beside.shape)
    tensor = constant_tensor(value)
    if tensor is None or tensor.size < 2 or tensor.size > _MOST_EVEN or tensor.dtype not in FLOAT_TYPES:
        return None
    sizes = list(tensor.shape)
    if len(sizes) > len(shape) or any(a not in (1, b) for a, b in zip(reversed(sizes), reversed(shape), strict=False)):
        return None
    array = np.asarray(tensor.numpy()).astype(np.float64).reshape(-1)
    return float(array[0]) if (array == array[0]).all() else None


# --- the mean of squares ------------------------------------------------------------------------------------------


def _reduction(node: ir.Node, walk: PowerWalk) -> Power | None:
    """A reduction of squares over static axes."""
    inner = node.inputs[0]
    if inner is None or inner.shape is None or inner.dtype not in FLOAT_TYPES:
        return None
    axes = reduced_axes(node, walk.opset, len(inner.shape))
    square = _Square(inner) if node.op_type in ("ReduceSumSquare", "ReduceL2") else _square(inner)
    if not axes:
        return None
    if square is None:
        return _further(node, axes, walk)
    power = Power(
        without_casts(square.of),
        axes,
        shared=(*square.nodes, *widening_casts(square.of)),
        dtypes=frozenset(square.dtypes),
        dropped=not attribute(node, "keepdims", 1),
    )
    if node.op_type not in _MEANS:
        power = replace(power, total=True) if power.count is None else power.times(float(power.count))
    return power.power(0.5) if node.op_type == "ReduceL2" else power


def _further(node: ir.Node, axes: tuple[int, ...], walk: PowerWalk) -> Power | None:
    """A mean square over some axes, averaged over more of them."""
    power = walk.read(node.inputs[0])
    if power is None or power.exponent != 1.0 or power.epsilon or power.floor or power.weights or power.expanded:
        return None
    keeps = bool(attribute(node, "keepdims", 1))
    rank = len(power.source.shape or ())
    left = [axis for axis in range(rank) if axis not in power.axes] if power.dropped else list(range(rank))
    added = tuple(left[axis] for axis in axes)
    if power.total or node.op_type not in _MEANS or power.dropped == keeps or set(added) & set(power.axes):
        return None
    return replace(power, axes=tuple(sorted((*power.axes, *added))), dropped=not keeps)


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


def reduced_axes(node: ir.Node, opset: int, rank: int) -> tuple[int, ...] | None:
    """The reduced axes as ascending numbers; None when they are not constant."""
    if node.op_type == "GlobalAveragePool":
        return tuple(range(2, rank))
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


def _passed(node: ir.Node, walk: PowerWalk) -> Power | None:
    """Casts between floats."""
    return walk.read(node.inputs[0])


def _sqrt(node: ir.Node, walk: PowerWalk) -> Power | None:
    inner = walk.read(node.inputs[0])
    return None if inner is None else inner.power(0.5)


def _reciprocal(node: ir.Node, walk: PowerWalk) -> Power | None:
    inner = walk.read(node.inputs[0])
    return None if inner is None else inner.power(-1.0)


def _pow(node: ir.Node, walk: PowerWalk) -> Power | None:
    exponent = _number(node.inputs[1], node.inputs[0])
    inner = None if exponent is None else walk.read(node.inputs[0])
    return None if inner is None or exponent is None else inner.power(exponent)


def _mul(node: ir.Node, walk: PowerWalk) -> Power | None:
    if node.inputs[0] is node.inputs[1]:
        inner = walk.read(node.inputs[0])
        return None if inner is None else inner.power(2.0)
    for value, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        number = _number(other, value)
        inner = walk.read(value)
        if inner is None or other is None:
            continue
        return inner.times(number) if number is not None else _weighted(inner, other)
    return None


def _weighted(power: Power, weight: ir.Value) -> Power | None:
    """Multiplied by a tensor, which is a weight of the norm only behind the root."""
    if power.exponent > 0:
        return _scaled_at_run_time(power, weight)
    if not power.broadcasts or power.exponent != -0.5:
        return None
    return replace(power, weights=(*power.weights, weight))


def _scaled_at_run_time(power: Power, number: ir.Value | None) -> Power | None:
    """Multiplied or divided by a number that is no constant, as in an unbiased variance of any number of values."""
    if number is None or number.shape is None or any(size != 1 for size in number.shape):
        return None
    return replace(power, problem=power.problem or "the mean square has a factor that is computed at run time")


def _div(node: ir.Node, walk: PowerWalk) -> Power | None:
    top, bottom = node.inputs
    number = _number(bottom, top)
    if number is not None:
        inner = walk.read(top) if number else None
        return None if inner is None else inner.times(1.0 / number)
    inner = walk.read(bottom)
    if inner is None:
        inner = walk.read(top)
        if inner is None or inner.exponent < 0:
            return None
        if inner.total and inner.exponent == 1.0 and is_count(bottom, inner.source, inner.axes):
            return replace(inner, total=False, shared=(*inner.shared, *shape_nodes(node)))
        return _scaled_at_run_time(inner, bottom)
    if top is None:
        return None
    number = _number(top, bottom)
    inverse = inner.power(-1.0)
    return inverse.times(number) if number is not None else _weighted(inverse, top)


def _add(node: ir.Node, walk: PowerWalk) -> Power | None:
    for value, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        number = _even_number(other, value)
        inner = None if number is None else walk.read(value)
        if inner is not None and number is not None:
            return inner.plus(number)
    return None


def _clip(node: ir.Node, walk: PowerWalk) -> Power | None:
    """Clip with a lower bound only."""
    if walk.opset < 11:
        if attribute(node, "max", _LARGEST) != _LARGEST or attribute(node, "min", None) is None:
            return None
        inner = walk.read(node.inputs[0])
        return None if inner is None else inner.at_least(attribute(node, "min", None))
    if (len(node.inputs) > 2 and node.inputs[2] is not None) or len(node.inputs) < 2:
        return None
    return _clamped(node.inputs[0], node.inputs[1], walk)


def _relu(node: ir.Node, walk: PowerWalk) -> Power | None:
    """A clamp at 0."""
    inner = walk.read(node.inputs[0])
    return None if inner is None else inner.at_least(0.0)


def _max(node: ir.Node, walk: PowerWalk) -> Power | None:
    if len(node.inputs) != 2:
        return None
    first, second = node.inputs
    return _clamped(first, second, walk) or _clamped(second, first, walk)


def _clamped(value: ir.Value | None, bound: ir.Value | None, walk: PowerWalk) -> Power | None:
    number = _even_number(bound, value)
    inner = None if number is None else walk.read(value)
    return None if inner is None or number is None else inner.at_least(number)


def _expand(node: ir.Node, walk: PowerWalk) -> Power | None:
    inner = walk.read(node.inputs[0])
    shape = None if inner is None else expanded_shape(node, inner.source)
    if inner is None or shape is None or not inner.broadcasts:
        return None
    shared = (*inner.shared, *shape_nodes(node))
    return replace(inner, dropped=False, expanded=(*inner.expanded, shape), shared=shared)


def _unsqueeze(node: ir.Node, walk: PowerWalk) -> Power | None:
    """Puts back the axes that a reduction without keepdims took away."""
    inner = walk.read(node.inputs[0])
    if inner is None or not inner.dropped:
        return None
    return replace(inner, dropped=False) if given_axes(node, walk.opset, node.outputs[0]) == inner.axes else None


def _squeeze(node: ir.Node, walk: PowerWalk) -> Power | None:
    """Takes away the axes that a reduction with keepdims left."""
    inner = walk.read(node.inputs[0])
    if inner is None or inner.dropped or inner.expanded:
        return None
    return replace(inner, dropped=True) if given_axes(node, walk.opset, node.inputs[0]) == inner.axes else None


def given_axes(node: ir.Node, opset: int, whole: ir.Value | None) -> tuple[int, ...] | None:
    """The axes of an Unsqueeze or Squeeze as ascending numbers of ``whole``, which has them; None where not known."""
    if whole is None or whole.shape is None:
        return None
    by_input = opset >= 13
    given = (tensor_of(node.inputs[1]) if len(node.inputs) > 1 else None) if by_input else attribute(node, "axes", None)
    if given is None:
        return None
    return tuple(sorted(int(axis) % len(whole.shape) for axis in np.asarray(given).reshape(-1)))


def _reshape(node: ir.Node, walk: PowerWalk) -> Power | None:
    """Puts back the axes that a reduction took away, or those that were flattened before it; or changes nothing."""
    inner = walk.read(node.inputs[0])
    if inner is None or inner.expanded:
        return None
    found = restored(inner.source, inner.axes, node)
    if found is None:
        return None
    source, axes, shared = found
    return replace(inner, source=source, axes=axes, dropped=False, shared=(*inner.shared, *shared))


def restored(
    source: ir.Value, axes: tuple[int, ...], node: ir.Node
) -> tuple[ir.Value, tuple[int, ...], tuple[ir.Node, ...]] | None:
    """What a Reshape of a statistic of ``source`` over ``axes`` is a statistic of, with axes of size 1 kept.

    The source itself; or what a Reshape had flattened its last axes of. With the axes, and what computes shapes.
    """
    shape = node.outputs[0].shape
    if shape is None or source.shape is None:
        return None
    if same_sizes([1 if axis in axes else size for axis, size in enumerate(source.shape)], list(shape)):
        return source, axes, shape_nodes(node)
    flat = source.producer()
    x = flat.inputs[0] if flat is not None and is_op(flat, "Reshape") else None
    if x is None or x.shape is None or axes != (len(source.shape) - 1,):
        return None
    kept = len(source.shape) - 1  # the axes behind it were flattened into one
    ones = [1] * (len(x.shape) - kept)
    if not ones or not same_sizes(list(x.shape)[:kept], list(source.shape)[:kept], 0):
        return None
    if not same_sizes([*list(x.shape)[:kept], *ones], list(shape)):
        return None
    assert flat is not None
    shared = (*widening_casts(x), flat, *shape_nodes(flat), *shape_nodes(node))
    return without_casts(x), tuple(range(kept, len(x.shape))), shared


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
    "Relu": _relu,
    "Reshape": _reshape,
    "Sqrt": _sqrt,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}


def is_exact(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], dtype: ir.DataType) -> bool:
    """Whether every number of the array is one of ``dtype``."""
    wide = np.asarray(array).astype(np.float64)
    with np.errstate(over="ignore"):
        kind = ml_dtypes.bfloat16 if dtype == ir.DataType.BFLOAT16 else dtype.numpy()
        return bool(np.array_equal(wide.astype(kind).astype(np.float64), wide))
