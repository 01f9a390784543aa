"""fuse/rms-normalization."""

from __future__ import annotations

from typing import Any

import pytest

RULE = "fuse/rms-normalization"
TEXT = "(float[2,5,8] x) => (float[2,5,8] y) { y = RMSNormalization (x, scale) }"
TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}


def build(
    lab: Any, text: str = TEXT, scale: tuple[int, ...] = (8,), opset: int = 23, dtype: str = "float32", **more: Any
) -> Any:
    return lab.model(
        text.replace("float[", TYPE_NAMES[dtype] + "["), opset, 11, **{"scale": lab.array(*scale, dtype=dtype), **more}
    )


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize(
    ("attributes", "scale", "axes"),
    [
        ("", (8,), [-1]),
        ("<axis=2>", (8,), [-1]),
        ("<axis=-2, epsilon=0.1>", (5, 8), [-2, -1]),
        ("<axis=0>", (2, 5, 8), [-3, -2, -1]),
    ],
)
def test_fires(lab: Any, opset: int, attributes: str, scale: tuple[int, ...], axes: list[int]) -> None:
    outcome = lab.optimize(build(lab, TEXT.replace("tion (", f"tion {attributes} ("), scale, opset))
    assert outcome.ops == ["RMSNorm"]
    assert (outcome.only.action.value, outcome.only.rule) == ("fused", RULE)
    assert list(next(item.ints for item in outcome.node("RMSNorm").attribute if item.name == "axes")) == axes
    feeds = {"x": lab.array(2, 5, 8, seed=9)}
    lab.same(outcome, feeds)
    lab.same_in_ort(outcome, feeds)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_element_types(lab: Any, dtype: str) -> None:
    outcome = lab.optimize(build(lab, dtype=dtype))
    assert outcome.ops == ["RMSNorm"]
    lab.same(outcome, {"x": lab.array(2, 5, 8, dtype=dtype, seed=9)}, eps=lab.eps(dtype))


def test_dynamic_batch(lab: Any) -> None:
    outcome = lab.optimize(build(lab, TEXT.replace("[2,5,8]", "[N,L,8]")))
    assert outcome.ops == ["RMSNorm"]
    lab.same_in_ort(outcome, {"x": lab.array(3, 4, 8)})


@pytest.mark.parametrize("sizes", ["2,5,8", "2,5,D"])
def test_refuses_a_scale_that_broadcasts(lab: Any, refused: Any, sizes: str) -> None:
    outcome = refused(
        build(lab, TEXT.replace("2,5,8", sizes), (1,)), RULE, "scale has not the sizes of the normalized axes"
    )
    lab.same_in_ort(outcome, {"x": lab.array(2, 5, 8)})


def test_refuses_sizes_that_are_not_known(lab: Any, refused: Any) -> None:
    """Two unknown sizes are not the same size."""
    model = build(lab, "(float[2,5,D] x, float[E] s) => (float[2,5,D] y) { y = RMSNormalization (x, s) }")
    for item in model.graph.input:
        item.type.tensor_type.shape.dim[-1].ClearField("dim_param")
    refused(model, RULE, "scale has not the sizes of the normalized axes")


def test_refuses_an_unknown_rank(lab: Any, refused: Any) -> None:
    refused(
        build(lab, TEXT.replace("[2,5,8]", "[]")), RULE, "the rank of X or the shape of scale is not known", check=False
    )


def test_refuses_types_that_differ(lab: Any, refused: Any) -> None:
    model = build(lab, TEXT.replace("float[", "float16["))
    model.graph.output[0].type.tensor_type.elem_type = 1
    refused(
        model, RULE, "X and scale differ in element type", check=False
    )  # onnx infers X's type for Y, against its own text


@pytest.mark.parametrize("stash", [10, 16])
def test_refuses_statistics_in_a_half_type(lab: Any, refused: Any, stash: int) -> None:
    refused(
        build(lab, TEXT.replace("tion (", f"tion <stash_type={stash}> (")),
        RULE,
        "stash_type asks for statistics in a half type",
        provider="cuda",
    )


@pytest.mark.usefixtures("functions_stay")
def test_refuses_in_a_function(lab: Any, refused: Any) -> None:
    text = (
        "(float[2,5,8] x) => (float[2,5,8] y) { y = local.block (x, scale) }"
        '\n<domain: "local", opset_import: ["" : 23]> block (a, s) => (c) { c = RMSNormalization (a, s) }'
    )
    refused(build(lab, text, domains=', "local" : 1'), RULE, "it stands in a model-local function")
