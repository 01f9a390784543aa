"""fuse/positions-reshape: how positions are arranged is nothing to a norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .spelling import build, sample

CORE = "f = Reshape (x, flat) n = GroupNormalization <num_groups=3> (f, w, b) y = Reshape (n, whole)"


def model(lab: Any, nodes: str = CORE, x: str = "3,6,4,5", out: str = "", **more: Any) -> Any:
    shapes = {"flat": np.array([0, 6, -1]), "whole": np.array([3, 6, 4, 5])}
    return build(lab, nodes, opset=21, x=x, out=out, **(shapes | {"w": lab.array(6), "b": lab.array(6, seed=1)} | more))


@pytest.mark.parametrize(
    ("nodes", "x"),
    [
        (CORE, "3,6,4,5"),
        (f"size = Shape (x) {CORE.replace('whole', 'size')}", "N,6,H,W"),
        (CORE.replace("flat", "cube"), "3,6,4,5"),
        (CORE.replace("f = Reshape (x, flat) ", "").replace("(f,", "(x,"), "3,6,4,5"),
    ],
)
def test_fires(lab: Any, nodes: str, x: str) -> None:
    outcome = lab.optimize(model(lab, nodes, x, cube=np.array([3, 6, 2, 2, 5])))
    assert outcome.ops == ["GroupNorm"], outcome.result.explain()
    assert "fuse/positions-reshape" in outcome.only.rule
    lab.same(outcome, {"x": sample(lab, (3, 6, 4, 5))})


@pytest.mark.parametrize(
    ("old", "new", "out"),
    [
        ("(x, flat)", "(x, mixed)", ""),  # items are not kept
        ("y = Reshape (n, whole)", "k = Reshape (n, other) y = Transpose <perm=[0,1,3,2]> (k)", ""),
        ("(n, whole)", "(n, whole) u = Neg (n)", ", float[3,6,20] u"),
        ("(n, whole)", "(n, whole) u = Neg (f)", ", float[3,6,20] u"),
        ("(n, whole)", "(n, whole)", ", float[3,6,20] n"),
    ],
)
def test_refuses(lab: Any, old: str, new: str, out: str) -> None:
    more = {"mixed": np.array([1, 6, 60]), "other": np.array([3, 6, 5, 4])}
    outcome = lab.optimize(model(lab, CORE.replace(old, new), out=out, **more))
    assert outcome.ops.count("Reshape") == 2
    lab.same(outcome, {"x": sample(lab, (3, 6, 4, 5))})
