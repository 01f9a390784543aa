"""fuse/lp-normalization: division by the Euclidean length as ONNX's own operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .spelling import attributes, becomes, build, number, refuses

RULE, OP = "fuse/lp-normalization", "L2Norm"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize(("axis", "wanted"), [("", -1), ("<axis=1>", -3), ("<axis=-1, p=2>", -1)])
def test_fires(lab: Any, dtype: str, axis: str, wanted: int) -> None:
    model = build(lab, f"y = LpNormalization {axis} (x)", dtype, x="N,6,4,5")
    x = lab.array(3, 6, 4, 5, dtype=dtype, seed=9)
    outcome = becomes(lab, model, [OP], RULE, dtype=dtype, x=x)
    assert attributes(outcome, OP)["axes"] == [wanted]


def test_zeros_stay_zeros_as_in_onnx_runtime(lab: Any) -> None:
    outcome = lab.optimize(build(lab, "y = LpNormalization (x)", x="2,3"))
    x = np.array([[0, 0, 0], [3e-20, 4e-20, 0]], np.float32)
    for model in (outcome.before, outcome.after):
        np.testing.assert_allclose(lab.ort(model, {"x": x})[0], [[0, 0, 0], [0.6, 0.8, 0]], rtol=1e-2)


def test_weights(lab: Any) -> None:
    given = {"root": number(8**0.5), "w": lab.array(8)}
    model = build(lab, "n = LpNormalization (x) m = Mul (n, root) y = Mul (m, w)", x="N,5,8", **given)
    for options in ({}, {"verify": True}):
        becomes(lab, model, [OP], RULE, x=lab.array(3, 5, 8), **options)


def test_standard_operators_stay(lab: Any) -> None:
    assert lab.optimize(build(lab, "y = LpNormalization (x)", x="2,3"), target="standard").ops == ["LpNormalization"]


def test_refuses(lab: Any) -> None:
    refuses(lab, build(lab, "y = LpNormalization <p=1> (x)", x="N,6,4,5"), RULE, OP, "absolute values", None)
    refuses(lab, build(lab, "y = LpNormalization (x)", x="N,D"), RULE, OP, "the size of a normalized axis", None)
