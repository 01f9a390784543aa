"""fuse/activation: what counts is what is computed, with the constants as the element type rounds them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

RULE = "fuse/activation"
TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}
NORM = 'n = onnxnorm.GroupNorm <num_groups=3, epsilon=0.00001, activation="none", channels_last=0> (x, scale, bias)'
ROOT2, HALF_ROOT = math.sqrt(2.0), math.sqrt(0.5)


def build(
    lab: Any, tail: str, opset: int = 20, dtype: str = "float32", norm: str = NORM, out: str = "", **arrays: Any
) -> Any:
    """``tail`` makes y from n."""
    kind = TYPE_NAMES[dtype]
    text = f"({kind}[2,6,4,3] x) => ({kind}[2,6,4,3] y{out}) {{ {norm} {tail} }}"
    parameters = {"scale": lab.array(6, dtype=dtype), "bias": lab.array(6, dtype=dtype, seed=1)}
    return lab.model(text, opset, 10, ', "onnxnorm" : 1', **parameters, **arrays)


def numbers(dtype: str = "float32", rank: int = 0, **values: float) -> dict[str, Any]:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return {name: np.full((1,) * rank, value).astype(kind) for name, value in values.items()}


def fuses(lab: Any, model: Any, activation: str, dtype: str = "float32") -> None:
    outcome = lab.optimize(model)
    assert outcome.ops == ["GroupNorm"], outcome.result.explain()
    assert (outcome.only.action.value, outcome.only.rule) == ("fused", RULE)
    assert (
        next(item.s for item in outcome.node("GroupNorm").attribute if item.name == "activation") == activation.encode()
    )
    feeds = {"x": lab.array(2, 6, 4, 3, dtype=dtype, seed=9)}
    lab.same(outcome, feeds, eps=lab.eps(dtype))
    if dtype == "float32":
        lab.same_in_ort(outcome, feeds)


def stays(lab: Any, model: Any, check: bool = True) -> Any:
    outcome = lab.optimize(model, check=check)
    assert all(RULE not in str(item.rule) or item.action.value == "refused" for item in outcome.result.decisions)
    assert "none" in str(outcome.node("GroupNorm").attribute)
    lab.same(outcome, {"x": lab.array(2, 6, 4, 3, seed=9)})
    return outcome


@pytest.mark.parametrize("dtype", TYPE_NAMES)
def test_relu(lab: Any, dtype: str) -> None:
    fuses(lab, build(lab, "y = Relu (n)", dtype=dtype), "relu", dtype)


@pytest.mark.parametrize("product", ["(n, s)", "(s, n)"])
def test_silu(lab: Any, product: str) -> None:
    fuses(lab, build(lab, f"s = Sigmoid (n) y = Mul {product}"), "silu")


def test_swish(lab: Any) -> None:
    for attributes in ("", "<alpha=1.0>"):
        outcome = lab.optimize(build(lab, f"y = Swish {attributes} (n)", opset=24))
        assert outcome.ops == ["GroupNorm"]
    stays_swish = lab.optimize(build(lab, "y = Swish <alpha=1.5> (n)", opset=24))
    assert stays_swish.ops == ["GroupNorm", "Swish"]


@pytest.mark.parametrize("attributes", ["", '<approximate="none">'])
def test_gelu(lab: Any, attributes: str) -> None:
    fuses(lab, build(lab, f"y = Gelu {attributes} (n)"), "gelu")


def test_tanh_gelu_stays(lab: Any) -> None:
    stays(lab, build(lab, 'y = Gelu <approximate="tanh"> (n)'))


SCALED = ["d = Div (n, root2)", "d = Mul (n, inverse)", "d = Mul (inverse, n)"]
ONE_PLUS = ["a = Add (e, one)", "a = Add (one, e)"]
PRODUCTS = [
    "h = Mul (n, half) y = Mul (h, a)",
    "h = Mul (half, n) y = Mul (a, h)",
    "h = Mul (n, a) y = Mul (h, half)",
    "h = Mul (a, half) y = Mul (n, h)",
    "g = Mul (n, two) h = Mul (quarter, a) y = Mul (g, h)",
]


@pytest.mark.parametrize(("scaled", "plus", "product"), list(itertools.product(SCALED, ONE_PLUS, PRODUCTS))[::2])
def test_decomposed_gelu(lab: Any, scaled: str, plus: str, product: str) -> None:
    constants = numbers(root2=ROOT2, inverse=HALF_ROOT, one=1.0, half=0.5, two=2.0, quarter=0.25)
    used = {
        name: value
        for name, value in constants.items()
        if name in f"{scaled} {plus} {product}".replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    fuses(lab, build(lab, f"{scaled} e = Erf (d) {plus} {product}", **used), "gelu")


OTHER_SPELLINGS = {
    "y = Max (n, zero)": "relu",
    "y = Max (zero, n)": "relu",
    "y = Clip (n, zero)": "relu",
    "m = Neg (n) e = Exp (m) d = Add (e, one) y = Div (n, d)": "silu",
    "d = Div (n, root2) e = Erf (d) a = Add (one, e) h = Mul (n, a) y = Div (h, two)": "gelu",
    "d = Mul (n, inverse) e = Erf (d) f = Mul (e, half) a = Add (f, half) y = Mul (n, a)": "gelu",
    "d = Div (n, root2) e = Erf (d) f = Div (e, two) a = Add (half, f) y = Mul (a, n)": "gelu",
    "d = Div (n, root2) e = Erf (d) a = Add (e, one) h = Div (n, two) y = Mul (h, a)": "gelu",
    "d0 = Div (n, two) d = Mul (d0, root2) e = Erf (d) a = Add (e, one) h = Mul (n, half) y = Mul (h, a)": "gelu",
}
STAY = [
    "y = Max (n, one)",
    "y = Clip (n, zero, one)",
    "m = Neg (n) e = Exp (m) d = Add (e, two) y = Div (n, d)",
    "e = Exp (n) d = Add (e, one) y = Div (n, d)",
    "d = Div (n, root2) e = Erf (d) a = Add (e, one) h = Mul (a, two) y = Div (n, h)",
    "d = Div (n, root2) e = Erf (d) f = Mul (e, half) a = Add (f, one) y = Mul (n, a)",
    "d = Div (root2, n) e = Erf (d) a = Add (e, one) h = Mul (n, half) y = Mul (h, a)",
]


def named(tail: str) -> dict[str, Any]:
    """The constants that the text names."""
    words = set(tail.replace("(", " ").replace(",", " ").replace(")", " ").split())
    constants = numbers(root2=ROOT2, inverse=HALF_ROOT, zero=0.0, one=1.0, half=0.5, two=2.0)
    return {name: value for name, value in constants.items() if name in words}


@pytest.mark.parametrize("tail", OTHER_SPELLINGS)
def test_other_spellings(lab: Any, tail: str) -> None:
    fuses(lab, build(lab, tail, **named(tail)), OTHER_SPELLINGS[tail])


@pytest.mark.parametrize("tail", STAY)
def test_what_looks_like_one_stays(lab: Any, tail: str) -> None:
    stays(lab, build(lab, tail, **named(tail)))


@pytest.mark.parametrize("dtype", TYPE_NAMES)
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_gelu_constants_of_every_type(lab: Any, dtype: str, rank: int) -> None:
    constants = numbers(dtype, rank, root2=ROOT2, one=1.0, half=0.5)
    fuses(
        lab, build(lab, f"{SCALED[0]} e = Erf (d) {ONE_PLUS[0]} {PRODUCTS[0]}", dtype=dtype, **constants), "gelu", dtype
    )


@pytest.mark.parametrize(
    "changed",
    [{"root2": 1.4142}, {"root2": 1.0}, {"one": 2.0}, {"half": 1.0}, {"half": 0.50001}, {"root2": -ROOT2}],
    ids=str,
)
def test_other_constants_are_no_gelu(lab: Any, changed: dict[str, float]) -> None:
    constants = numbers(**{"root2": ROOT2, "one": 1.0, "half": 0.5, **changed})
    stays(lab, build(lab, f"{SCALED[0]} e = Erf (d) {ONE_PLUS[0]} {PRODUCTS[0]}", **constants))


@pytest.mark.parametrize("name", ["root2", "one", "half"])
def test_a_constant_of_higher_rank_is_no_gelu(lab: Any, name: str) -> None:
    """It gives the result an axis more, which the op's result has not."""
    constants = {
        **numbers(root2=ROOT2, one=1.0, half=0.5),
        **numbers(rank=5, **{name: {"root2": ROOT2, "one": 1.0, "half": 0.5}[name]}),
    }
    model = build(lab, f"{SCALED[0]} e = Erf (d) {ONE_PLUS[0]} {PRODUCTS[0]}", **constants)
    model.graph.output[0].type.tensor_type.shape.dim.insert(0, model.graph.output[0].type.tensor_type.shape.dim[0])
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    stays(lab, model)


