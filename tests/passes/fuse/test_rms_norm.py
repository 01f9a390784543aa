"""fuse/rms-norm, fuse/norm-cast and fuse/rms-norm-weight: what counts is what is computed."""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

CORE, CAST, WEIGHT = "fuse/rms-norm", "fuse/norm-cast", "fuse/rms-norm-weight"
TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}
WIDTH = 8


def number(value: float, dtype: str = "float32", rank: int = 0) -> Any:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return np.full((1,) * rank, value).astype(kind)


def numbers(dtype: str = "float32") -> dict[str, Any]:
    """Every constant that the spellings use."""
    values = {"eps": 1e-3, "two": 2.0, "half": 0.5, "minus": -0.5, "one": 1.0, "count": WIDTH, "part": 1 / WIDTH}
    values |= {"root": math.sqrt(WIDTH), "neps": WIDTH * 1e-3, "zero": 0.0}
    return {name: number(value, dtype) for name, value in values.items()} | {"last": np.array([-1])}


def build(
    lab: Any, nodes: str, dtype: str = "float32", opset: int = 18, shape: str = "N,5,8", out: str = "", **arrays: Any
) -> Any:
    """``nodes`` make y from x; only the constants that they read become initializers."""
    kind = TYPE_NAMES[dtype]
    known = numbers(dtype) | {"w": lab.array(WIDTH, dtype=dtype, low=0.5, high=1.5)} | arrays
    words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in known.items() if name in words}
    return lab.model(f"({kind}[{shape}] x) => ({kind}[{shape}] y{out}) {{ {nodes} }}", opset, 10, **used)


def axes_of(outcome: Any) -> list[int]:
    return list(next(item.ints for item in outcome.node("RMSNorm").attribute if item.name == "axes"))


def fuses(lab: Any, model: Any, dtype: str = "float32", ops: list[str] | None = None, shape: Any = (2, 5, 8)) -> Any:
    outcome = lab.optimize(model)
    assert outcome.ops == (ops or ["RMSNorm"]), outcome.result.explain()
    decision = outcome.result.decisions[0]
    assert decision.action.value == "fused"
    assert decision.rule.split(", ")[0] == CORE
    feeds = {"x": lab.array(*shape, dtype=dtype, seed=9)}
    lab.same(outcome, feeds, eps=lab.eps(dtype))
    if dtype == "float32":
        lab.same_in_ort(outcome, feeds)
    return outcome


def stays(lab: Any, model: Any, shape: Any = (2, 5, 8), check: bool = True) -> Any:
    outcome = lab.optimize(model, check=check)
    assert "RMSNorm" not in outcome.ops
    lab.same(outcome, {"x": lab.array(*shape, seed=9)})
    return outcome


# --- spellings ----------------------------------------------------------------------------------------------------

MEANS = [
    "q = Pow (x, two) m = ReduceMean (q, last)",
    "q = Mul (x, x) m = ReduceMean (q, last)",
    "q = Mul (x, x) s = ReduceSum (q, last) m = Div (s, count)",
    "q = Pow (x, two) s = ReduceSum (q, last) m = Mul (part, s)",
    "s = ReduceSumSquare (x, last) m = Div (s, count)",
    "n = ReduceL2 (x, last) d = Div (n, root) m = Mul (d, d)",
    "a = Abs (x) q = Mul (a, a) m = ReduceMean (q, last)",
    "q = Mul (x, x) k = ReduceMean <keepdims=0> (q, last) m = Unsqueeze (k, last)",
]
ROOTS = [
    "v = Add (m, eps) r = Sqrt (v) n0 = Div (x, r)",
    "v = Add (eps, m) r = Sqrt (v) i = Reciprocal (r) n0 = Mul (x, i)",
    "v = Add (m, eps) r = Sqrt (v) i = Div (one, r) n0 = Mul (i, x)",
    "v = Add (m, eps) i = Pow (v, minus) n0 = Mul (x, i)",
    "v = Add (m, eps) r = Pow (v, half) n0 = Div (x, r)",
    "v = Add (m, eps) u = Reciprocal (v) i = Sqrt (u) n0 = Mul (x, i)",
]
WEIGHTS = ["y = Mul (n0, w)", "y = Mul (w, n0)"]


