"""fuse/layer-norm: layer normalization in primitive operators, in any spelling."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from .spelling import attributes, becomes, build, number, parameters, refuses

RULE, OP = "fuse/layer-norm", "LayerNorm"
SHAPE, X = (3, 5, 8), "N,5,8"
AXIS = {"last": np.array([-1])}

MEANS = [
    "m = ReduceMean (x, last)",
    "t = ReduceSum (x, last) m = Div (t, count)",
    "t = ReduceMean <keepdims=0> (x, last) m = Unsqueeze (t, last)",
]
CENTRED = ["d = Sub (x, m)", "o = Neg (m) d = Add (o, x)", "c = Sub (x, m) g = ReduceMean (c, last) d = Sub (c, g)"]
VARIANCES = [
    "q = Mul (d, d) v = ReduceMean (q, last)",
    "q = Pow (d, two) k = ReduceMean <keepdims=0> (q, last) v = Unsqueeze (k, last)",
    "q = ReduceSumSquare (d, last) v = Mul (part, q)",
    "q = ReduceL2 (d, last) u = Mul (q, q) v = Div (u, count)",
    "u = Sub (x, m) q = Mul (u, u) s = ReduceSum (q, last) v = Div (s, count)",
    "q = Mul (x, x) e = ReduceMean (q, last) u = Mul (m, m) v = Sub (e, u)",
    "q = Pow (x, two) e = ReduceMean (q, last) u = Pow (m, two) a = Sub (e, u) v = Max (a, zero)",
]
ROOTS = [
    "z = Sqrt (p) n = Div (d, z)",
    "z = Sqrt (p) r = Reciprocal (z) n = Mul (r, d)",
    "r = Pow (p, minus) n = Mul (d, r)",
    "z = Pow (p, half) r = Div (one, z) n = Mul (d, r)",
    "i = Reciprocal (p) r = Sqrt (i) n = Mul (d, r)",
]
AFFINE = [
    "wn = Mul (n, w) y = Add (wn, b)",
    "wn = Mul (w, n) y = Add (b, wn)",
    "h = Mul (r, w) xh = Mul (x, h) mh = Mul (m, h) bh = Sub (b, mh) y = Add (xh, bh)",
    "h = Mul (w, r) xh = Mul (h, x) mh = Mul (h, m) bh = Sub (xh, mh) y = Add (b, bh)",
    "f = Mul (r, w) h = Mul (d, f) y = Add (h, b)",
]


def arrays(lab: Any, dtype: str = "float32", sizes: tuple[int, ...] = (8,), count: int = 8) -> dict[str, Any]:
    return AXIS | {
        "w": lab.array(*sizes, dtype=dtype, low=0.5, high=1.5),
        "b": lab.array(*sizes, dtype=dtype, seed=1),
        "count": number(count, dtype),
        "part": number(1 / count, dtype),
        "fewer": number(count - 1, dtype),
    }


def make(lab: Any, nodes: str, dtype: str = "float32", **options: Any) -> Any:
    return build(lab, nodes, dtype, **{"x": X, **arrays(lab, dtype), **options})


def spelled(mean: int = 0, centred: int = 0, variance: int = 0, root: int = 0, affine: int = 0) -> str:
    parts = [MEANS[mean], CENTRED[centred], VARIANCES[variance], "p = Add (v, eps)", ROOTS[root], AFFINE[affine]]
    if affine > 1 and root == 0:
        parts.insert(5, "r = Reciprocal (z)")
    return " ".join(parts)


def _covering() -> list[tuple[int, ...]]:
    """Each spelling of each part once at least, beside others each time."""
    sizes = [len(part) for part in (MEANS, CENTRED, VARIANCES, ROOTS, AFFINE)]
    return [tuple((row + place) % size for place, size in enumerate(sizes)) for row in range(max(sizes) + 1)]


@pytest.mark.parametrize("spelling", _covering())
def test_spellings(lab: Any, spelling: tuple[int, ...]) -> None:
    outcome = becomes(lab, make(lab, spelled(*spelling)), [OP], RULE, SHAPE)
    found = attributes(outcome, OP)
    assert (found["axes"], found["epsilon"]) == ([-1], np.float32(1e-3))
    for new, name in zip(parameters(outcome, OP), "wb", strict=True):
        np.testing.assert_array_equal(new, arrays(lab)[name])


@pytest.mark.parametrize("opset", [13, 17, 18, 23])
def test_opsets(lab: Any, opset: int) -> None:
    nodes = spelled()
    if opset < 18:
        nodes = nodes.replace("(x, last)", "<axes=[2]> (x)").replace("(q, last)", "<axes=[-1]> (q)")
    becomes(lab, make(lab, nodes, opset=opset), [OP], RULE, SHAPE)


@pytest.mark.parametrize(
    ("x", "axes", "sizes", "shape"),
    [
        ("N,8,H,W", [1], (8, 1, 1), (3, 8, 2, 4)),
        ("N,4,3,5", [1, 2, 3], (4, 3, 5), (3, 4, 3, 5)),
        ("N,4,3,5", [-2, -1], (3, 5), (3, 4, 3, 5)),
        ("N,8", [1], (8,), (3, 8)),
    ],
)
def test_axes(lab: Any, x: str, axes: list[int], sizes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    count = int(np.prod([shape[axis] for axis in axes]))
    given = {**arrays(lab, sizes=sizes, count=count), "last": np.array(axes)}
    outcome = becomes(lab, build(lab, spelled(variance=4, affine=2), x=x, **given), [OP], RULE, shape)
    rank = len(shape)
    assert attributes(outcome, OP)["axes"] == sorted(axis % rank - rank for axis in axes)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_types(lab: Any, dtype: str) -> None:
    becomes(lab, make(lab, spelled(), dtype), [OP], RULE, SHAPE, dtype)


def test_casts(lab: Any) -> None:
    """To float32 and back around all of it, around the norm without its weights, and around the statistics."""
    wide = {"eps": number(1e-3)}
    core = spelled().replace("(x,", "(f,").replace("wn = Mul (n, w) y = Add (wn, b)", "")
    behind = f"f = Cast <to=1> (x) {core} h = Cast <to=10> (n) wn = Mul (h, w) y = Add (wn, b)"
    inside = (
        "f = Cast <to=1> (x) m = ReduceMean (f, last) c = Cast <to=10> (m) d = Sub (x, c) e = Cast <to=1> (d)"
        " q = Mul (e, e) v = ReduceMean (q, last) p = Add (v, eps) z = Sqrt (p) a = Cast <to=10> (z) n = Div (d, a)"
        f" {AFFINE[0]}"
    )
    for nodes in (behind, inside):
        for options in ({}, {"verify": True}):
            becomes(lab, make(lab, nodes, "float16", **wide), [OP], RULE, SHAPE, "float16", **options)
    exact = {name: arrays(lab, "float16")[name].astype(np.float32) for name in "wb"}
    whole = f"f = Cast <to=1> (x) {core} g = Mul (n, w) h = Add (g, b) y = Cast <to=10> (h)"
    becomes(lab, make(lab, whole, "float16", **wide, **exact), [OP], RULE, SHAPE, "float16")
    lossy = {name: arrays(lab)[name] for name in "wb"}
    becomes(lab, make(lab, whole, "float16", **wide, **lossy), ["Cast", OP, "Cast"], RULE, SHAPE, "float16")


def test_an_unbiased_variance_goes_into_scale_and_epsilon(lab: Any) -> None:
    nodes = spelled(variance=4).replace("(s, count)", "(s, fewer)")
    outcome = becomes(lab, make(lab, nodes), [OP], RULE, SHAPE)
    assert attributes(outcome, OP)["epsilon"] == pytest.approx(1e-3 * 7 / 8)
    np.testing.assert_allclose(parameters(outcome, OP)[0], arrays(lab)["w"] * np.sqrt(7 / 8), rtol=1e-6)


def test_without_epsilon(lab: Any) -> None:
    nodes = spelled().replace("p = Add (v, eps)", "").replace("(p)", "(v)")
    becomes(lab, make(lab, nodes), [OP], RULE, SHAPE, x=lab.array(*SHAPE, seed=9))


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Neg (u) v = Add (e, a) p = Add (v, eps) z = Sqrt (p) c = Sub (x, m) n = Div (c, z) y = Mul (n, w)",
        "a = Add (e, eps) p = Sub (a, u) z = Sqrt (p) c = Sub (x, m) g = Mul (c, w) y = Div (g, z)",
        "v = Sub (e, u) p = Add (v, eps) z = Sqrt (p) xz = Div (x, z) mz = Div (m, z) n = Sub (xz, mz) y = Mul (n, w)",
    ],
)
def test_differences_of_squares(lab: Any, nodes: str) -> None:
    head = "m = ReduceMean (x, last) q = Mul (x, x) e = ReduceMean (q, last) u = Mul (m, m)"
    becomes(lab, make(lab, f"{head} {nodes}"), [OP], RULE, SHAPE)


def test_statistics_that_are_joined_without_their_axes(lab: Any) -> None:
    nodes = (
        "m = ReduceMean <keepdims=0> (x, last) q = Mul (x, x) e = ReduceMean <keepdims=0> (q, last) u = Mul (m, m)"
        " v = Sub (e, u) p = Add (v, eps) z = Sqrt (p) r = Reciprocal (z) t = Mul (m, r) tu = Unsqueeze (t, last)"
        " ru = Unsqueeze (r, last) xr = Mul (x, ru) n = Sub (xr, tu) f = Mul (n, w) y = Add (f, b)"
    )
    becomes(lab, make(lab, nodes), [OP], RULE, SHAPE)
    crossed = nodes.replace("tu = Unsqueeze (t, last)", "tu = Unsqueeze (t, first)")
    outcome = lab.optimize(make(lab, crossed, x="8,8,8", first=np.array([1])))
    assert OP not in outcome.ops
    lab.same(outcome, {"x": lab.array(8, 8, 8)})


def test_the_mean_less_x(lab: Any) -> None:
    outcome = becomes(lab, make(lab, spelled().replace("Sub (x, m)", "Sub (m, x)")), [OP], RULE, SHAPE)
    np.testing.assert_array_equal(parameters(outcome, OP)[0], -arrays(lab)["w"])


def test_between_transposes(lab: Any) -> None:
    core = spelled().replace("(x,", "(f0,").replace("y = Add", "y0 = Add")
    nodes = f"f0 = Transpose <perm=[0,2,3,1]> (x) {core} y = Transpose <perm=[0,3,1,2]> (y0)"
    outcome = becomes(lab, make(lab, nodes, x="N,8,H,W"), [OP], RULE, (3, 8, 2, 4))
    assert attributes(outcome, OP)["axes"] == [-3]


@pytest.mark.parametrize("sizes", [(5, 1), (5, 8)])
def test_a_scale_per_position_stays_outside(lab: Any, sizes: tuple[int, ...]) -> None:
    given = {**arrays(lab), "w": lab.array(*sizes)}
    becomes(lab, build(lab, spelled(), x=X, **given), [OP, "Mul", "Add"], RULE, SHAPE)


def test_verified(lab: Any) -> None:
    for spelling in itertools.islice(_covering(), 0, None, 3):
        assert lab.optimize(make(lab, spelled(*spelling)), verify=True).ops == [OP]


def test_inside_a_branch(lab: Any) -> None:
    """Its axes and numbers are constants of the outer graph."""
    inner = spelled().replace("y = Add", "o = Add")
    branches = f"then_branch = t () => (float[N,5,8] o) {{ {inner} }}"
    branches += ", else_branch = e () => (float[N,5,8] i) { i = Neg (x) }"
    given = {**arrays(lab), "eps": number(1e-3)}
    used = {name: given[name] for name in ("last", "w", "b", "eps")}
    model = lab.model(f"(float[N,5,8] x, bool c) => (float[N,5,8] y) {{ y = If (c) <{branches}> }}", 18, 10, **used)
    outcome = lab.optimize(model)
    bodies = {item.name: [node.op_type for node in item.g.node] for item in outcome.node("If").attribute}
    assert bodies == {"then_branch": [OP], "else_branch": ["Neg"]}
    for choice in (True, False):
        lab.same(outcome, {"x": lab.array(*SHAPE), "c": np.array(choice)})


def test_standard_operators(lab: Any) -> None:
    """LayerNormalization where there is one, and the model as it is where there is none."""
    model = make(lab, spelled(affine=2))
    outcome = lab.optimize(model, target="standard")
    assert outcome.ops == ["LayerNormalization"]
    feeds = {"x": lab.array(*SHAPE, seed=9)}
    lab.same(outcome, feeds)
    lab.same_in_ort(outcome, feeds)
    first = {**arrays(lab, sizes=(8, 1, 1)), "last": np.array([1])}
    old = spelled().replace("(x, last)", "<axes=[2]> (x)").replace("(q, last)", "<axes=[-1]> (q)")
    for other in (
        build(lab, spelled(), x="N,8,H,W", **first),
        make(lab, old, opset=13),
        make(lab, spelled(), "float64"),
    ):
        assert len(lab.optimize(other, target="standard").ops) == len(other.graph.node)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("p = Add (v, eps) z = Sqrt (p)", "k = Sqrt (v) z = Add (k, eps)", "epsilon is added outside the root"),
        ("p = Add (v, eps) z = Sqrt (p)", "k = Sqrt (v) z = Max (k, eps)", "is clamped"),
    ],
)
def test_refuses_other_functions(lab: Any, old: str, new: str, words: str) -> None:
    nodes = spelled()
    assert old in nodes
    refuses(lab, make(lab, nodes.replace(old, new)), RULE, OP, words, SHAPE)


@pytest.mark.parametrize("name", ["m", "d", "v", "z"])
def test_refuses_what_others_read(lab: Any, name: str) -> None:
    size = 8 if name == "d" else 1
    model = make(lab, spelled(), out=f", float[N,5,{size}] {name}")
    refuses(lab, model, RULE, OP, "an inner value is a graph output", SHAPE)
    model = make(lab, f"{spelled()} other = Neg ({name})", out=f", float[N,5,{size}] other")
    refuses(lab, model, RULE, OP, "an inner value has other readers", SHAPE)


def test_refuses_a_difference_of_squares_without_epsilon(lab: Any) -> None:
    nodes = spelled(variance=5).replace("p = Add (v, eps)", "").replace("(p)", "(v)")
    refuses(lab, make(lab, nodes), RULE, OP, "rounding makes negative", None)


def test_refuses_unknown_sizes_and_numbers(lab: Any) -> None:
    refuses(lab, make(lab, spelled(), x="N,5,D"), RULE, OP, "the size of a normalized axis is not known", SHAPE)
    refuses(lab, make(lab, spelled(), eps=number(-1e-3)), RULE, OP, "epsilon is not one that the op can hold", None)
    dynamic = spelled(variance=4).replace("v = Div (s, count)", "a = Size (x) k = Cast <to=1> (a) v = Div (s, k)")
    refuses(lab, make(lab, dynamic, x="N,5,8"), RULE, OP, "computed at run time", None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ReduceMean (x, last)", "ReduceMean (x, other)"),
        ("ReduceMean (q, last)", "ReduceMean (q, other)"),
        ("Mul (d, d)", "Pow (d, three)"),
        ("ReduceMean (x, last)", "ReduceMean <keepdims=0> (x, last)"),
        ("ReduceMean (q, last)", "ReduceMean <keepdims=0> (q, last)"),
        ("m = ReduceMean (x, last)", "t = ReduceSum (x, last) m = Div (t, fewer)"),
        ("z = Sqrt (p)", "z = Exp (p)"),
        ("n = Div (d, z)", "a = Relu (x) c = Sub (a, m) n = Div (c, z)"),
    ],
)
def test_leaves_other_functions_alone(lab: Any, old: str, new: str) -> None:
    """All sizes are equal, so that shapes tell nothing."""
    nodes = spelled()
    assert old in nodes
    more = {"other": np.array([1]), "three": number(3.0)}
    model = make(lab, nodes.replace(old, new), x="8,8,8", **more)
    outcome = lab.optimize(model)
    assert not set(outcome.ops) & {OP, "GroupNorm"}, outcome.result.explain()
    lab.same(outcome, {"x": lab.array(8, 8, 8)})
