"""fold/affine-into-conv, and what all folds of chains share: spellings, broadcasting, padding, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RULE = "fold/affine-into-conv"
NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}


def build(
    lab: Any, maps: str, conv: str = "", shape: str = "N,4,6,5", opset: int = 18, kind: str = "float", **arrays: Any
) -> Any:
    """``maps`` makes m from x; Conv of m."""
    rank = shape.count(",") + 1
    out = ",".join("ABCDE"[:rank])
    text = f"({kind}[{shape}] x) => ({kind}[{out}] y) {{ {maps} y = Conv {conv} (m, weight, bias) }}"
    dtype = next(name for name, text_name in NAMES.items() if text_name == kind)
    weight, bias = lab.array(3, 4, 3, 2, dtype=dtype), lab.array(3, dtype=dtype, seed=2)
    return lab.model(text, opset, **{"weight": weight, "bias": bias, **arrays})


def folds(lab: Any, model: Any, ops: list[str], x: Any) -> Any:
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == ops, outcome.result.explain()
    assert (outcome.only.action.value, outcome.only.rule) == ("folded", RULE)
    lab.same(outcome, {"x": x}, factor=64.0)
    lab.same_in_ort(outcome, {"x": x}, factor=128.0)
    return outcome


@pytest.mark.parametrize("opset", [7, 11, 13, 18, 21, 24])
@pytest.mark.parametrize(
    "maps",
    [
        "d = Sub (x, c) m = Div (d, s)",
        "d = Mul (x, s) m = Add (d, c)",
        "d = Mul (s, x) m = Add (c, d)",
        "d = Sub (c, x) m = Mul (s, d)",
        "d = Neg (x) e = Div (d, s) m = Sub (e, c)",
        "d = Div (x, s) e = Identity (d) m = Sub (c, e)",
    ],
)
def test_spellings(lab: Any, maps: str, opset: int) -> None:
    arrays = {"c": lab.array(1, 4, 1, 1, seed=5), "s": lab.array(4, 1, 1, seed=6, low=0.3, high=2)}
    folds(lab, build(lab, maps, opset=opset, **arrays), ["Conv"], lab.array(2, 4, 6, 5, seed=9))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1), (4, 1, 1), (1, 4, 1, 1)])
def test_forms_of_constants(lab: Any, shape: tuple[int, ...]) -> None:
    model = build(lab, "d = Mul (x, s) m = Sub (d, c)", s=lab.array(*shape), c=lab.array(*shape, seed=3))
    folds(lab, model, ["Conv"], lab.array(3, 4, 6, 5, seed=9))


@pytest.mark.parametrize(
    ("shape", "kernel", "group"),
    [
        ("N,4,7", (3, 4, 2), 1),
        ("N,4,4,5,6", (2, 4, 2, 1, 3), 1),
        ("N,4,6,5", (4, 1, 3, 2), 4),
        ("N,4,6,5", (6, 2, 1, 2), 2),
    ],
)
def test_ranks_and_groups(lab: Any, shape: str, kernel: tuple[int, ...], group: int) -> None:
    rank = len(kernel)
    per_channel = (4, *(1,) * (rank - 2))
    model = build(
        lab,
        "d = Sub (x, c) m = Div (d, s)",
        f"<group={group}>",
        shape,
        weight=lab.array(*kernel),
        bias=lab.array(kernel[0], seed=2),
        c=lab.array(*per_channel, seed=5),
        s=lab.array(*per_channel, seed=6, low=0.3, high=2),
    )
    sizes = [2 if size == "N" else int(size) for size in shape.split(",")]
    folds(lab, model, ["Conv"], lab.array(*sizes, seed=9))


def test_without_bias_and_with_a_shared_weight(lab: Any) -> None:
    text = (
        "(float[N,4,6,5] x, float[N,4,6,5] z) => (float[A,B,C,D] y, float[E,F,G,H] w)"
        " { m = Sub (x, c) y = Conv (m, weight) w = Conv (z, weight) }"
    )
    model = lab.model(text, weight=lab.array(3, 4, 3, 2), c=lab.array(4, 1, 1))
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == ["Conv", "Conv"]
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5), "z": lab.array(2, 4, 6, 5, seed=4)}, factor=64.0)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "double"])
def test_element_types(lab: Any, kind: str) -> None:
    dtype = next(name for name, text in NAMES.items() if text == kind)
    arrays = {"c": lab.array(4, 1, 1, dtype=dtype, seed=5), "s": lab.array(4, 1, 1, dtype=dtype, low=0.5, high=2)}
    outcome = lab.optimize(build(lab, "d = Sub (x, c) m = Div (d, s)", kind=kind, **arrays), verify=True)
    assert [name for name in outcome.ops if name != "Cast"] == ["Conv"]
    assert (outcome.result.decisions[0].action.value, outcome.result.decisions[0].rule) == ("folded", RULE)
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5, dtype=dtype, seed=9)}, eps=lab.eps(dtype), factor=64.0)


def test_batch_normalization_in_front(lab: Any) -> None:
    model = build(lab, "m = BatchNormalization (x, gamma, beta, mean, var)", **lab.batch_norm(4))
    outcome = folds(lab, model, ["Conv"], lab.array(2, 4, 6, 5, seed=9))
    assert outcome.only.op == "BatchNormalization"


def test_batch_normalization_on_both_sides(lab: Any) -> None:
    text = (
        "(float[N,4,6,5] x) => (float[A,B,C,D] y) { d = Sub (x, c) e = Div (d, s) m = Conv <pads=[1,1,1,1]> (e, weight)"
        " y = BatchNormalization (m, gamma, beta, mean, var) }"
    )
    arrays = {"c": lab.array(4, 1, 1), "s": lab.array(4, 1, 1, seed=4, low=0.5, high=2), **lab.batch_norm(3)}
    outcome = lab.optimize(lab.model(text, weight=lab.array(3, 4, 3, 2), **arrays), verify=True)
    assert outcome.ops == ["Add", "Conv"]
    assert {item.rule for item in outcome.result.decisions} == {RULE, "fold/batch-norm-into-conv"}
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5, seed=9)}, factor=64.0)


# --- zero padding -------------------------------------------------------------------------------------------------

PADDED = ["<pads=[1,1,1,1]>", "<pads=[0,0,1,0]>", '<auto_pad="SAME_UPPER">', '<auto_pad="SAME_LOWER", strides=[2,2]>']


@pytest.mark.parametrize("conv", PADDED)
def test_padding_keeps_the_shift_as_one_add(lab: Any, conv: str) -> None:
    arrays = {"c": lab.array(4, 1, 1, seed=5), "s": lab.array(4, 1, 1, seed=6, low=0.3, high=2)}
    model = build(lab, "d = Sub (x, c) e = Div (d, s) f = Mul (e, c) m = Add (f, s)", conv, **arrays)
    outcome = folds(lab, model, ["Add", "Conv"], lab.array(2, 4, 6, 5, seed=9))
    assert "the shift stays as Add" in outcome.only.values


def test_a_kept_mean_is_the_mean_itself(lab: Any) -> None:
    """(x - mean) / std: the constant of the Add is -mean without a rounding of its own."""
    mean = lab.array(4, 1, 1, low=100, high=200)
    arrays = {"c": mean, "s": lab.array(4, 1, 1, seed=6, low=0.3, high=2)}
    outcome = lab.optimize(build(lab, "d = Sub (x, c) m = Div (d, s)", "<pads=[1,1,1,1]>", **arrays))
    np.testing.assert_array_equal(outcome.initializer(outcome.node("Add").input[1]), -mean)


@pytest.mark.parametrize("conv", PADDED)
def test_padding_takes_a_scale(lab: Any, conv: str) -> None:
    arrays = {"s": lab.array(4, 1, 1, seed=6, low=0.3, high=2)}
    folds(lab, build(lab, "m = Mul (s, x)", conv, **arrays), ["Conv"], lab.array(2, 4, 6, 5, seed=9))


def test_no_padding_after_all(lab: Any) -> None:
    """auto_pad VALID, and SAME with kernel 1 and a stride."""
    arrays = {"c": lab.array(4, 1, 1, seed=5)}
    folds(lab, build(lab, "m = Sub (x, c)", '<auto_pad="VALID">', **arrays), ["Conv"], lab.array(2, 4, 6, 5))
    arrays["weight"] = lab.array(3, 4, 1, 1)
    conv = '<auto_pad="SAME_UPPER", strides=[2,2]>'
    folds(lab, build(lab, "m = Sub (x, c)", conv, **arrays), ["Conv"], lab.array(2, 4, 6, 5))


# --- refusals -----------------------------------------------------------------------------------------------------


def test_refuses_a_shift_alone_under_padding(lab: Any, refused: Any) -> None:
    outcome = refused(
        build(lab, "m = Sub (x, c)", "<pads=[1,1,1,1]>", c=lab.array(4, 1, 1)), RULE, "Conv pads with zeros"
    )
    assert outcome.only.op == "Sub"
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5)})


def test_refuses_a_scale_of_zero_under_padding(lab: Any, refused: Any) -> None:
    scale = np.array([1, 0, 2, 3], np.float32).reshape(4, 1, 1)
    model = build(lab, "d = Mul (x, s) m = Add (d, c)", "<pads=[1,1,1,1]>", s=scale, c=lab.array(4, 1, 1))
    lowering = "lower/affine-to-batch-normalization"
    refused(model, RULE, "cannot come before a scale that is 0", disable=[lowering])
    assert lab.optimize(model).only.rule == lowering


def test_a_scale_of_zero_without_padding(lab: Any) -> None:
    scale = np.array([1, 0, 2, 3], np.float32).reshape(4, 1, 1)
    model = build(lab, "d = Mul (x, s) m = Add (d, c)", s=scale, c=lab.array(4, 1, 1))
    folds(lab, model, ["Conv"], lab.array(2, 4, 6, 5))


def test_refuses_a_division_by_zero(lab: Any, refused: Any) -> None:
    scale = np.array([1, 0, 2, 3], np.float32).reshape(4, 1, 1)
    refused(build(lab, "m = Div (x, s)", s=scale), RULE, "the map is not finite")


@pytest.mark.parametrize(("name", "words"), [("c", "its Sub's constant"), ("weight", "its Conv's weight")])
def test_refuses_what_a_caller_may_override(lab: Any, refused: Any, name: str, words: str) -> None:
    sizes = "4,1,1" if name == "c" else "3,4,3,2"
    model = build(lab, "m = Sub (x, c)", c=lab.array(4, 1, 1))
    value = next(
        item for item in lab.model(f"(float[{sizes}] {name}) => (float[A] q) {{ q = Relu({name}) }}").graph.input
    )
    model.graph.input.append(value)
    outcome = refused(model, RULE, f"{words} is a graph input that a caller may override")
    feeds = {"x": lab.array(2, 4, 6, 5), name: lab.array(*map(int, sizes.split(",")), seed=6)}
    lab.same(outcome, feeds)


def test_a_bias_that_a_caller_may_override_leaves_the_shift(lab: Any, refused: Any) -> None:
    model = build(lab, "m = Sub (x, c)", c=lab.array(4, 1, 1))
    model.graph.input.append(lab.model("(float[3] bias) => (float[A] q) { q = Relu(bias) }").graph.input[0])
    refused(model, RULE, "so that it cannot take the shift")


@pytest.mark.parametrize(
    ("shape", "constant", "words"),
    [
        ("N,1,6,5", (1, 4, 1, 1), "may enlarge its input"),  # one channel becomes four
        ("N,C,6,5", (4, 1, 1), "may enlarge its input"),  # perhaps
        ("4,6,5", (1, 4, 1, 1), "has more axes than its input"),
    ],
)
def test_refuses_a_constant_that_may_enlarge(
    lab: Any, refused: Any, shape: str, constant: tuple[int, ...], words: str
) -> None:
    text = f"(float[{shape}] x) => (float[A,B,C,D] y) {{ m = Sub (x, c) y = Conv (m, weight) }}"
    if shape == "4,6,5":
        constant = (2, 4, 1, 1)
    outcome = refused(lab.model(text, weight=lab.array(3, 4, 3, 2), c=lab.array(*constant)), RULE, words)
    sizes = [2 if size in "NC" and size != "C" else (4 if size == "C" else int(size)) for size in shape.split(",")]
    lab.same(outcome, {"x": lab.array(*sizes)})


@pytest.mark.parametrize("constant", [(4,), (6, 4), (1, 1, 6, 4), (2, 1, 1, 1), (4, 6, 4)])
def test_refuses_values_along_another_axis(lab: Any, refused: Any, constant: tuple[int, ...]) -> None:
    """C equals W: a vector of length C runs along W."""
    model = build(lab, "m = Mul (x, s)", shape="2,4,6,4", s=lab.array(*constant, low=0.5, high=2))
    outcome = refused(model, RULE, "which the layer does not sum over")
    lab.same(outcome, {"x": lab.array(2, 4, 6, 4)})


def test_refuses_several_readers(lab: Any, refused: Any) -> None:
    text = (
        "(float[N,4,6,5] x) => (float[A,B,C,D] y, float[N,4,6,5] z)"
        " { m = Sub (x, c) y = Conv (m, weight) z = Relu (m) }"
    )
    outcome = refused(lab.model(text, weight=lab.array(3, 4, 3, 2), c=lab.array(4, 1, 1)), RULE, "has 2 readers")
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5)})


def test_refuses_a_graph_output(lab: Any, refused: Any) -> None:
    text = "(float[N,4,6,5] x) => (float[A,B,C,D] y, float[N,4,6,5] m) { m = Sub (x, c) y = Conv (m, weight) }"
    refused(lab.model(text, weight=lab.array(3, 4, 3, 2), c=lab.array(4, 1, 1)), RULE, "is also a graph output")


def test_what_comes_behind_another_reader_still_folds(lab: Any) -> None:
    text = (
        "(float[N,4,6,5] x) => (float[A,B,C,D] y, float[N,4,6,5] z)"
        " { d = Sub (x, c) z = Relu (d) m = Mul (d, s) y = Conv (m, weight) }"
    )
    arrays = {"c": lab.array(4, 1, 1), "s": lab.array(4, 1, 1, seed=4, low=0.5, high=2)}
    outcome = lab.optimize(lab.model(text, weight=lab.array(3, 4, 3, 2), **arrays), verify=True)
    assert sorted(outcome.ops) == ["Conv", "Relu", "Sub"]
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5)})


def test_refuses_overflow_and_underflow(lab: Any, refused: Any) -> None:
    large = np.array([1, 6e4, 1, 1], np.float16).reshape(4, 1, 1)
    weight = np.full((3, 4, 3, 2), 2, np.float16)
    model = build(lab, "m = Mul (x, s)", kind="float16", s=large, weight=weight, bias=np.zeros(3, np.float16))
    refused(model, RULE, "a folded value would overflow float16")
    small = np.array([1, 1e-6, 1, 1], np.float16).reshape(4, 1, 1)
    model = build(lab, "m = Mul (x, s)", kind="float16", s=small, weight=weight * np.float16(0.01))
    refused(model, RULE, "a folded weight would underflow float16")


def test_refuses_a_shift_that_would_cost_accuracy(lab: Any, refused: Any) -> None:
    """Mean 1e4 and standard deviation 1: the difference must come first."""
    arrays = {"c": lab.array(4, 1, 1, low=9e3, high=1.1e4)}
    refused(build(lab, "m = Sub (x, c)", **arrays), RULE, "it would magnify rounding")
    arrays["s"] = lab.array(4, 1, 1, low=0.5, high=2)
    outcome = folds(
        lab, build(lab, "d = Sub (x, c) m = Div (d, s)", **arrays), ["Add", "Conv"], lab.array(2, 4, 6, 5) + arrays["c"]
    )
    assert "magnify" not in str(outcome.only.reason)


@pytest.mark.parametrize("name", ["pads", "group"])
def test_attributes_of_a_function(lab: Any, name: str) -> None:
    """In a function neither shapes nor the caller's attributes are known."""
    value, kind = ("[1,1,1,1]", "ints") if name == "pads" else ("1", "int")
    text = (
        f"(float[1,1,4,4] x) => (float[A,B,C,D] y) {{ y = local.block <a={value}> (x) }}"
        '\n<domain: "local", opset_import: ["" : 18]> block <a> (x) => (y) {'
        " c = Constant <value = float {0.5}> () w = Constant <value = float[1,1,1,1] {2}> ()"
        f" d = Mul (x, c) m = Add (d, c) y = Conv <{name}: {kind} = @a> (m, w) }}"
    )
    outcome = lab.optimize(lab.model(text, domains=', "local" : 1'))
    assert outcome.only.rule == RULE
    lab.same_in_ort(outcome, {"x": lab.array(1, 1, 4, 4)})


