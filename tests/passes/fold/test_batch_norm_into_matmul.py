"""fold/batch-norm-into-matmul: the axis that BatchNormalization scales must be the one that the constant makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RULE = "fold/batch-norm-into-matmul"
TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}


def build(lab: Any, x: str, middle: str, out: str, opset: int = 18, kind: str = "float", **arrays: Any) -> Any:
    """``middle`` makes m from x."""
    channels = arrays.pop("channels", 4)
    text = f"({kind}[{x}] x) => ({kind}[{out}] y) {{ {middle} y = BatchNormalization (m, gamma, beta, mean, var) }}"
    dtype = next(name for name, text_name in TYPE_NAMES.items() if text_name == kind)
    return lab.model(
        text, opset, **{"weight": lab.array(3, 4, dtype=dtype), **lab.batch_norm(channels, dtype), **arrays}
    )


def folds(lab: Any, model: Any, feeds: dict[str, Any]) -> Any:
    outcome = lab.optimize(model)
    assert outcome.ops == ["MatMul", "Add"]
    assert (outcome.only.action.value, outcome.only.rule) == ("folded", RULE)
    lab.same(outcome, feeds)
    lab.same_in_ort(outcome, feeds)
    return outcome


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15, 20, 24])
def test_every_opset(lab: Any, opset: int) -> None:
    folds(lab, build(lab, "5,3", "m = MatMul (x, weight)", "N,4", opset), {"x": lab.array(5, 3, seed=9)})


@pytest.mark.parametrize("order", ["(p, c)", "(c, p)"])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 4), (5, 4), (5, 1), (1, 1)])
def test_added_constant(lab: Any, shape: tuple[int, ...], order: str) -> None:
    middle = f"p = MatMul (x, weight) m = Add {order}"
    folds(lab, build(lab, "5,3", middle, "N,4", c=lab.array(*shape, seed=3)), {"x": lab.array(5, 3, seed=9)})


@pytest.mark.parametrize("shape", [None, (), (4, 1), (1, 4, 1), (6,), (4, 6), (2, 4, 6), (2, 1, 1)])
def test_constant_on_the_left(lab: Any, shape: Any) -> None:
    middle = "m = MatMul (weight, x)" if shape is None else "p = MatMul (weight, x) m = Add (p, c)"
    arrays = {} if shape is None else {"c": lab.array(*shape, seed=3)}
    model = build(lab, "2,3,6", middle, "N,4,L", weight=lab.array(4, 3), **arrays)
    folds(lab, model, {"x": lab.array(2, 3, 6, seed=9)})


def test_dynamic_batch(lab: Any) -> None:
    folds(
        lab, build(lab, "N,3", "p = MatMul (x, weight) m = Add (p, c)", "M,4", c=lab.array(4)), {"x": lab.array(7, 3)}
    )


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "double"])
def test_element_types(lab: Any, kind: str) -> None:
    dtype = next(name for name, text in TYPE_NAMES.items() if text == kind)
    middle = "p = MatMul (x, weight) m = Add (p, c)"
    model = build(lab, "5,3", middle, "N,4", 18, kind, c=lab.array(4, dtype=dtype, seed=3))
    outcome = lab.optimize(model, disable=["lower/unsupported-type"])
    assert outcome.ops == ["MatMul", "Add"]
    lab.same(outcome, {"x": lab.array(5, 3, dtype=dtype, seed=9)}, eps=lab.eps(dtype))


def test_positions_as_channels(lab: Any) -> None:
    """As many positions as features: behind the Transpose, axis 1 is that of the positions."""
    model = build(lab, "2,4,3", "p = MatMul (x, weight) m = Transpose <perm=[0,1,2]> (p)", "N,4,L")
    outcome = lab.optimize(model)
    assert outcome.only.action.value == "refused"
    lab.same(outcome, {"x": lab.array(2, 4, 3, seed=9)})


# --- refusals -----------------------------------------------------------------------------------------------------


def test_refuses_features_on_the_last_axis(lab: Any, refused: Any) -> None:
    """Rank 3 with as many positions as features: the lengths fit, the axis does not."""
    model = build(lab, "2,4,3", "m = MatMul (x, weight)", "N,4,4")
    outcome = refused(model, RULE, "BatchNormalization scales axis 1, MatMul's features are the last axis")
    assert outcome.only.values == {"rank": 3}
    lab.same(outcome, {"x": lab.array(2, 4, 3, seed=9)})


@pytest.mark.parametrize(("x", "out"), [("3,4", "N,4"), ("2,2,3,4", "N,2,H,4")])
def test_refuses_a_left_factor_of_another_axis(lab: Any, refused: Any, x: str, out: str) -> None:
    channels = 4 if x == "3,4" else 2
    model = build(lab, x, "m = MatMul (weight, x)", out, weight=lab.array(4, 3), channels=channels)
    outcome = refused(model, RULE, "which is not the axis of MatMul's left factor")
    lab.same(outcome, {"x": lab.array(*map(int, x.split(",")), seed=9)})


def test_refuses_an_unknown_rank(lab: Any, refused: Any) -> None:
    refused(build(lab, "", "m = MatMul (x, weight)", ""), RULE, "the rank of MatMul's output is not known", check=False)


def test_refuses_a_weight_of_higher_rank(lab: Any, refused: Any) -> None:
    model = build(lab, "5,3", "m = MatMul (x, weight)", "1,N,4", weight=lab.array(1, 3, 4), channels=5)
    refused(model, RULE, "BatchNormalization scales axis 1, MatMul's features are the last axis")


def test_refuses_two_run_time_factors(lab: Any, refused: Any) -> None:
    model = build(lab, "4,4", "r = Relu (x) m = MatMul (x, r)", "N,4")
    refused(model, RULE, "its MatMul's weight is not constant: it is computed by Relu r")


def test_refuses_a_weight_that_a_caller_may_override(lab: Any, refused: Any) -> None:
    text = (
        "(float[5,3] x, float[3,4] weight) => (float[N,4] y)"
        " { m = MatMul (x, weight) y = BatchNormalization (m, gamma, beta, mean, var) }"
    )
    model = lab.model(text, weight=lab.array(3, 4), **lab.batch_norm(4))
    outcome = refused(model, RULE, "its MatMul's weight is a graph input that a caller may override")
    lab.same(outcome, {"x": lab.array(5, 3), "weight": lab.array(3, 4, seed=6)})


def test_refuses_two_constant_factors(lab: Any, refused: Any) -> None:
    model = lab.model(
        "(float[1] u) => (float[N,4] y) { m = MatMul (a, weight) y = BatchNormalization (m, gamma, beta, mean, var) }",
        a=lab.array(5, 3),
        weight=lab.array(3, 4),
        **lab.batch_norm(4),
    )
    refused(model, RULE, "both factors of MatMul are constant")


def test_refuses_a_run_time_term(lab: Any, refused: Any) -> None:
    text = (
        "(float[5,3] x, float[4] c) => (float[N,4] y)"
        " { p = MatMul (x, weight) m = Add (p, c) y = BatchNormalization (m, gamma, beta, mean, var) }"
    )
    model = lab.model(text, weight=lab.array(3, 4), **lab.batch_norm(4))
    refused(model, RULE, "its added term is not constant: it is a graph input")


def test_refuses_a_term_with_more_axes(lab: Any, refused: Any) -> None:
    """(1, 1, 4) makes the sum rank 3: BatchNormalization then scales the rows."""
    model = build(lab, "4,3", "p = MatMul (x, weight) m = Add (p, c)", "A,B,C", c=lab.array(1, 1, 4))
    outcome = refused(model, RULE, "the added term has more axes than MatMul's output")
    lab.same(outcome, {"x": lab.array(4, 3, seed=9)})


@pytest.mark.parametrize(("x", "shape"), [("N,3", (5, 4)), ("1,3", (5, 4)), ("1,3", (5, 1))])
def test_refuses_a_term_that_may_enlarge(lab: Any, refused: Any, x: str, shape: tuple[int, ...]) -> None:
    model = build(lab, x, "p = MatMul (x, weight) m = Add (p, c)", "M,4", c=lab.array(*shape))
    outcome = refused(model, RULE, "the added term may enlarge MatMul's output")
    lab.same(outcome, {"x": lab.array(1, 3, seed=9)})


def test_refuses_one_feature_that_the_term_spreads(lab: Any, refused: Any) -> None:
    model = build(lab, "5,3", "p = MatMul (x, weight) m = Add (p, c)", "N,4", weight=lab.array(3, 1), c=lab.array(4))
    outcome = refused(model, RULE, "MatMul p has 1 output channels")
    lab.same(outcome, {"x": lab.array(5, 3, seed=9)})


def test_refuses_a_product_with_another_reader(lab: Any, refused: Any) -> None:
    text = (
        "(float[5,3] x) => (float[N,4] y, float[N,4] z)"
        " { p = MatMul (x, weight) m = Add (p, c) z = Relu (SOURCE) y = BatchNormalization (m, gamma, beta, mean,"
        " var) }"
    )
    for source, op in (("p", "MatMul p"), ("m", "Add m")):
        model = lab.model(text.replace("SOURCE", source), weight=lab.array(3, 4), c=lab.array(4), **lab.batch_norm(4))
        refused(model, RULE, f"the output of {op} has 2 readers")


def test_refuses_overflow_of_the_added_term(lab: Any, refused: Any) -> None:
    parts = lab.batch_norm(4, "float16")
    parts["gamma"][1], parts["var"][1] = 1.0, 0.9
    added = np.full(4, 6e4, np.float16)
    parts["mean"][1] = -3e4
    model = build(lab, "5,3", "p = MatMul (x, weight) m = Add (p, c)", "N,4", 18, "float16", c=added, **parts)
    refused(model, RULE, "a folded value would overflow float16")
