"""Chains of constants in float64: no rounding on the way, integers as they are, nothing that is not known."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxnorm.passes.canonicalize.chains import Chains
from onnxnorm.passes.canonicalize.exact import Constant, NotComputed, compute_chain


def computed(lab: Any, nodes: str, opset: int = 18, domains: str = "", **arrays: Any) -> Constant:
    """What the value ``k`` is."""
    model = ir.from_proto(
        lab.model(f"(float[2] x) => (float[2] y) {{ {nodes} y = Neg (x) }}", opset, 8, domains, **arrays)
    )
    value = next(item for node in model.graph for item in node.outputs if item.name == "k")
    chain = Chains().nodes_of(value)
    assert chain
    return compute_chain(chain, value, opset)


def test_nothing_is_rounded_on_the_way(lab: Any) -> None:
    c = lab.array(5, dtype="float16")
    text = "a = Cast <to=1> (c) b = Sqrt (a) d = Cast <to=10> (b) e = Cast <to=16> (d) k = Mul (e, e)"
    result = computed(lab, text, c=np.abs(c))
    assert result.dtype == ir.DataType.BFLOAT16
    np.testing.assert_allclose(result.array, np.abs(c).astype(np.float64), rtol=1e-15)


@pytest.mark.parametrize(
    ("nodes", "arrays", "expected"),
    [
        ("k = Cast <to=7> (c)", {"c": np.array([1.9, -1.9], np.float32)}, [1, -1]),
        ("k = Cast <to=9> (c)", {"c": np.array([0.5, 0, -2], np.float32)}, [True, False, True]),
        ("k = Cast <to=1> (c)", {"c": np.array([3, -4])}, [3.0, -4.0]),
        ("k = Mul (c, c)", {"c": np.array([2**31 - 1], np.int32)}, [1]),
        ("a = Neg (c) k = Shape (a)", {"c": np.ones((3, 2), np.float32)}, [3, 2]),
        ("a = Neg (c) k = Shape <start=-1> (a)", {"c": np.ones((3, 2), np.float32)}, [2]),
        ("a, k = Split <num_outputs=2> (c)", {"c": np.arange(5, dtype=np.float32)}, [3, 4]),
        ("k, b = Split (c, s)", {"c": np.arange(5, dtype=np.float32), "s": np.array([1, 4])}, [0]),
        ("a = CastLike (c, x) k = Neg (a)", {"c": np.array([1, 2])}, [-1, -2]),
        ("k = Clip (c, low)", {"c": np.array([-2, 2], np.float32), "low": np.float32(-1)}, [-1, 2]),
    ],
)
def test_values(lab: Any, nodes: str, arrays: dict[str, Any], expected: list[Any]) -> None:
    result = computed(lab, nodes, **arrays)
    np.testing.assert_array_equal(result.array, np.array(expected))
    assert result.array.dtype == (np.float64 if result.dtype == ir.DataType.FLOAT else result.dtype.numpy())


@pytest.mark.parametrize(
    ("nodes", "arrays"),
    [
        ("k = Cast <to=7> (c)", {"c": np.array([np.nan], np.float32)}),
        ("k = Cast <to=6> (c)", {"c": np.array([3e9], np.float32)}),
        ("k = Cast <to=11> (c)", {"c": np.array([2**60 + 1])}),
        ("k = Cast <to=17> (c)", {"c": np.array([1.0], np.float32)}),
        ("k = Range (a, b, c)", {"a": np.float32(0), "b": np.float32(1), "c": np.float32(0.1)}),
        ("k = Div (a, b)", {"a": np.array([-7]), "b": np.array([2])}),
        ("k = Add (a, b)", {"a": np.ones((70000, 1), np.float32), "b": np.ones((1, 70000), np.float32)}),
        ("k = MatMul (a, b)", {"a": np.ones((70000, 1), np.float32), "b": np.ones((1, 70000), np.float32)}),
        ("k = Gemm (a, b)", {"a": np.ones((70000, 1), np.float32), "b": np.ones((1, 70000), np.float32)}),
        ('k = Einsum <equation="i,j->ij"> (a, b)', {"a": np.ones(70000, np.float32), "b": np.ones(70000, np.float32)}),
        ("k = Sum (a, b)", {"a": np.ones((70000, 1), np.float32), "b": np.ones((1, 70000), np.float32)}),
    ],
    ids=str,
)
def test_what_is_not_computed(lab: Any, nodes: str, arrays: dict[str, Any]) -> None:
    """Undefined or lossy casts, lengths that depend on rounding, integer division, results out of proportion."""
    with pytest.raises(NotComputed, match="cannot be computed from its constants"):
        computed(lab, nodes, **arrays)


def test_batch_normalization_of_a_constant_in_training_form(lab: Any) -> None:
    """How standardized convolutions look in older exports: the statistics are the weight's own."""
    c = lab.array(1, 4, 18)
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    text = "k, m, v = BatchNormalization <training_mode=1, epsilon=0.001> (c, one, zero, zero, one)"
    wide = c.astype(np.float64)
    centred = wide - wide.mean((0, 2), keepdims=True)
    expected = centred / np.sqrt((centred**2).mean((0, 2), keepdims=True) + np.float64(np.float32(1e-3)))
    np.testing.assert_allclose(computed(lab, text, c=c, one=one, zero=zero).array, expected, rtol=1e-13, atol=1e-15)


def test_an_onnxnorm_op(lab: Any) -> None:
    text = 'k = onnxnorm.GroupNorm <num_groups=2, epsilon=0.5, activation="relu", channels_last=0> (c, s, b)'
    c = lab.array(2, 4, 3)
    s, b = lab.array(4, seed=1), lab.array(4, seed=2)
    wide = c.astype(np.float64).reshape(2, 2, 6)
    y = ((wide - wide.mean(2, keepdims=True)) / np.sqrt(wide.var(2, keepdims=True) + 0.5)).reshape(2, 4, 3)
    expected = np.maximum(y * s[:, None].astype(np.float64) + b[:, None], 0)
    result = computed(lab, text, domains=', "onnxnorm" : 1', c=c, s=s, b=b)
    np.testing.assert_allclose(result.array, expected, rtol=1e-13, atol=1e-15)


def test_an_epsilon_in_float64_is_the_decimal(lab: Any) -> None:
    c = lab.array(1, 2, 9, dtype="float64") * 1e-4
    one, zero = np.ones(2), np.zeros(2)
    text = "k = InstanceNormalization <epsilon=0.000001> (c, one, zero)"
    centred = c - c.mean(2, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(2, keepdims=True) + 1e-6)
    np.testing.assert_allclose(computed(lab, text, c=c, one=one, zero=zero).array, expected, rtol=1e-13)


def test_values_that_are_not_constant_are_remembered(lab: Any) -> None:
    model = ir.from_proto(
        lab.model("(float[2] x) => (float[2] y) { a = Add (x, c) b = Neg (a) y = Mul (b, c) }", c=lab.array(2))
    )
    chains = Chains()
    assert [chains.nodes_of(node.outputs[0]) for node in reversed(model.graph)] == [None] * 3
    assert not chains.is_constant(model.graph[0].outputs[0])
    assert chains.is_constant(model.graph.initializers["c"])