@pytest.mark.parametrize(("mean", "root"), [(m, r) for m, r in itertools.product(MEANS, ROOTS) if "(d, d)" not in m])
def test_every_spelling(lab: Any, mean: str, root: str) -> None:
    weight = WEIGHTS[(MEANS.index(mean) + ROOTS.index(root)) % 2]
    outcome = fuses(lab, build(lab, f"{mean} {root} {weight}"))
    assert axes_of(outcome) == [-1]
    epsilon = next(item.f for item in outcome.node("RMSNorm").attribute if item.name == "epsilon")
    assert epsilon == pytest.approx(1e-3, rel=1e-6)
    np.testing.assert_array_equal(outcome.initializer("w"), lab.array(WIDTH, low=0.5, high=1.5))


@pytest.mark.parametrize(
    "nodes",
    [
        f"{MEANS[0]} v = Add (m, eps) r = Sqrt (v) i = Reciprocal (r) a = Mul (w, i) y = Mul (x, a)",
        f"{MEANS[0]} v = Add (m, eps) r = Sqrt (v) i = Reciprocal (r) a = Mul (x, w) y = Mul (a, i)",
        f"{MEANS[0]} v = Add (m, eps) r = Sqrt (v) a = Mul (w, x) y = Div (a, r)",
        f"{MEANS[0]} v = Add (m, eps) r = Sqrt (v) a = Div (w, r) y = Mul (a, x)",
        "n = ReduceL2 (x, last) a = Div (x, n) b = Mul (a, root) y = Mul (b, w)",
        "n = ReduceL2 (x, last) d = Div (n, root) a = Div (x, d) y = Mul (a, w)",
        "n = ReduceL2 (x, last) c = Max (zero, n) z = Div (c, root) a = Div (x, z) y = Mul (a, w)",
        "s = ReduceSumSquare (x, last) v = Add (s, neps) r = Sqrt (v) a = Div (x, r) b = Mul (a, root) y = Mul (b, w)",
        f"{MEANS[0]} v = Add (m, eps) r = Sqrt (v) e = Expand (r, full) a = Div (x, e) y = Mul (a, w)",
    ],
)
def test_products_in_any_order(lab: Any, nodes: str) -> None:
    fuses(lab, build(lab, nodes, shape="2,5,8", full=np.array([2, 5, 8])))


@pytest.mark.parametrize("dtype", TYPE_NAMES)
@pytest.mark.parametrize("opset", [15, 18, 23, 26])
def test_types_and_opsets(lab: Any, dtype: str, opset: int) -> None:
    mean = MEANS[0] if opset >= 18 else "q = Pow (x, two) m = ReduceMean <axes=[2]> (q)"
    nodes = f"{mean} {ROOTS[1]} {WEIGHTS[0]}"
    fuses(lab, build(lab, nodes, dtype, opset), dtype)


def test_without_a_weight(lab: Any) -> None:
    outcome = fuses(lab, build(lab, f"{MEANS[0]} {ROOTS[1]} y = Identity (n0)"), ops=["RMSNorm"])
    assert axes_of(outcome) == [-1]


def test_several_axes_and_channels(lab: Any) -> None:
    core = "q = Mul (x, x) m = ReduceMean (q, over) v = Add (m, eps) r = Sqrt (v) n0 = Div (x, r) y = Mul (n0, g)"
    both = build(lab, core, shape="N,5,8", over=np.array([1, 2]), g=lab.array(5, 8))
    assert axes_of(fuses(lab, both)) == [-2, -1]
    channels = build(lab, core, shape="N,8,H,W", over=np.array([1]), g=lab.array(8, 1, 1))
    assert axes_of(fuses(lab, channels, shape=(2, 8, 3, 5))) == [-3]
    spread = build(lab, core, shape="N,8,H,W", over=np.array([-3]), g=lab.array(1, 8, 1, 1))
    fuses(lab, spread, shape=(2, 8, 3, 5))


def test_leading_axes_without_keepdims(lab: Any) -> None:
    core = "q = Mul (x, x) m = ReduceMean <keepdims=0> (q, first) v = Add (m, eps) r = Sqrt (v) y = Div (x, r)"
    outcome = fuses(lab, build(lab, core, shape="6,M", first=np.array([0])), shape=(6, 4))
    assert axes_of(outcome) == [-2]


def test_other_axes_without_keepdims_stay(lab: Any) -> None:
    core = "q = Mul (x, x) m = ReduceMean <keepdims=0> (q, last) v = Add (m, eps) r = Sqrt (v) y = Div (x, r)"
    stays(lab, build(lab, core, shape="6,6"), shape=(6, 6))


