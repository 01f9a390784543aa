"""fold/linear-into-linear and fold/linear-into-conv: decorrelation or whitening in front of a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

LINEAR, CONV = "fold/linear-into-linear", "fold/linear-into-conv"


def build(lab: Any, x: str, nodes: str, out: str, **arrays: Any) -> Any:
    parts = {"w": lab.array(3, 3), "v": lab.array(3, 4, seed=2), "b": lab.array(3, seed=3), "c": lab.array(4, seed=4)}
    return lab.model(f"(float[{x}] x) => (float[{out}] y) {{ {nodes} }}", **parts | arrays)


def folds(lab: Any, model: Any, ops: list[str], x: Any, rule: str = LINEAR) -> Any:
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == ops, outcome.result.explain()
    assert rule in {item.rule for item in outcome.result.decisions}
    lab.same(outcome, {"x": x}, factor=64.0)
    lab.same_in_ort(outcome, {"x": x}, factor=128.0)
    return outcome


FORMS = {
    "two MatMul": ("N,3", "p = MatMul (x, w) y = MatMul (p, v)", ["MatMul"]),
    "with biases": ("N,5,3", "p = MatMul (x, w) q = Add (b, p) r = MatMul (q, v) y = Add (r, c)", ["MatMul", "Add"]),
    "inner bias": ("N,5,3", "p = MatMul (x, w) q = Add (p, b) y = MatMul (q, v)", ["MatMul", "Add"]),
    "outer bias": ("N,5,3", "p = MatMul (x, w) r = MatMul (p, v) y = Add (r, c)", ["MatMul", "Add"]),
    "two Gemm": ("N,3", "p = Gemm <alpha=0.5, beta=2.0> (x, w, b) y = Gemm <alpha=3.0> (p, v, c)", ["Gemm"]),
    "transposed": ("3,5", "p = Gemm <transA=1, transB=1> (x, w, b) y = Gemm (p, v)", ["Gemm"]),
    "MatMul and Gemm": ("N,3", "p = MatMul (x, w) q = Add (p, b) y = Gemm (q, v, c)", ["Gemm"]),
    "Gemm and MatMul": ("N,3", "p = Gemm (x, w, b) r = MatMul (p, v) y = Add (r, c)", ["Gemm"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(lab: Any, form: str) -> None:
    x, nodes, ops = FORMS[form]
    sizes = [2 if size == "N" else int(size) for size in x.split(",")]
    folds(lab, build(lab, x, nodes, ",".join("ABC"[: len(sizes)])), ops, lab.array(*sizes, seed=9))


def test_data_on_the_right(lab: Any) -> None:
    nodes = "p = MatMul (w, x) q = Add (p, b) r = MatMul (v, q) y = Add (r, c)"
    model = build(lab, "N,3,5", nodes, "A,B,C", v=lab.array(4, 3), b=lab.array(3, 1), c=lab.array(4, 1))
    folds(lab, model, ["MatMul", "Add"], lab.array(2, 3, 5, seed=9))


def test_weights_are_multiplied_in_float64_and_rounded_once(lab: Any) -> None:
    model = build(lab, "N,3", "p = MatMul (x, w) y = MatMul (p, v)", "A,B")
    outcome = lab.optimize(model)
    exact = lab.array(3, 3).astype(np.float64) @ lab.array(3, 4, seed=2).astype(np.float64)
    np.testing.assert_array_equal(outcome.initializer(outcome.node("MatMul").input[1]), exact.astype(np.float32))


def test_refuses_more_multiplications(lab: Any, refused: Any) -> None:
    """8 -> 1 -> 8 takes 16 multiplications, 8 -> 8 takes 64."""
    arrays = {"w": lab.array(8, 1), "v": lab.array(1, 8)}
    model = build(lab, "N,8", "p = MatMul (x, w) y = MatMul (p, v)", "A,B", **arrays)
    outcome = refused(model, LINEAR, "more multiplications")
    assert outcome.only.values == {"two": 16, "one": 64}


def test_refuses_another_reader(lab: Any, refused: Any) -> None:
    text = "(float[N,3] x) => (float[A,B] y, float[C,D] z) { p = MatMul (x, w) y = MatMul (p, v) z = Relu (p) }"
    refused(lab.model(text, w=lab.array(3, 3), v=lab.array(3, 4)), LINEAR, "has 2 readers")


def test_refuses_what_a_caller_may_override(lab: Any, refused: Any) -> None:
    text = "(float[N,3] x, float[3,3] w) => (float[A,B] y) { p = MatMul (x, w) y = MatMul (p, v) }"
    model = lab.model(text, w=lab.array(3, 3), v=lab.array(3, 4))
    refused(model, LINEAR, "a graph input that a caller may override")


def test_refuses_overflow(lab: Any, refused: Any) -> None:
    text = "(float16[N,3] x) => (float16[A,B] y) { p = MatMul (x, w) y = MatMul (p, v) }"
    model = lab.model(text, w=np.full((3, 3), 500, np.float16), v=np.full((3, 4), 500, np.float16))
    refused(model, LINEAR, "a folded value would overflow float16")


def test_refuses_a_constant_that_gemm_may_not_add(lab: Any) -> None:
    """Add spreads one row over five, Gemm's C may not."""
    text = "(float[N,3] x) => (float[A,B] y) { p = MatMul (x, w) q = Add (p, b) y = Gemm (q, v) }"
    model = lab.model(text, w=lab.array(3, 3), b=lab.array(5, 3), v=lab.array(3, 4))
    outcome = lab.optimize(model)
    assert any("may enlarge a product that becomes Gemm" in str(item.reason) for item in outcome.result.decisions)
    for rows in (1, 5):
        lab.same(outcome, {"x": lab.array(rows, 3)}, factor=64.0)


