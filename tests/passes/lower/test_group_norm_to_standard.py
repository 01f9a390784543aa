"""lower/group-norm-to-standard."""

from __future__ import annotations

from typing import Any

import pytest

from onnxnorm.norms import all_specs
from onnxnorm.spec.sample_model import sample_model

RULE = "lower/group-norm-to-standard"
SAMPLES = {sample.label: sample for sample in all_specs()["GroupNorm"].samples()}


def lower(lab: Any, label: str = "image", opset: int = 21, dtype: str = "float32", **options: Any) -> Any:
    import onnx_ir as ir

    sample = SAMPLES[label]
    model = sample_model(all_specs()["GroupNorm"], sample, dtype, opset, **options)
    outcome = lab.optimize(ir.to_proto(model), target="standard")
    assert not any(node.domain for node in outcome.after.graph.node)
    assert not outcome.after.functions
    assert [item.domain for item in outcome.after.opset_import] == [""]
    return outcome


@pytest.mark.parametrize("label", ["image", "relu", "silu", "gelu", "volume", "one-group", "group-per-channel"])
@pytest.mark.parametrize("opset", [21, 23])
def test_fires(lab: Any, label: str, opset: int) -> None:
    outcome = lower(lab, label, opset)
    assert "GroupNormalization" in outcome.ops
    decision = outcome.only
    assert (decision.action.value, decision.rule, decision.into) == ("lowered", RULE, "GroupNormalization")
    feeds = dict(zip(["X", "scale", "bias"], (item.astype("float32") for item in SAMPLES[label].inputs), strict=True))
    lab.same(outcome, feeds)
    lab.same_in_ort(outcome, feeds)


@pytest.mark.parametrize(("dtype", "stash"), [("float32", 1), ("float16", 1)])
def test_statistics_type(lab: Any, dtype: str, stash: int) -> None:
    outcome = lower(lab, dtype=dtype)
    assert {item.name: item.i for item in outcome.node("GroupNormalization").attribute}["stash_type"] == stash
    feeds = dict(zip(["X", "scale", "bias"], (item.astype(dtype) for item in SAMPLES["image"].inputs), strict=True))
    for truth, new in zip(lab.run(outcome.before, feeds), lab.ort(outcome.after, feeds), strict=True):
        assert abs(truth - new).max() <= 32 * lab.eps(dtype) * abs(truth).max()


@pytest.mark.parametrize(
    ("label", "opset", "dtype"),
    [
        ("image", 20, "float32"),
        ("channels-last", 21, "float32"),
        ("image", 21, "bfloat16"),
        ("image", 21, "float64"),
        ("rank-2", 21, "float32"),
    ],
)
def test_what_it_refuses_is_lowered_to_primitive_operators(lab: Any, label: str, opset: int, dtype: str) -> None:
    outcome = lower(lab, label, opset, dtype)
    assert "GroupNormalization" not in outcome.ops
    assert outcome.only.rule == "lower/body-to-standard"


@pytest.mark.parametrize(
    ("label", "opset", "dtype", "words"),
    [
        ("image", 20, "float32", "came with opset 21"),
        ("channels-last", 21, "float32", "channels-first only"),
        ("image", 21, "bfloat16", "does not run GroupNormalization in bfloat16"),
        ("image", 21, "float64", "epsilon as a float32"),
        ("rank-2", 21, "float32", "loses the variance of a few values"),
    ],
)
def test_refuses(lab: Any, refused: Any, label: str, opset: int, dtype: str, words: str) -> None:
    import onnx_ir as ir

    model = ir.to_proto(sample_model(all_specs()["GroupNorm"], SAMPLES[label], dtype, opset))
    refused(model, RULE, words, target="standard", disable=["lower/body-to-standard"])


def test_refuses_an_unknown_type(lab: Any, refused: Any) -> None:
    text = (
        "(float[2,6,4] x) => (float[2,6,4] y) { u = other.Unknown (x)"
        ' v = onnxnorm.GroupNorm <num_groups=3, epsilon=0.1, activation="none", channels_last=0> (u, s, b) y ='
        " other.Unknown (v) }"
    )
    model = lab.model(text, 21, 10, ', "other" : 1, "onnxnorm" : 1', s=lab.array(6), b=lab.array(6))
    refused(model, RULE, "the element type of X is not known", target="standard", disable=["lower/body-to-standard"])
    assert lab.optimize(model, target="standard").only.rule == "lower/body-to-standard"
