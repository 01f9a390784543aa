"""fuse/skip-reshape: an addition goes into the norm of rows behind a Reshape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RULE = "fuse/skip-reshape"
ROWS = 'onnxnorm.LayerNorm <axes=[-1], epsilon=0.00001, activation="none">'
CORE = f"a = Add (x, r) s = Reshape (a, flat) n = {ROWS} (s, scale, bias) m = MatMul (n, w) y = Add (m, s)"


def build(lab: Any, nodes: str = CORE, out: str = "", **arrays: Any) -> Any:
    given = {"scale": lab.array(6), "bias": lab.array(6, seed=1), "w": lab.array(6, 6), "flat": np.array([2, -1, 6])}
    text = f"(float[2,4,3,6] x, float[2,4,3,6] r) => (float[2,12,6] y{out}) {{ {nodes} }}"
    words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in (given | arrays).items() if name in words}
    return lab.model(text, 20, 10, ', "onnxnorm" : 1', **used)


def feeds(lab: Any) -> dict[str, Any]:
    return {"x": lab.array(2, 4, 3, 6, seed=9), "r": lab.array(2, 4, 3, 6, seed=8)}


@pytest.mark.parametrize(
    ("nodes", "out", "ops"),
    [
        (CORE, "", ["SkipLayerNorm", "Reshape", "Reshape", "MatMul", "Add"]),
        (CORE.replace("y = Add (m, s)", "y = Relu (m)"), "", ["SkipLayerNorm", "Reshape", "MatMul", "Relu"]),
        (CORE + " o = Neg (a)", ", float[2,4,3,6] o", None),
        (CORE, ", float[2,4,3,6] a, float[2,12,6] s", None),
        (f"k = Shape (x) f1 = Gather (k, first) flat = Concat <axis=0> (f1, more) {CORE}", "", None),
    ],
)
@pytest.mark.parametrize("verify", [False, True])
def test_fires(lab: Any, nodes: str, out: str, ops: list[str] | None, verify: bool) -> None:
    arrays = {"first": np.array([0]), "more": np.array([-1, 6])} if "Shape" in nodes else {}
    model = build(lab, nodes, out, **arrays)
    if "Shape" in nodes:
        del model.graph.initializer[[item.name for item in model.graph.initializer].index("flat")]
        for item in (*model.graph.input, *model.graph.output):
            item.type.tensor_type.shape.dim[0].dim_param = "N"
    outcome = lab.optimize(model, verify=verify)
    assert "SkipLayerNorm" in outcome.ops, outcome.result.explain()
    assert ops is None or outcome.ops == ops
    assert RULE in outcome.result.explain()
    lab.same(outcome, feeds(lab))
    lab.same_in_ort(outcome, feeds(lab))


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (CORE.replace("axes=[-1]", "axes=[-2, -1]").replace("scale", "big").replace("bias", "big"), "normalized axes"),
        (CORE.replace("Reshape (a, flat)", "Reshape (a, mixed)"), "keep the normalized axes"),
        (CORE.replace("(x, r)", "(x, row)"), None),
        (CORE.replace("(x, r)", "(x, one)"), None),
    ],
)
def test_refuses(lab: Any, nodes: str, words: str | None) -> None:
    more = {"big": lab.array(12, 6), "mixed": np.array([2, 24, 3]), "row": lab.array(6), "one": np.ones((1, 1, 1, 6))}
    if "mixed" in nodes:
        nodes = nodes.replace("(s, scale, bias)", "(s, third, third)").replace("(n, w)", "(n, w3)")
        more |= {"third": lab.array(3), "w3": lab.array(3, 3)}
    more["one"] = more["one"].astype(np.float32)
    model = build(lab, nodes, **more)
    if "mixed" in nodes:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 24
        model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 3
    outcome = lab.optimize(model)
    assert "SkipLayerNorm" not in outcome.ops
    assert words is None or words in outcome.result.explain()
    lab.same(outcome, feeds(lab))
