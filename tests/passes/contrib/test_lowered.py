"""com.microsoft NhwcConv, BiasAdd, BiasSplitGelu, packed attention, the Gelu family: in operators that the CPU has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from . import truth
from .conftest import wide

MICROSOFT = {"domain": "com.microsoft"}


def conv(kit: Any, *, dtype: str = "float32", bias: bool = True, opset: int = 17, kernel: int = 3, **more: Any) -> Any:
    """(model, feeds, truth)."""
    group = more.get("group", 1)
    x, w = kit.data((2, 9, 7, 4), dtype), kit.data((6, kernel, kernel, 4 // group), dtype, 1)
    given = {"w": w, "b": kit.data((6,), dtype, 2)} if bias else {"w": w}
    node = helper.make_node("NhwcConv", ["x", *given], ["y"], "conv", **MICROSOFT, **more)
    model = kit.graph([node], {"x": x}, {"y": dtype}, given, opset)
    more.pop("kernel_shape", None)
    return model, {"x": x}, truth.nhwc_conv(*wide(x, w, given.get("b")), **more)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "pads": [0, 1, 2, 1]},
        {"dilations": [2, 1]},
        {"group": 2, "kernel_shape": [3, 3], "bias": False},
    ],
)
def test_nhwc_conv(kit: Any, attributes: dict[str, Any], dtype: str) -> None:
    model, feeds, y = conv(kit, dtype=dtype, **attributes)
    outcome = kit.optimize(model)
    assert outcome.ops == ["Transpose", "Conv", "Transpose"]
    assert outcome.only.rule == "lower/nhwc-conv"
    kit.runs_right(outcome, feeds, [y], dtype)


@pytest.mark.parametrize("opset", [6, 11, 13, 16, 21])
def test_nhwc_conv_opsets(kit: Any, not_taken: Any, opset: int) -> None:
    model, feeds, y = conv(kit, opset=opset)
    if opset < 7:
        not_taken(model, "lower/nhwc-conv", "from opset 15 on")
    else:
        kit.runs_right(kit.optimize(model, target="standard"), feeds, [y], "float32")


def test_nhwc_conv_with_a_weight_that_others_read(kit: Any) -> None:
    model, feeds, y = conv(kit, kernel=3)
    model.graph.node.append(helper.make_node("Identity", ["w"], ["w_out"]))
    model.graph.output.append(helper.make_tensor_value_info("w_out", 1, None))
    outcome = kit.optimize(model)
    w = numpy_helper.to_array(model.graph.initializer[0])
    kit.runs_right(outcome, feeds, [y, w], "float32")


@pytest.mark.parametrize(
    ("shape", "kernel", "words"),
    [
        ((6, 4, 3, 3), [3, 3], "W does not have its channels last"),
        ((6, 4, 3, 3), None, "W does not have the channels of X last"),
        ((6, 4), None, "W has less than 3 axes"),
    ],
)
def test_nhwc_conv_refuses_other_weights(
    kit: Any, not_taken: Any, shape: tuple[int, ...], kernel: Any, words: str
) -> None:
    x, w = kit.data((2, 9, 7, 4)), kit.data(shape)
    more = {} if kernel is None else {"kernel_shape": kernel}
    node = helper.make_node("NhwcConv", ["x", "w"], ["y"], **MICROSOFT, **more)
    not_taken(kit.graph([node], {"x": x}, {"y": "float32"}, {"w": w}), "lower/nhwc-conv", words)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
def test_bias_add(kit: Any, target: str, dtype: str) -> None:
    x, bias, skip = kit.data((2, 5, 12), dtype), kit.data((12,), dtype, 1), kit.data((2, 5, 12), dtype, 2)
    node = helper.make_node("BiasAdd", ["x", "b", "skip"], ["y"], "add", **MICROSOFT)
    feeds = {"x": x, "skip": skip}
    outcome = kit.optimize(kit.graph([node], feeds, {"y": dtype}, {"b": bias}), target=target, verify=True)
    assert outcome.ops == ["Add", "Add"]
    kit.runs_right(outcome, feeds, [sum(wide(x, bias, skip))], dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("opset", [13, 17, 18, 20])
@pytest.mark.parametrize("sizes", [(2, 5, 24), ("N", "S", 24), ("N", "S", "D")])
def test_bias_split_gelu(kit: Any, sizes: tuple[Any, ...], opset: int, dtype: str) -> None:
    x, bias = kit.data((2, 5, 24), dtype), kit.data((24,), dtype, 1)
    node = helper.make_node("BiasSplitGelu", ["x", "b"], ["y"], "gate", **MICROSOFT)
    model = kit.graph([node], {"x": x}, {"y": dtype}, {"b": bias}, opset, {"x": sizes})
    outcome = kit.optimize(model, verify=sizes[-1] == 24)
    assert outcome.only.rule == "lower/bias-split-gelu"
    kit.runs_right(outcome, {"x": x}, [truth.bias_split_gelu(*wide(x, bias))], dtype)


@pytest.mark.parametrize("size", [23, "D"])
def test_bias_split_gelu_refuses_what_has_no_halves(kit: Any, not_taken: Any, size: Any) -> None:
    feeds = {"x": kit.data((2, 5, 23)), "b": kit.data((23,))}
    node = helper.make_node("BiasSplitGelu", ["x", "b"], ["y"], **MICROSOFT)
    model = kit.graph([node], feeds, {"y": "float32"}, {}, 17, {"x": (2, 5, size), "b": (size,)})
    not_taken(model, "lower/bias-split-gelu", "last axis is not known or odd")


# --- attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("opset", [14, 18])
@pytest.mark.parametrize("sizes", [(2, 3, 2, 3, 8), ("N", "S", 2, 3, 8)])
def test_packed_query_key_and_value(kit: Any, sizes: tuple[Any, ...], opset: int, dtype: str) -> None:
    x = kit.data((2, 3, 2, 3, 8), dtype)
    node = helper.make_node("MultiHeadAttention", ["x"], ["y"], "attention", **MICROSOFT, num_heads=2)
    model = kit.graph([node], {"x": x}, {"y": dtype}, {}, opset, {"x": sizes})
    outcome = kit.optimize(model)
    assert outcome.only.rule == "lower/packed-attention"
    q, k, v = (part.reshape(2, 3, 16) for part in np.moveaxis(wide(x)[0], 3, 0))
    kit.runs_right(outcome, {"x": x}, [truth.attention(q, k, v, 2)], dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_packed_key_and_value(kit: Any, dtype: str) -> None:
    q, packed = kit.data((2, 3, 16), dtype), kit.data((2, 5, 2, 2, 8), dtype, 1)
    node = helper.make_node("MultiHeadAttention", ["q", "kv"], ["y"], "attention", **MICROSOFT, num_heads=2)
    feeds = {"q": q, "kv": packed}
    outcome = kit.optimize(kit.graph([node], feeds, {"y": dtype}, {}))
    assert outcome.only.rule == "lower/packed-attention"
    k, v = (part.reshape(2, 5, 16) for part in np.moveaxis(wide(packed)[0], 3, 0))
    kit.runs_right(outcome, feeds, [truth.attention(wide(q)[0], k, v, 2)], dtype)


def test_attention_that_is_not_packed_stays(kit: Any) -> None:
    feeds = {name: kit.data((2, 3, 16), seed=index) for index, name in enumerate("qkv")}
    node = helper.make_node("MultiHeadAttention", [*"qkv"], ["y"], **MICROSOFT, num_heads=2)
    outcome = kit.optimize(kit.graph([node], feeds, {"y": "float32"}, {}))
    assert outcome.ops == ["MultiHeadAttention"]
    kit.runs_right(outcome, feeds, [truth.attention(*wide(*feeds.values()), 2)], "float32")


def test_packed_attention_stays_for_cuda(kit: Any) -> None:
    x = kit.data((2, 3, 2, 3, 8))
    node = helper.make_node("MultiHeadAttention", ["x"], ["y"], **MICROSOFT, num_heads=2)
    model = kit.graph([node], {"x": x}, {"y": "float32"}, {})
    assert kit.optimize(model, provider="cuda").ops == ["MultiHeadAttention"]


# --- gelu ---------------------------------------------------------------------------------------------------------

GELU = {
    "Gelu": (lambda x, b: truth.gelu(x), False),
    "BiasGelu": (lambda x, b: truth.gelu(x + b), True),
    "FastGelu": (truth.fast_gelu, True),
    "QuickGelu": (lambda x, b: x / (1 + np.exp(-1.702 * x)), False),
}


def gelu(kit: Any, op: str, dtype: str, opset: int = 17) -> Any:
    """(model, feeds, truth)."""
    x, bias = kit.data((2, 5, 12), dtype), kit.data((12,), dtype, 1)
    formula, has_bias = GELU[op]
    node = helper.make_node(op, ["x", "b"] if has_bias else ["x"], ["y"], "gelu", **MICROSOFT)
    model = kit.graph([node], {"x": x}, {"y": dtype}, {"b": bias} if has_bias else {}, opset)
    return model, {"x": x}, formula(*wide(x, bias))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("op", GELU)
@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
def test_gelu(kit: Any, target: str, op: str, dtype: str) -> None:
    """The CPU provider has float32 kernels; it casts float16 itself, and bfloat16 is cast here."""
    for opset in (17, 20):
        model, feeds, y = gelu(kit, op, dtype, opset)
        outcome = kit.optimize(model, target=target)
        assert (op in outcome.ops and "com.microsoft" in str(outcome.after.graph.node)) == (target == "onnxnorm")
        kit.runs_right(outcome, feeds, [y], dtype, factor=4.0)
