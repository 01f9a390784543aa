"""How an elementwise map that stands before Reshape, Flatten, Transpose, Squeeze or Unsqueeze looks behind it.

A map y = scale * x + shift has two arrays that broadcast over x. An operator that only moves elements commutes with
it when the arrays are moved the same way; an axis of size 1 in an array means "the same everywhere along it" and is
never expanded without need.

Reshape (and Flatten) is followed group by group: axes before and behind it are matched from both ends into the smallest
groups with the same number of elements, which is exact for row-major elements. A group in which the array is constant
stays so, whatever its sizes; in one in which it differs, all sizes must be known.

A mean commutes as well, where the arrays are constant along the axes that it runs over: mean(a * x + b) = a * mean(x) +
b. AveragePool is such a mean unless it counts zeros of its padding.
"""

from __future__ import annotations

import itertools
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
#: Operators that take means over axes.
MEANS = ("AveragePool", "GlobalAveragePool", "ReduceMean")
#: More elements than this are not made of one value per channel.
_LARGEST = 1 << 24


def is_layout(node: ir.Node) -> bool:
    """Whether the node only moves elements."""
    return any(is_op(node, name) for name in LAYOUT)


def is_mean(node: ir.Node) -> bool:
    """Whether the node takes means over axes."""
    return any(is_op(node, name) for name in MEANS)


def carries(node: ir.Node) -> bool:
    """Whether a map may come before the node or behind it: it moves elements, takes means (``moved``) or is a Pad."""
    return is_layout(node) or is_mean(node) or is_op(node, "Pad")


def full_rank(array: FloatArray, rank: int) -> FloatArray:
    """The array with leading axes of size 1 up to that rank."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def moved(array: FloatArray, node: ir.Node, context: Context) -> FloatArray:
    """What the array, which broadcasts over the node's input, is behind the node; Refusal where that is not known."""
    if is_mean(node):
        return _averaged(array, node, context)
    if array.ndim == 0 or is_op(node, "Identity"):
        return array
    source, target = node.inputs[0], node.outputs[0]
    assert source is not None
    if source.shape is None:
        raise Refusal(f"the shape of {source.name!r}, which {op_name(node)} {node_name(node)} moves, is not known")
    array = full_rank(array, len(source.shape))
    try:
        if is_op(node, "Transpose"):
            order = attribute(node, "perm", list(range(array.ndim))[::-1])
            return array.transpose(_known(order, node, "perm"))
        if is_op(node, "Unsqueeze"):
            return np.expand_dims(array, tuple(_axes(node, context)))
        if is_op(node, "Squeeze") and _has_axes(node):
            return array.squeeze(tuple(_axes(node, context)))
    except ValueError:
        what = f"the axes of {op_name(node)} {node_name(node)} do not fit its input"
        raise Refusal(what, input=str(source.shape)) from None
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
            sizes.append(0 if axis < len(before) and same_size(size, before[axis]) else -1)
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


def _averaged(array: FloatArray, node: ir.Node, context: Context) -> FloatArray:
    """The array behind a mean over axes along which it is constant."""
    source = node.inputs[0]
    what = f"{op_name(node)} {node_name(node)}"
    if source is None or source.shape is None:
        raise Refusal(f"the rank of what {what} averages is not known")
    rank = len(source.shape)
    if is_op(node, "AveragePool") and _counts_padding(node):
        raise Refusal(f"{what} counts zeros of its padding")
    axes = _mean_axes(node, rank, context) if is_op(node, "ReduceMean") else list(range(2, rank))
    array = full_rank(array, rank) if array.ndim else array
    differs = [axis for axis in axes if array.ndim and array.shape[axis] != 1]
    if differs:
        raise Refusal(f"{what} averages along an axis along which the values differ", axis=differs[0])
    drops = is_op(node, "ReduceMean") and not _known(attribute(node, "keepdims", 1), node, "keepdims")
    return array.squeeze(tuple(axes)) if drops and array.ndim else array


def _counts_padding(node: ir.Node) -> bool:
    """Whether zeros around the input may be part of the mean."""
    given, auto = attribute(node, "pads", ()), attribute(node, "auto_pad", "NOTSET")
    plain = given is not None and not any(given) and auto in ("NOTSET", "VALID") and not attribute(node, "ceil_mode", 0)
    return attribute(node, "count_include_pad", 0) != 0 and not plain


