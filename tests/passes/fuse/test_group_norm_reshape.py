"""fuse/instance-normalization and fuse/group-norm-reshape, with fuse/channel-affine behind them."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onnxnorm.passes.pipeline import optimize

from .spelling import attributes, becomes, build, parameters, refuses

INSTANCE, RESHAPE, AFFINE, OP = (
    "fuse/instance-normalization",
    "fuse/group-norm-reshape",
    "fuse/channel-affine",
    "GroupNorm",
)
NORM = "InstanceNormalization <epsilon=0.01>"
CORE = f"f = Reshape (x, cut) n = {NORM} (f, one3, zero3) k = Reshape (n, whole)"
SCALED = "p = Mul (k, w) y = Add (p, b)"
#: The op itself, for what later rules say of it.
OURS = 'onnxnorm.GroupNorm <num_groups={}, epsilon=0.01, activation="none", channels_last=0>'


def arrays(lab: Any, dtype: str = "float32") -> dict[str, Any]:
    kind = lab.array(1, dtype=dtype).dtype
    result = {"cut": np.array([0, 3, -1]), "whole": np.array([3, 6, 4, 5])}
    result |= {"one3": np.ones(3, kind), "zero3": np.zeros(3, kind), "s6": lab.array(6, dtype=dtype)}
    result |= {
        "b6": lab.array(6, dtype=dtype, seed=1),
        "s3": lab.array(3, dtype=dtype),
        "b3": lab.array(3, dtype=dtype),
    }
    return result | {
        "w": lab.array(6, 1, 1, dtype=dtype, low=0.5, high=2.0),
        "b": lab.array(6, 1, 1, dtype=dtype, seed=3),
    }


def make(lab: Any, nodes: str, dtype: str = "float32", **options: Any) -> Any:
    model = build(lab, nodes, dtype, **{"x": "3,6,4,5", **arrays(lab, dtype), **options})
    if "onnxnorm." in nodes:
        model.opset_import.add(domain="onnxnorm", version=1)
    return model


# --- InstanceNormalization ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["N,6,L", "N,6,H,W", "N,6,D,H,W"])
def test_instance_normalization(lab: Any, shape: str) -> None:
    sizes = tuple({"N": 3, "6": 6, "L": 7, "D": 2, "H": 4, "W": 5}[name] for name in shape.split(","))
    outcome = becomes(lab, make(lab, f"y = {NORM} (x, s6, b6)", x=shape), [OP], INSTANCE, sizes)
    assert attributes(outcome, OP) == {
        "num_groups": 6,
        "epsilon": np.float32(0.01),
        "activation": b"none",
        "channels_last": 0,
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("opset", [15, 22])
def test_types_and_opsets(lab: Any, dtype: str, opset: int) -> None:
    becomes(lab, make(lab, f"y = {NORM} (x, s6, b6)", dtype, opset=opset), [OP], INSTANCE, dtype=dtype)


def test_offset_data(lab: Any) -> None:
    """ONNX Runtime's InstanceNormalization loses digits here."""
    outcome = lab.optimize(make(lab, f"y = {NORM} (x, s6, b6)"))
    x = (lab.array(3, 6, 4, 5, seed=4) + 1e4).astype(np.float32)
    lab.same_in_ort(outcome, {"x": x})


def test_with_an_activation(lab: Any) -> None:
    outcome = becomes(lab, make(lab, f"n = {NORM} (x, s6, b6) y = Relu (n)"), [OP], INSTANCE)
    assert attributes(outcome, OP)["activation"] == b"relu"


def test_run_time_parameters(lab: Any) -> None:
    model = make(lab, f"y = {NORM} (x, given, b6)")
    model.graph.input.extend(lab.model("(float[6] given) => (float y) { y = Abs (given) }").graph.input)
    outcome = lab.optimize(model)
    assert outcome.ops == [OP]
    lab.same_in_ort(outcome, {"x": lab.array(3, 6, 4, 5), "given": lab.array(6)})


def test_instance_normalization_refuses(lab: Any) -> None:
    refuses(lab, make(lab, f"y = {NORM} (x, s6, b6)", x="N,C,H,W"), INSTANCE, OP, "the number of channels is not known")
    model = make(lab, f"y = {NORM} (x, given, b6)")
    model.graph.input.extend(lab.model("(float[C] given) => (float y) { y = Abs (given) }").graph.input)
    refuses(lab, model, INSTANCE, OP, "scale is not known to have one value per channel", None)


