"""Writes the operators of opsets 7 to 12 as opset 13 has them.

Most of them only got further types, attributes whose defaults mean what was before, or negative axes. Others took
inputs in the place of attributes (Clip, Pad, Slice, Squeeze, Split, ...), another name (Upsample is Resize, Scatter is
ScatterElements), or another meaning: Softmax and its kin worked on all axes from ``axis`` on. Where what an operator
means cannot be written down, or is not known, ``convertible`` says so and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx.defs
import onnx_ir as ir

from onnxnorm.passes.graph import STANDARD, attribute, has_references, rank_of
from onnxnorm.passes.names import Names

#: The opset of the forms that are written.
TO = 13
#: From this opset on operators can be converted.
OLDEST = 7

#: Newer forms of these take everything that the older ones did, and do the same with it.
_SAME = frozenset(
    {"Abs", "Acos", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "Cast", "Ceil", "Compress", "Concat", "Constant"}
    | {"ConstantOfShape", "Conv", "ConvTranspose", "CumSum", "DepthToSpace", "DequantizeLinear", "Det", "Div", "Einsum"}
    | {"Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND"}
    | {"Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "Identity", "If", "IsInf", "IsNaN"}
    | {"LRN", "LSTM", "LeakyRelu", "Less", "LessOrEqual", "Log", "Loop", "LpNormalization", "LpPool", "MatMul"}
    | {"MatMulInteger", "Max", "MaxPool", "MaxUnpool", "Mean", "MeanVarianceNormalization", "Min", "Mod", "Mul", "Neg"}
    | {"NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "PRelu", "Pow", "QuantizeLinear", "RNN", "Range"}
    | {"Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"}
    | {"ReduceProd", "ReduceSumSquare", "Relu", "Reshape", "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Sign"}
    | {"Size", "SpaceToDepth", "Sqrt", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Where", "Xor"}
)
_SOFTMAX = frozenset({"Hardmax", "LogSoftmax", "Softmax"})
#: Attribute -> place among the inputs, by operator.
_INPUTS: dict[str, tuple[str, ...]] = {
    "Clip": ("min", "max"),
    "Pad": ("pads", "value"),
    "ReduceSum": ("axes",),
    "Slice": ("starts", "ends", "axes"),
    "Split": ("split",),
    "Squeeze": ("axes",),
    "TopK": ("k",),
    "Unsqueeze": ("axes",),
}
#: They have the type of what is clipped or padded; the others are whole numbers.
_NUMBERS = frozenset({"min", "max", "value"})


def convertible(node: ir.Node, opset: int) -> bool:
    """Whether the node can be written in opset 13; it stands in a graph of an older one."""
    if node.domain not in STANDARD or not onnx.defs.has(node.op_type, opset, ""):
        return True  # of another domain, or ONNX Runtime's own
    kind = node.op_type
    if has_references(node):
        return False
    if kind in _SOFTMAX:
        return _is_last_axis(node)
    if kind == "BatchNormalization":
        return len(node.outputs) == 1 and attribute(node, "spatial", 1) == 1
    if kind == "Dropout":
        return not any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
    if kind in _INPUTS:
        known = node.inputs[0] is not None and node.inputs[0].dtype is not None
        return known or not any(name in node.attributes for name in _NUMBERS)
    if kind in ("Upsample", "Resize"):
        return opset >= 11 or attribute(node, "mode", "nearest") in ("nearest", "linear")
    if kind in _SAME or kind == "Scatter":
        return True
    if not onnx.defs.has(kind, TO, ""):
        return False
    return onnx.defs.get_schema(kind, TO, "").since_version == onnx.defs.get_schema(kind, opset, "").since_version


def convert(node: ir.Node, opset: int, graph: ir.Graph, names: Names) -> None:
    """Writes a node that is ``convertible`` in opset 13, in its place."""
    if node.domain not in STANDARD or not onnx.defs.has(node.op_type, opset, ""):
        return
    kind = node.op_type
    if kind in _SOFTMAX:
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
    elif kind == "BatchNormalization":
        node.attributes.pop("spatial", None)
    elif kind == "Dropout" and opset < 12:
        node.attributes.pop("ratio", None)  # which is for training only
    elif kind in _INPUTS:
        _attributes_to_inputs(node, graph, names)
    elif kind in ("Upsample", "Resize") and opset < 11:
        _to_resize(node, graph, names)
    elif kind == "Scatter":
        _replaced(node, "ScatterElements", node.inputs, dict(node.attributes), graph)


def _is_last_axis(node: ir.Node) -> bool:
    """Whether the axes from ``axis`` (by default 1) on are the last one only."""
    rank = None if node.inputs[0] is None else rank_of(node.inputs[0])
    axis = attribute(node, "axis", 1)
    return rank is not None and axis is not None and (axis in (-1, rank - 1))


def _attributes_to_inputs(node: ir.Node, graph: ir.Graph, names: Names) -> None:
    data = node.inputs[0]
    inputs: list[ir.Value | None] = [*node.inputs]
    attributes = dict(node.attributes)
    for index, name in enumerate(_INPUTS[node.op_type], 1):
        found = attributes.pop(name, None)
        if found is None:
            continue
        dtype = data.dtype if name in _NUMBERS and data is not None else ir.DataType.INT64
        assert dtype is not None
        content = np.asarray([found.value] if name == "k" else found.value)
        array = content.astype(dtype.numpy())
        inputs += [None] * (index + 1 - len(inputs))
        inputs[index] = _constant(array, dtype, f"{node.outputs[0].name}_{name}", node, graph, names)
    if len(inputs) > len(node.inputs):
        _replaced(node, node.op_type, inputs, attributes, graph)


def _to_resize(node: ir.Node, graph: ir.Graph, names: Names) -> None:
    """Upsample, and Resize of opset 10: output i comes from i / scale, rounded down where it takes the nearest."""
    scales = node.inputs[1] if len(node.inputs) > 1 else None
    if scales is None:
        array = np.asarray(node.attributes["scales"].value, np.float32)
        scales = _constant(array, ir.DataType.FLOAT, f"{node.outputs[0].name}_scales", node, graph, names)
    mode = attribute(node, "mode", "nearest")
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
    if mode == "nearest":
        attributes["nearest_mode"] = "floor"
    made = {name: ir.AttrString(name, text) for name, text in attributes.items()}
    _replaced(node, "Resize", [node.inputs[0], None, scales], made, graph)


def _constant(array: Any, dtype: ir.DataType, wish: str, place: ir.Node, graph: ir.Graph, names: Names) -> ir.Value:
    node = ir.node("Constant", [], {"value": ir.tensor(array, dtype=dtype)}, name=names.fresh(f"{wish}_constant"))
    value = node.outputs[0]
    value.name, value.type, value.shape = names.fresh(wish), ir.TensorType(dtype), ir.Shape(array.shape)
    graph.insert_before(place, node)
    return value


def _replaced(
    node: ir.Node, kind: str, inputs: Sequence[ir.Value | None], attributes: dict[str, ir.Attr], graph: ir.Graph
) -> None:
    new = ir.node(kind, inputs, attributes, domain=node.domain, name=node.name, num_outputs=len(node.outputs))
    new.metadata_props.update(node.metadata_props)
    new.doc_string = node.doc_string
    for old, value in zip(node.outputs, new.outputs, strict=True):
        value.name, value.type, value.shape = old.name, old.type, old.shape
        value.metadata_props.update(old.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], list(node.outputs), list(new.outputs))
