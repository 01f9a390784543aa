"""fuse/instance-norm: instance norm and group norm of one group in primitive operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .spelling import attributes, becomes, build, number, parameters, refuses

RULE, OP = "fuse/instance-norm", "GroupNorm"
CORE = (
    "m = ReduceMean (x, axes) d = Sub (x, m) q = Mul (d, d) v = ReduceMean (q, axes) p = Add (v, eps)"
    " z = Sqrt (p) n = Div (d, z)"
)
SCALED = "o = Mul (n, w) y = Add (o, b)"
GAP = (
    "m = GlobalAveragePool (x) d = Sub (x, m) q = Mul (d, d) v = GlobalAveragePool (q) p = Add (v, eps) z = Sqrt (p)"
    " n = Div (d, z)"
)
#: Statistics of the flattened positions, put back to the tensor's rank: adaptive instance norm's way.
FLAT = (
    "f = Reshape (x, flat) g = ReduceMean <keepdims=0> (f, one2) m = Reshape (g, whole) c = ReduceMean (f, one2)"
    " e = Sub (f, c) q = Mul (e, e) s = ReduceSum <keepdims=0> (q, one2) k = Div (s, fewer) p = Add (k, eps)"
    " u = Sqrt (p) z = Reshape (u, whole) d = Sub (x, m) n = Div (d, z)"
)


def make(lab: Any, nodes: str, axes: tuple[int, ...] = (2, 3), sizes: tuple[int, ...] = (6, 1, 1), **more: Any) -> Any:
    given = {
        "axes": np.array(axes),
        "w": lab.array(*sizes, low=0.5, high=2.0),
        "b": lab.array(*sizes, seed=1),
        "one2": np.array([2]),
        "flat": np.array([3, 6, -1]),
        "whole": np.array([3, 6, 1, 1]),
        "fewer": number(19.0),
    }
    return build(lab, nodes, **{**given, **more})


@pytest.mark.parametrize(
    ("x", "axes", "sizes", "shape", "groups", "last"),
    [
        ("N,6,H,W", (2, 3), (6, 1, 1), (3, 6, 4, 5), 6, 0),
        ("N,6,L", (2,), (6, 1), (3, 6, 4), 6, 0),
        ("3,6,4", (-1,), (6, 1), (3, 6, 4), 6, 0),
        ("N,6,D,H,W", (2, 3, 4), (1, 6, 1, 1, 1), (2, 6, 2, 3, 4), 6, 0),
        ("N,H,W,6", (1, 2), (6,), (3, 4, 5, 6), 6, 1),
        ("N,L,6", (1,), (6,), (3, 4, 6), 6, 1),
        ("N,6,H,W", (1, 2, 3), (6, 1, 1), (3, 6, 4, 5), 1, 0),
        ("N,H,W,6", (1, 2, 3), (6,), (3, 4, 5, 6), 1, 1),
        ("3,6,4,5", (1, 2, 3), (6, 1, 1), (3, 6, 4, 5), 1, 0),
    ],
)
def test_statistics(lab: Any, x: str, axes: Any, sizes: Any, shape: Any, groups: int, last: int) -> None:
    outcome = becomes(lab, make(lab, f"{CORE} {SCALED}", axes, sizes, x=x), [OP], RULE, shape)
    assert attributes(outcome, OP) == {
        "num_groups": groups,
        "epsilon": np.float32(1e-3),
        "activation": b"none",
        "channels_last": last,
    }
    np.testing.assert_array_equal(parameters(outcome, OP)[0], lab.array(*sizes, low=0.5, high=2.0).reshape(-1))


@pytest.mark.parametrize("core", [CORE, GAP, FLAT])
def test_spellings(lab: Any, core: str) -> None:
    for options in ({}, {"verify": True}):
        becomes(lab, make(lab, f"{core} {SCALED}", x="3,6,4,5"), [OP], RULE, **options)


def test_without_scale(lab: Any) -> None:
    """Over all positions of an image it is instance norm; over one axis whose size is known, layer norm."""
    becomes(lab, make(lab, CORE.replace("n =", "y =")), [OP], RULE)
    core = CORE.replace("n =", "y =")
    becomes(lab, make(lab, core, (2,), x="N,6,L"), [OP], RULE, (3, 6, 4))
    becomes(lab, make(lab, core, (2,), x="N,6,4"), ["LayerNorm"], "fuse/layer-norm", (3, 6, 4))
    becomes(lab, make(lab, core, (1,), x="N,L,6"), [OP], RULE, (3, 4, 6))


def test_with_an_activation(lab: Any) -> None:
    outcome = becomes(lab, make(lab, f"{CORE} f = Mul (n, w) a = Add (f, b) y = Relu (a)"), [OP], RULE)
    assert attributes(outcome, OP)["activation"] == b"relu"


def test_refuses(lab: Any) -> None:
    refuses(lab, make(lab, f"{CORE} {SCALED}", x="N,C,H,W"), RULE, OP, "the number of channels is not known")
    outside = CORE.replace("p = Add (v, eps) z = Sqrt (p)", "p = Sqrt (v) z = Add (p, eps)")
    refuses(lab, make(lab, f"{outside} {SCALED}"), RULE, OP, "epsilon is added outside the root")
    read = make(lab, f"{CORE} {SCALED}", out=", float[N,6,1,1] m")
    refuses(lab, read, RULE, OP, "an inner value is a graph output")
    summed = CORE.replace("v = ReduceMean (q, axes)", "h = ReduceSum (q, axes) v = Div (h, fewer)")
    refuses(lab, make(lab, f"{summed} {SCALED}"), RULE, OP, "how many they are is not known")


def test_verified_where_a_constant_is_the_size_of_a_long_axis(lab: Any) -> None:
    """Samples are cut to 9 positions first, of which 29 is not the number less one."""
    core = CORE.replace("v = ReduceMean (q, axes)", "h = ReduceSum (q, axes) v = Div (h, fewer)")
    model = make(lab, f"{core} {SCALED}", (2,), (6, 1), x="3,6,30", fewer=number(29.0))
    becomes(lab, model, [OP], RULE, (3, 6, 30), verify=True)