@pytest.mark.usefixtures("functions_stay")
def test_instance_normalization_refuses_a_function(lab: Any) -> None:
    text = (
        "(float[2,6,4,3] x) => (float[2,6,4,3] y) { y = local.block (x, scale, bias) }"
        '\n<domain: "local", opset_import: ["" : 21]> block (a, s, b) => (c) { c = InstanceNormalization (a, s, b) }'
    )
    model = lab.model(text, 21, 10, ', "local" : 1', scale=lab.array(6), bias=lab.array(6))
    refuses(lab, model, INSTANCE, OP, "it stands in a model-local function", None)


# --- between two Reshapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_pytorchs_form_of_opset_18(lab: Any, dtype: str) -> None:
    outcome = becomes(lab, make(lab, f"{CORE} {SCALED}", dtype), [OP], INSTANCE, dtype=dtype)
    assert outcome.only.rule == f"{INSTANCE}, {RESHAPE}, {AFFINE}"
    assert attributes(outcome, OP)["num_groups"] == 3
    for new, old in zip(parameters(outcome, OP), (arrays(lab, dtype)[name] for name in "wb"), strict=True):
        np.testing.assert_array_equal(new, old.reshape(-1))


def test_scale_and_bias_of_the_groups(lab: Any) -> None:
    nodes = f"{CORE} {SCALED}".replace("one3", "s3").replace("zero3", "b3")
    outcome = becomes(lab, make(lab, nodes), [OP], INSTANCE)
    given = {name: value.astype(np.float64) for name, value in arrays(lab).items()}
    scale = np.repeat(given["s3"], 2) * given["w"].reshape(-1)
    np.testing.assert_array_equal(parameters(outcome, OP)[0], scale.astype(np.float32))


def test_a_shape_that_is_computed(lab: Any) -> None:
    nodes = f"f = Reshape (x, cut) n = {NORM} (f, one3, zero3) z = Shape (x) k = Reshape (n, z) {SCALED}"
    becomes(lab, make(lab, nodes, x="N,6,H,W"), [OP], INSTANCE)


def test_without_scale_and_shift(lab: Any) -> None:
    """As the TorchScript exporter writes them: 1 and 0, which change nothing."""
    ones = {"i": np.ones((1, 1, 1), np.float32), "o": np.zeros((1, 1, 1), np.float32)}
    becomes(lab, make(lab, f"{CORE} p = Mul (k, i) y = Add (p, o)", **ones), [OP], INSTANCE)


def test_verified(lab: Any) -> None:
    assert lab.optimize(make(lab, f"{CORE} {SCALED}"), verify=True).ops == [OP]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("Reshape (x, cut)", "Reshape (x, mixed)", "not known to keep the items"),
        ("Reshape (n, whole)", "Reshape (n, other)", "not known to give the shape of x"),
        ("(f, one3, zero3)", "(f, one3, zero3) z = Neg (n)", "has another reader"),
        ("n = onnx", "z = Neg (f) n = onnx", "has another reader"),
        ('activation="none"', 'activation="relu"', "the norm has an activation"),
    ],
)
def test_reshape_refuses(lab: Any, old: str, new: str, words: str) -> None:
    core = CORE.replace(NORM, OURS.format(3))
    nodes = f"{core} y = Transpose <perm=[0, 2, 1, 3]> (k)" if "other" in new else f"{core} {SCALED}"
    assert old in nodes
    out = ", float[3,3,40] z" if "Neg" in new else ""
    more = {"mixed": np.array([1, 3, 120]), "other": np.array([3, 4, 6, 5])}
    outcome = lab.optimize(make(lab, nodes.replace(old, new), out=out, **more))
    assert (outcome.only.action.value, outcome.only.rule) == ("refused", RESHAPE)
    assert words in outcome.only.reason
    lab.same(outcome, {"x": lab.array(3, 6, 4, 5)})


def test_reshape_refuses_inner_graph_outputs(lab: Any) -> None:
    nodes = f"{CORE} {SCALED}".replace(NORM, OURS.format(3))
    outcome = lab.optimize(make(lab, nodes, out=", float[3,3,40] n"))
    assert outcome.ops == ["Reshape", OP, "Reshape", "Mul", "Add"]
    assert "a value in between is a graph output" in outcome.only.reason


