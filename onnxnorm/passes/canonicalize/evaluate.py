"""What a node computes from constants, in NumPy, for the operators with which exporters and people make parameters.

``evaluate`` takes and gives arrays of the nodes' own types: floats are computed in float64 and rounded once to the type
of the node's first input. ``compute`` rounds nothing: it takes floats in float64 and gives them so, for chains that
are rounded at their end (``exact``). The reference evaluator serves only for operators that move data
(``reference``): of others it knows only the newest form, and it takes the floor of an integer division.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.passes.canonicalize import arithmetic, normalizations, products, reference
from onnxnorm.passes.graph import attribute
from onnxnorm.runtime.arrays import is_float

Array: TypeAlias = npt.NDArray[Any]

#: Operators that leave the data as it is.
LAYOUT = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

#: Types that Cast is evaluated between; others saturate or round in ways of their own.
_CASTS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    | {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL}
)
#: Results of more elements than this, by broadcasting, are not made.
_LARGEST_BROADCAST = 1 << 18
#: Large arrays are looked at in parts of so many elements.
_PART = 1 << 22


def evaluate(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array | None:
    """The node's one result, None when it is not for this module, not finite, or the inputs do not fit."""
    first = next((value for value in inputs if value is not None), None)
    if first is None or len(inputs) == 0 or inputs[0] is None:
        return None
    if node.op_type in _DATA or node.op_type in reference.OPERATORS:
        return compute(node, inputs, opset, _LARGEST_BROADCAST)
    wide = [widened(value) for value in inputs]
    result = compute(node, wide, opset, _LARGEST_BROADCAST, first.dtype == np.float64)
    if result is None:
        return None
    with np.errstate(all="ignore"):
        result = result.astype(first.dtype)
    return result if is_finite(result) else None


def compute(
    node: ir.Node, inputs: Sequence[Array | None], opset: int, largest: int, double: bool = False
) -> Array | None:
    """The node's first result, None when it is not for this module or the inputs do not fit.

    Args:
        node: the node; its operator decides, its values are not looked at.
        inputs: what it reads.
        opset: version of the standard domain.
        largest: how many elements a result may have.
        double: whether the model computes this in float64: an attribute then means the decimal that was written down.

    """
    try:
        with np.errstate(all="ignore"):
            result = _compute(node, inputs, opset, largest, double)
    except (ValueError, IndexError, TypeError, OverflowError):  # a node that fails when it is run, too
        return None
    return result if result is None or result.size <= max(largest, _largest_of(inputs)) else None


def _compute(node: ir.Node, inputs: Sequence[Array | None], opset: int, largest: int, double: bool) -> Array | None:
    kind = node.op_type
    if not inputs or inputs[0] is None:
        return None
    if kind in _DATA:
        return _DATA[kind](node, inputs, opset)
    if kind in reference.OPERATORS:
        return reference.from_reference(node, inputs, opset, largest)
    x = inputs[0]
    real = is_float(x.dtype)
    if kind in arithmetic.UNARY and real and len(inputs) == 1:
        return np.asarray(arithmetic.UNARY[kind](x))
    if kind in arithmetic.BINARY and len(inputs) == 2 and (real or kind in ("Add", "Mul", "Sub")):
        y = inputs[1]
        if y is None or np.prod(np.broadcast_shapes(x.shape, y.shape), dtype=float) > max(largest, x.size, y.size):
            return None
        return np.asarray(arithmetic.BINARY[kind](x, y)).astype(x.dtype, copy=False)
    if kind in _STATISTIC and real:
        return np.asarray(_STATISTIC[kind](node, inputs, opset))
    if kind in products.OPERATORS and real:
        return products.OPERATORS[kind](node, inputs, largest)
    if kind in normalizations.OPERATORS and real:
        return normalizations.OPERATORS[kind](node, inputs, opset, double)
    return None


def widened(value: Array | None) -> Array | None:
    """Floats in float64, the rest as it is."""
    return value.astype(np.float64) if value is not None and is_float(value.dtype) else value


def is_finite(array: Array) -> bool:
    """Whether no float in the array is infinite or NaN; integers and booleans always are."""
    if not is_float(array.dtype):
        return True
    whole = array.reshape(-1)
    parts = (whole[start : start + _PART] for start in range(0, whole.size, _PART))
    return all(np.isfinite(part if part.dtype.kind == "f" else part.astype(np.float64)).all() for part in parts)


def _largest_of(inputs: Sequence[Array | None]) -> int:
    return max(value.size for value in inputs if value is not None)


def _axes(node: ir.Node, inputs: Sequence[Array | None], opset: int, since: int) -> tuple[int, ...] | None:
    """Axes as an attribute, or since some opset as an input; None when they are not given."""
    if opset < since:
        given = attribute(node, "axes", None)
        return None if given is None else tuple(given)
    axes = inputs[1] if len(inputs) > 1 else None
    return None if axes is None else tuple(int(axis) for axis in axes.reshape(-1))


