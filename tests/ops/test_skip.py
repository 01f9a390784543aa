"""The skip forms: the sum as an output, in place of its inputs or not, and wrong shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from .conftest import SPECS, TYPES, assert_close, session

RNG = np.random.default_rng(23)
OPS = {
    "SkipGroupNorm": {"num_groups": 3, "epsilon": 1e-5, "activation": "silu", "channels_last": 0},
    "SkipLayerNorm": {"axes": [-1], "epsilon": 1e-5, "activation": "none"},
    "SkipRMSNorm": {"axes": [1], "epsilon": 1e-5, "activation": "gelu"},
    "SkipSwitchableNorm": {"epsilon": 1e-5, "activation": "relu", "channels_last": 0},
    "SkipBatchInstanceNorm": {"epsilon": 1e-5, "activation": "none", "channels_last": 1},
}


def inputs_of(op: str, shape: tuple[int, ...], dtype: str) -> list[np.ndarray]:
    """X and skip as they come, so that the sum has to be rounded; then the parameters."""
    attributes = OPS[op]
    channel = shape[attributes["axes"][0] if "axes" in attributes else -1 if attributes["channels_last"] else 1]
    values = [RNG.standard_normal(shape) * 3 + 1, RNG.standard_normal(shape)]
    values += [RNG.uniform(0.2, 0.8, 3 if item.shape == "3" else channel) for item in SPECS[op].inputs[2:]]
    return [value.astype(TYPES[dtype][1]) for value in values]


def skip_model(op: str, dtype: str, shape: tuple[int, ...], around: bool) -> bytes:
    """The op between other operators, so that the runtime may let it write over its inputs, or alone."""
    names = [item.name for item in SPECS[op].inputs]
    norm = helper.make_node(op, names, ["Y", "sum"], domain="onnxnorm", name="the_norm", **OPS[op])
    nodes = [norm]
    if around:
        norm.input[:2] = ["a", "b"]
        norm.output[:] = ["c", "d"]
        nodes = [
            helper.make_node("Neg", ["X"], ["a"]),
            helper.make_node("Neg", ["skip"], ["b"]),
            norm,
            helper.make_node("Neg", ["c"], ["Y"]),
            helper.make_node("Neg", ["d"], ["sum"]),
        ]
    element = TYPES[dtype][0]
    sizes = {name: list(shape) for name in names[:2]}
    inputs = [helper.make_tensor_value_info(name, element, sizes.get(name, [None])) for name in names]
    outputs = [helper.make_tensor_value_info(name, element, None) for name in ("Y", "sum")]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("onnxnorm", 1)]
    content: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return content


@pytest.mark.parametrize(("dtype", "around"), [("float32", False), ("float16", True), ("float64", False)])
@pytest.mark.parametrize("shape", [(2, 6, 5), (1, 6, 40013), (3, 9, 64, 65)])
@pytest.mark.parametrize("op", list(OPS))
def test_sum_and_result(op: str, shape: tuple[int, ...], dtype: str, around: bool, level: str, library: Path) -> None:
    values = inputs_of(op, shape, dtype)
    current = session(library, skip_model(op, dtype, shape, around))
    feeds = {item.name: value for item, value in zip(SPECS[op].inputs, values, strict=True)}
    output, total = current.run(["Y", "sum"], feeds)
    sign = -1 if around else 1
    with np.errstate(over="ignore"):
        expected = (values[0] + values[1]).astype(TYPES[dtype][1])
    np.testing.assert_array_equal(total, expected)
    doubles = [value.astype(np.float64) for value in values]
    rounded = [sign * expected.astype(np.float64), np.zeros(shape), *doubles[2:]]
    truth, _ = SPECS[op].reference(rounded, OPS[op])
    assert_close(output, sign * truth, dtype)


def test_a_skip_of_another_shape_is_refused(library: Path) -> None:
    attributes: dict[str, Any] = OPS["SkipGroupNorm"]
    node = helper.make_node("SkipGroupNorm", ["X", "skip", "s", "b"], ["Y"], domain="onnxnorm", name="n", **attributes)
    shapes = {"X": [2, 6, 5], "skip": [2, 6, 1], "s": [6], "b": [6]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("onnxnorm", 1)]
    content: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    with pytest.raises(Exception, match=r"SkipGroupNorm node 'n': input skip has shape \(2, 6, 1\); .* \(2, 6, 5\)"):
        session(library, content)