def test_a_constant_that_a_caller_may_override_is_no_gelu(lab: Any) -> None:
    constants = numbers(root2=ROOT2, one=1.0, half=0.5)
    model = build(lab, f"{SCALED[0]} e = Erf (d) {ONE_PLUS[0]} {PRODUCTS[0]}", **constants)
    model.graph.input.extend(lab.model("(float half) => (float y) { y = Abs (half) }").graph.input)
    outcome = lab.optimize(model)
    assert "Erf" in outcome.ops
    lab.same(outcome, {"x": lab.array(2, 6, 4, 3), "half": np.float32(0.75)})


def test_gate_of_another_value_is_no_activation(lab: Any) -> None:
    stays(lab, build(lab, "s = Sigmoid (x) y = Mul (n, s)"))
    stays(lab, build(lab, "s = Sigmoid (n) y = Mul (s, s)"))


def test_gate_with_another_reader_stays(lab: Any) -> None:
    outcome = stays(lab, build(lab, "s = Sigmoid (n) y = Mul (n, s) z = Relu (s)", out=", float[2,6,4,3] z"))
    assert outcome.ops == ["GroupNorm", "Sigmoid", "Mul", "Relu"]
    stays(lab, build(lab, "s = Sigmoid (n) y = Mul (n, s)", out=", float[2,6,4,3] s"))


