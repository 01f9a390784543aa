"""A Pad on the way of a map: what it adds must become what the map makes of it.

    Pad(a * x + b, v) = a * Pad(x, (v - b) / a) + b        s * Pad(y, v) + t = Pad(s * y + t, s * v + t)

exact where the new value is one number for all channels. Modes that repeat elements (reflect, edge, wrap) need no
value. Zeros that cannot change, as with a shift of each channel, let only a scale pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.fold.affine_layout import FloatArray, full_rank
from onnxnorm.passes.graph import attribute, is_op, node_name, tensor_of
from onnxnorm.passes.rule import Context, Refusal


def is_pad(node: ir.Node) -> bool:
    """Whether the node is a Pad."""
    return is_op(node, "Pad")


def repeats(node: ir.Node) -> bool:
    """Whether it adds elements that are there."""
    return attribute(node, "mode", "constant") in ("reflect", "edge", "wrap")


def value_of(node: ir.Node, context: Context) -> float:
    """What it adds; Refusal where that is not known."""
    what = f"the value that Pad {node_name(node)} adds"
    if attribute(node, "mode", "constant") not in ("constant", "reflect", "edge", "wrap"):
        raise Refusal(f"the mode of Pad {node_name(node)} is not known")
    if context.opset < 11:
        value = attribute(node, "value", 0.0)
        if value is None:
            raise Refusal(f"{what} is an attribute of the function that it stands in")
        return float(np.float32(value))
    given = node.inputs[2] if len(node.inputs) > 2 else None
    array = tensor_of(given)
    if given is not None and (array is None or array.size != 1):
        raise Refusal(f"{what} is not constant")
    return 0.0 if array is None else float(array.astype(np.float64).reshape(()))


def behind(array: FloatArray, node: ir.Node, context: Context) -> FloatArray:
    """The array, which broadcasts over the Pad's input, behind it; Refusal where it differs along a padded axis."""
    if array.ndim == 0:
        return array
    source = node.inputs[0]
    if source is None or source.shape is None:
        raise Refusal(f"the rank of what Pad {node_name(node)} pads is not known")
    rank = len(source.shape)
    full = full_rank(array, rank)
    padded = _padded_axes(node, rank, context)
    differs = [axis for axis in padded if full.shape[axis] != 1]
    if differs:
        raise Refusal(f"Pad {node_name(node)} pads an axis along which the values differ", axis=differs[0])
    return full


def _padded_axes(node: ir.Node, rank: int, context: Context) -> list[int]:
    pads: Any
    axes: Any = None
    if context.opset < 11:
        pads = attribute(node, "pads", None)
    else:
        pads = tensor_of(node.inputs[1]) if len(node.inputs) > 1 else None
        given = node.inputs[3] if len(node.inputs) > 3 else None
        axes = tensor_of(given)
        if given is not None and axes is None:
            pads = None
    if pads is None:
        raise Refusal(f"how much Pad {node_name(node)} pads is not constant")
    amounts = [int(size) for size in pads]
    where = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    if len(amounts) != 2 * len(where):
        raise Refusal(f"Pad {node_name(node)} has not two sizes for each axis", sizes=len(amounts))
    return [axis for index, axis in enumerate(where) if amounts[index] or amounts[index + len(where)]]


def in_front(value: float, scale: FloatArray, shift: FloatArray) -> float | None:
    """What a Pad of ``value`` adds in front of scale * x + shift, None where that is not one number."""
    free = scale == 0.0
    if np.any(free & (shift != value)):
        return None
    with np.errstate(all="ignore"):
        values = np.unique(np.where(free, np.nan, (value - shift) / scale))
    known = values[~np.isnan(values)]
    return float(known[0]) if known.size == 1 else (value if known.size == 0 else None)


def after(value: float, scale: FloatArray, shift: FloatArray) -> float | None:
    """What a Pad of ``value`` adds behind scale * x + shift, None where that is not one number."""
    with np.errstate(all="ignore"):
        values = np.unique(scale * value + shift)
    return float(values[0]) if values.size == 1 else None


def padded(node: ir.Node, data: ir.Value, value: float, context: Context) -> ir.Node:
    """The Pad on other data, with another value."""
    attributes = dict(node.attributes)
    rest = list(node.inputs[1:])
    if repeats(node) or value == value_of(node, context):
        return ir.node("Pad", [data, *rest], attributes, name=node.name)
    if context.opset < 11:
        exact = float(np.float32(value))
        if not np.isfinite(exact):
            raise Refusal(f"the value that Pad {node_name(node)} adds would overflow")
        attributes["value"] = ir.AttrFloat32("value", exact)
    else:
        assert data.dtype is not None
        constant = context.constant(f"{node_name(node)}_value", np.asarray(value), data.dtype)
        rest = [rest[0], constant, *rest[2:]]
    return ir.node("Pad", [data, *rest], attributes, name=node.name)
