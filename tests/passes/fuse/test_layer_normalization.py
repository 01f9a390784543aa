"""fuse/layer-normalization: on CPU, where onnxnorm's kernel is faster, and ONNX Runtime has none in bfloat16.

Most tests are in bfloat16, in which refusals are told.
"""

from __future__ import annotations

from typing import Any

import onnx
import pytest

RULE = "fuse/layer-normalization"
#: It would have its say too, after the refusal.
NOT = ["lower/unsupported-type"]
TEXT = "(float[2,5,8] x) => (float[2,5,8] y) { y = LayerNormalization (x, scale, bias) }"
WITHOUT_BIAS = TEXT.replace(", bias", "")
TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}


def build(
    lab: Any, text: str = TEXT, sizes: tuple[int, ...] = (8,), opset: int = 18, dtype: str = "bfloat16", **more: Any
) -> Any:
    arrays = {"scale": lab.array(*sizes, dtype=dtype), "bias": lab.array(*sizes, dtype=dtype, seed=1), **more}
    return lab.model(text.replace("float[", TYPE_NAMES[dtype] + "["), opset, 10, **arrays)


@pytest.mark.parametrize("opset", [17, 18, 24])
@pytest.mark.parametrize(
    ("attributes", "sizes", "axes"),
    [
        ("", (8,), [-1]),
        ("<axis=2>", (8,), [-1]),
        ("<axis=-2, epsilon=0.1>", (5, 8), [-2, -1]),
        ("<axis=0>", (2, 5, 8), [-3, -2, -1]),
    ],
)
def test_fires(lab: Any, opset: int, attributes: str, sizes: tuple[int, ...], axes: list[int]) -> None:
    for dtype in TYPE_NAMES:
        outcome = lab.optimize(build(lab, TEXT.replace("tion (", f"tion {attributes} ("), sizes, opset, dtype))
        assert outcome.ops == ["LayerNorm"]
        assert (outcome.only.action.value, outcome.only.rule) == ("fused", RULE)
        assert list(next(item.ints for item in outcome.node("LayerNorm").attribute if item.name == "axes")) == axes
        feeds = {"x": lab.array(2, 5, 8, dtype=dtype, seed=9)}
        lab.same(outcome, feeds, eps=lab.eps(dtype))
        if dtype != "bfloat16":
            lab.same_in_ort(outcome, feeds, eps=lab.eps(dtype))


@pytest.mark.parametrize("dtype", list(TYPE_NAMES))
@pytest.mark.parametrize("options", [{"provider": "cuda"}, {"provider": "cuda", "verify": True}])
def test_leaves_it_on_cuda(lab: Any, options: dict[str, Any], dtype: str) -> None:
    outcome = lab.optimize(build(lab, dtype=dtype), **options)
    assert outcome.ops == ["LayerNormalization"]
    assert outcome.only.action.value == "kept"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_leaves_it_in_standard_operators(lab: Any, dtype: str) -> None:
    assert lab.optimize(build(lab, dtype=dtype), target="standard").ops == ["LayerNormalization"]


def test_without_a_bias(lab: Any) -> None:
    outcome = lab.optimize(build(lab, WITHOUT_BIAS))
    assert outcome.ops == ["LayerNorm"]
    lab.same(outcome, {"x": lab.array(2, 5, 8, dtype="bfloat16")}, eps=lab.eps("bfloat16"))


def test_an_activation_behind_it_is_fused_too(lab: Any) -> None:
    text = TEXT.replace("{ y =", "{ n =").replace(" }", " y = Relu (n) }")
    outcome = lab.optimize(build(lab, text))
    assert outcome.ops == ["LayerNorm"]
    lab.same(outcome, {"x": lab.array(2, 5, 8, dtype="bfloat16")}, eps=lab.eps("bfloat16"))


def test_dynamic_batch(lab: Any) -> None:
    outcome = lab.optimize(build(lab, TEXT.replace("[2,5,8]", "[N,L,8]")))
    assert outcome.ops == ["LayerNorm"]
    lab.same(outcome, {"x": lab.array(3, 4, 8, dtype="bfloat16")}, eps=lab.eps("bfloat16"))


@pytest.mark.parametrize("dtype", list(TYPE_NAMES))
def test_verified(lab: Any, dtype: str) -> None:
    assert lab.optimize(build(lab, WITHOUT_BIAS, dtype=dtype), verify=True).ops == ["LayerNorm"]


def _without_parameters(model: Any) -> Any:
    del model.graph.initializer[:]
    return model