def test_one_plus_weight(lab: Any) -> None:
    outcome = fuses(lab, build(lab, f"{MEANS[0]} {ROOTS[1]} p = Add (one, w) y = Mul (n0, p)"))
    scale = outcome.initializer(outcome.node("RMSNorm").input[1])
    np.testing.assert_array_equal(scale, 1 + lab.array(WIDTH, low=0.5, high=1.5))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_inside_and_the_weight_in_half(lab: Any, dtype: str) -> None:
    """Llama and T5: w * x.to(dtype)."""
    code = {"float16": 10, "bfloat16": 16}[dtype]
    wide = "{wide}"
    core = (
        f"{wide} q = Pow (f, two) m = ReduceMean (q, last) v = Add (m, eps) r = Sqrt (v) i = Reciprocal (r)"
        f" n0 = Mul (g, i) h = Cast <to={code}> (n0) y = Mul (w, h)"
    )
    single = {"eps": number(1e-3), "two": number(2.0)}
    for first in ("f = Cast <to=1> (x) g = Identity (f)", "f = Cast <to=1> (x) g = Cast <to=1> (x)"):
        fuses(lab, build(lab, core.replace("{wide}", first), dtype, **single), dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("back", ["Cast", "CastLike"])
def test_float32_inside_and_the_weight_too(lab: Any, dtype: str, back: str) -> None:
    """Gemma: (x * (1 + w.float())).to(dtype); the weight keeps its digits."""
    code = {"float16": 10, "bfloat16": 16}[dtype]
    last = f"y = Cast <to={code}> (k)" if back == "Cast" else "y = CastLike (k, x)"
    core = (
        "f = Cast <to=1> (x) q = Pow (f, two) m = ReduceMean (q, last) v = Add (m, eps) r = Sqrt (v)"
        f" n0 = Div (f, r) u = Cast <to=1> (w) p = Add (u, one) k = Mul (n0, p) {last}"
    )
    single = {"eps": number(1e-3), "two": number(2.0), "one": number(1.0)}
    model = build(lab, core, dtype, **single)
    outcome = fuses(lab, model, dtype, ops=["Cast", "RMSNorm", back])
    assert outcome.result.decisions[0].rule == f"{CORE}, {WEIGHT}"
    exact = {**single, "w": number(0.5, dtype, 1).repeat(WIDTH)}
    outcome = fuses(lab, build(lab, core, dtype, **exact), dtype)
    assert outcome.result.decisions[0].rule == f"{CORE}, {WEIGHT}, {CAST}"


def test_a_cast_to_the_type_it_has(lab: Any) -> None:
    fuses(lab, build(lab, f"{MEANS[0]} {ROOTS[0]} p = Mul (n0, w) y = CastLike (p, x)"))


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1, 1, 8)])
def test_a_weight_of_run_time(lab: Any, shape: tuple[int, ...]) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, g)")
    model.graph.input.extend(
        lab.model(f"(float[{','.join(map(str, shape))}] g) => (float y) {{ y = Abs (g) }}").graph.input
    )
    outcome = lab.optimize(model)
    assert outcome.ops == (["RMSNorm"] if len(shape) == 1 else ["Reshape", "RMSNorm"])
    lab.same_in_ort(outcome, {"x": lab.array(2, 5, 8), "g": lab.array(*shape)})


def test_a_weight_that_a_caller_may_override(lab: Any) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, w)")
    model.graph.input.extend(lab.model("(float[8] w) => (float y) { y = Abs (w) }").graph.input)
    outcome = lab.optimize(model)
    assert outcome.ops == ["RMSNorm"]
    lab.same_in_ort(outcome, {"x": lab.array(2, 5, 8), "w": lab.array(8, seed=4)})


def test_activation_follows(lab: Any) -> None:
    fuses(lab, build(lab, f"{MEANS[0]} {ROOTS[0]} p = Mul (n0, w) g = Sigmoid (p) y = Mul (p, g)"))


def test_in_a_branch(lab: Any) -> None:
    core = f"{MEANS[0]} {ROOTS[0]} b = Mul (n0, w)"
    text = (
        "(float[2,5,8] x, bool q1) => (float[2,5,8] y) { y = If (q1) <then_branch = t () => (float[2,5,8] b) { "
        + core
        + " }, else_branch = e () => (float[2,5,8] c) { c = Neg (x) }> }"
    )
    arrays = {name: value for name, value in numbers().items() if name in ("two", "last", "eps")}
    outcome = lab.optimize(lab.model(text, 18, 10, w=lab.array(8), **arrays))
    assert [node.op_type for node in outcome.after.graph.node[0].attribute[0].g.node] == ["RMSNorm"]
    lab.same_in_ort(outcome, {"x": lab.array(2, 5, 8), "q1": np.array(True)})


