"""fuse/filter-response-norm: what counts is what is computed."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

import onnxnorm

from .spelling import CODES, attributes, becomes, build, number, parameters, refuses, sample

RULE, OP = "fuse/filter-response-norm", "FilterResponseNorm"
#: First: channels first, then channels last.
AXES = {"over": np.array([2, 3]), "third": np.array([-1]), "second": np.array([2]), "flat": np.array([0, 6, -1])}
AXES |= {"thin": np.array([0, 6, 1, 1])}


def affine(lab: Any, dtype: str = "float32", channels: int = 6) -> dict[str, Any]:
    make = functools.partial(lab.array, channels, 1, 1, dtype=dtype)
    return {"w": make(low=0.5, high=1.5), "b": make(seed=2), "t": make(seed=3, low=-0.5, high=0.5)}


MEANS = [
    "q = Pow (x, two) m = ReduceMean (q, over)",
    "q = Mul (x, x) m = ReduceMean (q, over)",
    "q = Mul (x, x) k0 = ReduceMean (q, third) m = ReduceMean (k0, second)",
    "q = Mul (x, x) m = GlobalAveragePool (q)",
    "f = Reshape (x, flat) q = Mul (f, f) k0 = ReduceMean (q, third) m = Reshape (k0, thin)",
    "q = Mul (x, x) f = ReduceMean <keepdims=0> (q, over) m = Reshape (f, thin)",
]
ROOTS = [
    "v = Add (m, eps) r = Sqrt (v) n = Div (x, r)",
    "v = Add (eps, m) r = Sqrt (v) i = Reciprocal (r) n = Mul (i, x)",
    "v = Add (m, epsilons) i = Pow (v, minus) n = Mul (x, i)",
    "v = Add (m, eps) r = Sqrt (v) i = Div (one, r) e = Expand (i, full) n = Mul (x, e)",
]
EPSILONS = np.full((1, 6, 1, 1), 1e-3, np.float32)  # one for each channel, as a parameter that was not trained
TAILS = [
    "p = Mul (n, w) s = Add (p, b) y = Max (s, t)",
    "p = Mul (w, n) s = Add (b, p) y = Max (t, s)",
    "p = Mul (n, w) s = Add (p, b) y = Relu (s)",
]


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("root", ROOTS)
def test_every_spelling(lab: Any, mean: str, root: str) -> None:
    tail = TAILS[(MEANS.index(mean) + ROOTS.index(root)) % 3]
    model = build(
        lab, f"{mean} {root} {tail}", x="3,6,4,5", full=np.array([3, 6, 4, 5]), epsilons=EPSILONS, **AXES, **affine(lab)
    )
    outcome = becomes(lab, model, [OP], RULE)
    found = attributes(outcome, OP)
    assert found["epsilon"] == np.float32(1e-3)
    assert found["channels_last"] == 0
    assert found["activation"] == (b"relu" if "Relu" in tail else b"none")
    scale, bias, tau = parameters(outcome, OP)
    given = affine(lab)
    np.testing.assert_array_equal(scale, given["w"].reshape(-1))
    np.testing.assert_array_equal(bias, given["b"].reshape(-1))
    np.testing.assert_array_equal(tau, np.full(6, -np.inf) if "Relu" in tail else given["t"].reshape(-1))


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Mul (w, x) k = Div (a, r) y = Add (k, b)",
        "a = Div (w, r) k = Mul (a, x) y = Sub (k, b)",
        "a = Div (x, r) k = Add (a, b) y = Mul (k, w)",
        "a = Div (x, r) k = Mul (a, w) y = Sub (b, k)",
        "a = Div (x, r) k = Div (a, w) y = Max (k, zero)",
        "a = Div (x, r) k = Mul (a, w) l = Mul (k, one) o = Add (l, zero) y = Max (o, t)",
        "a = Div (x, r) y = Max (a, t)",
    ],
)
def test_scale_and_shift_in_any_order(lab: Any, nodes: str) -> None:
    core = "q = Mul (x, x) m = ReduceMean (q, over) v = Add (m, eps) r = Sqrt (v)"
    becomes(lab, build(lab, f"{core} {nodes}", **AXES, **affine(lab)), [OP], RULE)


@pytest.mark.parametrize("shape", ["N,6,L", "N,6,H,W", "N,6,D,H,W"])
@pytest.mark.parametrize("last", [False, True])
def test_layouts_and_ranks(lab: Any, shape: str, last: bool) -> None:
    sizes = {"N": 3, "6": 6, "L": 7, "D": 2, "H": 3, "W": 4}
    names = shape.split(",")
    names = [names[0], *names[2:], names[1]] if last else names
    axes = np.arange(1, len(names) - 1) if last else np.arange(2, len(names))
    spread = (6,) if last else (6, *(1,) * (len(names) - 2))
    core = "q = Mul (x, x) m = ReduceMean (q, over) v = Add (m, eps) r = Sqrt (v) n = Div (x, r) k = Mul (n, w)"
    model = build(
        lab, f"{core} y = Add (k, b)", x=",".join(names), over=axes, w=lab.array(*spread), b=lab.array(*spread)
    )
    outcome = becomes(lab, model, [OP], RULE, tuple(sizes[name] for name in names))
    assert attributes(outcome, OP)["channels_last"] == int(last)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("opset", [15, 20, 23])
def test_types_and_opsets(lab: Any, dtype: str, opset: int) -> None:
    mean = MEANS[1] if opset >= 18 else "q = Pow (x, two) m = ReduceMean <axes=[2, 3]> (q)"
    model = build(lab, f"{mean} {ROOTS[1]} {TAILS[0]}", dtype, opset, **AXES, **affine(lab, dtype))
    becomes(lab, model, [OP], RULE, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("inner", [True, False])
def test_float32_inside(lab: Any, dtype: str, inner: bool) -> None:
    """timm casts the squares and the root; others compute all of it in float32."""
    code = CODES[dtype]
    if inner:
        nodes = (
            "q = Pow (x, two) f = Cast <to=1> (q) m = ReduceMean (f, over) v = Add (m, wide) r = Sqrt (v)"
            f" i = Reciprocal (r) h = Cast <to={code}> (i) n = Mul (x, h) {TAILS[0]}"
        )
        model = build(lab, nodes, dtype, wide=number(1e-3), **AXES, **affine(lab, dtype))
    else:
        nodes = (
            "f = Cast <to=1> (x) q = Mul (f, f) m = ReduceMean (q, over) v = Add (m, eps) r = Sqrt (v) n = Div (f, r)"
            f" p = Mul (n, w) s = Add (p, b) u = Max (s, t) y = Cast <to={code}> (u)"
        )
        wide = {name: value.astype(np.float32) for name, value in affine(lab, dtype).items()}
        model = build(lab, nodes, dtype, **{"eps": number(1e-3), **AXES, **wide})
    becomes(lab, model, [OP], RULE, dtype=dtype)


def test_without_a_word_of_channels_it_is_a_root_mean_square_norm(lab: Any) -> None:
    core = f"{MEANS[1]} v = Add (m, eps) r = Sqrt (v)"
    outcome = lab.optimize(build(lab, f"{core} y = Div (x, r)", x="3,6,4,5", **AXES))
    assert outcome.ops == ["RMSNorm"]
    model = build(lab, f"{core} n = Div (x, r) y = Mul (n, g)", x="3,6,4,5", g=lab.array(4, 5), **AXES)
    assert lab.optimize(model).ops == ["RMSNorm"]


def test_a_mean_over_fewer_positions_is_no_filter_response_norm(lab: Any) -> None:
    nodes = f"q = Mul (x, x) m = ReduceMean (q, third) {ROOTS[0]} y = Mul (n, w)"
    outcome = lab.optimize(build(lab, nodes, x="3,6,4,5", **AXES, **affine(lab)))
    assert OP not in outcome.ops


def test_verified(lab: Any) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} {TAILS[0]}", x="3,6,4,5", **AXES, **affine(lab))
    assert lab.optimize(model, verify=True).ops == [OP]


def test_standard_target_keeps_the_operators(lab: Any) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} {TAILS[0]}", **AXES, **affine(lab))
    outcome = lab.optimize(model, target="standard")
    assert "ReduceMean" in outcome.ops
    lab.same(outcome, {"x": sample(lab, (3, 6, 4, 5))})


# --- refusals -----------------------------------------------------------------------------------------------------

SCALED = "p = Mul (n, w) y = Add (p, b)"


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (f"{MEANS[0]} r = Sqrt (m) d = Add (r, eps) n = Div (x, d) {SCALED}", "epsilon is added outside the root"),
        (f"{MEANS[0]} c = Max (m, eps) r = Sqrt (c) n = Div (x, r) {SCALED}", "the root mean square is clamped"),
        (f"{MEANS[0]} v = Add (m, eps) n = Div (x, v) {SCALED}", "its power is not the inverse square root"),
        (f"{MEANS[0]} v = Add (m, minus) r = Sqrt (v) n = Div (x, r) {SCALED}", "epsilon is not one"),
    ],
)
def test_refuses_another_function(lab: Any, nodes: str, words: str) -> None:
    refuses(lab, build(lab, nodes, **AXES, **affine(lab)), RULE, OP, words, disable=["fuse/l2-norm", "fuse/rms-norm"])


@pytest.mark.parametrize("read", ["z = Neg (m)", "z = Neg (v)", "z = Neg (r)"])
def test_refuses_other_readers(lab: Any, read: str) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} {SCALED} {read}", out=", float[N,6,1,1] z", **AXES, **affine(lab))
    refuses(lab, model, RULE, OP, "an inner value has other readers", disable=["fuse/rms-norm"])


def test_refuses_inner_graph_outputs(lab: Any) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} {SCALED}", out=", float[N,6,1,1] r", **AXES, **affine(lab))
    refuses(lab, model, RULE, OP, "an inner value has other readers", disable=["fuse/rms-norm"])


def test_a_result_that_others_read_keeps_its_affine_outside(lab: Any) -> None:
    nodes = f"{MEANS[0]} v = Add (m, eps) r = Sqrt (v) a = Mul (w, x) n = Div (a, r) y = Add (n, b) z = Neg (n)"
    outcome = lab.optimize(build(lab, nodes, out=", float[N,6,H,W] z", **AXES, **affine(lab)))
    assert sorted(outcome.ops) == ["Add", OP, "Neg"]
    lab.same_in_ort(outcome, {"x": sample(lab, (3, 6, 4, 5))})


def test_refuses_an_unknown_number_of_channels(lab: Any) -> None:
    model = build(lab, f"{MEANS[0]} v = Add (m, eps) r = Sqrt (v) n = Div (x, r) y = Mul (n, g)", x="3,C,4,5", **AXES)
    model.graph.input.extend(lab.model("(float[C,1,1] g) => (float y) { y = Abs (g) }").graph.input)
    outcome = lab.optimize(model, disable=["fuse/rms-norm"])
    assert OP not in outcome.ops
    assert "the number of channels is not known" in outcome.only.reason


@pytest.mark.parametrize("how", ["run time", "override"])
def test_refuses_a_weight_that_is_not_constant(lab: Any, how: str) -> None:
    model = build(lab, f"{MEANS[0]} v = Add (m, eps) r = Sqrt (v) a = Mul (g, x) y = Div (a, r)", **AXES)
    model.graph.input.extend(lab.model("(float[6,1,1] g) => (float y) { y = Abs (g) }").graph.input)
    if how == "override":
        model.graph.initializer.extend(
            lab.model("(float[1] x) => (float y) { y = Abs (x) }", g=lab.array(6, 1, 1)).graph.initializer
        )
    outcome = lab.optimize(model, disable=["fuse/rms-norm"])
    assert OP not in outcome.ops
    assert ("is not constant" if how == "run time" else "a caller may override") in outcome.only.reason


def test_refuses_a_weight_that_varies_along_positions_too(lab: Any) -> None:
    nodes = f"{MEANS[0]} v = Add (m, eps) r = Sqrt (v) a = Mul (g, x) c = Mul (a, w) y = Div (c, r)"
    model = build(lab, nodes, x="3,6,4,5", g=lab.array(6, 4, 1), **AXES, **affine(lab))
    refuses(lab, model, RULE, OP, "does not vary along the channels alone", disable=["fuse/rms-norm"])


def test_refuses_a_narrow_statistic(lab: Any) -> None:
    nodes = (
        "f = Neg (x) q = Mul (f, f) h = Cast <to=10> (q) m = ReduceMean (h, over) v = Add (m, eps) r = Sqrt (v)"
        f" k = Cast <to=1> (r) n = Div (f, k) {SCALED}"
    )
    model = build(lab, nodes, **{"eps": number(1e-3, "float16"), **AXES, **affine(lab)})
    refuses(lab, model, RULE, OP, "narrower than x", shape=None, disable=["fuse/rms-norm"])


@pytest.mark.usefixtures("functions_stay")
def test_a_function_stays(lab: Any) -> None:
    text = (
        "(float[2,6,4,5] x) => (float[2,6,4,5] y) { y = local.f (x, over, eps, w) }"
        '\n<domain: "local", opset_import: ["" : 18]> f (x, over, eps, w) => (y)'
        " <float[2,6,4,5] x, float[2,6,4,5] q, float[2,6,1,1] m, float[2,6,1,1] v, float[2,6,1,1] r, float[2,6,4,5] n>"
        " { q = Mul (x, x) m = ReduceMean (q, over) v = Add (m, eps) r = Sqrt (v) n = Div (x, r) y = Mul (n, w) }"
    )
    model = lab.model(text, 18, 10, ', "local" : 1', over=AXES["over"], eps=number(1e-3), w=lab.array(6, 1, 1))
    assert OP not in str(lab.optimize(model, check=False).after)


# --- PyTorch modules ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("name", ["FilterResponseNormTlu2d", "FilterResponseNormAct2d"])
def test_timm(name: str) -> None:
    import timm.layers

    torch.manual_seed(0)
    norm = getattr(timm.layers, name)(6)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(6))
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), norm).eval()
    x = torch.randn(2, 3, 7, 9)
    shapes = ({0: "batch", 2: "height", 3: "width"},)
    result = onnxnorm.export(module, (x,), dynamic_shapes=shapes)
    assert [node.op_type for node in result.model.graph] == ["Conv", OP], result.explain()
    onnxnorm.check(module, result.model, x).assert_passed()
    half = onnxnorm.export(norm.half(), (torch.randn(2, 6, 5, 5).half(),))
    assert [node.op_type for node in half.model.graph] == [OP], half.explain()
