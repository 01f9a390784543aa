"""lower/layer-norm-to-standard."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxnorm.norms import all_specs
from onnxnorm.passes.lower.choice import STANDARD
from onnxnorm.spec.record import Sample
from onnxnorm.spec.sample_model import sample_model

RULE = "lower/layer-norm-to-standard"
SPEC = all_specs()["LayerNorm"]
TARGETS = ["onnxnorm", "standard"]
#: (target, provider) for which LayerNormalization is the choice.
CHOSEN = [("standard", "cpu"), ("standard", "cuda"), ("onnxnorm", "cuda")]


def sample(axes: list[int], activation: str = "none", shape: tuple[int, ...] = (2, 5, 8)) -> Sample:
    rng = np.random.default_rng(0)
    sizes = [shape[axis] for axis in sorted(axis % len(shape) for axis in axes)]
    attributes = {"axes": axes, "epsilon": 1e-5, "activation": activation}
    return Sample("", (rng.standard_normal(shape), rng.standard_normal(sizes), rng.standard_normal(sizes)), attributes)


def model(axes: list[int], activation: str = "none", opset: int = 18, dtype: str = "float32", **more: Any) -> Any:
    return ir.to_proto(sample_model(SPEC, sample(axes, activation, **more), dtype, opset))


def feeds(axes: list[int], dtype: str = "float32", **more: Any) -> dict[str, Any]:
    return dict(zip(("X", "scale", "bias"), (item.astype(dtype) for item in sample(axes, **more).inputs), strict=True))


@pytest.mark.parametrize(("target", "provider"), CHOSEN)
@pytest.mark.parametrize("opset", [17, 18, 24])
@pytest.mark.parametrize("axes", [[-1], [2], [-2, -1], [2, 1], [-1, 0, 1]])
def test_fires(lab: Any, axes: list[int], opset: int, target: str, provider: str) -> None:
    outcome = lab.optimize(model(axes, opset=opset), target=target, provider=provider)
    assert outcome.ops == ["LayerNormalization"]
    assert (outcome.only.action.value, outcome.only.rule) == ("lowered", RULE)
    assert not outcome.after.functions
    lab.same(outcome, feeds(axes))
    lab.same_in_ort(outcome, feeds(axes))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_on_cpu_our_kernel_is_faster(lab: Any, dtype: str) -> None:
    outcome = lab.optimize(model([-1], dtype=dtype))
    assert outcome.ops == ["LayerNorm"]
    assert outcome.only.action.value == "kept"
    assert [function.name for function in outcome.after.functions] == ["LayerNorm"]


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_an_activation_is_written_out_for_standard_only(lab: Any, activation: str) -> None:
    outcome = lab.optimize(model([-1], activation), target="standard")
    assert outcome.ops[0] == "LayerNormalization"
    lab.same(outcome, feeds([-1]))
    lab.same_in_ort(outcome, feeds([-1]))
    for provider in ("cpu", "cuda"):
        kept = lab.optimize(model([-1], activation), provider=provider)
        assert kept.ops == ["LayerNorm"]
        assert kept.only.action.value == "kept"


@pytest.mark.parametrize(("target", "provider"), CHOSEN)
def test_float16(lab: Any, target: str, provider: str) -> None:
    outcome = lab.optimize(model([-1], dtype="float16"), target=target, provider=provider)
    assert outcome.ops == ["LayerNormalization"]
    lab.same(outcome, feeds([-1], "float16"), eps=lab.eps("float16"))
    lab.same_in_ort(outcome, feeds([-1], "float16"), eps=lab.eps("float16"))


@pytest.mark.parametrize(
    ("axes", "opset", "dtype", "words"),
    [
        ([-1], 16, "float32", "LayerNormalization came with opset 17"),
        ([1], 18, "float32", "LayerNormalization takes the last axes in a row"),
        ([0, 2], 18, "float32", "LayerNormalization takes the last axes in a row"),
        ([-1], 18, "bfloat16", "no exact kernel of LayerNormalization in bfloat16"),
        ([-1], 18, "float64", "no exact kernel of LayerNormalization in double"),
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
    assert "LayerNormalization" not in outcome.ops
    lab.same(outcome, feeds(axes), eps=lab.eps(dtype))
    kept = lab.optimize(given)
    assert kept.ops == ["LayerNorm"]
    assert kept.only.action.value == "kept"  # no rule was refused: the op is what is wanted


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_provider_decides_over_bfloat16(lab: Any, provider: str, target: str) -> None:
    outcome = lab.optimize(model([-1], dtype="bfloat16"), target=target, provider=provider)
    assert ("LayerNormalization" in outcome.ops) is (provider == "cuda")
    lab.same(outcome, feeds([-1]), eps=lab.eps("bfloat16"))


def test_every_provider_is_in_the_table() -> None:
    for standard in STANDARD.values():
        assert set(standard.kernels) == set(standard.best) == {"cpu", "cuda"}
        assert all(types <= standard.kernels[provider] for provider, types in standard.best.items())
    assert set(STANDARD) <= set(all_specs())


def test_float64_keeps_the_digits_of_epsilon(lab: Any) -> None:
    """ONNX Runtime's own kernel reads 1e-5 as 9.99999974e-06."""
    given = model([-1], dtype="float64")
    small = {name: value * (1e-3 if name == "X" else 1) for name, value in feeds([-1], "float64").items()}
    (truth,) = SPEC.reference(list(small.values()), {"axes": [-1], "epsilon": 1e-5, "activation": "none"})
    for target in TARGETS:
        (y,) = lab.ort(lab.optimize(given, target=target).after, small)
        np.testing.assert_allclose(y, truth, rtol=1e-13, atol=1e-13)