def test_a_norm_keeps_its_scale_and_shift(lab: Any) -> None:
    """gamma and beta behind a normalization are its own, and so are those of one that is spelled out."""
    text = (
        "(float[2,4,6,5] x) => (float[A,B,C,D] y)"
        " { i = InstanceNormalization (x, one, zero) d = Mul (i, s) m = Add (d, c) y = Conv (m, weight) }"
    )
    arrays = {"one": np.ones(4, np.float32), "zero": np.zeros(4, np.float32), "s": lab.array(4, 1, 1)}
    outcome = lab.optimize(lab.model(text, weight=lab.array(3, 4, 3, 2), c=lab.array(4, 1, 1), **arrays))
    assert not any(RULE in str(item.rule) for item in outcome.result.decisions)
    text = (
        "(float[2,4,6,5] x, float[2,4,1,1] r) => (float[A,B,C,D] y)"
        " { i = Mul (x, r) m = Mul (i, s) y = Conv (m, weight) }"
    )
    outcome = lab.optimize(lab.model(text, weight=lab.array(3, 4, 3, 2), s=lab.array(4, 1, 1)))
    assert outcome.ops == ["Mul", "Mul", "Conv"]


# --- several layers -------------------------------------------------------------------------------------------------


def two_readers(lab: Any, second: str, **arrays: Any) -> Any:
    """BatchNormalization that a Conv reads and what ``second`` makes z of."""
    text = (
        "(float[N,4,6,5] x) => (float[] y, float[] z) { m = BatchNormalization (x, gamma, beta, mean, var)"
        f" y = Conv (m, weight) {second} }}"
    )
    return lab.model(text, weight=lab.array(3, 4, 3, 3), **lab.batch_norm(4), **arrays)


