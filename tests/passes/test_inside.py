"""Normalizations inside: calls of model-local functions, branches, loop bodies, and what these read from outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

NORM = "BatchNormalization (c, gamma, beta, mean, var)"
PARTS = "gamma, beta, mean, var"
IMAGE = "(float[2,3,6,5] x) => (float[N,4,H,W] y)"
HEAD = '\n<domain: "loc", opset_import: ["" : 18, "loc" : 1]> '


def build(lab: Any, text: str, **arrays: Any) -> Any:
    given = {"w": lab.array(4, 3, 3, 3), **lab.batch_norm(4), **arrays}
    used = {name: value for name, value in given.items() if value is not None}
    return lab.model(text, domains=', "loc" : 1', **used)


def image(lab: Any, **more: Any) -> dict[str, Any]:
    return {"x": lab.array(2, 3, 6, 5, seed=9), **more}


BLOCK = (
    HEAD
    + f"f <e> (x, w, {PARTS}) => (y) {{ c = Conv (x, w) y = BatchNormalization <epsilon : float = @e> "
    + (f"(c, {PARTS}) }}")
)


@pytest.mark.parametrize(
    "text",
    [
        f"{{ y = loc.f <e = 0.25> (x, w, {PARTS}) }}" + BLOCK,
        f"{{ y = loc.g (x, w, {PARTS}) }}{BLOCK}"
        f"{HEAD}g (x, w, {PARTS}) => (y) {{ y = loc.f <e = 0.1> (x, w, {PARTS}) }}",
        f"{{ c = Conv (x, w) y = loc.n (c, {PARTS}) }}{HEAD}n (c, {PARTS}) => (y) {{ y = {NORM} }}",
        f"{{ c = loc.l (x, w) y = {NORM} }}{HEAD}l (x, w) => (y) {{ y = Conv (x, w) }}",
        f"{{ c = Conv (x, w) y = loc.s (c, k) }}{HEAD}s (c, k) => (y) {{ y = Mul (c, k) }}",
    ],
)
def test_a_call_is_inlined_where_a_fold_follows(lab: Any, text: str) -> None:
    outcome = lab.optimize(build(lab, f"{IMAGE} {text}", k=lab.array(4, 1, 1)))
    assert outcome.ops == ["Conv"]
    assert not outcome.after.functions
    lab.same(outcome, image(lab))


def test_calls_with_other_constants(lab: Any) -> None:
    """Twice with parameters of its own, and with a norm whose name is taken outside."""
    text = (
        f"{IMAGE} {{ c = loc.f <e = 0.1> (x, w, {PARTS}) d = Relu (c)"
        f" y = loc.f <e = 0.2> (d, v, beta, gamma, mean, var) }}" + BLOCK
    )
    outcome = lab.optimize(build(lab, text, v=lab.array(4, 4, 1, 1)))
    assert outcome.ops == ["Conv", "Relu", "Conv"]
    lab.same(outcome, image(lab))


def test_a_norm_in_primitive_operators(lab: Any) -> None:
    text = (
        "(float[2,7,8] x) => (float[2,7,8] y) { y = loc.ln (x, g, b) }"
        f"{HEAD}ln (x, g, b) => (y) {{ ax = Constant <value_ints = [-1]> () eps = Constant <value_float = 0.00001> ()"
        " m = ReduceMean (x, ax) d = Sub (x, m) q = Mul (d, d) v = ReduceMean (q, ax) ve = Add (v, eps) s = Sqrt (ve)"
        " n = Div (d, s) k = Mul (n, g) y = Add (k, b) }"
    )
    outcome = lab.optimize(lab.model(text, domains=', "loc" : 1', g=lab.array(8), b=lab.array(8, seed=1)))
    assert outcome.ops == ["LayerNorm"]
    lab.same(outcome, {"x": lab.array(2, 7, 8)})


BRANCHES = (
    "(float[2,3,6,5] x, bool q) => (float[N,4,H,W] y) {{ y = If (q) <"
    "then_branch = t () => (float[N,4,H,W] a) {{ {then} }}, "
    "else_branch = e () => (float[N,4,H,W] b) {{ {other} }}> }}"
)


@pytest.mark.parametrize("q", [True, False])
def test_calls_in_branches_whose_names_meet(lab: Any, q: bool) -> None:
    """The function's own If has values of the names that the caller has."""
    then = f"a = loc.h (x, q, w, {PARTS})"
    body = (
        f"{HEAD}h (x, q, w, {PARTS}) => (y) {{ y = If (q) <then_branch = t () => (a) {{ c = Conv (x, w) a = {NORM} }},"
        f" else_branch = e () => (b) {{ c = Conv (x, w) b = Relu (c) }}> }}"
    )
    other = f"c = Conv (x, w) d = loc.h (x, q, w, {PARTS}) b = Sub (c, d)"
    outcome = lab.optimize(build(lab, BRANCHES.format(then=then, other=other) + body))
    assert not outcome.after.functions
    assert all(item.action.value == "folded" for item in outcome.result.decisions), outcome.result.explain()
    lab.same_in_ort(outcome, image(lab, q=np.array(q)))