def _with_mean(model: Any) -> Any:
    kind = onnx.TensorProto.DOUBLE if model.graph.input[0].type.tensor_type.elem_type == 11 else onnx.TensorProto.FLOAT
    model.graph.output.append(onnx.helper.make_tensor_value_info("mean", kind, [2, 5, 1]))
    return model


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize(
    "make",
    [
        lambda lab, dtype: build(lab, scale=lab.array(1, dtype=dtype), dtype=dtype),
        lambda lab, dtype: build(lab, bias=lab.array(5, 8, dtype=dtype), dtype=dtype),
        lambda lab, dtype: build(lab, TEXT.replace("2,5,8", "2,5,D"), dtype=dtype),
        lambda lab, dtype: build(lab, TEXT.replace("2,5,8", "2,5,?"), dtype=dtype),
        lambda lab, dtype: build(lab, TEXT.replace("[2,5,8]", "[]"), dtype=dtype),
        lambda lab, dtype: _without_parameters(
            build(lab, WITHOUT_BIAS.replace("2,5,8", "2,5,D").replace(" x)", " x, float[D] scale)"), dtype=dtype)
        ),
        lambda lab, dtype: _with_mean(build(lab, TEXT.replace("{ y =", "{ y, mean ="), dtype=dtype)),
    ],
    ids=["scale", "bias", "size-by-name", "unknown-size", "unknown-rank", "no-bias", "mean"],
)
def test_what_runs_as_it_is_stays_without_a_word(lab: Any, make: Any, dtype: str) -> None:
    outcome = lab.optimize(make(lab, dtype), check=False)
    assert outcome.ops == ["LayerNormalization"]
    assert (outcome.only.action.value, outcome.only.rule) == ("kept", None)


@pytest.mark.parametrize("role", ["scale", "bias"])
@pytest.mark.parametrize("sizes", ["2,5,8", "2,5,D"])
def test_refuses_a_parameter_that_broadcasts(lab: Any, refused: Any, sizes: str, role: str) -> None:
    arrays = {role: lab.array(1, dtype="bfloat16")}
    other = {"2,5,8": "8", "2,5,D": "D"}[sizes]
    text = TEXT.replace("2,5,8", sizes)
    if other == "D":  # the other parameter has the size of the axis by name
        name = {"scale": "bias", "bias": "scale"}[role]
        text = text.replace(" x)", f" x, float[D] {name})")
    model = build(lab, text, **arrays)
    if other == "D":
        kept = [item for item in model.graph.initializer if item.name == role]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    refused(model, RULE, f"{role} has not the sizes of the normalized axes", disable=NOT)


def test_refuses_an_unknown_rank(lab: Any, refused: Any) -> None:
    model = build(lab, TEXT.replace("[2,5,8]", "[]"))
    refused(model, RULE, "the rank of X or the shape of scale is not known", check=False, disable=NOT)


def test_refuses_types_that_differ(lab: Any, refused: Any) -> None:
    model = build(lab, scale=lab.array(8))
    refused(model, RULE, "X and scale differ in element type", check=False, disable=NOT)


@pytest.mark.parametrize("extra", ["mean", "deviation"])
def test_refuses_when_the_statistics_are_used(lab: Any, refused: Any, extra: str) -> None:
    names = "y, mean" if extra == "mean" else "y, mean, deviation"
    model = build(lab, TEXT.replace("{ y =", "{ " + names + " ="))
    model.graph.output.append(onnx.helper.make_tensor_value_info(extra, onnx.TensorProto.FLOAT, [2, 5, 1]))
    refused(model, RULE, "its Mean or InvStdDev is used", check=False, disable=NOT)


def test_an_unused_mean_is_no_obstacle(lab: Any) -> None:
    assert lab.optimize(build(lab, TEXT.replace("{ y =", "{ y, mean ="))).ops == ["LayerNorm"]


def test_refuses_without_bias_and_sizes(lab: Any, refused: Any) -> None:
    text = WITHOUT_BIAS.replace("2,5,8", "2,5,D").replace(" x)", " x, float[D] scale)")
    model = build(lab, text)
    del model.graph.initializer[:]
    refused(model, RULE, "it has no bias, and the sizes of one are not known", disable=NOT)


@pytest.mark.parametrize("stash", [10, 16])
def test_refuses_statistics_in_a_half_type(lab: Any, refused: Any, stash: int) -> None:
    text = TEXT.replace("tion (", f"tion <stash_type={stash}> (")
    refused(build(lab, text), RULE, "stash_type asks for statistics in a half type", disable=NOT)


def test_in_a_function_nothing_is_known(lab: Any) -> None:
    text = (
        "(float[2,5,8] x) => (float[2,5,8] y) { y = local.block (x, scale, bias) }"
        '\n<domain: "local", opset_import: ["" : 18]> block (a, s, b) => (c) { c = LayerNormalization (a, s, b) }'
    )
    arrays = {"scale": lab.array(8, dtype="bfloat16"), "bias": lab.array(8, dtype="bfloat16")}
    model = lab.model(text.replace("float[", "bfloat16["), 18, 10, ', "local" : 1', **arrays)
    outcome = lab.optimize(model)
    assert not any(node.domain == "onnxnorm" for function in outcome.after.functions for node in function.node)
