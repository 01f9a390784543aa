"""fuse/group-normalization."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RULE = "fuse/group-normalization"
TEXT = "(float[2,6,4,3] x) => (float[2,6,4,3] y) { y = GroupNormalization <num_groups=3> (x, scale, bias) }"
TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}


def build(
    lab: Any, text: str = TEXT, opset: int = 21, dtype: str = "float32", channels: int = 6, **options: Any
) -> Any:
    text = text.replace("float[", TYPE_NAMES[dtype] + "[")
    arrays = {"scale": lab.array(channels, dtype=dtype), "bias": lab.array(channels, dtype=dtype, seed=1)}
    return lab.model(text, opset, 10, **{**arrays, **options})


@pytest.mark.parametrize("opset", [21, 22, 23, 24])
@pytest.mark.parametrize("shape", ["2,6", "2,6,5", "2,6,4,3", "1,6,2,3,4"])
def test_fires(lab: Any, opset: int, shape: str) -> None:
    outcome = lab.optimize(build(lab, TEXT.replace("2,6,4,3", shape).replace("=3>", "=3, epsilon=0.01>"), opset))
    assert outcome.ops == ["GroupNorm"]
    assert (outcome.only.action.value, outcome.only.rule) == ("fused", RULE)
    values = {item.name: item for item in outcome.node("GroupNorm").attribute}
    assert (values["num_groups"].i, values["activation"].s, values["channels_last"].i) == (3, b"none", 0)
    assert values["epsilon"].f == np.float32(0.01)
    feeds = {"x": lab.array(*map(int, shape.split(",")), seed=9)}
    lab.same(outcome, feeds)
    lab.same_in_ort(outcome, feeds)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_element_types(lab: Any, dtype: str) -> None:
    outcome = lab.optimize(build(lab, dtype=dtype))
    assert outcome.ops == ["GroupNorm"]
    lab.same(outcome, {"x": lab.array(2, 6, 4, 3, dtype=dtype, seed=9)}, eps=lab.eps(dtype))


def test_run_time_scale_and_dynamic_sizes(lab: Any) -> None:
    text = TEXT.replace("[2,6,4,3] x", "[N,6,H,W] x, float[6] scale").replace("[2,6,4,3] y", "[N,6,H,W] y")
    model = build(lab, text)
    del model.graph.initializer[0]
    outcome = lab.optimize(model)
    assert outcome.ops == ["GroupNorm"]
    lab.same_in_ort(outcome, {"x": lab.array(3, 6, 2, 5), "scale": lab.array(6, seed=5)})


@pytest.mark.parametrize("opset", [18, 20])
def test_refuses_one_scale_per_group(lab: Any, refused: Any, opset: int) -> None:
    outcome = refused(
        build(lab, opset=opset, channels=3),
        RULE,
        "before opset 21 scale and bias have one value per group",
        check=False,
    )
    assert outcome.only.values == {"opset": opset}


def test_refuses_an_element_type_without_kernel(lab: Any, refused: Any) -> None:
    """A type that is not known: the input comes from an operator that inference does not know."""
    text = (
        "(float[2,6,4,3] x) => (float[2,6,4,3] y)"
        " { u = other.Unknown (x) v = GroupNormalization <num_groups=3> (u, scale, bias) y = other.Unknown (v) }"
    )
    refused(build(lab, text, domains=', "other" : 1'), RULE, "its element type is not known")


@pytest.mark.parametrize(("stash", "taken"), [(10, False), (16, False), (1, True), (11, True)])
def test_refuses_statistics_in_a_half_type(lab: Any, refused: Any, stash: int, taken: bool) -> None:
    model = build(lab, TEXT.replace("=3>", f"=3, stash_type={stash}>"), dtype="float16")
    if taken:
        assert lab.optimize(model).ops == ["GroupNorm"]
    else:
        outcome = refused(model, RULE, "stash_type asks for statistics in a half type", provider="cuda")
        assert outcome.only.values == {"stash_type": stash}


@pytest.mark.usefixtures("functions_stay")
def test_refuses_in_a_function(lab: Any, refused: Any) -> None:
    text = (
        "(float[2,6,4,3] x) => (float[2,6,4,3] y) { y = local.block (x, scale, bias) }"
        '\n<domain: "local", opset_import: ["" : 21]> block (a, s, b) => (c)'
        " { c = GroupNormalization <num_groups=3> (a, s, b) }"
    )
    refused(build(lab, text, domains=', "local" : 1'), RULE, "it stands in a model-local function")
