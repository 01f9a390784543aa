"""lower/body-to-standard: whatever the norm, standard operators are left."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxnorm.norms import all_specs
from onnxnorm.passes.pipeline import rule_ids
from onnxnorm.spec.sample_model import sample_model

RULE = "lower/body-to-standard"
LABELS = ("image", "gelu", "channels-last", "rank-2", "offset", "last-axis", "several-axes", "volume", "batch-only")
CASES = [(name, item) for name, spec in all_specs().items() for item in spec.samples() if item.label in LABELS]


@pytest.mark.parametrize(("name", "sample"), CASES, ids=lambda value: getattr(value, "label", value))
@pytest.mark.parametrize("opset", [15, 20])
def test_every_norm(lab: Any, name: str, sample: Any, opset: int) -> None:
    spec = all_specs()[name]
    single = [rule for rule in rule_ids() if rule.startswith("lower/") and rule != RULE]
    given = ir.to_proto(sample_model(spec, sample, "float32", opset))
    outcome = lab.optimize(given, target="standard", disable=single)
    assert not any(node.domain for node in outcome.after.graph.node)
    assert not outcome.after.functions
    assert (outcome.only.action.value, outcome.only.rule) == ("lowered", RULE)
    feeds = {item.name: array.astype(np.float32) for item, array in zip(spec.inputs, sample.inputs, strict=True)}
    lab.same_in_ort(outcome, feeds)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_element_types(lab: Any, dtype: str) -> None:
    spec = all_specs()["SwitchableNorm"]
    sample = next(item for item in spec.samples() if item.label == "image")
    outcome = lab.optimize(ir.to_proto(sample_model(spec, sample, dtype, 20)), target="standard")
    feeds = {item.name: array for item, array in zip(spec.inputs, sample.inputs, strict=True)}
    lab.same(outcome, feeds, eps=lab.eps("float64"))
    if dtype != "bfloat16":  # ONNX Runtime's Python interface takes no such arrays
        rounded = {name: value.astype(dtype) for name, value in feeds.items()}
        lab.same_in_ort(outcome, rounded, eps=lab.eps(dtype))


def in_function(lab: Any, attribute: str) -> Any:
    text = (
        "(float[2,6,4] x, float[2,6,4] u) => (float[2,6,4] y) { a = local.block <e=0.1> (x, s, b) d = local.block"
        " <e=0.5> (u, s, b) y = Add (a, d) }"
        '\n<domain: "local", opset_import: ["" : 20, "onnxnorm" : 1]> block <e> (p, q, r) => (c)'
        f' {{ c = onnxnorm.GroupNorm <num_groups=3, {attribute}, activation="silu", channels_last=0> (p, q, r) }}'
    )
    return lab.model(text, 20, 10, ', "local" : 1, "onnxnorm" : 1', s=lab.array(6), b=lab.array(6, seed=1))


def test_in_a_function_of_any_element_type(lab: Any) -> None:
    """The function does not say its element types: the operators serve all of them."""
    model = in_function(lab, "epsilon=0.25")
    outcome = lab.optimize(model, target="standard")
    assert (outcome.only.action.value, outcome.only.rule) == ("lowered", RULE)
    assert not any(node.domain for function in outcome.after.functions for node in function.node)
    feeds = {"x": lab.array(2, 6, 4, seed=4), "u": lab.array(2, 6, 4, seed=5)}
    parts = {"num_groups": 3, "epsilon": 0.25, "activation": "silu", "channels_last": 0}
    scale, bias = lab.array(6).astype(np.float64), lab.array(6, seed=1).astype(np.float64)
    inputs = [(value.astype(np.float64), scale, bias) for value in feeds.values()]
    truth = sum(all_specs()["GroupNorm"].reference(item, parts)[0] for item in inputs)
    np.testing.assert_allclose(lab.ort(outcome.after, feeds)[0], truth, atol=1e-6)


def test_refuses_an_attribute_of_the_function(lab: Any, refused: Any) -> None:
    model = in_function(lab, "epsilon: float = @e")
    outcome = refused(model, RULE, "an attribute is a reference to the function's", target="standard")
    assert outcome.only.values == {"attribute": "epsilon"}
    feeds = {"x": lab.array(2, 6, 4, seed=4), "u": lab.array(2, 6, 4, seed=5)}
    before, after = lab.ort(lab.optimize(model).after, feeds), lab.ort(outcome.after, feeds)
    np.testing.assert_array_equal(before[0], after[0])


def test_refuses_an_opset_without_bodies(lab: Any) -> None:
    """The node stays, and attaching its body then says which opset would be right."""
    from onnxnorm.errors import ModelError

    text = (
        '(float[2,6] x) => (float[2,6] y) { y = onnxnorm.RMSNorm <axes=[-1], epsilon=0.1, activation="none"> (x, s) }'
    )
    with pytest.raises(ModelError, match="onnxnorm ops need a model of opset 15 or newer; this one has 6"):
        lab.optimize(lab.model(text, 6, 10, ', "onnxnorm" : 1', s=lab.array(6)), target="standard")


@pytest.mark.parametrize("opset", [13, 14])
def test_raises_an_opset_that_can_be(lab: Any, opset: int) -> None:
    text = (
        '(float[2,6] x) => (float[2,6] y) { y = onnxnorm.RMSNorm <axes=[-1], epsilon=0.1, activation="none"> (x, s) }'
    )
    outcome = lab.optimize(lab.model(text, opset, 10, ', "onnxnorm" : 1', s=lab.array(6)), target="standard")
    assert {node.domain for node in outcome.after.graph.node} == {""}
    lab.same_in_ort(outcome, {"x": lab.array(2, 6)})


def test_does_not_raise_it_for_what_was_written_out(lab: Any) -> None:
    text = (
        "(double[2,6] x) => (double[2,6] y) "
        "{ p = Mul (x, x) m = ReduceMean <axes=[-1]> (p) a = Add (m, e) s = Sqrt (a) y = Div (x, s) }"
    )
    outcome = lab.optimize(lab.model(text, 14, 8, e=np.float64(1e-5)), target="standard")
    assert outcome.ops == ["Mul", "ReduceMean", "Add", "Sqrt", "Div"]
