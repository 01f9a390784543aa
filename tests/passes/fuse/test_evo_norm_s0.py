"""fuse/evo-norm-s0: what counts is what is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import onnxnorm

from .spelling import CODES, attributes, becomes, build, number, parameters, refuses, sample

RULE, OP = "fuse/evo-norm-s0", "EvoNormS0"
SHAPES = {"cut": np.array([0, 3, -1]), "parts": np.array([3, 3, 2, 4, 5]), "whole": np.array([3, 6, 4, 5])}
SHAPES |= {
    "rest": np.array([2, 3, 4]),
    "third": np.array([2]),
    "long": np.array([3, 3, 40]),
    "ones": np.array([3, 3, 1]),
}
SHAPES |= {"five": np.array([3, 3, 1, 1, 1]), "over": np.array([2, 3]), "all": np.array([1, 2, 3])}
CUTS = [
    "f = Reshape (x, parts) u = ReduceMean (f, rest) c = Sub (f, u) q = Mul (c, c) h = ReduceMean (q, rest)",
    "f = Reshape (x, parts) u = ReduceMean (f, rest) c = Sub (f, u) q = Pow (c, two)"
    " k0 = ReduceMean <keepdims=0> (q, rest) h = Reshape (k0, five)",
]
FLAT = "f = Reshape (x, cut) u = ReduceMean (f, third) c = Sub (f, u) q = Mul (c, c) h = ReduceMean (q, third)"
ROOT = "v0 = Add (h, eps) s = Sqrt (v0) e = Expand (s, parts) d = Reshape (e, whole)"
FLAT_ROOT = "v0 = Add (eps, h) s = Sqrt (v0) e = Expand (s, long) d = Reshape (e, whole)"
GATE = "k = Mul (x, v) o = Sigmoid (k)"
PRODUCTS = [
    "a = Mul (x, o) n = Div (a, d)",
    "a = Div (x, d) n = Mul (o, a)",
    "a = Div (o, d) n = Mul (a, x)",
    "i = Reciprocal (d) a = Mul (i, o) n = Mul (x, a)",
]
SCALED = "p = Mul (n, w) y = Add (p, b)"


def parts(lab: Any, dtype: str = "float32") -> dict[str, Any]:
    return {name: lab.array(6, 1, 1, dtype=dtype, seed=index, low=0.2) for index, name in enumerate("wbv")}


def make(lab: Any, nodes: str, dtype: str = "float32", **options: Any) -> Any:
    return build(lab, nodes, dtype, **{"x": "3,6,4,5", **SHAPES, **parts(lab, dtype), **options})


@pytest.mark.parametrize("cut", [*CUTS, FLAT])
@pytest.mark.parametrize("product", PRODUCTS)
def test_every_spelling(lab: Any, cut: str, product: str) -> None:
    root = FLAT_ROOT if cut == FLAT else ROOT
    outcome = becomes(lab, make(lab, f"{GATE} {cut} {root} {product} {SCALED}"), [OP], RULE)
    assert attributes(outcome, OP) == {"num_groups": 3, "epsilon": np.float32(1e-3), "channels_last": 0}
    for new, old in zip(parameters(outcome, OP), parts(lab).values(), strict=True):
        np.testing.assert_array_equal(new, old.reshape(-1))


def test_other_gates(lab: Any) -> None:
    for gate in ("o = Sigmoid (x)", "k = Mul (v, x) o = Sigmoid (k)"):
        becomes(lab, make(lab, f"{gate} {CUTS[0]} {ROOT} {PRODUCTS[0]} {SCALED}"), [OP], RULE)


@pytest.mark.parametrize(("axes", "groups"), [("over", 6), ("all", 1)])
def test_without_a_reshape(lab: Any, axes: str, groups: int) -> None:
    cut = f"u = ReduceMean (x, {axes}) c = Sub (x, u) q = Mul (c, c) h = ReduceMean (q, {axes})"
    nodes = f"{GATE} {cut} v0 = Add (h, eps) d = Sqrt (v0) {PRODUCTS[0]} {SCALED}"
    outcome = becomes(lab, make(lab, nodes, x="N,6,H,W"), [OP], RULE)
    assert attributes(outcome, OP)["num_groups"] == groups


@pytest.mark.parametrize(
    "tail",
    [
        "v0 = Add (h, eps) s = Sqrt (v0) a = Mul (x, o) g = Reshape (a, parts) z = Div (g, s) n = Reshape (z, whole)",
        "v0 = Add (h, eps) i = Pow (v0, minus) a = Mul (o, x) g = Reshape (a, parts) z = Mul (i, g) "
        "n = Reshape (z, whole)",
    ],
)
def test_divided_in_the_shape_of_the_groups(lab: Any, tail: str) -> None:
    nodes = f"{GATE} {CUTS[0]} {tail} {SCALED}"
    becomes(lab, make(lab, nodes), [OP], RULE)
    other = nodes.replace("Reshape (a, parts)", "Reshape (a, turned)")
    outcome = lab.optimize(make(lab, other, turned=np.array([3, 3, 2, 5, 4])))
    assert OP not in outcome.ops
    lab.same(outcome, {"x": sample(lab, (3, 6, 4, 5))})
    for old, new in (("Reshape (a, parts)", "Reshape (r2, parts)"), ("(z, whole)", "(z, whole) last = Neg (z)")):
        out = ", float[3,3,2,4,5] last" if "Neg" in new else ""
        changed = nodes.replace(old, new).replace("v0 =", "r2 = Mul (x, x) v0 =", 1 if "r2" in new else 0)
        assert OP not in lab.optimize(make(lab, changed, out=out)).ops


def test_channels_last_and_a_variance_from_the_mean_of_squares(lab: Any) -> None:
    shapes = {"parts": np.array([3, 4, 5, 3, 2]), "whole": np.array([3, 4, 5, 6]), "rest": np.array([1, 2, 4])}
    vectors = {name: value.reshape(6) for name, value in parts(lab).items()}
    squares = (
        "f = Reshape (x, parts) u = ReduceMean (f, rest) q = Mul (f, f) q1 = ReduceMean (q, rest) q2 = Mul (u, u) "
    )
    for cut in (CUTS[0], squares + "h = Sub (q1, q2)"):
        nodes = f"{GATE} {cut} {ROOT} {PRODUCTS[0]} {SCALED}"
        outcome = becomes(lab, make(lab, nodes, x="3,4,5,6", **shapes, **vectors), [OP], RULE, (3, 4, 5, 6))
        assert attributes(outcome, OP) == {"num_groups": 3, "epsilon": np.float32(1e-3), "channels_last": 1}
    wrong = shapes | {"parts": np.array([3, 5, 4, 3, 2])}  # other positions: the deviations come to other places
    outcome = lab.optimize(
        make(lab, f"{GATE} {CUTS[0]} {ROOT} {PRODUCTS[0]} {SCALED}", x="3,4,5,6", **wrong, **vectors)
    )
    assert OP not in outcome.ops


def test_unbiased_variance_of_a_known_number_of_values(lab: Any) -> None:
    """39 / 40 of the variance is the biased one: it goes into scale and epsilon."""
    cut = f"{CUTS[0].replace('h = ', 'h0 = ')} h1 = Mul (h0, n40) h = Div (h1, n39)"
    model = make(lab, f"{GATE} {cut} {ROOT} {PRODUCTS[0]} {SCALED}", n40=number(40.0), n39=number(39.0))
    outcome = becomes(lab, model, [OP], RULE)
    assert attributes(outcome, OP)["epsilon"] == pytest.approx(1e-3 * 39 / 40, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("opset", [15, 23])
def test_types_and_opsets(lab: Any, dtype: str, opset: int) -> None:
    cut = (
        CUTS[0] if opset >= 18 else CUTS[0].replace("ReduceMean", "ReduceMean <axes=[2, 3, 4]>").replace(", rest)", ")")
    )
    becomes(lab, make(lab, f"{GATE} {cut} {ROOT} {PRODUCTS[0]} {SCALED}", dtype, opset=opset), [OP], RULE, dtype=dtype)


def test_float32_around_the_variance(lab: Any) -> None:
    cut = CUTS[0].replace("f = Reshape", "k1 = Reshape").replace(" u =", " f = Cast <to=1> (k1) u =")
    root = ROOT.replace("e = Expand (s", f"k2 = Cast <to={CODES['float16']}> (s) e = Expand (k2")
    model = make(lab, f"{GATE} {cut} {root} {PRODUCTS[0]} {SCALED}", "float16", eps=number(1e-3))
    becomes(lab, model, [OP], RULE, dtype="float16")


def test_verified(lab: Any) -> None:
    assert lab.optimize(make(lab, f"{GATE} {CUTS[0]} {ROOT} {PRODUCTS[0]} {SCALED}"), verify=True).ops == [OP]


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("v0 = Add (h, eps) s = Sqrt (v0)", "r = Sqrt (h) s = Add (r, eps)", "epsilon is added outside the root"),
        ("s = Sqrt (v0)", "s = Pow (v0, one)", "its power is not the inverse square root"),
        ("v0 = Add (h, eps)", "v0 = Max (h, eps)", "the variance is clamped"),
        ("(h, eps)", "(h, minus)", "epsilon is not one"),
        ("h = ReduceMean (q, rest)", "h0 = ReduceMean (q, rest) h = Mul (h0, late)", "computed at run time"),
        ("c = Sub (f, u)", "c = Sub (f, u) z = Neg (c)", "an inner value has other readers"),
        ("o = Sigmoid (k)", "o = Sigmoid (k) z = Neg (o)", "an inner value has other readers"),
        ("(x, v)", "(x, late)", "its v is not constant"),
        ("(x, v)", "(x, wide)", "its v does not vary along the channels alone"),
    ],
)
def test_refuses(lab: Any, old: str, new: str, words: str) -> None:
    nodes = f"{GATE} {CUTS[0]} {ROOT} {PRODUCTS[0]} {SCALED}"
    assert old in nodes
    shape = "3,3,2,4,5" if "Neg (c)" in new else "3,6,4,5"
    out = f", float[{shape}] z" if "Neg" in new else ""
    model = make(lab, nodes.replace(old, new), out=out, wide=lab.array(4, 1))
    late = "late" in new
    if late:
        model.graph.input.extend(lab.model("(float[1] late) => (float y) { y = Abs (late) }").graph.input)
    refuses(lab, model, RULE, OP, words, None if late else (3, 6, 4, 5))


def test_refuses_inner_graph_outputs(lab: Any) -> None:
    model = make(lab, f"{GATE} {CUTS[0]} {ROOT} {PRODUCTS[0]} {SCALED}", out=", float[3,6,4,5] o")
    refuses(lab, model, RULE, OP, "an inner value is a graph output")


@pytest.mark.parametrize("axes", ["third", "fourth"])
def test_refuses_a_variance_over_less_than_the_group(lab: Any, axes: str) -> None:
    cut = CUTS[0].replace("rest", axes)
    model = make(lab, f"{GATE} {cut} {ROOT} {PRODUCTS[0]} {SCALED}", fourth=np.array([3, 4]))
    refuses(lab, model, RULE, OP, "the variance is not over all that is in a group")


def test_refuses_items_that_are_mixed(lab: Any) -> None:
    nodes = f"{GATE} {CUTS[0]} {ROOT} {PRODUCTS[0]} {SCALED}"
    model = make(lab, nodes, parts=np.array([1, 9, 2, 4, 5]))
    refuses(lab, model, RULE, OP, "the number of items")


def test_refuses_an_unknown_number_of_channels(lab: Any) -> None:
    cut = "u = ReduceMean (x, over) c = Sub (x, u) q = Mul (c, c) h = ReduceMean (q, over)"
    nodes = f"o = Sigmoid (x) {cut} v0 = Add (h, eps) d = Sqrt (v0) a = Mul (x, o) y = Div (a, d)"
    refuses(lab, make(lab, nodes, x="N,C,H,W"), RULE, OP, "the number of channels is not known")


def test_the_variance_of_another_tensor_stays(lab: Any) -> None:
    nodes = f"{GATE} j = Neg (x) {CUTS[0].replace('(x,', '(j,')} {ROOT} {PRODUCTS[0]} {SCALED}"
    outcome = lab.optimize(make(lab, nodes))
    assert OP not in outcome.ops
    lab.same(outcome, {"x": sample(lab, (3, 6, 4, 5))})


# --- PyTorch modules ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(("name", "dynamic"), [("EvoNorm2dS0", False), ("EvoNorm2dS0a", True)])
def test_timm(name: str, dynamic: bool) -> None:
    import timm.layers.evo_norm

    torch.manual_seed(0)
    norm = getattr(timm.layers.evo_norm, name)(6, groups=3)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(6))
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), norm).eval()
    x = torch.randn(2, 3, 7, 9)
    shapes = ({0: "batch", 2: "height", 3: "width"},) if dynamic else None
    result = onnxnorm.export(module, (x,), dynamic_shapes=shapes)
    assert [node.op_type for node in result.model.graph] == ["Conv", OP], result.explain()
    onnxnorm.check(module, result.model, x).assert_passed()
    half = onnxnorm.export(norm.half(), (torch.randn(2, 6, 5, 5).half(),))
    assert [node.op_type for node in half.model.graph] == [OP], half.explain()