def test_layer_normalization_over_groups(lab: Any) -> None:
    norm = "LayerNormalization <axis=2> (f, one40, zero40)"
    nodes = f"f = Reshape (x, cut) n = {norm} k = Reshape (n, whole) {SCALED}"
    flat = {"one40": np.ones(40, np.float32), "zero40": np.zeros(40, np.float32)}
    outcome = becomes(lab, make(lab, nodes, **flat), [OP], "fuse/layer-normalization")
    assert attributes(outcome, OP)["num_groups"] == 3
    per_channel = {"one40": lab.array(2, low=1.0, high=2.0).repeat(20), "zero40": lab.array(2).repeat(20)}
    becomes(lab, make(lab, nodes, **per_channel), [OP], "fuse/layer-normalization")
    outcome = lab.optimize(make(lab, nodes, **{"one40": lab.array(40), "zero40": lab.array(40)}))
    assert outcome.ops == ["Reshape", "LayerNorm", "Reshape", "Mul", "Add"]
    lab.same(outcome, {"x": lab.array(3, 6, 4, 5)})


# --- fuse/channel-affine --------------------------------------------------------------------------------------------


def affine_refuses(lab: Any, nodes: str, words: str, ops: list[str], **options: Any) -> None:
    outcome = lab.optimize(make(lab, f"n = {OURS.format(6)} (x, s6, b6) {nodes}", **options))
    assert outcome.ops == ops, outcome.result.explain()
    assert words in (outcome.only.reason or ""), str(outcome.only)
    lab.same(outcome, {"x": lab.array(3, 6, 4, 5, dtype=options.get("dtype", "float32"))})


def test_channel_affine_refuses(lab: Any) -> None:
    affine_refuses(lab, "y = Mul (n, w) z = Neg (n)", "another reader", [OP, "Mul", "Neg"], out=", float[3,6,4,5] z")
    affine_refuses(lab, "y = Mul (n, w)", "is a graph output", [OP, "Mul"], out=", float[3,6,4,5] n")
    large = np.full((6, 1, 1), 3e38, np.float32)
    affine_refuses(lab, "y = Mul (n, large)", "would overflow", [OP, "Mul"], large=large, s6=large.reshape(-1))


def test_channel_affine_refuses_behind_an_activation(lab: Any) -> None:
    norm = OURS.format(6).replace("none", "relu")
    outcome = lab.optimize(make(lab, f"n = {norm} (x, s6, b6) y = Mul (n, w)"))
    assert outcome.ops == [OP, "Mul"]
    assert (outcome.only.rule, outcome.only.values) == (AFFINE, {"activation": "relu"})


def test_channel_affine_leaves_what_is_no_part_of_the_norm(lab: Any) -> None:
    for other in (lab.array(6, 4, 1), lab.array(1, 1, 5), np.full((), 2.0, np.float32)):
        outcome = lab.optimize(make(lab, f"n = {NORM} (x, s6, b6) y = Mul (n, other)", other=other))
        assert outcome.ops == [OP, "Mul"]
        assert outcome.only.action.value == "fused"


def test_channel_affine_refuses_what_a_caller_may_override(lab: Any) -> None:
    model = make(lab, f"n = {OURS.format(6)} (x, s6, b6) y = Mul (n, w)")
    model.graph.input.extend(lab.model("(float[6,1,1] w) => (float y) { y = Abs (w) }").graph.input)
    outcome = lab.optimize(model)
    assert outcome.ops == [OP, "Mul"]
    assert "a caller may override" in outcome.only.reason


def test_channel_affine_refuses_a_scale_of_run_time(lab: Any) -> None:
    model = make(lab, f"n = {OURS.format(6)} (x, given, b6) y = Mul (n, w)")
    model.graph.input.extend(lab.model("(float[6] given) => (float y) { y = Abs (given) }").graph.input)
    outcome = lab.optimize(model)
    assert outcome.ops == [OP, "Mul"]
    assert "its scale is not constant" in outcome.only.reason


def test_a_shift_needs_no_constant_scale(lab: Any) -> None:
    model = make(lab, f"n = {NORM} (x, given, b6) y = Add (n, b)")
    model.graph.input.extend(lab.model("(float[6] given) => (float y) { y = Abs (given) }").graph.input)
    outcome = lab.optimize(model)
    assert outcome.ops == [OP]
    lab.same_in_ort(outcome, {"x": lab.array(3, 6, 4, 5), "given": lab.array(6)})


# --- PyTorch's own exporter -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module", [nn.GroupNorm(3, 6), nn.InstanceNorm2d(6, affine=True)], ids=lambda item: type(item).__name__
)
def test_torch_onnx_export(lab: Any, module: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(6))
    x = torch.randn(2, 6, 4, 5)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        shapes = ({0: "batch", 2: "height", 3: "width"},)
        program = torch.onnx.export(
            module.eval(), (x,), dynamo=True, opset_version=18, verbose=False, dynamic_shapes=shapes
        )
    assert program is not None
    result = optimize(program.model_proto)
    assert [node.op_type for node in result.model.graph] == [OP], result.explain()
