"""fuse/group-norm: group normalization in primitive operators between two Reshapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .spelling import attributes, becomes, build, parameters, refuses

RULE, OP = "fuse/group-norm", "GroupNorm"
STATISTICS = (
    "m = ReduceMean (f, axes) d = Sub (f, m) q = Mul (d, d) v = ReduceMean (q, axes) p = Add (v, eps) z = Sqrt (p)"
)
CORE = f"f = Reshape (x, cut) {STATISTICS} n = Div (d, z) k = Reshape (n, whole)"
SCALED = "g = Mul (k, w) y = Add (g, b)"
#: Scale and shift before the Reshape back, multiplied out.
INSIDE = (
    f"f = Reshape (x, cut) {STATISTICS} r = Reciprocal (z) i = Mul (r, ws) a = Mul (f, i) c = Mul (m, i)"
    " e = Sub (bs, c) o = Add (a, e) y = Reshape (o, whole)"
)


def make(lab: Any, nodes: str, cut: list[int], axes: list[int], channels_last: bool = False, **more: Any) -> Any:
    sizes = (6,) if channels_last else (6, 1, 1)
    given = {
        "cut": np.array(cut),
        "axes": np.array(axes),
        "whole": np.array([3, 4, 5, 6] if channels_last else [3, 6, 4, 5]),
        "w": lab.array(*sizes, low=0.5, high=2.0),
        "b": lab.array(*sizes, seed=1),
        "x": "3,4,5,6" if channels_last else "3,6,4,5",
    }
    return build(lab, nodes, **{**given, **more})


@pytest.mark.parametrize(
    ("cut", "axes"),
    [
        ([0, 3, -1], [2]),
        ([3, 3, 2, 4, 5], [2, 3, 4]),
        ([0, 3, 2, -1], [-2, -1]),
        ([9, -1], [1]),
        ([9, 2, 4, 5], [1, 2, 3]),
        ([1, 9, -1], [2]),
    ],
)
def test_channels_first(lab: Any, cut: list[int], axes: list[int]) -> None:
    outcome = becomes(lab, make(lab, f"{CORE} {SCALED}", cut, axes), [OP], RULE)
    found = attributes(outcome, OP)
    assert (found["num_groups"], found["channels_last"]) == (3, 0)
    np.testing.assert_array_equal(parameters(outcome, OP)[0], lab.array(6, 1, 1, low=0.5, high=2.0).reshape(-1))


@pytest.mark.parametrize(("cut", "axes"), [([0, 4, 5, 3, 2], [1, 2, 4]), ([0, -1, 3, 2], [1, 3])])
def test_channels_last(lab: Any, cut: list[int], axes: list[int]) -> None:
    outcome = becomes(lab, make(lab, f"{CORE} {SCALED}", cut, axes, True), [OP], RULE, (3, 4, 5, 6))
    found = attributes(outcome, OP)
    assert (found["num_groups"], found["channels_last"]) == (3, 1)


@pytest.mark.parametrize(
    ("cut", "axes", "sizes", "last"),
    [
        ([3, 3, 2, 4, 5], [2, 3, 4], (1, 3, 2, 1, 1), False),
        ([3, 3, 40], [2], (3, 1), False),
        ([3, 20, 3, 2], [1, 3], (1, 1, 3, 2), True),
    ],
)
def test_scale_between_the_reshapes(lab: Any, cut: Any, axes: Any, sizes: Any, last: bool) -> None:
    given = {"ws": lab.array(*sizes, low=0.5, high=2.0), "bs": lab.array(*sizes, seed=1)}
    shape = (3, 4, 5, 6) if last else (3, 6, 4, 5)
    for options in ({}, {"verify": True}):
        becomes(lab, make(lab, INSIDE, cut, axes, last, **given), [OP], RULE, shape, **options)


def test_sizes_that_are_computed(lab: Any) -> None:
    nodes = f"{CORE} {SCALED}".replace("k = Reshape (n, whole)", "h = Shape (x) k = Reshape (n, h)")
    becomes(lab, make(lab, nodes, [0, 3, -1], [2], x="N,6,H,W"), [OP], RULE)


@pytest.mark.parametrize("first", ["Cast", "Reshape"])
def test_casts(lab: Any, first: str) -> None:
    """To float32 and back, before or behind the Reshapes."""
    core = f"{STATISTICS} n = Div (d, z)"
    if first == "Cast":
        nodes = f"t = Cast <to=1> (x) f = Reshape (t, cut) {core} j = Reshape (n, whole) k = Cast <to=10> (j) {SCALED}"
    else:
        nodes = f"t = Reshape (x, cut) f = Cast <to=1> (t) {core} j = Cast <to=10> (n) k = Reshape (j, whole) {SCALED}"
    half = {name: lab.array(6, 1, 1, dtype="float16", seed=1) for name in "wb"}
    half["eps"] = np.float32(1e-3)
    model = make(lab, nodes, [0, 3, -1], [2], dtype="float16", **half)
    for options in ({}, {"verify": True}):
        becomes(lab, model, [OP], RULE, dtype="float16", **options)


def test_groups_that_are_none(lab: Any) -> None:
    """What does not cut out groups of channels is the norm of the cut tensor."""
    for cut, axes in (([3, 4, 30], [2]), ([0, 3, 2, -1], [3])):
        outcome = lab.optimize(make(lab, f"{CORE} {SCALED}", cut, axes))
        assert outcome.ops[:3] == ["Reshape", "LayerNorm", "Reshape"], outcome.result.explain()
        lab.same(outcome, {"x": lab.array(3, 6, 4, 5)})


def test_refuses(lab: Any) -> None:
    outside = CORE.replace("p = Add (v, eps) z = Sqrt (p)", "p = Sqrt (v) z = Add (p, eps)")
    refuses(lab, make(lab, f"{outside} {SCALED}", [0, 3, -1], [2]), RULE, OP, "epsilon is added outside the root")
    model = make(lab, f"{CORE} {SCALED}", [0, 3, -1], [2], out=", float[3,3,1] m")
    refuses(lab, model, RULE, OP, "an inner value is a graph output")