def test_a_loop_in_a_function(lab: Any) -> None:
    text = (
        f"(float[2,3,6,5] x, int64 n) => (float[N,3,H,W] y) {{ y = loc.r (x, n, go, w, {PARTS}) }}"
        f"{HEAD}r (x, n, go, w, {PARTS}) => (y) {{ y = Loop (n, go, x) <body = t (int64 i, bool k, float[2,3,6,5] x1)"
        f" => (bool k1, float[2,3,6,5] o) {{ k1 = Identity (k) c = Conv <pads = [1,1,1,1]> (x1, w) o = {NORM} }}> }}"
    )
    outcome = lab.optimize(build(lab, text, w=lab.array(3, 3, 3, 3), go=np.array(True), **lab.batch_norm(3)))
    assert outcome.only.action.value == "folded"
    lab.same_in_ort(outcome, image(lab, n=np.array(3)))


@pytest.mark.parametrize("q", [True, False])
def test_what_bodies_read_from_outside(lab: Any, q: bool) -> None:
    """A weight that is computed outside for both branches, parameters inside, one If in another."""
    inner = f"a = If (q) <then_branch = t2 () => (float[N,4,H,W] a2) {{ c = Conv (x, w) a2 = {NORM} }}," + (
        " else_branch = e2 () => (float[N,4,H,W] b2) { b2 = Conv (x, w) }>"
    )
    text = BRANCHES.format(then=inner, other="d = Conv (x, w) b = Neg (d)")
    text = text.replace("{ y = If", "{ l = ReduceL2 (v, ax) w = Div (v, l) y = If", 1)
    model = build(lab, text, w=None, v=lab.array(4, 3, 3, 3), ax=np.array([1, 2, 3]))
    outcome = lab.optimize(model)
    assert "BatchNormalization" not in str(outcome.after)
    assert "ReduceL2" not in outcome.ops
    lab.same_in_ort(outcome, image(lab, q=np.array(q)))


KEPT = [
    # Nothing in it has to do with norms.
    f"{{ y = loc.p (x) }}{HEAD}p (x) => (y) {{ y = MaxPool <kernel_shape = [2,2]> (x) }}",
    # A norm, but nothing to fold it into or to fuse it with: inlining would change nothing.
    f"{{ c = Relu (x) y = loc.n (c, {PARTS}) }}{HEAD}n (c, {PARTS}) => (y) {{ y = {NORM} }}",
    # ONNX Runtime may have a kernel of that name.
    '{ c = Conv (x, w) y = com.microsoft.Own (c, k) }\n<domain: "com.microsoft", opset_import: ["" : 18]> '
    "Own (c, k) => (y) { y = Mul (c, k) }",
    # Its opset has another BatchNormalization.
    f"{{ c = Conv (x, w) y = loc.n (c, {PARTS}) }}"
    f'\n<domain: "loc", opset_import: ["" : 13]> n (c, {PARTS}) => (y) {{ y = {NORM} }}',
    # It gives its input back.
    f"{{ c = Conv (x, w) y, z = loc.n (c, k) }}{HEAD}n (c, k) => (y, c) {{ y = Mul (c, k) }}",
]


@pytest.mark.parametrize("text", KEPT)
def test_functions_that_stay(lab: Any, text: str) -> None:
    model = build(lab, f"{IMAGE} {text}".replace("N,4", "N,M"), k=lab.array(4, 1, 1), **lab.batch_norm(4))
    model.opset_import.add(domain="com.microsoft", version=1)
    outcome = lab.optimize(model, check=False)
    assert [item.name for item in outcome.after.functions] == [item.name for item in model.functions]


