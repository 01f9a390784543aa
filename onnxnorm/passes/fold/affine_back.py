"""How a map y = scale * x + shift behind an operator looks in front of it, on each of the operator's inputs.

    Concat                      cut where the inputs meet, the same on each along other axes
    Add, Sub, Sum               the scale on each operand, the shift on the first
    Split, Slice, Gather        placed where the elements come from; what nothing reads is free (NaN)
    DepthToSpace                the map of a channel on all channels that it is made of
    MaxPool                     as it is, where the scale is positive: padding is no element
    Relu, LeakyRelu             as it is, where the scale is positive and the shift 0
    AveragePool, GlobalAveragePool, Resize, Upsample, Expand    as it is: their weights have the sum 1
    Transpose, Identity         moved

Both arrays broadcast over the tensor from the right. Where they differ along an axis that an operator mixes or changes
in size, or an argument is not constant, it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.passes.fold.affine import Map
from onnxnorm.passes.fold.affine_layout import FloatArray, full_rank, moved, same_size
from onnxnorm.passes.graph import attribute, is_op, node_name, op_name, tensor_of
from onnxnorm.passes.permutation import order_of
from onnxnorm.passes.rule import Context, Refusal

_Places: TypeAlias = npt.NDArray[np.int64]
_SUMS = ("Add", "Sub", "Sum")
_POSITIVE = ("LeakyRelu", "MaxPool", "Relu")
_RESIZES = ("Expand", "Resize", "Upsample")
_MEANS = ("AveragePool", "GlobalAveragePool")
LAYOUT = ("Identity", "Transpose")
OPERATORS = (
    *_SUMS, *_POSITIVE, *_RESIZES, *_MEANS, *LAYOUT, "Concat", "DepthToSpace", "Gather", "Slice", "Split",
)  # fmt: skip


def data_inputs(node: ir.Node) -> list[int]:
    """Which inputs carry the data."""
    several = any(is_op(node, name) for name in (*_SUMS, "Concat"))
    return list(range(len(node.inputs))) if several else [0]


def in_front(node: ir.Node, maps: dict[ir.Value, Map], context: Context) -> list[Map]:
    """The map of each data input from those of the outputs that have one; Refusal where there is none."""
    if is_op(node, "Split"):
        return [_split(node, maps)]
    whole = maps[node.outputs[0]]
    if is_op(node, "Concat"):
        return _concat(node, whole)
    if any(is_op(node, name) for name in _SUMS):
        first = Map(whole.scale, whole.shift)
        rest = Map(whole.scale, np.zeros(()))
        return [first, *[rest] * (len(node.inputs) - 1)]
    return [Map(*(_one(part, node, whole, context) for part in (whole.scale, whole.shift)))]


def _one(array: FloatArray, node: ir.Node, whole: Map, context: Context) -> FloatArray:
    if any(is_op(node, name) for name in _POSITIVE):
        _check_positive(node, whole)
    if array.ndim == 0 or is_op(node, "Identity"):
        return array
    rank = len(_sizes(node.outputs[0], node))
    full = full_rank(array, rank)
    if is_op(node, "Transpose"):
        order = order_of(node)
        if order is None or len(order) != rank:
            raise Refusal(f"the order of Transpose {node_name(node)} is not known")
        return full.transpose(np.argsort(order))
    if is_op(node, "Slice") or is_op(node, "Gather"):
        return _selected(full, node, context)
    if is_op(node, "DepthToSpace"):
        return _depth(full, node)
    if any(is_op(node, name) for name in _RESIZES):
        _check_sizes(full, node)
    elif any(is_op(node, name) for name in _MEANS):
        moved(full, node, context)
    elif is_op(node, "MaxPool") and any(size != 1 for size in full.shape[2:]):
        raise Refusal(f"MaxPool {node_name(node)} mixes elements along which the values differ")
    return full


def _sizes(value: ir.Value | None, node: ir.Node) -> ir.Shape:
    if value is None or value.shape is None:
        raise Refusal(f"the rank of what {op_name(node)} {node_name(node)} reads or makes is not known")
    return value.shape


def _check_positive(node: ir.Node, whole: Map) -> None:
    """A maximum or a function with a kink at 0 keeps its order only under a positive scale."""
    what = f"{op_name(node)} {node_name(node)}"
    if np.any(whole.scale <= 0.0):
        raise Refusal(f"a scale is not positive, which {what} does not let pass", scale=float(np.nanmin(whole.scale)))
    if not is_op(node, "MaxPool") and np.any(np.nan_to_num(whole.shift) != 0.0):
        raise Refusal(f"the shift cannot pass {what}")
    if is_op(node, "MaxPool") and any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise Refusal(f"the indices of {what} are used")


def _check_sizes(full: FloatArray, node: ir.Node) -> None:
    """Refusal where an axis along which the array differs is not left in its size."""
    if attribute(node, "coordinate_transformation_mode", "") in (None, "tf_crop_and_resize"):
        raise Refusal(f"{op_name(node)} {node_name(node)} adds elements outside of the image")
    source, target = _sizes(node.inputs[0], node), _sizes(node.outputs[0], node)
    differs = [axis - full.ndim for axis, size in enumerate(full.shape) if size != 1]
    if any(-axis > len(source) or not same_size(source[axis], target[axis]) for axis in differs):
        raise Refusal(f"{op_name(node)} {node_name(node)} changes an axis along which the values differ")


def _concat(node: ir.Node, whole: Map) -> list[Map]:
    rank = len(_sizes(node.outputs[0], node))
    axis = attribute(node, "axis", 1)
    if axis is None or not -rank <= axis < rank:
        raise Refusal(f"the axis of Concat {node_name(node)} is not known")
    sizes = [_sizes(value, node)[axis] for value in node.inputs]
    parts = [_cut(array, axis % rank, rank, sizes, node) for array in (whole.scale, whole.shift)]
    return [Map(scale, shift) for scale, shift in zip(*parts, strict=True)]


def _cut(array: FloatArray, axis: int, rank: int, sizes: list[object], node: ir.Node) -> list[FloatArray]:
    full = full_rank(array, rank) if array.ndim else array
    if not full.ndim or full.shape[axis] == 1:
        return [full] * len(sizes)
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes) or sum(known) != full.shape[axis]:
        raise Refusal(f"the sizes that Concat {node_name(node)} joins are not known", sizes=str(sizes))
    return np.split(full, np.cumsum(known)[:-1], axis=axis)


def _split(node: ir.Node, maps: dict[ir.Value, Map]) -> Map:
    """What is not mapped stays: it has readers of its own."""
    shapes = [_sizes(value, node) for value in node.outputs]
    rank, axis = len(shapes[0]), attribute(node, "axis", 0)
    if axis is None or not -rank <= axis < rank or not all(isinstance(shape[axis], int) for shape in shapes):
        raise Refusal(f"the sizes that Split {node_name(node)} makes are not known")
    identity = Map(np.ones(()), np.zeros(()))
    found = [maps.get(value, identity) for value in node.outputs]
    sizes = [int(shape[axis]) for shape in shapes]
    return Map(*(_joined([getattr(item, name) for item in found], sizes, axis % rank, rank, node)
                 for name in ("scale", "shift")))  # fmt: skip


def _joined(parts: list[FloatArray], sizes: list[int], axis: int, rank: int, node: ir.Node) -> FloatArray:
    full = [full_rank(part, rank) for part in parts]
    try:
        others = np.broadcast_shapes(*[(*part.shape[:axis], 1, *part.shape[axis + 1 :]) for part in full])
        shapes = [(*others[:axis], size, *others[axis + 1 :]) for size in sizes]
        pairs = zip(full, shapes, strict=True)
        return np.concatenate([np.broadcast_to(part, shape) for part, shape in pairs], axis=axis)
    except ValueError:
        raise Refusal(f"the values behind Split {node_name(node)} have other sizes than its results") from None


def _selected(full: FloatArray, node: ir.Node, context: Context) -> FloatArray:
    """The array placed where Slice or Gather reads; NaN elsewhere."""
    source = _sizes(node.inputs[0], node)
    if len(source) != full.ndim:
        raise Refusal(f"{op_name(node)} {node_name(node)} drops an axis")
    for axis, places in _places(node, list(source), context).items():
        if full.shape[axis] == 1:
            continue
        size = source[axis]
        if places is None or not isinstance(size, int) or len(places) != full.shape[axis]:
            raise Refusal(f"what {op_name(node)} {node_name(node)} reads is not known")
        front = np.moveaxis(full, axis, 0)
        result = np.full((size, *front.shape[1:]), np.nan)
        result[places] = front
        if not np.array_equal(result[places], front, equal_nan=True):
            raise Refusal(f"{op_name(node)} {node_name(node)} reads an element twice, with different values")
        full = np.moveaxis(result, 0, axis)
    return full


def _places(node: ir.Node, sizes: list[object], context: Context) -> dict[int, _Places | None]:
    """Axis -> which elements are read, None where that is not known."""
    rank = len(sizes)
    if is_op(node, "Gather"):
        axis, indices = attribute(node, "axis", 0), tensor_of(node.inputs[1])
        if axis is None or indices is None or indices.ndim != 1:
            raise Refusal(f"what Gather {node_name(node)} reads is not constant")
        return {axis % rank: _of(sizes[axis], lambda every: every[indices.astype(np.int64)])}
    starts, ends, axes, steps = _slices(node, rank, context)
    found: dict[int, _Places | None] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        found[axis % rank] = _of(sizes[axis], _slicer(start, end, step))
    return found


def _slicer(start: int, end: int, step: int) -> Callable[[_Places], _Places]:
    def cut(every: _Places) -> _Places:
        last = None if step < 0 and end < -every.size else end
        return every[slice(start, last, step)]

    return cut


def _of(size: object, choose: Callable[[_Places], _Places]) -> _Places | None:
    return choose(np.arange(size, dtype=np.int64)) if isinstance(size, int) else None


def _slices(node: ir.Node, rank: int, context: Context) -> list[list[int]]:
    """Starts, ends, axes, steps of a Slice: attributes before opset 10."""
    if context.opset < 10:
        given = [attribute(node, name, None) for name in ("starts", "ends", "axes")]
        rest = list(range(len(given[0] or ())))
        lists = [list(given[0] or ()), list(given[1] or ()), list(given[2] or rest)]
        return [*lists, [1] * len(rest)]
    arrays = [tensor_of(value) for value in node.inputs[1:]]
    missing = [value is not None and array is None for value, array in zip(node.inputs[1:], arrays, strict=True)]
    if any(missing) or len(arrays) < 2 or arrays[0] is None or arrays[1] is None:
        raise Refusal(f"what Slice {node_name(node)} reads is not constant")
    count = arrays[0].size
    defaults = [[], [], list(range(count)), [1] * count]
    arrays += [None] * (4 - len(arrays))
    pairs = zip(arrays, defaults, strict=True)
    return [default if array is None else [int(item) for item in array] for array, default in pairs]


def _depth(full: FloatArray, node: ir.Node) -> FloatArray:
    block, mode = attribute(node, "blocksize", None), attribute(node, "mode", "DCR")
    if block is None or mode not in ("DCR", "CRD") or full.ndim != 4 or full.shape[2:] != (1, 1):
        raise Refusal(f"DepthToSpace {node_name(node)} mixes elements along which the values differ")
    if full.shape[1] == 1:
        return full
    return np.tile(full, (1, block * block, 1, 1)) if mode == "DCR" else np.repeat(full, block * block, axis=1)
