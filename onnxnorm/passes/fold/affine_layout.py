"""How an elementwise map that stands before Reshape, Flatten, Transpose, Squeeze or Unsqueeze looks behind it.

A map y = scale * x + shift has two arrays that broadcast over x. An operator that only moves elements commutes with
it when the arrays are moved the same way; an axis of size 1 in an array means "the same everywhere along it" and is
never expanded without need.

Reshape (and Flatten) is followed in two cases, both exact for row-major elements:
    - Head: axes before some k are the same on both sides and the array is constant behind k.
    - Tail: the array is constant before some k, all sizes from k on are known, and some trailing axes of the result
      have the same number of elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.passes.graph import attribute, is_op, node_name, op_name, tensor_of
from onnxnorm.passes.rule import Context, Refusal

FloatArray = npt.NDArray[np.float64]

#: Operators that move elements and compute nothing.
LAYOUT = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
#: More elements than this are not made of one value per channel.
_LARGEST = 1 << 24


def is_layout(node: ir.Node) -> bool:
    """Whether the node only moves elements."""
    return any(is_op(node, name) for name in LAYOUT)


def full_rank(array: FloatArray, rank: int) -> FloatArray:
    """The array with leading axes of size 1 up to that rank."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def moved(array: FloatArray, node: ir.Node, context: Context) -> FloatArray:
    """What the array, which broadcasts over the node's input, is behind the node; Refusal where that is not known."""
    if array.ndim == 0 or is_op(node, "Identity"):
        return array
    source, target = node.inputs[0], node.outputs[0]
    assert source is not None
    if source.shape is None:
        raise Refusal(f"the shape of {source.name!r}, which {op_name(node)} {node_name(node)} moves, is not known")
    array = full_rank(array, len(source.shape))
    if is_op(node, "Transpose"):
        order = attribute(node, "perm", list(range(array.ndim))[::-1])
        return array.transpose(_known(order, node, "perm"))
    if is_op(node, "Unsqueeze"):
        return np.expand_dims(array, tuple(_axes(node, context)))
    if is_op(node, "Squeeze") and _has_axes(node):
        return array.squeeze(tuple(_axes(node, context)))
    if target.shape is None:
        raise Refusal(f"the shape that {op_name(node)} {node_name(node)} makes is not known")
    result = _reshaped(array, list(source.shape), list(target.shape))
    if result is None:
        raise Refusal(
            f"{op_name(node)} {node_name(node)} mixes the axes along which the values differ",
            before=str(source.shape),
            after=str(target.shape),
            values=array.shape,
        )
    return result


def again(node: ir.Node, data: ir.Value, context: Context) -> ir.Node:
    """The node on other data; Reshape with a constant shape where one says the same as a computed one."""
    rest = list(node.inputs[1:])
    attributes = dict(node.attributes)
    if is_op(node, "Reshape") and tensor_of(rest[0]) is None:
        sizes = _constant_shape(node)
        if sizes is not None:
            rest = [_shape_value(context.fresh_name(f"{node_name(node)}_shape"), sizes)]
            attributes.pop("allowzero", None)
    return ir.node(node.op_type, [data, *rest], attributes, name=node.name)


def shape_nodes(node: ir.Node, context: Context) -> list[ir.Node]:
    """The nodes of the graph that compute a Reshape's shape, from Shape on; in graph order."""
    found: dict[ir.Node, None] = {}
    waiting = list(node.inputs[1:])
    while waiting:
        value = waiting.pop()
        producer = None if value is None else value.producer()
        if producer is None or producer.graph is not context.graph or producer in found:
            continue
        found[producer] = None
        if not is_op(producer, "Shape"):
            waiting += producer.inputs
    return [item for item in context.graph if item in found] if found else []


def _constant_shape(node: ir.Node) -> list[int] | None:
    """Sizes, 0 for "as before" and at most one -1; None where that does not tell the shape, or an axis is empty."""
    source, target = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or target.shape is None:
        return None
    before = list(source.shape)
    sizes = []
    for axis, size in enumerate(target.shape):
        if isinstance(size, int):
            sizes.append(size)
        else:
            sizes.append(0 if axis < len(before) and _same(size, before[axis]) else -1)
    empty = any(size == 0 for size in (*before, *target.shape))
    return None if empty or sizes.count(-1) > 1 else sizes


def _shape_value(name: str, sizes: list[int]) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([len(sizes)]))
    value.const_value = ir.tensor(np.array(sizes, np.int64), name=name)
    return value


def _known(value: Any, node: ir.Node, name: str) -> Any:
    if value is None:
        raise Refusal(f"{name} of {op_name(node)} {node_name(node)} is an attribute of the function that it stands in")
    return value


def _has_axes(node: ir.Node) -> bool:
    return "axes" in node.attributes or (len(node.inputs) > 1 and node.inputs[1] is not None)


def _axes(node: ir.Node, context: Context) -> list[int]:
    """The axes as an attribute, or since opset 13 as an input."""
    if context.opset < 13:
        return [int(axis) for axis in _known(attribute(node, "axes", ()), node, "axes")]
    axes = tensor_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:
        raise Refusal(f"the axes of {op_name(node)} {node_name(node)} are not constant")
    return [int(axis) for axis in axes.reshape(-1)]


def _reshaped(array: FloatArray, before: Sequence[Any], after: Sequence[Any]) -> FloatArray | None:
    """The array behind a reshape; None when neither case of this module holds."""
    differs = [axis for axis, size in enumerate(array.shape) if size != 1]
    if not differs:
        return np.asarray(array.reshape((1,) * len(after)))
    behind = differs[-1] + 1
    if len(after) >= behind and all(_same(a, b) for a, b in zip(before[:behind], after, strict=False)):
        return np.asarray(array.reshape(*array.shape[:behind], *(1,) * (len(after) - behind)))
    for start in range(differs[0], -1, -1):
        tail = before[start:]
        if not all(isinstance(size, int) for size in tail):
            return None
        count = math.prod(tail)
        for cut in range(len(after), -1, -1):
            sizes = after[cut:]
            if not all(isinstance(size, int) for size in sizes) or count > _LARGEST:
                break
            if math.prod(sizes) == count:
                expanded = np.broadcast_to(array[(0,) * start], tail)
                return np.asarray(expanded.reshape((1,) * cut + tuple(sizes)))
    return None


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are equal for certain: the same number, or the same symbol."""
    if isinstance(a, int) or isinstance(b, int):
        return bool(isinstance(a, int) and isinstance(b, int) and a == b)
    return a.value is not None and a.value == b.value