def _mean_axes(node: ir.Node, rank: int, context: Context) -> list[int]:
    """Counted from the start; an attribute, or since opset 18 an input."""
    if context.opset < 18:
        axes = [int(axis) for axis in _known(attribute(node, "axes", range(rank)), node, "axes")]
    else:
        given = node.inputs[1] if len(node.inputs) > 1 else None
        array = tensor_of(given)
        if given is not None and array is None:
            raise Refusal(f"the axes of {op_name(node)} {node_name(node)} are not constant")
        axes = [] if array is None else [int(axis) for axis in array.reshape(-1)]
        if not axes and not _known(attribute(node, "noop_with_empty_axes", 0), node, "noop_with_empty_axes"):
            axes = list(range(rank))
    if any(not -rank <= axis < rank for axis in axes):
        raise Refusal(f"the axes of {op_name(node)} {node_name(node)} are none of its input", rank=rank)
    return sorted({axis % rank for axis in axes})


def _reshaped(array: FloatArray, before: Sequence[Any], after: Sequence[Any]) -> FloatArray | None:
    """The array behind a reshape; None where a group in which it differs has sizes that are not known."""
    sizes: list[int] = []
    for old, new in _groups(before, after):
        part = array.shape[old]
        if all(size == 1 for size in part):
            sizes += [1] * (new.stop - new.start)
            continue
        tail, target = before[old], after[new]
        if all(map(same_size, tail, target)) and len(tail) == len(target):
            sizes += part
            continue
        known = all(isinstance(size, int) for size in (*tail, *target))
        if (
            not known
            or math.prod(tail) != math.prod(target)
            or array.size // math.prod(part) * math.prod(tail) > _LARGEST
        ):
            return None
        array = np.broadcast_to(array, (*array.shape[: old.start], *tail, *array.shape[old.stop :]))
        sizes += target
    return np.asarray(array.reshape(sizes))


def _groups(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[slice, slice]]:
    """Axes before and behind a reshape that hold the same elements, in order.

    Matched from both ends by numbers of elements that are certainly equal; what is left in the middle is one group.
    """
    front = _matched(before, after)
    start = front[-1] if front else (0, 0)
    back = _matched(before[start[0] :][::-1], after[start[1] :][::-1])
    ends = [(len(before) - old, len(after) - new) for old, new in reversed(back)]
    cuts = [(0, 0), *front, *ends, (len(before), len(after))]
    pairs = itertools.pairwise(cuts)
    return [(slice(a, c), slice(b, d)) for (a, b), (c, d) in pairs if (a, b) != (c, d)]


def _matched(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[int, int]]:
    """Ends of the smallest groups from the first axis on, as (axes before, axes behind)."""
    ends: list[tuple[int, int]] = []
    old = new = 0
    while old < len(before) and new < len(after):
        if same_size(before[old], after[new]):
            old, new = old + 1, new + 1
        else:
            group = _numbers(before[old:], after[new:])
            if group is None:
                break
            old, new = old + group[0], new + group[1]
        ends.append((old, new))
    return ends


def _numbers(before: Sequence[Any], after: Sequence[Any]) -> tuple[int, int] | None:
    """How many known sizes of each side have the same product, the fewest; None where there are none."""
    if not before or not after or not _positive(before[0]) or not _positive(after[0]):
        return None
    old = new = 1
    left, right = before[0], after[0]
    while left != right:
        sizes, taken = (before, old) if left < right else (after, new)
        if taken == len(sizes) or not _positive(sizes[taken]):
            return None
        if left < right:
            left, old = left * sizes[taken], old + 1
        else:
            right, new = right * sizes[taken], new + 1
    return old, new


def _positive(size: Any) -> bool:
    return isinstance(size, int) and size > 0


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are equal for certain: the same number, or the same symbol."""
    if isinstance(a, int) or isinstance(b, int):
        return bool(isinstance(a, int) and isinstance(b, int) and a == b)
    return a.value is not None and a.value == b.value
