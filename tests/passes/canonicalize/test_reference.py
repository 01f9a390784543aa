"""Constants made by operators that move data: the same as ONNX Runtime computes, and never a large one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxnorm.passes.canonicalize import reference
from onnxnorm.passes.canonicalize.clean import clean

X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5
A = np.array
CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "And": ([X > 0, X < 2], {}),
    "Ceil": ([X], {}),
    "Clip": ([X, A(-1, np.float32), A(1, np.float32)], {}),
    "ConstantOfShape": ([A([2, 2])], {"value": onnx.numpy_helper.from_array(np.array([3], np.float32))}),
    "Equal": ([X, X.round()], {}),
    "Expand": ([A([1.5], np.float32), A([4])], {}),
    "Floor": ([X], {}),
    "GatherElements": ([X, A([[0, 2], [1, 1]])], {"axis": 1}),
    "GatherND": ([X, A([[0, 1], [1, 2]])], {}),
    "Greater": ([X, A(0, np.float32)], {}),
    "GreaterOrEqual": ([X, X.round()], {}),
    "Less": ([X, A(0, np.float32)], {}),
    "LessOrEqual": ([X, X.round()], {}),
    "Max": ([X, A(0, np.float32)], {}),
    "Min": ([X, A(0, np.float32)], {}),
    "Not": ([X > 0], {}),
    "Or": ([X > 0, X < -1], {}),
    "Pad": ([X, A([0, 1, 2, 0])], {}),
    "Range": ([A(1), A(9), A(3)], {}),
    "ReduceMax": ([X], {"keepdims": 1}),
    "ReduceMin": ([X], {"keepdims": 0}),
    "ReduceProd": ([X], {"keepdims": 1}),
    "ScatterElements": ([X, A([[0, 2], [1, 0]]), A([[9, 8], [7, 6]], np.float32)], {"axis": 1}),
    "ScatterND": ([X, A([[1, 1]]), A([5], np.float32)], {}),
    "Size": ([X], {}),
    "Tile": ([X, A([2, 1])], {}),
    "Trilu": ([X], {"upper": 0}),
    "Where": ([X > 0, X, A(0, np.float32)], {}),
}


def _model(op: str, inputs: list[Any], attributes: dict[str, Any], opset: int) -> onnx.ModelProto:
    """k = op(constants), y = Identity(k); a type is declared by what ONNX Runtime makes of it."""
    names = [f"c{index}" for index in range(len(inputs))]
    nodes = [onnx.helper.make_node(op, names, ["k"], **attributes), onnx.helper.make_node("Shape", ["k"], ["y"])]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in zip(names, inputs, strict=True)]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, None)]
    graph = onnx.helper.make_graph(nodes, "constants", [], outputs, constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


def test_every_operator_has_a_case() -> None:
    assert set(CASES) == reference.OPERATORS


@pytest.mark.parametrize("opset", [14, 18, 21, 23])
@pytest.mark.parametrize("op", CASES)
def test_is_what_onnx_runtime_computes(op: str, opset: int) -> None:
    inputs, attributes = CASES[op]
    model = ir.from_proto(_model(op, inputs, attributes, opset))
    node = model.graph[0]
    result = reference.from_reference(node, inputs, opset)
    assert result is not None
    inferred = onnx.shape_inference.infer_shapes(_model(op, inputs, attributes, opset), data_prop=True)
    inferred.graph.output.append(next(item for item in inferred.graph.value_info if item.name == "k"))
    session = onnxruntime.InferenceSession(inferred.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(["k"], {})[0]
    assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape)
    np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("Expand", [A([1.0], np.float32), A([1 << 40])]),
        ("Tile", [X, A([1 << 20, 1 << 20])]),
        ("ConstantOfShape", [A([1 << 40])]),
        ("Range", [A(0), A(1 << 40), A(1)]),
        ("Pad", [X, A([0, 1 << 40, 0, 0])]),
    ],
)
def test_large_results_are_not_made(op: str, inputs: list[Any]) -> None:
    model = ir.from_proto(_model(op, inputs, {}, 18))
    clean(model)
    assert [node.op_type for node in model.graph][:1] == [op]


def test_before_opset_13() -> None:
    """Those that meant it already, as far back as they did."""
    for op, opset in (("Min", 7), ("Expand", 7), ("Where", 8)):
        inputs, attributes = CASES[op]
        model = ir.from_proto(_model(op, list(inputs), attributes, 13))
        assert reference.from_reference(model.graph[0], list(inputs), opset) is None
    for op in ("ConstantOfShape", "Equal", "Expand", "Min", "ReduceProd", "Size", "Where"):
        inputs, attributes = CASES[op]
        node = ir.from_proto(_model(op, list(inputs), attributes, 13)).graph[0]
        old, new = (reference.from_reference(node, list(inputs), opset) for opset in (11, 13))
        assert new is not None
        np.testing.assert_array_equal(old, new)
