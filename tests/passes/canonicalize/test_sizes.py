"""Sizes are read from the graph's inputs, so that what a fold takes away is private."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

FIRST = "s = Shape (m) g = Gather <axis=0> (s, zero) u = Unsqueeze (g, axes) k = Concat <axis=0> (u, rest)"
#: Two ways to read the size of axis 0 of m; k is [that size, -1].
READ = {13: FIRST, 18: "u = Shape <start=0, end=1> (m) k = Concat <axis=0> (u, rest)"}


def build(lab: Any, nodes: str, opset: int, shape: str = "N,4,3", **arrays: Any) -> Any:
    given = {"zero": np.int64(0), "axes": np.array([0]), "rest": np.array([-1]), **arrays}
    used = {name: value for name, value in given.items() if f"{name})" in nodes or f"{name}," in nodes}
    return lab.model(f"(float[{shape}] x, float[N,7] z) => (float[] y) {{ {nodes} }}", opset, **used)


@pytest.mark.parametrize("opset", [13, 18])
def test_the_size_of_what_is_folded(lab: Any, opset: int) -> None:
    nodes = f"m = BatchNormalization (x, gamma, beta, mean, var) {READ[opset]} f = Reshape (m, k) y = MatMul (f, w)"
    model = build(lab, nodes, opset, w=lab.array(12, 5), **lab.batch_norm(4))
    outcome = lab.optimize(model, verify=True, check=False)
    assert "BatchNormalization" not in outcome.ops, outcome.result.explain()
    feeds = {"x": lab.array(2, 4, 3), "z": lab.array(2, 7)}
    lab.same(outcome, feeds, factor=64.0)
    lab.same_in_ort(outcome, feeds, factor=64.0)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("nodes", ["m = Concat <axis=0> (x, x)", "m = NonZero (x)"])
def test_other_sizes_stay(lab: Any, nodes: str, opset: int) -> None:
    """A size that no input has."""
    kind = "f = Cast <to=1> (m)" if "NonZero" in nodes else "f = Identity (m)"
    read = (
        READ[opset].replace("zero", "one").replace("start=0, end=1", "start=1, end=2")
        if "NonZero" in nodes
        else READ[opset]
    )
    model = build(lab, f"{nodes} {kind} {read} y = Reshape (f, k)", opset, one=np.int64(1))
    outcome = lab.optimize(model, check=False)
    feeds = {"x": lab.array(2, 4, 3), "z": lab.array(2, 7)}
    lab.same_in_ort(outcome, feeds)
    shape = outcome.node("Shape")
    assert shape.input[0] not in ("x", "z")
