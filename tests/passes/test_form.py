"""Nodes of a form that their operator has not: one line each, whatever the rules would have made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxnorm.errors import ModelError
from onnxnorm.passes.pipeline import optimize

TEXT = (
    "(float[2,3,6,5] x) => (float[2,4,4,3] y) { c = Conv <group=1> (x, w)"
    " n = BatchNormalization (c, gamma, beta, mean, var) g = Sigmoid (n) m = Mul (n, g) y = Add (m, m) }"
)


def broken(lab: Any, index: int, change: Any) -> Any:
    model = lab.model(TEXT, w=lab.array(4, 3, 3, 3), **lab.batch_norm(4))
    change(model.graph.node[index])
    return model


def cut(node: onnx.NodeProto) -> None:
    del node.input[-1]


def hollow(node: onnx.NodeProto) -> None:
    node.input[0] = ""


def many(node: onnx.NodeProto) -> None:
    node.input.extend(["x"] * 4)


def outputs(node: onnx.NodeProto) -> None:
    node.output.extend(["one", "two", "three"])


def kind(node: onnx.NodeProto) -> None:
    node.attribute[0].CopyFrom(onnx.helper.make_attribute("group", "one"))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, cut, "node 'c' (Conv, opset 18) has 1 inputs; the operator takes 2 to 3"),
        (1, cut, "node 'n' (BatchNormalization, opset 18) has 4 inputs; the operator takes 5"),
        (3, cut, "node 'm' (Mul, opset 18) has 1 inputs; the operator takes 2"),
        (1, hollow, "node 'n' (BatchNormalization, opset 18) lacks its input X"),
        (4, many, "node 'y' (Add, opset 18) has 6 inputs; the operator takes 2"),
        (1, outputs, "node 'n' (BatchNormalization, opset 18) has 4 outputs; the operator has 1 to 3"),
        (0, kind, "node 'c' (Conv, opset 18) has an attribute group of the kind string; it is int"),
    ],
)
def test_names_the_node_and_what_is_right(lab: Any, index: int, change: Any, message: str) -> None:
    with pytest.raises(ModelError) as error:
        optimize(broken(lab, index, change))
    assert str(error.value) == message


def test_an_attribute_that_is_needed(lab: Any) -> None:
    model = lab.model("(float[2,6] x) => (float[2,6] y) { y = GroupNormalization (x, s, s) }", 21, 10, s=lab.array(6))
    with pytest.raises(ModelError, match=r"node 'y' \(GroupNormalization, opset 21\) lacks its attribute num_groups"):
        optimize(model)


def test_random_damage_is_never_a_crash(lab: Any) -> None:
    """Inputs, outputs, attributes, shapes and opsets at random: a model or a ModelError, nothing else."""
    rng = np.random.default_rng(0)
    outcomes = {"model": 0, "error": 0}
    for _ in range(300):
        model = lab.model(TEXT, w=lab.array(4, 3, 3, 3), **lab.batch_norm(4))
        for _ in range(rng.integers(1, 4)):
            damage(model, rng)
        try:
            optimize(model)
            outcomes["model"] += 1
        except ModelError:
            outcomes["error"] += 1
    assert min(outcomes.values()) > 30, outcomes


def damage(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    node = model.graph.node[rng.integers(len(model.graph.node))]
    tensor = model.graph.initializer[rng.integers(len(model.graph.initializer))]
    names = [value for other in model.graph.node for value in (*other.input, *other.output)]
    match rng.integers(8):
        case 0:
            node.input[rng.integers(len(node.input))] = str(rng.choice(names))
        case 1:
            del node.input[rng.integers(len(node.input)) :]
            node.input.append(str(rng.choice(names)))
        case 2:
            node.op_type = str(
                rng.choice(["MatMul", "Gemm", "ConvTranspose", "Relu", "Erf", "Reshape", "Softmax", "If"])
            )
        case 3:
            shape = tuple(rng.integers(0, 4, rng.integers(0, 4)))
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(shape, np.float32), tensor.name))
        case 4:
            kinds = (np.int64, np.float16, np.float64, np.bool_)
            array = onnx.numpy_helper.to_array(tensor).astype(kinds[rng.integers(len(kinds))])
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        case 5:
            model.opset_import[0].version = int(rng.choice([1, 6, 8, 13, 22]))
        case 6:
            del model.graph.input[0].type.tensor_type.shape.dim[rng.integers(0, 4) :]
        case _:
            attribute = onnx.helper.make_attribute(
                str(rng.choice(["group", "axis", "epsilon"])), int(rng.integers(-3, 9))
            )
            if all(item.name != attribute.name for item in node.attribute):
                node.attribute.append(attribute)
