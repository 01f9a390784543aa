"""What optimize does grows with the size of the model, and not with its square.

Counted are the calls of Python functions, which are the same on every machine, and not the time.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxnorm.passes.pipeline import optimize

SMALL, LARGE = 24, 96


def model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int]) -> onnx.ModelProto:
    """From x to the last node's output, both of that shape."""
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape if name == "x" else None)
        for name in ("x", nodes[-1].output[0])
    )
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convolutions(count: int) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu in a row; without names."""
    nodes, constants = [], {"k": np.full(2, 0.5, np.float32)}
    for index in range(count):
        constants[f"w{index}"] = np.full((2, 2, 1, 1), 0.5, np.float32)
        source = f"r{index - 1}" if index else "x"
        nodes += [
            helper.make_node("Conv", [source, f"w{index}"], [f"c{index}"]),
            helper.make_node("BatchNormalization", [f"c{index}", "k", "k", "k", "k"], [f"n{index}"]),
            helper.make_node("Relu", [f"n{index}"], [f"r{index}"]),
        ]
    return model(nodes, constants, [1, 2, 2, 2])


def layer_norms(count: int) -> onnx.ModelProto:
    """Layer norms in primitive operators, in a row."""
    constants = {"two": np.float32(2), "eps": np.float32(1e-5), "w": np.arange(1, 5, dtype=np.float32)}
    nodes = []
    for index in range(count):
        x = f"y{index - 1}" if index else "x"
        m, d, p, v, e, s, q, g, y = (f"{name}{index}" for name in "mdpvesqgy")
        nodes += [
            helper.make_node("ReduceMean", [x], [m], axes=[-1]),
            helper.make_node("Sub", [x, m], [d]),
            helper.make_node("Pow", [d, "two"], [p]),
            helper.make_node("ReduceMean", [p], [v], axes=[-1]),
            helper.make_node("Add", [v, "eps"], [e]),
            helper.make_node("Sqrt", [e], [s]),
            helper.make_node("Div", [d, s], [q]),
            helper.make_node("Mul", [q, "w"], [g]),
            helper.make_node("Add", [g, "w"], [y]),
        ]
    return model(nodes, constants, [3, 4])


def readers(count: int) -> onnx.ModelProto:
    """One value that many read, one constant that many read, one Concat of it all.

    The nodes in between stay: to replace one of n inputs of a node takes onnx_ir n steps.
    """
    nodes = [helper.make_node("Relu", ["x"], ["r"])]
    for index in range(count):
        nodes += [
            helper.make_node("Mul", ["r", "k"], [f"m{index}"]),
            helper.make_node("Sigmoid", [f"m{index}"], [f"s{index}"]),
            helper.make_node("Add", [f"s{index}", "r"], [f"a{index}"]),
        ]
    nodes.append(helper.make_node("Concat", [f"a{index}" for index in range(count)], ["y"], axis=1))
    return model(nodes, {"k": np.arange(1, 5, dtype=np.float32).reshape(1, 4, 1)}, [1, 4, 2])


def constants(count: int) -> onnx.ModelProto:
    """A long chain of constants that no weight is made of, and one that a weight is."""
    nodes = []
    for index in range(count):
        nodes.append(helper.make_node("Neg", [f"v{index - 1}" if index else "k"], [f"v{index}"]))
        nodes.append(helper.make_node("Neg", [f"u{index - 1}" if index else "w"], [f"u{index}"]))
    nodes.append(helper.make_node("MatMul", ["x", f"u{count - 1}"], ["z"]))
    nodes.append(helper.make_node("Add", ["z", f"v{count - 1}"], ["y"]))
    return model(nodes, {"k": np.ones(4, np.float32), "w": np.eye(4, dtype=np.float32)}, [3, 4])


def nested(count: int) -> onnx.ModelProto:
    """Branches in branches; as many norms in each."""
    made = convolutions(count)
    inner = onnx.GraphProto(name="inner", node=made.graph.node, output=made.graph.output)
    for depth in range(4):
        other = helper.make_graph([helper.make_node("Neg", ["x"], [f"o{depth}"])], "other", [], [])
        other.output.add(name=f"o{depth}")
        node = helper.make_node("If", ["b"], [f"y{depth}"], then_branch=inner, else_branch=other)
        inner = helper.make_graph([node], f"g{depth}", [], [helper.make_empty_tensor_value_info(f"y{depth}")])
    outer = model(list(inner.node), {}, [1, 2, 2, 2])
    outer.graph.initializer.extend(made.graph.initializer)
    outer.graph.initializer.append(numpy_helper.from_array(np.array(True), "b"))
    return outer


def calls(proto: onnx.ModelProto) -> int:
    profile = cProfile.Profile()
    profile.enable()
    optimize(proto)
    profile.disable()
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


@pytest.mark.parametrize("build", [convolutions, layer_norms, readers, constants, nested])
def test_four_times_the_nodes_are_four_times_the_work(build: Callable[[int], onnx.ModelProto]) -> None:
    optimize(build(3))  # tables that are made once
    small, large = calls(build(SMALL)), calls(build(LARGE))
    assert large < 1.1 * (LARGE / SMALL) * small, f"{small:,} calls become {large:,}"