def test_few_lines_that_ask_for_very_many_nodes(lab: Any) -> None:
    """Each function calls the next one twice, forty deep."""
    text = f"{IMAGE} {{ c = Conv (x, w) y = loc.f0 (c, k) }}"
    for depth in range(40):
        text += f"{HEAD}f{depth} (c, k) => (y) {{ a = loc.f{depth + 1} (c, k) y = loc.f{depth + 1} (a, k) }}"
    text += f"{HEAD}f40 (c, k) => (y) {{ y = Mul (c, k) }}"
    outcome = lab.optimize(build(lab, text, k=lab.array(4, 1, 1)), check=False)
    assert len(outcome.after.functions) == 41


def test_a_large_constant_is_not_copied(lab: Any) -> None:
    text = (
        "(float[2,600] x) => (float[2,600] y) { a = loc.f (x, k) b = Relu (a) y = loc.f (b, k) }"
        f"{HEAD}f (x, k) => (y) {{ w = Constant <value = float[600,600] {{{','.join('1' * 360000)}}}> ()"
        " a = MatMul (x, w) y = Mul (a, k) }"
    )
    outcome = lab.optimize(lab.model(text, domains=', "loc" : 1', k=lab.array(600)))
    assert outcome.ops == ["f", "Relu", "f"]


def test_two_norms_in_a_branch_run_without_the_library(lab: Any) -> None:
    """ONNX Runtime 1.31 makes of two bodies that branch on the activation, there, one that misses its input."""
    norm = "{0} = LayerNormalization ({1}, {2}) "
    branch = norm.format("{0}1", "x", "s1") + norm.format("{0}2", "{0}1", "s2")
    text = (
        "(float[2,3,8] x, bool q) => (float[2,3,8] y) { y = If (q) <then_branch = t () => (float[2,3,8] a2) {"
        f"{branch.format('a')}}}, else_branch = e () => (float[2,3,8] b2) {{{branch.format('b')}}}> }}"
    )
    outcome = lab.optimize(build(lab, text, s1=lab.array(8), s2=lab.array(8, seed=1)))
    assert "LayerNorm" in str(outcome.after.graph.node[0])
    for taken in (True, False):
        feeds = {"x": lab.array(2, 3, 8, seed=5), "q": np.array(taken)}
        session = onnxruntime.InferenceSession(outcome.after.SerializeToString(), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, feeds)
        np.testing.assert_allclose(found, lab.run(outcome.before, feeds)[0], rtol=1e-5, atol=1e-5)


def test_an_output_that_only_dead_nodes_read_too(lab: Any) -> None:
    """The laboratory asks that a second run changes nothing."""
    text = (
        "(float[N,4,H] x) => (float[N,4,H] y, float[N,4,H] z) { a = Add (x, x) r = Reshape (a, split)"
        " i = InstanceNormalization (r, one2, zero2) s = Shape (a) y = Reshape (i, s) z = Identity (a) }"
    )
    given = {"split": np.array([0, 2, -1]), "one2": np.ones(2, np.float32), "zero2": np.zeros(2, np.float32)}
    assert "Identity" not in lab.optimize(lab.model(text, **given)).ops


def test_functions_for_the_standard_target(lab: Any) -> None:
    norm = (
        "m = ReduceMean <keepdims=1> (x, last) d = Sub (x, m) q = Mul (d, d) v = ReduceMean <keepdims=1> (q, last)"
        " p = Add (v, e) r = Sqrt (p) y = Div (d, r)"
    )
    text = f"(float[N,8] x) => (float[N,8] y) {{ y = loc.n (x, last, e) }}{HEAD}n (x, last, e) => (y) {{ {norm} }}"
    given = {"last": np.array([-1]), "e": np.array(1e-5, np.float32), "w": None, **dict.fromkeys(lab.batch_norm(4))}
    outcome = lab.optimize(build(lab, text, **given), target="standard")
    assert outcome.ops == ["LayerNormalization"], outcome.result.explain()
    lab.same(outcome, {"x": lab.array(3, 8)})
