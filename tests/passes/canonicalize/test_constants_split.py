"""Parts of a constant are constants: weights that are taken one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("opset", "split"), [(11, "<split=[1, 2]> (w)"), (13, "(w, sizes)"), (18, "<num_outputs=2> (w)")]
)
def test_parts_of_a_constant(lab: Any, opset: int, split: str) -> None:
    nodes = f"a, b = Split {split} c = Mul (x, a) y = Add (c, b)"
    arrays = {"w": np.array([1.5, 2.0, 3.0], np.float32)}
    if opset == 18:
        arrays["w"] = np.array([1.5, 2.0], np.float32)
    size = arrays["w"].size - 1
    model = lab.model(
        f"(float[N,{size}] x) => (float[N,{size}] y) {{ {nodes} }}", opset, sizes=np.array([1, 2]), **arrays
    )
    outcome = lab.optimize(model)
    assert "Split" not in outcome.ops
    lab.same(outcome, {"x": lab.array(4, size)})


@pytest.mark.parametrize("why", ["output", "overridable", "misfit"])
def test_stays(lab: Any, why: str) -> None:
    sizes = [1, 1] if why == "misfit" else [1, 2]
    out = ", float[1] a" if why == "output" else ""
    nodes = "a, b = Split (w, sizes) y = Add (x, b)"
    given = ", float[3] w" if why == "overridable" else ""
    arrays = {"w": np.array([1.0, 2.0, 3.0], np.float32), "sizes": np.array(sizes)}
    model = lab.model(f"(float[N,2] x{given}) => (float[N,2] y{out}) {{ {nodes} }}", 13, **arrays)
    assert "Split" in lab.optimize(model, check=why != "misfit").ops
