"""What the entries of a computed shape are: numbers, or sizes of tensors.

The exporters join a shape from single sizes (Shape, Gather, Unsqueeze, Concat), and choose between a size and 1 where
it might be -1 (Where, Equal), which no size is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.graph import attribute, is_op, tensor_of

#: A number, the name of a size, or a tensor's axis.
Entry: TypeAlias = int | str | tuple[ir.Value, int]
#: Longer chains of operators are not followed.
_DEEPEST = 12
#: More entries are not looked at.
_MOST = 16


def entries_of(value: ir.Value | None, depth: int = 0) -> list[Entry] | None:
    """The entries of a vector or scalar of integers; None where one of them is not known."""
    if value is None or depth > _DEEPEST:
        return None
    array = tensor_of(value)
    if array is not None:
        return [int(item) for item in array.reshape(-1)] if array.size <= _MOST and array.dtype.kind == "i" else None
    node = value.producer()
    reader = _READERS.get(node.op_type) if node is not None and is_op(node, node.op_type) else None
    found = None if node is None or reader is None else reader(node, depth + 1)
    return found if found is None or len(found) <= _MOST else None


def sizes_of(x: ir.Value) -> list[Entry] | None:
    """The entries of a tensor's shape."""
    if x.shape is None:
        return None
    return [_size(x, axis, size) for axis, size in enumerate(x.shape)]


def _size(x: ir.Value, axis: int, size: int | ir.SymbolicDim) -> Entry:
    if isinstance(size, int):
        return size
    return (x, axis) if size.value is None else str(size.value)


def _shape(node: ir.Node, depth: int) -> list[Entry] | None:
    sizes = None if node.inputs[0] is None else sizes_of(node.inputs[0])
    return None if sizes is None else sizes[attribute(node, "start", 0) : attribute(node, "end", None)]


def _passed(node: ir.Node, depth: int) -> list[Entry] | None:
    """Unsqueeze, Squeeze, Reshape and Cast: nothing above rank 1 is joined from sizes."""
    return entries_of(node.inputs[0], depth)


def _gather(node: ir.Node, depth: int) -> list[Entry] | None:
    entries, index = entries_of(node.inputs[0], depth), tensor_of(node.inputs[1])
    if entries is None or index is None or index.size > _MOST:
        return None
    places = [int(place) for place in index.reshape(-1)]
    return [entries[place] for place in places] if all(-len(entries) <= p < len(entries) for p in places) else None


def _concat(node: ir.Node, depth: int) -> list[Entry] | None:
    joined: list[Entry] = []
    for value in node.inputs:
        entries = entries_of(value, depth)
        if entries is None or len(joined) > _MOST:
            return None
        joined += entries
    return joined


def _where(node: ir.Node, depth: int) -> list[Entry] | None:
    """A choice between entries by which of others are equal."""
    equal = node.inputs[0].producer() if node.inputs[0] is not None else None
    if equal is None or not is_op(equal, "Equal"):
        return None
    parts = [entries_of(value, depth) for value in (*equal.inputs, *node.inputs[1:])]
    known = [part for part in parts if part is not None]
    length = max((len(part) for part in known), default=0)
    if len(known) != 4 or not length or any(len(part) not in (1, length) for part in known):
        return None
    chosen: list[Entry] = []
    for first, second, one, other in zip(*(part * (length // len(part)) for part in known), strict=True):
        same = _same(first, second)
        if same is None:
            return None
        chosen.append(one if same else other)
    return chosen


def _computed(node: ir.Node, depth: int) -> list[Entry] | None:
    """Products and quotients of numbers that are none below 0, and of sizes."""
    parts = [entries_of(value, depth) for value in node.inputs]
    first, second = parts if len(parts) == 2 else (None, None)
    if not first or not second or 1 not in (len(first), len(second)):
        return None
    length = max(len(first), len(second))
    numbers: list[Entry] = []
    pairs = zip(first * (length // len(first)), second * (length // len(second)), strict=True)
    for place, (one, other) in enumerate(pairs):
        if isinstance(one, int) and isinstance(other, int):
            if one < 0 or other <= 0:
                return None
            numbers.append(one * other if node.op_type == "Mul" else one // other)
        elif any(isinstance(item, int) and item <= 0 for item in (one, other)):
            return None
        else:
            numbers.append((node.outputs[0], place))  # a size that only itself is equal to
    return numbers


def _same(first: Entry, second: Entry) -> bool | None:
    """Whether two entries are equal; None where that is not known. No size is negative."""
    if first == second:
        return True
    if isinstance(first, int) and isinstance(second, int):
        return False
    number = first if isinstance(first, int) else second
    return False if isinstance(number, int) and number < 0 else None


def is_joined_shape(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether the value is surely the shape of x, as it is computed."""
    sizes, entries = sizes_of(x), entries_of(value)
    return sizes is not None and sizes == entries


def product_of(value: ir.Value | None, depth: int = 0) -> tuple[int, Counter[Entry]] | None:
    """The number and the sizes whose product a scalar is, as it is computed; None where that is not known."""
    if value is None or depth > _DEEPEST:
        return None
    array = tensor_of(value)
    if array is not None:
        whole = array.size == 1 and float(array.reshape(()).astype(np.float64)).is_integer()
        return (int(array.reshape(()).astype(np.float64)), Counter()) if whole else None
    node = value.producer()
    if node is None or not is_op(node, node.op_type):
        return None
    if node.op_type == "Cast":
        return product_of(node.inputs[0], depth + 1)
    if node.op_type == "Size":
        return None if node.inputs[0] is None else _product(sizes_of(node.inputs[0]))
    if node.op_type == "ReduceProd":
        return _product(entries_of(node.inputs[0], depth))
    if node.op_type == "Mul":
        first, second = product_of(node.inputs[0], depth + 1), product_of(node.inputs[1], depth + 1)
        return None if first is None or second is None else (first[0] * second[0], first[1] + second[1])
    entries = entries_of(value, depth)
    return _product(entries) if entries is not None and len(entries) == 1 else None


def _product(entries: list[Entry] | None) -> tuple[int, Counter[Entry]] | None:
    if entries is None:
        return None
    number = math.prod(entry for entry in entries if isinstance(entry, int))
    return number, Counter(entry for entry in entries if not isinstance(entry, int))


def is_count(value: ir.Value | None, x: ir.Value, axes: tuple[int, ...]) -> bool:
    """Whether the value is surely the number of elements that x has along the axes."""
    sizes = sizes_of(x)
    wanted = None if sizes is None else _product([sizes[axis] for axis in axes])
    return wanted is not None and product_of(value) == wanted


_READERS: dict[str, Callable[[ir.Node, int], list[Entry] | None]] = {
    "Cast": _passed,
    "Concat": _concat,
    "Div": _computed,
    "Gather": _gather,
    "Identity": _passed,
    "Mul": _computed,
    "Reshape": _passed,
    "Shape": _shape,
    "Squeeze": _passed,
    "Unsqueeze": _passed,
    "Where": _where,
}
