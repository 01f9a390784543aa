"""Sizes that are known are constants, also beside sizes that are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("nodes", "opset", "wanted"),
    [
        ("n = Gather (s, one)", 18, 6),
        ("n = Gather (s, last)", 18, 5),
        ("t = Slice (s, i1, i2) n = Squeeze (t)", 18, 6),
        ("t = Slice <starts=[1], ends=[2]> (s) n = Squeeze (t)", 9, 6),
        ("g = Gather (s, pair) n = ReduceProd <keepdims=0> (g)", 18, 30),
        ("n = Gather (s, zero)", 18, None),
        ("t = Slice (s, i0, i2) n = ReduceProd <keepdims=0> (t)", 18, None),
        ("n = Gather (s, far)", 18, None),
    ],
)
def test_sizes(lab: Any, nodes: str, opset: int, wanted: int | None) -> None:
    known = {"one": np.array(1), "last": np.array(-1), "zero": np.array(0), "far": np.array(9)}
    known |= {"pair": np.array([1, -1]), "i0": np.array([0]), "i1": np.array([1]), "i2": np.array([2])}
    words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in known.items() if name in words}
    text = f"(float[N,6,5] x) => (float[N,6,5] y) {{ s = Shape (x) {nodes} c = Cast <to=1> (n) y = Div (x, c) }}"
    outcome = lab.optimize(lab.model(text, opset, 8, **used), check=wanted is not None)
    assert (outcome.ops == ["Div"]) == (wanted is not None)
    if wanted is not None:
        assert outcome.initializer(outcome.after.graph.node[0].input[1]) == wanted
        lab.same(outcome, {"x": lab.array(2, 6, 5)})