def test_refuses_gemm_that_reads_it_transposed(lab: Any, refused: Any) -> None:
    model = build(lab, "3,3", "p = MatMul (x, w) y = Gemm <transA=1> (p, v)", "A,B")
    refused(model, LINEAR, "reads the first product transposed")


# --- convolutions -------------------------------------------------------------------------------------------------


def convs(lab: Any, first: str, second: str, shape: str = "N,3,6,5", **arrays: Any) -> Any:
    parts = {"w": lab.array(3, 3, 1, 1), "v": lab.array(4, 3, 3, 2, seed=2), "b": lab.array(3), "c": lab.array(4)}
    text = f"(float[{shape}] x) => (float[A,B,C,D] y) {{ p = Conv {first} y = Conv {second} }}"
    return lab.model(text, **{name: value for name, value in (parts | arrays).items() if name in text})


@pytest.mark.parametrize("second", ["(p, v, c)", "<strides=[2,1], dilations=[1,2]> (p, v, c)", "(p, v)"])
@pytest.mark.parametrize("first", ["(x, w, b)", "(x, w)", '<auto_pad="SAME_UPPER"> (x, w, b)'])
def test_whitening_of_channels(lab: Any, first: str, second: str) -> None:
    folds(lab, convs(lab, first, second), ["Conv"], lab.array(2, 3, 6, 5, seed=9), CONV)


def test_padding_without_a_bias(lab: Any) -> None:
    model = convs(lab, "(x, w)", "<pads=[1,1,1,1]> (p, v, c)")
    folds(lab, model, ["Conv"], lab.array(2, 3, 6, 5, seed=9), CONV)


def test_centring_whitening_and_a_padded_convolution(lab: Any) -> None:
    """The matrices merge first, so that the shift stays as one Sub and not as a convolution."""
    text = (
        "(float[N,3,6,5] x) => (float[A,B,C,D] y) { m = Sub (x, d) p = Conv (m, w) y = Conv <pads=[1,1,1,1]> (p, v) }"
    )
    model = lab.model(text, d=lab.array(3, 1, 1), w=lab.array(3, 3, 1, 1), v=lab.array(4, 3, 3, 2))
    folds(lab, model, ["Sub", "Conv"], lab.array(2, 3, 6, 5, seed=9), CONV)


def test_refuses_a_bias_under_padding(lab: Any, refused: Any) -> None:
    model = convs(lab, "(x, w, b)", "<pads=[1,1,1,1]> (p, v, c)")
    outcome = refused(model, CONV, "which the first one's bias would not reach")
    lab.same(outcome, {"x": lab.array(2, 3, 6, 5)})


def test_refuses_a_costlier_convolution(lab: Any, refused: Any) -> None:
    arrays = {"w": lab.array(1, 9, 1, 1), "v": lab.array(4, 1, 3, 2), "b": lab.array(1)}
    refused(convs(lab, "(x, w, b)", "(p, v, c)", "N,9,6,5", **arrays), CONV, "more multiplications")


@pytest.mark.parametrize("first", ["<strides=[2,2]> (x, w)", "<group=3> (x, u)", "<pads=[1,1,1,1]> (x, w)"])
def test_other_convolutions_are_left(lab: Any, first: str) -> None:
    arrays = {"u": lab.array(3, 1, 1, 1)}
    outcome = lab.optimize(convs(lab, first, "(p, v, c)", **arrays))
    assert outcome.ops == ["Conv", "Conv"]
