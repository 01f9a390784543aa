"""What a node computes from constants, in NumPy, for the operators with which exporters and people make parameters.

Floats are computed in float64 and rounded once to the type of the node's first input. The reference evaluator serves
only for operators that move data (``reference``): of others it knows only the newest form, and it takes the floor of an
integer division.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.passes.canonicalize import reference
from onnxnorm.passes.graph import attribute
from onnxnorm.runtime.arrays import is_float

Array: TypeAlias = npt.NDArray[Any]

#: Operators that leave the data as it is.
LAYOUT = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

_UNARY: dict[str, Callable[[Array], Array]] = {
    "Abs": np.abs,
    "Exp": np.exp,
    "Log": np.log,
    "Neg": np.negative,
    "Reciprocal": np.reciprocal,
    "Sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "Sqrt": np.sqrt,
    "Tanh": np.tanh,
}
_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Div": np.divide,
    "Mul": np.multiply,
    "Pow": np.power,
    "Sub": np.subtract,
}
#: Types that Cast is evaluated between; others saturate or round in ways of their own.
_CASTS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    | {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL}
)
#: Results of more elements than this, by broadcasting, are not made.
_LARGEST_BROADCAST = 1 << 18


def evaluate(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array | None:
    """The node's one result, None when it is not for this module, not finite, or the inputs do not fit."""
    try:
        with np.errstate(all="ignore"):
            return _evaluate(node, inputs, opset)
    except (ValueError, IndexError, TypeError, OverflowError):  # a node that fails when it is run, too
        return None


def _evaluate(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array | None:
    kind = node.op_type
    if not inputs or inputs[0] is None:
        return None
    if kind in _DATA:
        return _DATA[kind](node, inputs, opset)
    if kind in reference.OPERATORS:
        return reference.from_reference(node, inputs, opset)
    x = inputs[0]
    dtype = x.dtype
    operands = [
        operand.astype(np.float64) if is_float(operand.dtype) else operand for operand in inputs if operand is not None
    ]
    if kind in _UNARY and is_float(dtype):
        result = _UNARY[kind](operands[0])
    elif kind in _BINARY and len(operands) == 2 and (is_float(dtype) or kind in ("Add", "Mul", "Sub")):
        if np.prod(np.broadcast_shapes(*(operand.shape for operand in operands)), dtype=float) > _LARGEST_BROADCAST:
            return None
        result = _BINARY[kind](*operands)
    elif kind in _STATISTIC and is_float(dtype):
        result = _STATISTIC[kind](node, operands, opset)
    else:
        return None
    result = np.asarray(result).astype(dtype)
    return result if np.isfinite(result.astype(np.float64)).all() else None


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


_STATISTIC: dict[str, Callable[[ir.Node, Sequence[Array | None], int], Array]] = {
    "ReduceMean": lambda node, inputs, opset: _reduced(np.mean, node, inputs, opset, 18),
    "ReduceSum": lambda node, inputs, opset: _reduced(np.sum, node, inputs, opset, 13),
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
    finite = not is_float(result.dtype) or np.isfinite(result.astype(np.float64)).all()
    return result if finite else None


_DATA: dict[str, Callable[[ir.Node, Sequence[Array | None], int], Array | None]] = {
    "Cast": _cast,
    "Concat": _concat,
    "Flatten": _flatten,
    "Gather": _gather,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

#: Every operator that ``evaluate`` knows.
KNOWN = frozenset({*_UNARY, *_BINARY, *_STATISTIC, *_DATA, *reference.OPERATORS})