def test_verified(lab: Any) -> None:
    outcome = lab.optimize(build(lab, f"{MEANS[0]} {ROOTS[0]} {WEIGHTS[0]}"), verify=True)
    assert outcome.ops == ["RMSNorm"]


def test_standard_target(lab: Any) -> None:
    """From opset 23 on there is an operator; before, only float64 is rewritten."""
    nodes = f"{MEANS[0]} {ROOTS[0]} {WEIGHTS[0]}"
    feeds = {"x": lab.array(2, 5, 8)}
    outcome = lab.optimize(build(lab, nodes, opset=23), target="standard")
    assert outcome.ops == ["RMSNormalization"]
    lab.same_in_ort(outcome, feeds)
    assert "Pow" in lab.optimize(build(lab, nodes), target="standard").ops
    outcome = lab.optimize(build(lab, nodes, "float64"), target="standard")
    assert "Pow" not in outcome.ops
    wide = {"x": lab.array(2, 5, 8, dtype="float64")}
    for truth, new in zip(lab.run(outcome.before, wide), lab.ort(outcome.after, wide), strict=True):
        assert np.abs(truth - new).max() < 1e-14


# --- refusals of fuse/rms-norm --------------------------------------------------------------------------------------


def refuses(lab: Any, model: Any, words: str, shape: Any = (2, 5, 8), check: bool = True) -> Any:
    outcome = stays(lab, model, shape, check)
    decision = outcome.only
    assert (decision.action.value, decision.rule) == ("refused", CORE), str(decision)
    assert words in decision.reason, decision.reason
    return outcome


OUTSIDE = [
    f"{MEANS[0]} r = Sqrt (m) d = Add (r, eps) y = Div (x, d)",
    "n = ReduceL2 (x, last) d = Div (n, root) e = Add (d, eps) y = Div (x, e)",
    f"{MEANS[0]} r = Sqrt (m) i = Reciprocal (r) e = Add (i, eps) y = Mul (x, e)",
]


@pytest.mark.parametrize("nodes", OUTSIDE)
def test_refuses_epsilon_outside_the_root(lab: Any, nodes: str) -> None:
    refuses(lab, build(lab, nodes), "epsilon is added outside the root")


@pytest.mark.parametrize(
    "nodes",
    [
        "n = ReduceL2 (x, last) c = Clip (n, eps) y = Div (x, c)",
        "n = ReduceL2 (x, last) c = Max (eps, n) y = Div (x, c)",
        f"{MEANS[0]} c = Max (m, eps) r = Sqrt (c) y = Div (x, r)",
    ],
)
def test_refuses_a_clamp(lab: Any, nodes: str) -> None:
    """Zeros stay zeros there, and become NaN in a norm without epsilon; fuse/l2-norm takes it."""
    outcome = lab.optimize(build(lab, nodes), disable=["fuse/l2-norm"])
    assert "RMSNorm" not in outcome.ops
    assert (outcome.only.action.value, outcome.only.rule) == ("refused", CORE)
    assert "the root mean square is clamped" in outcome.only.reason


@pytest.mark.parametrize("read", ["z = Neg (m)", "z = Neg (v)", "z = Neg (r)"])
def test_refuses_values_with_other_readers(lab: Any, read: str) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, w) {read}", out=", float[N,5,1] z")
    refuses(lab, model, "an inner value has other readers")


def test_refuses_inner_graph_outputs(lab: Any) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, w)", out=", float[N,5,1] m")
    refuses(lab, model, "an inner value has other readers")


def test_squares_may_have_other_readers(lab: Any) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, w) z = Neg (q)", out=", float[N,5,8] z")
    outcome = lab.optimize(model)
    assert sorted(outcome.ops) == ["Neg", "Pow", "RMSNorm"]
    lab.same_in_ort(outcome, {"x": lab.array(2, 5, 8)})


@pytest.mark.parametrize("root", ["y = Mul (x, v)", "y = Div (x, v)", "r = Sqrt (v) y = Mul (x, r)"])
def test_refuses_other_powers(lab: Any, root: str) -> None:
    refuses(lab, build(lab, f"{MEANS[0]} v = Add (m, eps) {root}"), "its power is not the inverse square root")


