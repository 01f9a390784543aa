"""Operators that only move data or compare, computed by ONNX's reference evaluator.

They are the ones with which exporters make parameters (a constant bias is Expand of a scalar, padded branch weights are
Pad) and whose meaning has not changed since opset 13. Only small results are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

#: Since which opset they mean what they mean today.
OLDEST_OPSET = 13
#: Those that meant it already before, and since when.
_SINCE = {
    **dict.fromkeys(("And", "Ceil", "Clip", "Equal", "Floor", "Not", "Or", "Pad", "ReduceMax", "ReduceMin"), 7),
    **{"ReduceProd": 7, "Size": 7, "Tile": 7, "Expand": 8, "Max": 8, "Min": 8, "ConstantOfShape": 9, "Greater": 9},
    **{"Less": 9, "Where": 9, "GatherElements": 11, "Range": 11, "ScatterElements": 11, "ScatterND": 11},
    **{"GatherND": 12, "GreaterOrEqual": 12, "LessOrEqual": 12},
}
#: Attributes that became inputs with opset 11.
_AS_INPUTS = {"Clip": ("min", "max"), "Pad": ("pads", "value")}
_INPUTS_SINCE = 11
#: Results of more elements are not made.
LARGEST = 1 << 18

_COMPARISONS = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"})
_BROADCAST = _COMPARISONS | {"Max", "Min", "Where"}
#: Their result has at most as many elements as their first input.
_NO_LARGER = frozenset(
    {"Ceil", "Clip", "Floor", "ReduceMax", "ReduceMin", "ReduceProd", "ScatterElements", "ScatterND", "Size", "Trilu"}
)
OPERATORS = frozenset(
    {
        *("ConstantOfShape", "Expand", "GatherElements", "GatherND", "Pad", "Range", "ScatterElements"),
        *("ScatterND", "Size", "Tile", "Trilu"),
        *_COMPARISONS,
        *("Where", "Ceil", "Clip", "Floor", "Max", "Min", "ReduceMax", "ReduceMin", "ReduceProd"),
    }
)


def from_reference(
    node: ir.Node, inputs: Sequence[npt.NDArray[Any] | None], opset: int, largest: int = LARGEST
) -> npt.NDArray[Any] | None:
    """The node's one result, None when it has more than ``largest`` elements, or when the evaluator cannot make it.

    Its type is that of the inputs: floats may be given in float64 whatever the type of the node's values.
    """
    if opset < _SINCE.get(node.op_type, OLDEST_OPSET):
        return None
    attributes = list(node.attributes.values())
    if opset < _INPUTS_SINCE and node.op_type in _AS_INPUTS:
        inputs, attributes = _with_inputs(node, inputs)
    if _largest_result(node, inputs) > largest:
        return None
    names = ["" if value is None else f"x{index}" for index, value in enumerate(inputs)]
    proto = onnx.helper.make_node(node.op_type, names, ["y"])
    proto.attribute.extend(ir.serde.serialize_attribute(item) for item in attributes)
    given = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    graph = onnx.helper.make_graph(
        [proto],
        "constant",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in given],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UNDEFINED, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", max(opset, OLDEST_OPSET))])
    try:
        with np.errstate(all="ignore"):
            result = np.asarray(next(iter(ReferenceEvaluator(model).run(None, given))))
    except Exception:  # whatever the evaluator does not know stays in the graph
        return None
    return result if result.dtype == _type_of_result(node, inputs) else None


def _with_inputs(
    node: ir.Node, inputs: Sequence[npt.NDArray[Any] | None]
) -> tuple[list[npt.NDArray[Any] | None], list[ir.Attr]]:
    """(inputs, attributes) as they are since opset 11."""
    moved, given = _AS_INPUTS[node.op_type], list(inputs)
    for name in moved:
        found = node.attributes.get(name)
        dtype = np.int64 if name == "pads" else inputs[0].dtype if inputs[0] is not None else None
        given.append(None if found is None else np.asarray(found.value, dtype))
    return given, [item for item in node.attributes.values() if item.name not in moved]


def _type_of_result(node: ir.Node, inputs: Sequence[npt.NDArray[Any] | None]) -> np.dtype[Any] | None:
    """What the evaluator must answer with; it mixes types up where it casts inside."""
    kind = node.op_type
    if kind in _COMPARISONS:
        return np.dtype(bool)
    if kind == "Size":
        return np.dtype(np.int64)
    if kind == "ConstantOfShape":
        fill = node.attributes.get("value")
        return np.dtype(np.float32) if fill is None else fill.as_tensor().dtype.numpy()
    first = inputs[1] if kind == "Where" else inputs[0]
    return None if first is None else first.dtype


def _largest_result(node: ir.Node, inputs: Sequence[npt.NDArray[Any] | None]) -> float:
    """How many elements the result has, at most; a file may ask for any number."""
    given = [value for value in inputs if value is not None]
    first = given[0] if given else np.zeros(0)
    kind = node.op_type
    if kind == "ConstantOfShape":
        return math.prod(float(size) for size in first.reshape(-1))
    if kind == "Expand":
        padded = (1,) * (given[1].size - first.ndim) + first.shape
        sizes = [1] * (first.ndim - given[1].size) + given[1].reshape(-1).tolist()
        return math.prod(float(max(pair)) for pair in zip(padded, sizes, strict=True))
    if kind == "Tile":
        return first.size * math.prod(float(count) for count in given[1].reshape(-1))
    if kind == "Pad":
        return math.prod(float(size + np.abs(given[1]).sum()) for size in first.shape)
    if kind in _BROADCAST:
        return math.prod(np.broadcast_shapes(*(value.shape for value in given)))
    if kind in _NO_LARGER:
        return first.size
    if kind == "Range":
        start, limit, step = (float(value.reshape(())) for value in given)
        return abs((limit - start) / step) + 1 if step else math.inf
    return math.prod(float(value.size) for value in given)
