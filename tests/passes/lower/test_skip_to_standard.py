"""lower/skip-to-standard: an addition, and whatever the plain op becomes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxnorm.norms import all_specs
from onnxnorm.passes.fuse.skip import NORMS


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("name", sorted(NORMS))
def test_every_skip_form(lab: Any, name: str, opset: int, shared: bool) -> None:
    """On its first sample; ``shared`` is whether the sum is a result too."""
    spec = all_specs()[f"Skip{name}"]
    sample = next(iter(spec.samples()))
    x, skip, *parameters = (np.asarray(item, np.float32) for item in sample.inputs)
    outputs = ["y", "sum"] if shared else ["y"]
    node = helper.make_node(
        spec.name, [item.name for item in spec.inputs], outputs, "norm", domain="onnxnorm", **sample.attributes
    )
    info = {item: helper.make_tensor_value_info(item, TensorProto.FLOAT, x.shape) for item in ("X", "skip", *outputs)}
    given = [numpy_helper.from_array(value, item.name) for value, item in zip(parameters, spec.inputs[2:], strict=True)]
    graph = helper.make_graph([node], "g", [info["X"], info["skip"]], [info[item] for item in outputs], given)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("onnxnorm", 1)]
    outcome = lab.optimize(helper.make_model(graph, opset_imports=imports, ir_version=10), target="standard")
    assert {item.domain for item in outcome.after.graph.node} == {""}
    assert "lower/skip-to-standard" in outcome.only.rule
    feeds = {"X": x, "skip": skip}
    wanted = spec.reference([np.asarray(item, np.float64) for item in (x, skip, *parameters)], sample.attributes)
    for found, truth in zip(lab.ort(outcome.after, feeds), wanted, strict=False):
        assert np.abs(found - truth).max() <= 1e-5 * max(1.0, np.abs(truth).max())


def test_in_a_function(lab: Any) -> None:
    """Its element types differ from call to call: the body serves all of them."""
    text = (
        "(float[2,6] x, float[2,6] r) => (float[2,6] y) { y = own.f (x, r, s) } "
        '<domain: "own", opset_import: ["" : 18, "onnxnorm" : 1]> f (a, b, c) => (d) '
        '{ d = onnxnorm.SkipRMSNorm <axes=[-1], epsilon=0.1, activation="none"> (a, b, c) }'
    )
    model = lab.model(text, 18, 10, ', "own" : 1, "onnxnorm" : 1', s=lab.array(6))
    outcome = lab.optimize(model, target="standard")
    x, r, scale = lab.array(2, 6), lab.array(2, 6, seed=1), lab.array(6)
    total = (x + r).astype(np.float64)
    truth = total / np.sqrt(np.square(total).mean(axis=-1, keepdims=True) + 0.1) * scale
    np.testing.assert_allclose(lab.ort(outcome.after, {"x": x, "r": r})[0], truth, rtol=0, atol=1e-6)