@pytest.mark.parametrize(
    "second",
    [
        "z = Conv <strides=[2,2]> (m, other)",
        "z = ConvTranspose (m, point)",
        "f = Conv (m, weight) z = Add (f, y)",
        "z = Conv <pads=[1,1,1,1]> (m, weight)",  # the shift stays in front of this one
    ],
)
def test_several_layers_that_take_it(lab: Any, second: str) -> None:
    arrays = {"other": lab.array(2, 4, 1, 1, seed=7), "point": lab.array(4, 2, 1, 1, seed=8)}
    model = two_readers(lab, second, **{name: value for name, value in arrays.items() if name in second})
    outcome = lab.optimize(model, verify=True, check=False)
    assert "BatchNormalization" not in outcome.ops, outcome.result.explain()
    assert outcome.only.action.value == "folded"
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5, seed=9)}, factor=64.0)


@pytest.mark.parametrize(
    "second",
    [
        "f = Conv <pads=[1,1,1,1]> (m, weight) g = Relu (f) h = Conv <pads=[1,1,1,1]> (m, weight) z = Add (g, h)",
        "z = Relu (m)",
        "z = Conv (other, m)",
        "z = Identity (m)",
    ],
)
def test_several_readers_of_which_one_does_not(lab: Any, second: str) -> None:
    arrays = {"other": lab.array(2, 4, 6, 5, seed=7)} if "other" in second else {}
    outcome = lab.optimize(two_readers(lab, second, **arrays), check=False)
    assert "BatchNormalization" in outcome.ops
    assert outcome.only.action.value in ("refused", "kept")
