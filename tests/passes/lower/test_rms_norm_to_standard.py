"""lower/rms-norm-to-standard."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxnorm.norms import all_specs
from onnxnorm.spec.record import Sample
from onnxnorm.spec.sample_model import sample_model

RULE = "lower/rms-norm-to-standard"
SPEC = all_specs()["RMSNorm"]


def sample(axes: list[int], activation: str = "none", shape: tuple[int, ...] = (2, 5, 8)) -> Sample:
    rng = np.random.default_rng(0)
    scale = rng.standard_normal([shape[axis] for axis in sorted(axis % len(shape) for axis in axes)])
    attributes = {"axes": axes, "epsilon": 1e-5, "activation": activation}
    return Sample("", (rng.standard_normal(shape), scale), attributes)


def model(axes: list[int], activation: str = "none", opset: int = 23, dtype: str = "float32") -> Any:
    return ir.to_proto(sample_model(SPEC, sample(axes, activation), dtype, opset))


def feeds(axes: list[int], dtype: str = "float32") -> dict[str, Any]:
    return dict(zip(("X", "scale"), (item.astype(dtype) for item in sample(axes).inputs), strict=True))


@pytest.mark.parametrize("axes", [[-1], [2], [-2, -1], [2, 1], [-1, 0, 1]])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_fires(lab: Any, axes: list[int], activation: str) -> None:
    outcome = lab.optimize(model(axes, activation), target="standard")
    assert outcome.ops[0] == "RMSNormalization"
    assert (outcome.only.action.value, outcome.only.rule) == ("lowered", RULE)
    lab.same(outcome, feeds(axes))
    lab.same_in_ort(outcome, feeds(axes))


@pytest.mark.parametrize(
    ("axes", "opset", "dtype", "words"),
    [
        ([-1], 22, "float32", "RMSNormalization came with opset 23"),
        ([1], 23, "float32", "RMSNormalization takes the last axes in a row"),
        ([0, 2], 23, "float32", "RMSNormalization takes the last axes in a row"),
        ([-1], 23, "bfloat16", "ONNX Runtime CPU does not run RMSNormalization in bfloat16"),
        ([-1], 23, "float64", "ONNX Runtime takes RMSNormalization's epsilon as a float32"),
    ],
)
def test_refuses_and_the_general_rule_takes_it(
    lab: Any, refused: Any, axes: list[int], opset: int, dtype: str, words: str
) -> None:
    given = model(axes, opset=opset, dtype=dtype)
    refused(given, RULE, words, target="standard", disable=["lower/body-to-standard"])
    outcome = lab.optimize(given, target="standard")
    assert outcome.only.rule == "lower/body-to-standard"
    assert not any(node.domain for node in outcome.after.graph.node)
    lab.same(outcome, feeds(axes), eps=lab.eps(dtype))


@pytest.mark.parametrize(("axes", "fires"), [("[-1]", True), ("[1]", False)])
def test_refuses_an_unknown_rank_with_axes_from_the_front(lab: Any, refused: Any, axes: str, fires: bool) -> None:
    text = f'(float[] x) => (float[] y) {{ y = onnxnorm.RMSNorm <axes={axes}, epsilon=0.1, activation="none"> (x, s) }}'
    given = lab.model(text, 23, 11, ', "onnxnorm" : 1', s=lab.array(8))
    if fires:
        assert lab.optimize(given, check=False, target="standard").ops == ["RMSNormalization"]
    else:
        refused(
            given,
            RULE,
            "the rank of X is not known",
            check=False,
            target="standard",
            disable=["lower/body-to-standard"],
        )


def test_refuses_an_unknown_type(lab: Any, refused: Any) -> None:
    text = (
        "(float[2,8] x) => (float[2,8] y) { u = other.Unknown (x)"
        ' v = onnxnorm.RMSNorm <axes=[-1], epsilon=0.1, activation="none"> (u, s) y = other.Unknown (v) }'
    )
    given = lab.model(text, 23, 11, ', "other" : 1, "onnxnorm" : 1', s=lab.array(8))
    refused(given, RULE, "the element type of X is not known", target="standard", disable=["lower/body-to-standard"])