def test_refuses_a_narrow_statistic(lab: Any) -> None:
    half = {"two": number(2.0, "float16"), "eps": number(1e-3, "float16")}
    nodes = (
        "f = Cast <to=1> (x) q = Mul (f, f) h = Cast <to=10> (q) m = ReduceMean (h, last) v = Add (m, eps)"
        " r = Sqrt (v) k = Cast <to=1> (r) y = Div (f, k)"
    )
    refuses(lab, build(lab, nodes.replace("f = Cast <to=1> (x)", "f = Neg (x)"), **half), "narrower than x")


def test_refuses_a_wide_statistic(lab: Any) -> None:
    nodes = (
        "f = Cast <to=11> (x) q = Mul (f, f) m = ReduceMean (q, last) v = Add (m, eps) r = Sqrt (v)"
        " k = Cast <to=1> (r) y = Div (x, k)"
    )
    refuses(lab, build(lab, nodes, eps=number(1e-3, "float64")), "wider than the op computes in")


def test_refuses_an_unknown_size(lab: Any) -> None:
    refuses(lab, build(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, two)", shape="N,5,D"), "not known or 0")


def test_an_unknown_rank_stays(lab: Any) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, two)", shape="")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    stays(lab, model, check=False)


def test_refuses_a_negative_epsilon(lab: Any) -> None:
    refuses(
        lab, build(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, w)", eps=number(-1e-3)), "not one that the op can hold"
    )


@pytest.mark.parametrize("epsilon", [1e-60, 1e60])
def test_refuses_an_epsilon_that_float32_cannot_say(lab: Any, epsilon: float) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, w)", "float64", eps=number(epsilon, "float64"))
    refuses(lab, model, "not one that the op can hold")


def test_refuses_an_epsilon_of_many_digits(lab: Any) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, w)", "float64", eps=number(1.2345678912e-3, "float64"))
    refuses(lab, model, "epsilon has more digits")


def test_refuses_a_result_that_grows(lab: Any) -> None:
    nodes = f"{MEANS[0]} v = Add (m, eps) r = Sqrt (v) e = Expand (r, full) y = Div (x, e)"
    model = build(lab, nodes, shape="1,5,8", full=np.array([3, 5, 8]))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    refuses(lab, model, "broadcast to a shape that is not known to be that of x", shape=(1, 5, 8))


@pytest.mark.usefixtures("functions_stay")
def test_a_function_stays(lab: Any) -> None:
    text = (
        "(float[2,5,8] x) => (float[2,5,8] y) { y = local.f (x, last, eps) }"
        '\n<domain: "local", opset_import: ["" : 18]> f (x, last, eps) => (y)'
        " <float[2,5,8] x, float[2,5,8] q, float[2,5,1] m, float[2,5,1] v, float[2,5,1] r, float[2,5,8] y>"
        " { q = Mul (x, x) m = ReduceMean (q, last) v = Add (m, eps) r = Sqrt (v) y = Div (x, r) }"
    )
    outcome = lab.optimize(lab.model(text, 18, 10, ', "local" : 1', last=np.array([-1]), eps=number(1e-3)), check=False)
    assert "RMSNorm" not in str(outcome.after)


# --- no root mean square norm in the first place ------------------------------------------------------------------


@pytest.mark.parametrize(
    "nodes",
    [
        "q = Mul (x, two) m = ReduceMean (q, last) v = Add (m, eps) r = Sqrt (v) y = Div (x, r)",
        f"{MEANS[0]} v = Add (m, eps) r = Sqrt (v) z = Neg (x) y = Div (z, r)",
        "q = Pow (x, three) m = ReduceMean (q, last) v = Add (m, eps) r = Sqrt (v) y = Div (x, r)",
        f"{MEANS[0]} v = Add (m, eps) r = Sqrt (v) y = Div (r, x)",
        f"{MEANS[0]} v = Add (m, g) r = Sqrt (v) y = Div (x, r)",
        "m = ReduceMean (x, last) c = Sub (x, m) q = Mul (c, c) s = ReduceMean (q, last) v = Add (s, eps)"
        " r = Sqrt (v) y = Div (c, r)",
    ],
)
def test_something_else_stays(lab: Any, nodes: str) -> None:
    outcome = lab.optimize(build(lab, nodes, three=number(3.0), g=lab.array(5, 8, low=0.1)))
    assert "RMSNorm" not in outcome.ops
    assert CORE not in outcome.result.explain()