def _reduced(
    reduce: Callable[..., Array], node: ir.Node, inputs: Sequence[Array | None], opset: int, since: int
) -> Array:
    x = inputs[0]
    assert x is not None
    axes = _axes(node, inputs, opset, since)
    if not axes and opset >= since and attribute(node, "noop_with_empty_axes", 0):
        if node.op_type not in ("ReduceMean", "ReduceSum"):
            raise ValueError("runtimes differ in whether the elementwise part is done")
        return x
    return reduce(x, axis=axes or None, keepdims=bool(attribute(node, "keepdims", 1)))


def _softmax(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:
    """Before opset 13 over all axes from ``axis`` on."""
    x = inputs[0]
    assert x is not None
    if opset < 13:
        axis = attribute(node, "axis", 1)
        flat = x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)
    else:
        flat, axis = x, attribute(node, "axis", -1)
    over = axis if opset >= 13 else 1
    raised = np.exp(flat - flat.max(axis=over, keepdims=True))
    return np.asarray(raised / raised.sum(axis=over, keepdims=True)).reshape(x.shape)


def _cumulative_sum(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:
    x, axis = inputs[0], inputs[1]
    assert x is not None
    assert axis is not None
    over = int(axis.reshape(()))
    x = np.flip(x, over) if attribute(node, "reverse", 0) else x
    total = np.cumsum(x, axis=over)
    total = total - x if attribute(node, "exclusive", 0) else total
    return np.flip(total, over) if attribute(node, "reverse", 0) else total


def _reduction(name: str, since: int) -> Callable[[ir.Node, Sequence[Array | None], int], Array]:
    reduce = arithmetic.REDUCE[name]
    return lambda node, inputs, opset: _reduced(reduce, node, inputs, opset, since)


_STATISTIC: dict[str, Callable[[ir.Node, Sequence[Array | None], int], Array]] = {
    **{name: _reduction(name, 13 if name == "ReduceSum" else 18) for name in arithmetic.REDUCE},
    "CumSum": _cumulative_sum,
    "LogSoftmax": lambda node, inputs, opset: np.log(_softmax(node, inputs, opset)),
    "Softmax": _softmax,
}


def _transpose(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:
    x = inputs[0]
    assert x is not None
    return np.ascontiguousarray(x.transpose(attribute(node, "perm", None)))


def _flatten(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:
    x = inputs[0]
    assert x is not None
    axis = attribute(node, "axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), int(np.prod(x.shape[axis:], dtype=np.int64)))


def _reshape(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array | None:
    x, wanted = inputs
    if x is None or wanted is None:
        return None
    keep_zero = attribute(node, "allowzero", 0)
    return x.reshape([x.shape[i] if size == 0 and not keep_zero else int(size) for i, size in enumerate(wanted)])


def _squeeze(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:
    x = inputs[0]
    assert x is not None
    return x.squeeze(_axes(node, inputs, opset, 13))


def _unsqueeze(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array | None:
    x, axes = inputs[0], _axes(node, inputs, opset, 13)
    return None if x is None or axes is None else np.expand_dims(x, axes)


def _concat(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array:
    return np.concatenate([operand for operand in inputs if operand is not None], axis=attribute(node, "axis", None))


def _gather(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array | None:
    x, indices = inputs
    return None if x is None or indices is None else np.asarray(x.take(indices, axis=attribute(node, "axis", 0)))


def _slice(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array | None:
    x = inputs[0]
    assert x is not None
    if opset < 10:
        lists = [attribute(node, name, None) for name in ("starts", "ends", "axes")]
    else:
        lists = [None if item is None else item.tolist() for item in inputs[1:]]
    starts, ends, axes, steps = [*lists, None, None, None, None][:4]
    if starts is None or ends is None:
        return None
    where = [slice(None)] * x.ndim
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = index if axes is None else axes[index]
        where[axis] = slice(start, end, None if steps is None else steps[index])
    return np.ascontiguousarray(x[tuple(where)])


def _cast(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array | None:
    return None if inputs[0] is None else cast(inputs[0], ir.DataType(attribute(node, "to", 0)))


def cast(x: Array, to: ir.DataType) -> Array | None:
    """The array in another type, None where that saturates, rounds in a way of its own, or is not finite."""
    source = ir.DataType.from_numpy(x.dtype)
    if source not in _CASTS or to not in _CASTS or (is_float(x.dtype) and not is_float(to.numpy())):
        return None
    with np.errstate(all="ignore"):
        result = x.astype(to.numpy())
    finite = is_finite(result)
    return result if finite else None


_DATA: dict[str, Callable[[ir.Node, Sequence[Array | None], int], Array | None]] = {
    "Cast": _cast,
    "Concat": _concat,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda node, inputs, opset: inputs[0],
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

#: Layers and normalizations: computed where they make a weight, else left for the rules and their decisions.
LAYERS = frozenset({"Einsum", "Gemm", "MatMul", *normalizations.OPERATORS})
#: Every operator that ``evaluate`` knows.
KNOWN = frozenset(
    {*arithmetic.UNARY, *arithmetic.BINARY, *_STATISTIC, *_DATA, *reference.OPERATORS}
    | {*products.OPERATORS, *normalizations.OPERATORS}
)
