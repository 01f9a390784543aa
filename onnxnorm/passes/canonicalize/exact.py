"""Computes chains of constants in float64, rounding nowhere on the way.

A cast to a narrower float is the identity here, as in the float64 run of the PyTorch model that is the truth; a cast to
integers rounds towards zero as it must. Only what later nodes need is held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.canonicalize.chains import FLOATS, WHOLE, leaf, operands
from onnxnorm.passes.canonicalize.evaluate import compute, widened
from onnxnorm.passes.graph import attribute, node_name, op_name
from onnxnorm.spec.record import DOMAIN

Array: TypeAlias = npt.NDArray[Any]

#: Results on the way have at most so many times the elements of all constants together (or a small number).
_GROWTH = 8
_SMALL = 1 << 18
_LARGEST_WHOLE = 2.0**53
_TRUTHS = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"})


@dataclass(frozen=True)
class Constant:
    """Numbers, floats in float64, and the type that the model has them in."""

    array: Array
    dtype: ir.DataType


class NotComputed(Exception):
    """A node's result that this module cannot know; the text names the node."""


def compute_chain(nodes: Sequence[ir.Node], value: ir.Value, opset: int) -> Constant:
    """The value that the nodes make, in order; NotComputed where one of them cannot be computed."""
    waiting = Counter(item for node in nodes for item in operands(node))
    leaves = [tensor for item in waiting if (tensor := leaf(item)) is not None]
    largest = max(_SMALL, _GROWTH * sum(tensor.size for tensor in leaves))
    made: dict[ir.Value, Constant] = {}
    dtypes: dict[ir.Value, ir.DataType] = {}
    for node in nodes:
        given = [None if item is None else _operand(item, made) for item in node.inputs]
        for output, result in zip(node.outputs, _results(node, given, dtypes, opset, largest), strict=False):
            made[output], dtypes[output] = result, result.dtype
        for item in operands(node):
            waiting[item] -= 1
            if not waiting[item] and item is not value:
                made.pop(item, None)
    return made[value]


def _operand(value: ir.Value, made: dict[ir.Value, Constant]) -> Constant | None:
    """None for what only lends its type to CastLike."""
    if value in made:
        return made[value]
    tensor = leaf(value)
    if tensor is None:
        return None
    array = widened(np.asarray(tensor.numpy()))
    assert array is not None
    return Constant(array, tensor.dtype)


def _results(
    node: ir.Node, given: Sequence[Constant | None], dtypes: dict[ir.Value, ir.DataType], opset: int, largest: int
) -> list[Constant]:
    first = given[0]
    if first is None:
        raise _unknown(node)
    if node.domain == DOMAIN:
        return [_norm(node, given)]
    kind = node.op_type
    if kind == "Cast":
        return [_cast(node, first, ir.DataType(attribute(node, "to", 0)))]
    if kind == "CastLike":
        return [_cast(node, first, _type_of(node.inputs[1], dtypes))]
    if kind == "Shape":
        sizes = first.array.shape[attribute(node, "start", 0) : attribute(node, "end", None)]
        return [Constant(np.array(sizes, np.int64), ir.DataType.INT64)]
    if kind == "Split":
        arrays = [None if item is None else item.array for item in given]
        return [Constant(part, first.dtype) for part in split_parts(node, arrays, opset)]
    if kind == "Range" and first.dtype in FLOATS:
        raise _unknown(node)  # how many elements it has depends on the rounding
    dtype = _dtype_of_result(node, given)
    arrays = [None if item is None else item.array for item in given]
    array = compute(node, arrays, opset, largest, first.dtype == ir.DataType.DOUBLE)
    wide = widened(array)
    if wide is None or (wide.dtype != np.float64 if dtype in FLOATS else wide.dtype != dtype.numpy()):
        raise _unknown(node)
    return [Constant(wide, dtype)]


def _unknown(node: ir.Node) -> NotComputed:
    return NotComputed(f"{op_name(node)} {node_name(node)} cannot be computed from its constants")


def _type_of(value: ir.Value | None, dtypes: dict[ir.Value, ir.DataType]) -> ir.DataType | None:
    return None if value is None else dtypes.get(value, value.dtype)


def _dtype_of_result(node: ir.Node, given: Sequence[Constant | None]) -> ir.DataType:
    kind = node.op_type
    if kind in _TRUTHS:
        return ir.DataType.BOOL
    if kind == "Size":
        return ir.DataType.INT64
    if kind == "ConstantOfShape":
        fill = node.attributes.get("value")
        return ir.DataType.FLOAT if fill is None else fill.as_tensor().dtype
    decides = given[1] if kind == "Where" else given[0]
    if decides is None:
        raise _unknown(node)
    return decides.dtype


def _cast(node: ir.Node, x: Constant, to: ir.DataType | None) -> Constant:
    """To integers only what is in their range."""
    if to == ir.DataType.BOOL:
        return Constant(x.array != 0, to)
    if to in FLOATS:
        if x.dtype not in FLOATS and np.abs(x.array.astype(np.float64)).max(initial=0.0) > _LARGEST_WHOLE:
            raise _unknown(node)
        return Constant(x.array.astype(np.float64, copy=False), to)
    if to not in WHOLE:
        raise _unknown(node)
    limits = np.iinfo(to.numpy())
    if x.array.dtype != np.uint64 and ((x.array >= limits.min) & (x.array <= limits.max)).all():
        inside = x.dtype not in FLOATS or bool((np.abs(x.array) <= _LARGEST_WHOLE).all())
        if inside:
            return Constant(x.array.astype(to.numpy()), to)
    raise _unknown(node)


def split_parts(node: ir.Node, given: Sequence[Array | None], opset: int) -> list[Array]:
    """What Split makes: equal parts, the last of which may be smaller (since opset 18), or of given sizes."""
    x = given[0]
    assert x is not None
    axis = int(attribute(node, "axis", 0))
    sizes = given[1] if len(given) > 1 else None
    listed = attribute(node, "split", None) if opset < 13 else None if sizes is None else sizes.tolist()
    length, parts = x.shape[axis], len(node.outputs)
    if listed is None:
        size = -(-length // parts)
        listed = [min(size, length - size * index) for index in range(parts)]
    if sum(listed) != length or len(listed) != parts or min(listed) < 0:
        raise _unknown(node)
    return np.split(x, np.cumsum(listed)[:-1], axis=axis)


def _norm(node: ir.Node, given: Sequence[Constant | None]) -> Constant:
    """An op of the domain onnxnorm, by the reference of its spec."""
    spec = all_specs()[node.op_type]
    inputs = [item.array for item in given if item is not None]
    attributes = {item.name: attribute(node, item.name, None) for item in spec.attributes}
    first = given[0]
    if first is None or first.dtype not in FLOATS or len(inputs) != len(spec.inputs):
        raise _unknown(node)
    if "epsilon" in attributes and first.dtype == ir.DataType.DOUBLE:
        attributes["epsilon"] = float(f"{np.float32(attributes['epsilon']):.6e}")
    try:
        with np.errstate(all="ignore"):
            spec.validate([array.shape for array in inputs], attributes)
            result = np.asarray(spec.reference(inputs, attributes)[0])
    except Exception:  # not a legal node: it fails when it is run, too
        raise _unknown(node) from None
    return Constant(result, first.dtype)