# --- refusals -----------------------------------------------------------------------------------------------------


def test_refuses_a_second_activation(lab: Any, refused: Any) -> None:
    norm = NORM.replace('"none"', '"relu"')
    outcome = refused(
        build(lab, "s = Sigmoid (n) y = Mul (n, s)", norm=norm), RULE, "the norm already has an activation"
    )
    assert outcome.only.values == {"activation": "relu"}


def test_a_relu_behind_a_relu_changes_nothing(lab: Any) -> None:
    outcome = lab.optimize(build(lab, "r = Relu (n) y = Relu (r)"))
    assert outcome.ops == ["GroupNorm"]
    lab.same(outcome, {"x": lab.array(2, 6, 4, 3)})


def test_the_second_of_two_activations_stays(lab: Any) -> None:
    outcome = lab.optimize(build(lab, "r = Relu (n) s = Sigmoid (r) y = Mul (r, s)"))
    assert outcome.ops == ["GroupNorm", "Sigmoid", "Mul"]
    lab.same(outcome, {"x": lab.array(2, 6, 4, 3)})


def test_refuses_another_reader(lab: Any, refused: Any) -> None:
    outcome = refused(
        build(lab, "y = Relu (n) z = Neg (n)", out=", float[2,6,4,3] z"),
        RULE,
        "the norm's own result has another reader",
    )
    assert outcome.only.values == {"reader": "z"}
    lab.same(outcome, {"x": lab.array(2, 6, 4, 3)})


def test_refuses_a_graph_output(lab: Any, refused: Any) -> None:
    outcome = refused(
        build(lab, "y = Relu (n)", out=", float[2,6,4,3] n"), RULE, "the norm's own result is a graph output"
    )
    lab.same(outcome, {"x": lab.array(2, 6, 4, 3)})


def test_refuses_a_norm_of_an_outer_graph(lab: Any, refused: Any) -> None:
    text = (
        "(float[2,6,4,3] x, bool q) => (float[2,6,4,3] y) { " + NORM + " y = If (q)"
        " <then_branch = t () => (float[2,6,4,3] a) { a = Relu (n) }, else_branch = e () => (float[2,6,4,3] b) { b ="
        " Neg (x) }> }"
    )
    model = lab.model(text, 20, 10, ', "onnxnorm" : 1', scale=lab.array(6), bias=lab.array(6, seed=1))
    outcome = refused(model, RULE, "the norm stands in an outer graph")
    lab.same_in_ort(outcome, {"x": lab.array(2, 6, 4, 3), "q": np.array(True)})