def test_refuses_an_empty_axis(lab: Any, refused: Any) -> None:
    given = model([-1], shape=(3, 0))
    refused(given, RULE, "a normalized axis has size 0", target="standard", disable=["lower/body-to-standard"])
    for target in TARGETS:
        outcome = lab.optimize(given, target=target)
        assert "LayerNormalization" not in outcome.ops
        (y,) = lab.ort(outcome.after, feeds([-1], shape=(3, 0)))
        assert y.shape == (3, 0)


@pytest.mark.parametrize(("axes", "fires"), [("[-1]", True), ("[1]", False)])
def test_refuses_an_unknown_rank_with_axes_from_the_front(lab: Any, refused: Any, axes: str, fires: bool) -> None:
    node = f'y = onnxnorm.LayerNorm <axes={axes}, epsilon=0.1, activation="none"> (x, s, b)'
    given = lab.model(
        f"(float[] x) => (float[] y) {{ {node} }}", 18, 10, ', "onnxnorm" : 1', s=lab.array(8), b=lab.array(8)
    )
    if fires:
        assert lab.optimize(given, check=False, target="standard").ops == ["LayerNormalization"]
        return
    options = {"check": False, "target": "standard", "disable": ["lower/body-to-standard"]}
    refused(given, RULE, "the rank of X is not known", **options)


def test_refuses_an_unknown_type(lab: Any, refused: Any) -> None:
    text = (
        "(float[2,8] x) => (float[2,8] y) { u = other.Unknown (x)"
        ' v = onnxnorm.LayerNorm <axes=[-1], epsilon=0.1, activation="none"> (u, s, b) y = other.Unknown (v) }'
    )
    given = lab.model(text, 18, 10, ', "other" : 1, "onnxnorm" : 1', s=lab.array(8), b=lab.array(8))
    refused(given, RULE, "the element type of X is not known", target="standard", disable=["lower/body-to-standard"])


def test_refuses_in_a_function(lab: Any, refused: Any) -> None:
    text = (
        "(float[2,8] x) => (float[2,8] y) { y = local.block (x, s, b) }"
        '\n<domain: "local", opset_import: ["" : 18, "onnxnorm" : 1]> block (x, s, b) => (y)'
        ' { y = onnxnorm.LayerNorm <axes=[-1], epsilon=0.1, activation="none"> (x, s, b) }'
    )
    given = lab.model(text, 18, 10, ', "local" : 1, "onnxnorm" : 1', s=lab.array(8), b=lab.array(8))
    refused(given, RULE, "it stands in a model-local function", target="standard", disable=["lower/body-to-standard"])


NODE = 'y = onnxnorm.LayerNorm <axes=[-1], epsilon=0.1, activation="none"> (x, s, b)'


@pytest.mark.parametrize(("target", "provider"), CHOSEN)
def test_a_bias_of_zeros_is_left_out(lab: Any, target: str, provider: str) -> None:
    text = "(float[N,8] x) => (float[N,8] y) { " + NODE + " }"
    for bias, inputs in ((np.zeros(8, np.float32), 2), (lab.array(8), 3)):
        given = lab.model(text, 18, 10, ', "onnxnorm" : 1', s=lab.array(8), b=bias)
        outcome = lab.optimize(given, target=target, provider=provider)
        assert len(outcome.node("LayerNormalization").input) == inputs
        assert len(outcome.after.graph.initializer) == inputs - 1
        lab.same_in_ort(outcome, {"x": lab.array(3, 8)})


def test_a_bias_that_a_caller_may_override_stays(lab: Any) -> None:
    text = "(float[N,8] x, float[8] b) => (float[N,8] y) { " + NODE + " }"
    given = lab.model(text, 18, 10, ', "onnxnorm" : 1', s=lab.array(8), b=np.zeros(8, np.float32))
    outcome = lab.optimize(given, provider="cuda")
    assert len(outcome.node("LayerNormalization").input) == 3
    lab.same_in_ort(outcome, {"x": lab.array(3, 8), "b": lab.array(8)})


@pytest.mark.parametrize(("target", "provider"), CHOSEN)
def test_verified(lab: Any, target: str, provider: str) -> None:
    outcome = lab.optimize(model([-2, -1]), target=target, provider=provider, verify=True)
    assert outcome.ops == ["LayerNormalization"]


def test_disabled(lab: Any) -> None:
    assert lab.optimize(model([-1]), provider="cuda", disable=[RULE]).ops == ["LayerNorm"]
