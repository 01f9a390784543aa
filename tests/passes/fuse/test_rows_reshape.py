"""fuse/rows-reshape: norms of rows between Reshapes that keep these."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RULE = "fuse/rows-reshape"
OURS = 'onnxnorm.{} <axes=[-1], epsilon=0.01, activation="none">'
SHAPE = (2, 5, 8)


def make(lab: Any, op: str = "LayerNorm", back: str = "s = Shape (x) y = Reshape (n, s)", **options: Any) -> Any:
    given = {
        "flat": np.array([-1, 8]),
        "w": lab.array(8),
        "b": lab.array(8, seed=1),
        "whole": np.array([2, 5, 8]),
        "other": np.array([5, 2, 8]),
        **options,
    }
    x, out = given.pop("x", "2,5,8"), given.pop("out", "")
    norm = f"{OURS.format(op)} (f, w{', b' if op == 'LayerNorm' else ''})"
    nodes = f"f = Reshape (x, flat) n = {norm} {back}"
    words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in given.items() if name in words}
    return lab.model(f"(float[{x}] x) => (float[{x}] y{out}) {{ {nodes} }}", 18, 10, ', "onnxnorm" : 1', **used)


@pytest.mark.parametrize("op", ["LayerNorm", "RMSNorm", "L2Norm"])
@pytest.mark.parametrize("x", ["2,5,8", "N,L,8"])
def test_fires(lab: Any, op: str, x: str) -> None:
    for options in ({}, {"verify": True}):
        outcome = lab.optimize(make(lab, op, x=x), **options)
        assert outcome.ops == [op]
        assert (outcome.only.action.value, outcome.only.rule) == ("fused", RULE)
        lab.same(outcome, {"x": lab.array(*SHAPE, seed=9)})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flat": np.array([2, 10, 4]), "w": np.ones(4, np.float32), "b": np.ones(4, np.float32)}, "keep the rows"),
        ({"back": "k = Reshape (n, other) y = Transpose <perm=[1, 0, 2]> (k)"}, "to give the shape of x"),
        ({"back": "y = Reshape (n, whole) z = Neg (n)", "out": ", float[10,8] z"}, "another reader"),
        ({"back": "y = Reshape (n, whole) z = Neg (f)", "out": ", float[10,8] z"}, "another reader"),
        ({"out": ", float[10,8] f"}, "is a graph output"),
        ({"out": ", float[10,8] n"}, "is a graph output"),
    ],
)
def test_refuses(lab: Any, refused: Any, options: dict[str, Any], words: str) -> None:
    outcome = refused(make(lab, **options), RULE, words)
    lab.same(outcome, {"x": lab.array(*SHAPE, seed=9)})
