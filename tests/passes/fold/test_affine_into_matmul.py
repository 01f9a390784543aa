"""fold/affine-into-matmul."""

from __future__ import annotations

from typing import Any

import pytest

RULE = "fold/affine-into-matmul"


def build(lab: Any, x: str, nodes: str, out: str, **arrays: Any) -> Any:
    parts = {"w": lab.array(3, 4), "c": lab.array(3, seed=2), "s": lab.array(3, seed=4, low=0.3, high=2)}
    parts |= {"b": lab.array(4, seed=3), **arrays}
    return lab.model(f"(float[{x}] x) => (float[{out}] y) {{ {nodes} }}", **parts)


def folds(lab: Any, model: Any, ops: list[str], x: Any) -> Any:
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == ops, outcome.result.explain()
    assert (outcome.only.action.value, outcome.only.rule) == ("folded", RULE)
    lab.same(outcome, {"x": x}, factor=64.0)
    lab.same_in_ort(outcome, {"x": x}, factor=128.0)
    return outcome


@pytest.mark.parametrize("order", ["(p, b)", "(b, p)"])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 1, 4), (5, 4), (5, 1)])
def test_the_bias_behind_takes_the_shift(lab: Any, shape: tuple[int, ...], order: str) -> None:
    nodes = f"d = Sub (x, c) m = Div (d, s) p = MatMul (m, w) y = Add {order}"
    folds(lab, build(lab, "N,5,3", nodes, "A,B,C", b=lab.array(*shape, seed=3)), ["MatMul", "Add"], lab.array(2, 5, 3))


def test_matrices_without_a_bias_become_gemm(lab: Any) -> None:
    folds(lab, build(lab, "N,3", "m = Sub (x, c) y = MatMul (m, w)", "A,B"), ["Gemm"], lab.array(2, 3))


def test_sequences_without_a_bias_get_an_add(lab: Any) -> None:
    nodes = "d = Sub (x, c) m = Div (d, s) y = MatMul (m, w)"
    folds(lab, build(lab, "N,5,3", nodes, "A,B,C"), ["MatMul", "Add"], lab.array(2, 5, 3))


def test_a_scale_alone(lab: Any) -> None:
    folds(lab, build(lab, "N,5,3", "m = Mul (s, x) y = MatMul (m, w)", "A,B,C"), ["MatMul"], lab.array(2, 5, 3))


def test_a_residual_behind_is_no_bias(lab: Any) -> None:
    nodes = "d = Sub (x, c) m = Div (d, s) p = MatMul (m, w) y = Add (p, x)"
    model = build(lab, "N,5,3", nodes, "A,B,C", w=lab.array(3, 3))
    folds(lab, model, ["MatMul", "Add", "Add"], lab.array(2, 5, 3))


def test_a_stack_of_matrices(lab: Any) -> None:
    nodes = "d = Sub (x, c) m = Div (d, s) p = MatMul (m, w) y = Add (p, b)"
    folds(lab, build(lab, "2,5,3", nodes, "A,B,C", w=lab.array(2, 3, 4)), ["MatMul", "Add"], lab.array(2, 5, 3))


@pytest.mark.parametrize("behind", ["y = MatMul (w, m)", "p = MatMul (w, m) y = Add (p, b)"])
def test_data_on_the_right(lab: Any, behind: str) -> None:
    arrays = {"w": lab.array(4, 3), "c": lab.array(3, 1), "s": lab.array(3, 1, low=0.3, high=2), "b": lab.array(4, 1)}
    model = build(lab, "N,3,6", f"d = Sub (x, c) m = Div (d, s) {behind}", "A,B,C", **arrays)
    folds(lab, model, ["MatMul", "Add"], lab.array(2, 3, 6))


def test_the_bias_of_one_layer_goes_into_the_next(lab: Any) -> None:
    nodes = "p = MatMul (x, w) q = Add (p, b) r = MatMul (q, v) y = Add (r, b2)"
    arrays = {"w": lab.array(20, 4), "v": lab.array(4, 20), "b2": lab.array(20)}  # one product would be larger
    model = build(lab, "N,5,20", nodes, "A,B,C", **arrays)
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == ["MatMul", "MatMul", "Add"]
    lab.same(outcome, {"x": lab.array(2, 5, 20)}, factor=64.0)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_refuses_a_shift_that_gains_nothing(lab: Any, refused: Any) -> None:
    model = build(lab, "N,5,3", "m = Sub (x, c) y = MatMul (m, w)", "A,B,C")
    outcome = refused(model, RULE, "MatMul has no constant behind it that could take the shift")
    lab.same(outcome, {"x": lab.array(2, 5, 3)})


def test_refuses_values_along_positions(lab: Any, refused: Any) -> None:
    """As many positions as features: a column runs along the positions."""
    model = build(lab, "N,3,3", "m = Mul (x, s) y = MatMul (m, w)", "A,B,C", s=lab.array(3, 1))
    outcome = refused(model, RULE, "the values differ along axis -2")
    lab.same(outcome, {"x": lab.array(2, 3, 3)})


def test_refuses_an_unknown_rank(lab: Any, refused: Any) -> None:
    model = lab.model(
        "(float[N,3,6] x, int64[r] k) => (float[A,B,C] y) { q = Reshape (x, k) m = Mul (q, s) y = MatMul (w, m) }",
        w=lab.array(4, 3),
        s=lab.array(3, 1),
    )
    refused(model, RULE, "whose rank is not known")


def test_refuses_a_bias_that_a_caller_may_override(lab: Any, refused: Any) -> None:
    text = "(float[N,5,3] x, float[4] b) => (float[A,B,C] y) { m = Sub (x, c) p = MatMul (m, w) y = Add (p, b) }"
    model = lab.model(text, w=lab.array(3, 4), c=lab.array(3), b=lab.array(4))
    outcome = refused(model, RULE, "the constant behind MatMul is a graph input that a caller may override")
    lab.same(outcome, {"x": lab.array(2, 5, 3), "b": lab.array(4, seed=7)})


def test_two_tensors_are_no_layer(lab: Any) -> None:
    """Attention's scale stays where it is, and there is nothing to tell."""
    text = "(float[N,5,3] x, float[N,3,5] k) => (float[A,B,C] y) { m = Mul (x, s) y = MatMul (m, k) }"
    outcome = lab.optimize(lab.model(text, s=lab.array(1)))
    assert (outcome.ops, outcome.result.decisions) == (["Mul", "MatMul"], ())
