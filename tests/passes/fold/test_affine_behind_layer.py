"""fold/affine-behind-layer: spellings, layers, where the chain ends, refusals."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

RULE = "fold/affine-behind-layer"


def build(lab: Any, maps: str, opset: int = 18, kind: str = "float", conv: str = "", **arrays: Any) -> Any:
    """``maps`` makes y from c, the output of a Conv with 3 channels."""
    text = f"({kind}[N,4,6,5] x) => ({kind}[A,B,C,D] y) {{ c = Conv {conv} (x, weight, bias) {maps} }}"
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    given = {"weight": lab.array(3, 4, 3, 2, dtype=dtype), "bias": lab.array(3, dtype=dtype, seed=2)}
    return lab.model(text, opset, **{**given, **arrays})


def folds(lab: Any, model: Any, ops: list[str], **feeds: Any) -> Any:
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == ops, outcome.result.explain()
    assert (outcome.only.action.value, outcome.only.rule) == ("folded", RULE)
    lab.same(outcome, feeds, factor=64.0)
    lab.same_in_ort(outcome, feeds, factor=128.0)
    return outcome


@pytest.mark.parametrize("opset", [7, 13, 18, 24])
@pytest.mark.parametrize(
    "maps",
    [
        "d = Mul (c, s) y = Add (d, t)",
        "d = Sub (c, t) e = Div (d, s) f = Mul (t, e) y = Add (s, f)",
        "d = Sub (t, c) e = Neg (d) y = Div (e, s)",
        "y = Sub (c, t)",
    ],
)
def test_spellings(lab: Any, maps: str, opset: int) -> None:
    arrays = {"t": lab.array(1, 3, 1, 1, seed=5), "s": lab.array(3, 1, 1, seed=6, low=0.3, high=2)}
    model = build(lab, maps, opset, conv="<pads=[1,1,1,1]>", **{name: arrays[name] for name in "st" if name in maps})
    folds(lab, model, ["Conv"], x=lab.array(2, 4, 6, 5, seed=9))


def test_batch_normalization_among_the_maps(lab: Any) -> None:
    model = build(lab, "d = Mul (c, s) y = BatchNormalization (d, gamma, beta, mean, var)",
                  s=lab.array(3, 1, 1, low=0.5, high=2), **lab.batch_norm(3))  # fmt: skip
    outcome = folds(lab, model, ["Conv"], x=lab.array(2, 4, 6, 5, seed=9))
    assert outcome.only.op == "BatchNormalization"


def test_grouped_transposed_convolution_without_bias(lab: Any) -> None:
    text = (
        "(float[N,4,6,5] x) => (float[A,B,C,D] y)"
        " { c = ConvTranspose <group=2, strides=[2,2]> (x, weight) d = Mul (c, s) y = Sub (d, t) }"
    )
    arrays = {"s": lab.array(6, 1, 1, low=0.5, high=2), "t": lab.array(1, 6, 1, 1, seed=3)}
    model = lab.model(text, weight=lab.array(4, 3, 3, 2), **arrays)
    folds(lab, model, ["ConvTranspose"], x=lab.array(2, 4, 6, 5, seed=9))


@pytest.mark.parametrize(("form", "shape"), [("", (4, 3)), ("<transB=1, beta=0.5>", (3, 4))])
def test_gemm(lab: Any, form: str, shape: tuple[int, ...]) -> None:
    text = f"(float[N,4] x) => (float[A,B] y) {{ c = Gemm {form} (x, weight, bias) d = Mul (s, c) y = Add (d, t) }}"
    arrays = {"bias": lab.array(3, seed=2), "s": lab.array(3, seed=3), "t": lab.array(1, 3, seed=4)}
    folds(lab, lab.model(text, weight=lab.array(*shape), **arrays), ["Gemm"], x=lab.array(2, 4, seed=9))


@pytest.mark.parametrize(
    ("maps", "ops"),
    [
        ("d = Add (c, t) y = Mul (d, s)", ["MatMul", "Add"]),
        ("d = Mul (c, s) y = Div (d, two)", ["MatMul"]),
        ("d = Add (t, c) y = Sub (d, s)", ["MatMul", "Add"]),
    ],
)
def test_matmul(lab: Any, maps: str, ops: list[str]) -> None:
    text = f"(float[N,L,4] x) => (float[A,B,C] y) {{ c = MatMul (x, weight) {maps} }}"
    arrays = {"s": lab.array(3, seed=3), "t": lab.array(1, 3, seed=4), "two": np.array(2, np.float32)}
    used = {name: value for name, value in arrays.items() if name in maps}
    folds(lab, lab.model(text, weight=lab.array(4, 3), **used), ops, x=lab.array(2, 5, 4, seed=9))


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "double"])
def test_element_types(lab: Any, kind: str) -> None:
    dtype = {"double": "float64"}.get(kind, kind)
    arrays = {"s": lab.array(3, 1, 1, dtype=dtype, low=0.5, high=2), "t": lab.array(3, 1, 1, dtype=dtype, seed=5)}
    outcome = lab.optimize(build(lab, "d = Mul (c, s) y = Add (d, t)", kind=kind, **arrays), verify=True)
    assert [name for name in outcome.ops if name != "Cast"] == ["Conv"]
    assert outcome.result.decisions[0].rule == RULE
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5, dtype=dtype, seed=9)}, eps=lab.eps(dtype), factor=64.0)


@pytest.mark.parametrize("shape", [(5,), (6, 1), (1, 3, 1, 5), (2, 1, 1, 1), (1, 1, 3, 1, 1), (1, 1, 1, 1, 1)])
def test_ends_before_other_axes(lab: Any, shape: tuple[int, ...]) -> None:
    text = (
        "(float[2,4,8,6] x) => (float[A,B,C,D] z) { c = Conv (x, weight) d = Mul (c, s) y = Add (d, t) z = Relu (y) }"
    )
    if len(shape) > 4:
        text = text.replace("[A,B,C,D]", "[A,B,C,D,E]")
    arrays = {"s": lab.array(3, 1, 1, low=0.5, high=2), "t": lab.array(*shape)}
    model = lab.model(text, weight=lab.array(3, 4, 3, 2), **arrays)
    outcome = folds(lab, model, ["Conv", "Add", "Relu"], x=lab.array(2, 4, 8, 6, seed=9))
    assert outcome.initializer("t").shape == shape


def test_enlarging_a_single_channel_ends_it(lab: Any) -> None:
    text = "(float[N,4,6,5] x) => (float[A,B,C,D] y) { c = Conv (x, weight) y = Mul (c, s) }"
    outcome = lab.optimize(lab.model(text, weight=lab.array(1, 4, 3, 2), s=lab.array(3, 1, 1)))
    assert outcome.ops == ["Conv", "Mul"]


def test_a_constant_divided_by_the_output_is_no_map(lab: Any) -> None:
    assert lab.optimize(build(lab, "y = Div (s, c)", s=lab.array(3, 1, 1))).ops == ["Conv", "Div"]


def test_a_bias_behind_matmul_is_left_alone(lab: Any) -> None:
    text = "(float[N,L,4] x) => (float[A,B,C] y) { c = MatMul (x, weight) y = Add (c, t) }"
    outcome = lab.optimize(lab.model(text, weight=lab.array(4, 3), t=lab.array(3)))
    assert outcome.ops == ["MatMul", "Add"]
    assert outcome.result.decisions == ()


def test_two_readers_and_graph_outputs_end_it(lab: Any) -> None:
    text = (
        "(float[N,4,6,5] x) => (float[A,B,C,D] y, float[E,F,G,H] e, float[I,J,K,L] z)"
        " { c = Conv (x, weight) d = Mul (c, s) e = Add (d, t) y = Mul (e, s) f = Conv (x, other) g = Relu (f)"
        " h = Mul (f, s) z = Add (g, h) }"
    )
    arrays = {"weight": lab.array(3, 4, 3, 2), "other": lab.array(3, 4, 3, 2, seed=4)}
    model = lab.model(text, **arrays, s=lab.array(3, 1, 1), t=lab.array(3, 1, 1, seed=4))
    folds(lab, model, ["Conv", "Mul", "Conv", "Relu", "Mul", "Add"], x=lab.array(2, 4, 6, 5, seed=9))


def test_overridable_constants_end_it(lab: Any) -> None:
    text = "(float[N,4,6,5] x, float[3,1,1] s) => (float[A,B,C,D] y) { c = Conv (x, weight) y = Mul (c, s) }"
    outcome = lab.optimize(lab.model(text, weight=lab.array(3, 4, 3, 2), s=lab.array(3, 1, 1)))
    assert outcome.ops == ["Conv", "Mul"]


def _refusal(lab: Any, maps: str, words: str, **arrays: Any) -> None:
    """BatchNormalization behind a map, for which the refusal is told."""
    model = build(lab, f"{maps} y = BatchNormalization (d, gamma, beta, mean, var)", **lab.batch_norm(3), **arrays)
    outcome = lab.optimize(model)
    assert "Mul" in outcome.ops or "Div" in outcome.ops
    assert (outcome.only.action.value, outcome.only.rule) == ("refused", RULE)
    assert words in str(outcome.only)


def test_refuses_what_is_not_finite(lab: Any) -> None:
    _refusal(lab, "d = Div (c, s)", "not finite", s=np.array([[[1.0]], [[0.0]], [[2.0]]], np.float32))


def test_refuses_what_would_overflow(lab: Any) -> None:
    _refusal(lab, "d = Mul (c, s)", "overflow float", s=np.full((3, 1, 1), 3e38, np.float32),
             weight=lab.array(3, 4, 3, 2, low=100, high=200))  # fmt: skip


def test_refuses_what_would_underflow(lab: Any) -> None:
    _refusal(lab, "d = Mul (c, s)", "underflow float", s=np.full((3, 1, 1), 1e-38, np.float32),
             weight=lab.array(3, 4, 3, 2, low=1e-6, high=2e-6))  # fmt: skip


def test_one_map_leaves_a_weight_that_another_layer_reads(lab: Any) -> None:
    text = (
        "(float[N,4,6,5] x) => (float[A,B,C,D] y, float[E,F,G,H] z) { c = Conv (x, weight) MAPS"
        " e = Relu (x) z = Conv (e, weight) }"
    )
    given = {"weight": lab.array(3, 4, 3, 2), "s": lab.array(3, 1, 1)}
    assert lab.optimize(lab.model(text.replace("MAPS", "y = Mul (c, s)"), **given)).ops.count("Mul") == 1
    model = lab.model(text.replace("MAPS", "d = Mul (c, s) y = Add (d, t)"), **given, t=lab.array(3, 1, 1, seed=4))
    outcome = folds(lab, model, ["Conv", "Relu", "Conv"], x=lab.array(2, 4, 6, 5, seed=9))
    assert any(item.name == "weight" for item in outcome.after.graph.initializer)


def test_folds_when_the_other_reader_of_the_weight_has_its_own_by_then(lab: Any) -> None:
    text = (
        "(float[N,4,6,5] x) => (float[A,B,C,D] y, float[E,F,G,H] z)"
        " { c = Conv (x, weight) y = Mul (c, s) e = Neg (x) z = Conv (e, weight) }"
    )
    outcome = lab.optimize(lab.model(text, weight=lab.array(3, 4, 3, 2), s=lab.array(3, 1, 1)))
    assert outcome.ops == ["Conv", "Conv"]


def test_refuses_a_weight_that_a_caller_may_override(lab: Any) -> None:
    text = (
        "(float[N,4,6,5] x, float[3,4,3,2] weight) => (float[A,B,C,D] y)"
        " { c = Conv (x, weight) d = Mul (c, s) y = BatchNormalization (d, gamma, beta, mean, var) }"
    )
    model = lab.model(text, weight=lab.array(3, 4, 3, 2), s=lab.array(3, 1, 1), **lab.batch_norm(3))
    assert "a caller may override" in str(lab.optimize(model).only)


# --- operators that move elements -----------------------------------------------------------------------------------

T = "Transpose"
NORM = "BatchNormalization ({}, gamma, beta, mean, var)"


def sequence(lab: Any, nodes: str, opset: int = 18, channels: int = 6, shape: str = "N,L,4", **arrays: Any) -> Any:
    """``nodes`` make y from c, the output of a MatMul with 6 features; "norm(v)" is BatchNormalization of v."""
    nodes = re.sub(r"norm\((\w+)\)", lambda found: NORM.format(found[1]), nodes)
    text = f"(float[{shape}] x) => (float[] y) {{ c = MatMul (x, weight) {nodes} }}"
    return lab.model(text, opset, weight=lab.array(4, 6, seed=3), **lab.batch_norm(channels), **arrays)


@pytest.mark.parametrize(
    ("nodes", "ops"),
    [
        ("t = Transpose <perm=[0,2,1]> (c) n = norm(t) y = Transpose <perm=[0,2,1]> (n)", []),
        ("t = Transpose <perm=[0,2,1]> (c) y = norm(t)", ["Transpose"]),
        ("a = Add (b, c) t = Transpose <perm=[0,2,1]> (a) n = norm(t) y = Relu (n)", ["Transpose", "Relu"]),
        ("t = Reshape (c, rows) n = norm(t) y = Reshape (n, back)", []),
        ("t = Reshape (c, rows) n = norm(t) r = Relu (n) y = Reshape (r, back)", ["Reshape", "Relu", "Reshape"]),
        (
            "t = Transpose <perm=[0,2,1]> (c) u = Unsqueeze (t, two) n = norm(u) s = Squeeze (n, two)"
            " y = Transpose <perm=[0,2,1]> (s)",
            [],
        ),
        ("t = Transpose <perm=[0,2,1]> (c) m = ReduceMean <keepdims=0> (t, two) y = norm(m)", [T, "ReduceMean"]),
        ("t = Transpose <perm=[0,2,1]> (c) m = GlobalAveragePool (t) y = norm(m)", [T, "GlobalAveragePool"]),
    ],
)  # fmt: skip
def test_moved_elements(lab: Any, nodes: str, ops: list[str]) -> None:
    given = {
        "rows": np.array([-1, 6]),
        "back": np.array([-1, 5, 6]),
        "two": np.array([2]),
        "b": lab.array(6, seed=4),
    }
    shape = "N,5,4" if "back" in nodes else "N,L,4"
    used = {name: value for name, value in given.items() if re.search(rf"\b{name}\b", nodes)}
    model = sequence(lab, nodes, shape=shape, **used)
    outcome = lab.optimize(model, verify=True, check=False)
    assert outcome.ops == ["MatMul", "Add", *ops], outcome.result.explain()
    assert (outcome.only.action.value, outcome.only.rule, outcome.only.op) == ("folded", RULE, "BatchNormalization")
    lab.same(outcome, {"x": lab.array(2, 5, 4, seed=9)}, factor=64.0)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ("t = Reshape (c, mixed) y = norm(t)", "differs within a channel"),
        ("t = Transpose <perm=[1,0,2]> (c) y = norm(t)", "differs along other axes"),
        ("t = Transpose <perm=[0,2,1]> (c) m = ReduceMean (t, one) r = Expand (m, full) y = norm(r)", None),
    ],
)
def test_other_axes_end_it(lab: Any, nodes: str, words: str | None) -> None:
    given = {"mixed": np.array([2, 4, -1]), "one": np.array([1]), "full": np.array([2, 6, 6])}
    used = {name: value for name, value in given.items() if name in nodes}
    channels, shape = 4 if "mixed" in nodes else 6, "6,6,4" if "1,0,2" in nodes else "2,6,4"
    model = sequence(lab, nodes, channels=channels, shape=shape, **used)
    outcome = lab.optimize(model, check=False)
    assert "BatchNormalization" in outcome.ops
    assert words is None or words in str(outcome.only), str(outcome.only)


def test_a_cast_to_a_wider_type_and_back(lab: Any) -> None:
    maps = "d = Cast <to=1> (c) e = BatchNormalization (d, gamma, beta, mean, var) y = Cast <to=10> (e)"
    model = build(lab, maps, kind="float16", **lab.batch_norm(3))
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == ["Conv"]
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5, dtype="float16", seed=9)}, eps=9.8e-4, factor=16.0)


@pytest.mark.parametrize(
    ("mode", "shift", "folded"), [("edge", 1, True), ("constant", 0, True), ("constant", 1, False)]
)
def test_padding(lab: Any, mode: str, shift: int, folded: bool) -> None:
    arrays = {"s": lab.array(3, 1, 1, low=0.5, high=2), "t": shift * lab.array(3, 1, 1, seed=5)}
    maps = f'd = Pad <mode="{mode}"> (c, around) e = Mul (d, s) y = Add (e, t)'
    model = build(lab, maps, around=np.array([0, 0, 1, 0, 0, 0, 1, 2]), **arrays)
    outcome = lab.optimize(model, verify=True)
    left = ["Conv", "Pad"] if folded else ["Conv", "Pad", "Add"]
    assert outcome.ops == left, outcome.result.explain()
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5, seed=9)}, factor=64.0)


@pytest.mark.parametrize("shift", [False, True])
def test_padding_with_another_number(lab: Any, shift: bool) -> None:
    """The number becomes what the map makes of it."""
    arrays = {"around": np.array([0, 0, 1, 0, 0, 0, 1, 2]), "v": np.float32(2), "s": np.float32(0.5)}
    maps = "d = Pad (c, around, v) e = Mul (d, s) y = Add (e, t)" if shift else "d = Pad (c, around, v) y = Mul (d, s)"
    model = build(lab, maps, **arrays, **({"t": np.float32(3)} if shift else {}))
    outcome = folds(lab, model, ["Conv", "Pad"], x=lab.array(2, 4, 6, 5, seed=9))
    assert any(
        item.size == 1 and item == (4 if shift else 1)
        for item in map(numpy_helper.to_array, outcome.after.graph.initializer)
    )


def test_the_scale_of_attention_is_left_alone(lab: Any) -> None:
    text = (
        "(float[N,L,8] x) => (float[] y) { a = MatMul (x, w) b = Reshape (a, heads) q = Transpose <perm=[0,2,1,3]> (b)"
        " s = Mul (q, half) k = Relu (x) m = Reshape (k, heads) n = Transpose <perm=[0,2,3,1]> (m) y = MatMul (s, n) }"
    )
    arrays = {"w": lab.array(8, 8), "heads": np.array([0, 0, 2, 4]), "half": np.float32(0.5)}
    assert "Mul" in lab.optimize(lab.model(text, **arrays), check=False).ops


def test_a_stack_of_matrices(lab: Any) -> None:
    text = "(float[N,3,4,5] x) => (float[] y) { c = MatMul (weight, x) d = Mul (c, s) y = Sub (d, t) }"
    arrays = {"weight": lab.array(3, 6, 4), "s": lab.array(3, 6, 1, seed=1), "t": lab.array(6, 1, seed=2)}
    outcome = lab.optimize(lab.model(text, **arrays), verify=True, check=False)
    assert outcome.ops == ["MatMul", "Add"], outcome.result.explain()
    lab.same(outcome, {"x": lab.array(2, 3, 4, 5, seed=9)}, factor=64.0)


@pytest.mark.parametrize("maps", ["y = Mul (c, s)", "d = Div (c, two) e = Add (d, t) y = Neg (e)", "y = norm(c)"])
def test_a_table(lab: Any, maps: str) -> None:
    shape = "N" if "norm" in maps else "N,L"
    maps = maps.replace("norm(c)", NORM.format("c"))
    text = f"(int64[{shape}] i) => (float[] y) {{ c = Gather (table, i) {maps} }}"
    given = {"s": lab.array(4, seed=3), "t": lab.array(1, 4, seed=4), "two": np.float32(2)}
    used = {name: value for name, value in given.items() if f"{name})" in maps}
    used |= lab.batch_norm(4) if "gamma" in maps else {}
    outcome = lab.optimize(lab.model(text, table=lab.array(5, 4), **used), verify=True, check=False)
    assert outcome.ops == ["Gather"], outcome.result.explain()
    rows = np.array([[1, 4, 0], [2, 2, -1]])
    lab.same(outcome, {"i": rows if "L" in shape else rows[0]})


@pytest.mark.parametrize("nodes", ["c = Gather (table, i) y = Add (c, s)",
                                   "c = Gather (table, i) d = Mul (c, s) y = MatMul (d, table)"])  # fmt: skip
def test_a_table_stays(lab: Any, nodes: str) -> None:
    """A shift alone, and a table that is read elsewhere."""
    model = lab.model(f"(int64[N,L] i) => (float[] y) {{ {nodes} }}", table=lab.array(4, 4), s=lab.array(4, seed=3))
    outcome = lab.optimize(model, check=False)
    assert any(item.name == "table" for item in outcome.after.graph.initializer)