@pytest.mark.parametrize("op", ["RMSNorm", "LayerNorm", "SwitchableNorm"])
def test_every_norm_that_has_the_attribute(lab: Any, op: str) -> None:
    if op == "RMSNorm":
        node = 'n = onnxnorm.RMSNorm <axes=[-1], epsilon=0.00001, activation="none"> (x, scale)'
        arrays = {"scale": lab.array(3)}
    elif op == "LayerNorm":
        node = 'n = onnxnorm.LayerNorm <axes=[1], epsilon=0.00001, activation="none"> (x, scale, b)'
        arrays = {"scale": lab.array(6), "b": lab.array(6)}
    else:
        node = (
            'n = onnxnorm.SwitchableNorm <epsilon=0.00001, activation="none", channels_last=0> (x, scale, b, mw, vw,'
            " m, v)"
        )
        weights = np.array([0.2, 0.3, 0.5], np.float32)
        arrays = {
            "scale": lab.array(6),
            "b": lab.array(6),
            "mw": weights,
            "vw": weights,
            "m": lab.array(6),
            "v": lab.array(6, low=0.5),
        }
    text = "(float[2,6,4,3] x) => (float[2,6,4,3] y) { " + node + " y = Relu (n) }"
    outcome = lab.optimize(lab.model(text, 20, 10, ', "onnxnorm" : 1', **arrays))
    assert outcome.ops == [op]
    lab.same_in_ort(outcome, {"x": lab.array(2, 6, 4, 3)})


FILTER_RESPONSE_NORM = (
    'n = onnxnorm.FilterResponseNorm <epsilon=0.00001, activation="none", channels_last=0> (x, scale, bias, tau)'
)


@pytest.mark.parametrize("tail", ["y = Gelu (n)", "s = Sigmoid (n) y = Mul (n, s)"])
def test_refuses_a_threshold_behind_the_activation(lab: Any, refused: Any, tail: str) -> None:
    tau = np.array([-math.inf, -math.inf, 0.5, -0.5, -math.inf, 0.0], np.float32)
    model = build(lab, tail, norm=FILTER_RESPONSE_NORM, tau=tau)
    outcome = refused(model, RULE, "the norm's threshold comes after its activation")
    assert outcome.only.values == {"tau": "tau"}
    lab.same(outcome, {"x": lab.array(2, 6, 4, 3, seed=9)})


def test_relu_may_come_behind_the_threshold(lab: Any) -> None:
    """relu(max(y, tau)) = max(relu(y), tau) for every tau."""
    tau = np.array([-math.inf, -1.5, 0.5, -0.5, 2.0, 0.0], np.float32)
    outcome = lab.optimize(build(lab, "y = Relu (n)", norm=FILTER_RESPONSE_NORM, tau=tau))
    assert outcome.ops == ["FilterResponseNorm"]
    x = lab.array(2, 6, 4, 3, seed=9)
    x[0, 0, 0, 0] = math.nan
    lab.same(outcome, {"x": x})
    lab.same_in_ort(outcome, {"x": x})


def test_no_threshold_is_no_hindrance(lab: Any) -> None:
    tau = np.full(6, -math.inf, np.float32)
    outcome = lab.optimize(build(lab, "s = Sigmoid (n) y = Mul (n, s)", norm=FILTER_RESPONSE_NORM, tau=tau))
    assert outcome.ops == ["FilterResponseNorm"]
    lab.same_in_ort(outcome, {"x": lab.array(2, 6, 4, 3, seed=9)})


@pytest.mark.parametrize(("bounds", "left"), [("min=0.0", 1), ("min=0.0, max=6.0", 2), ("max=6.0", 2)])
def test_a_clip_of_old_opsets(lab: Any, bounds: str, left: int) -> None:
    text = f"(float[2,3,8] x) => (float[2,3,8] y) {{ n = InstanceNormalization (x, s, b) y = Clip <{bounds}> (n) }}"
    outcome = lab.optimize(lab.model(text, 9, 4, s=lab.array(3), b=lab.array(3, seed=1)))
    assert len(outcome.ops) == left, outcome.result.explain()
    lab.same(outcome, {"x": lab.array(2, 3, 8, seed=5)})