def test_a_constant_is_not_normalized_at_run_time(lab: Any) -> None:
    nodes = "n = ReduceL2 (g, last) a = Div (g, n) y = Mul (x, a)"
    outcome = lab.optimize(build(lab, nodes, g=lab.array(5, 8)))
    assert "RMSNorm" not in outcome.ops


# --- refusals of fuse/rms-norm-weight and fuse/norm-cast ------------------------------------------------------


def kept(lab: Any, nodes: str, ops: list[str], **options: Any) -> Any:
    outcome = lab.optimize(build(lab, nodes, **options))
    assert outcome.ops == ops
    shape = (2, 5, 8, 8) if "N,5,8,8" in options.get("shape", "") else (2, 5, 8)
    lab.same(outcome, {"x": lab.array(*shape, seed=9)})
    return outcome


def test_weight_over_other_axes_stays_outside(lab: Any) -> None:
    kept(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, g)", ["RMSNorm", "Mul"], g=lab.array(5, 8))
    kept(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, g)", ["RMSNorm", "Mul"], g=lab.array(5, 8, 1), shape="N,5,8,8")


def test_weight_of_higher_rank_stays_outside(lab: Any) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, g)", g=lab.array(1, 1, 1, 8))
    model.graph.output[0].type.tensor_type.shape.dim.insert(0, model.graph.output[0].type.tensor_type.shape.dim[1])
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert lab.optimize(model).ops == ["RMSNorm", "Mul"]


def test_weight_stays_outside_when_the_norm_is_read_twice(lab: Any) -> None:
    nodes = f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, w) z = Neg (n0)"
    outcome = lab.optimize(build(lab, nodes, out=", float[N,5,8] z"))
    assert sorted(outcome.ops) == ["Mul", "Neg", "RMSNorm"]
    outcome = lab.optimize(build(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, w)", out=", float[N,5,8] n0"))
    assert outcome.ops == ["RMSNorm", "Mul"]


def test_weight_stays_outside_behind_an_activation(lab: Any) -> None:
    kept(lab, f"{MEANS[0]} {ROOTS[0]} a = Relu (n0) y = Mul (a, w)", ["RMSNorm", "Mul"])


def test_a_second_weight_of_run_time_stays_outside(lab: Any) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} p = Mul (n0, w) y = Mul (p, g)")
    model.graph.input.extend(lab.model("(float[8] g) => (float y) { y = Abs (g) }").graph.input)
    assert lab.optimize(model).ops == ["RMSNorm", "Mul"]


def test_a_run_time_weight_that_broadcasts_stays_outside(lab: Any) -> None:
    model = build(lab, f"{MEANS[0]} {ROOTS[0]} y = Mul (n0, g)")
    model.graph.input.extend(lab.model("(float[1] g) => (float y) { y = Abs (g) }").graph.input)
    assert lab.optimize(model).ops == ["RMSNorm", "Mul"]


def test_scales_that_overflow_or_vanish_stay_apart(lab: Any) -> None:
    for first, second in ((6e4, 100.0), (1e-7, 1e-3)):
        g, h = (number(value, "float16", 1).repeat(WIDTH) for value in (first, second))
        model = build(lab, f"{MEANS[0]} {ROOTS[0]} p = Mul (n0, g) y = Mul (p, h)", "float16", g=g, h=h)
        assert lab.optimize(model).ops == ["RMSNorm", "Mul"]


def test_cast_stays_when_the_float32_norm_is_read(lab: Any) -> None:
    nodes = (
        "f = Cast <to=1> (x) q = Mul (f, f) m = ReduceMean (q, last) v = Add (m, eps) r = Sqrt (v) n0 = Div (f, r)"
        " y = Cast <to=10> (n0) z = Neg (n0)"
    )
    model = build(lab, nodes, "float16", eps=number(1e-3), out=", float[N,5,8] z")
    assert sorted(lab.optimize(model).ops) == ["Cast", "Cast", "Neg", "RMSNorm"]


def test_cast_stays_when_the_weight_is_of_run_time(lab: Any) -> None:
    nodes = (
        "f = Cast <to=1> (x) q = Mul (f, f) m = ReduceMean (q, last) v = Add (m, eps) r = Sqrt (v) n0 = Div (f, r)"
        " p = Mul (n0, g) y = Cast <to=10> (p)"
    )
    model = build(lab, nodes, "float16", eps=number(1e-3))
    model.graph.input.extend(lab.model("(float[8] g) => (float y) { y = Abs (g) }").graph.input)
    assert lab.optimize(model).ops == ["Cast", "RMSNorm", "Cast"]
