"""fold/batch-norm-into-conv, and the refusals that all folds of BatchNormalization share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RULE = "fold/batch-norm-into-conv"
NORM = "BatchNormalization (c, gamma, beta, mean, var)"
PLAIN = "(float[2,3,6,5] x) => (float[N,4,H,W] y) { c = Conv (x, weight) y = " + NORM + " }"
TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}


def plain(lab: Any, text: str = PLAIN, opset: int = 18, ir_version: int = 8, **changed: Any) -> Any:
    arrays = {"weight": lab.array(4, 3, 3, 3), **lab.batch_norm(4), **changed}
    return lab.model(text, opset, ir_version, **{name: value for name, value in arrays.items() if value is not None})


def image(lab: Any) -> dict[str, Any]:
    return {"x": lab.array(2, 3, 6, 5, seed=9)}


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13, 14, 15, 18, 20, 22, 23, 24])
def test_every_opset(lab: Any, opset: int) -> None:
    outcome = lab.optimize(plain(lab, opset=opset))
    assert outcome.ops == ["Conv"]
    assert (outcome.only.action.value, outcome.only.rule, outcome.only.into) == ("folded", RULE, "c")
    lab.same(outcome, image(lab))
    lab.same_in_ort(outcome, image(lab))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("shape", "weight", "attributes"),
    [
        ((2, 3, 9), (4, 3, 3), "dilations=[2]"),
        ((2, 3, 7, 6), (4, 3, 3, 2), "pads=[1,0,2,1], strides=[2,1]"),
        ((2, 3, 7, 6), (4, 3, 3, 3), 'auto_pad="SAME_UPPER"'),
        ((1, 3, 5, 4, 6), (4, 3, 2, 3, 2), "pads=[1,1,0,0,1,1]"),
        ((2, 4, 7, 6), (4, 1, 3, 3), "group=4"),
        ((2, 4, 7, 6), (8, 1, 3, 3), "group=4, pads=[1,1,1,1]"),
        ((2, 4, 8), (6, 2, 3), "group=2"),
    ],
)
def test_shapes_and_groups(
    lab: Any, shape: tuple[int, ...], weight: tuple[int, ...], attributes: str, bias: bool
) -> None:
    channels = weight[0]
    sizes = ",".join(map(str, shape))
    out = ",".join("NCDHW"[: len(shape)])
    text = (
        f"(float[{sizes}] x) => (float[{out}] y) {{ c = Conv <{attributes}> (x, weight{', b' if bias else ''}) y ="
        f" {NORM} }}"
    )
    arrays = {"weight": lab.array(*weight), **lab.batch_norm(channels)}
    if bias:
        arrays["b"] = lab.array(channels, seed=3)
    outcome = lab.optimize(lab.model(text, **arrays))
    assert outcome.ops == ["Conv"]
    feeds = {"x": lab.array(*shape, seed=9)}
    lab.same(outcome, feeds)
    lab.same_in_ort(outcome, feeds)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_element_types(lab: Any, dtype: str) -> None:
    text = PLAIN.replace("float[", TYPE_NAMES[dtype] + "[")
    model = plain(lab, text, opset=22, weight=lab.array(4, 3, 3, 3, dtype=dtype), **lab.batch_norm(4, dtype))
    outcome = lab.optimize(model, disable=["lower/unsupported-type"])
    assert outcome.ops == ["Conv"]
    assert outcome.initializer("weight_folded").dtype == model_dtype(lab, dtype)
    lab.same(outcome, {"x": lab.array(2, 3, 6, 5, dtype=dtype, seed=9)}, eps=lab.eps(dtype))


def model_dtype(lab: Any, dtype: str) -> Any:
    return lab.array(1, dtype=dtype).dtype


def test_half_conv_with_float_parameters(lab: Any) -> None:
    """Since opset 15 BatchNormalization's parameters may be wider than X: the fold stays in X's type."""
    text = PLAIN.replace("float[", "float16[")
    outcome = lab.optimize(plain(lab, text, weight=lab.array(4, 3, 3, 3, dtype="float16")))
    assert outcome.ops == ["Conv"]
    assert {outcome.initializer(name).dtype for name in outcome.node("Conv").input[1:]} == {np.dtype(np.float16)}
    lab.same(outcome, {"x": lab.array(2, 3, 6, 5, dtype="float16", seed=9)}, eps=lab.eps("float16"))


def test_weights_are_rounded_once(lab: Any) -> None:
    model = plain(lab)
    outcome = lab.optimize(model)
    parts = {item.name: np.frombuffer(item.raw_data, np.float32).astype(np.float64) for item in model.graph.initializer}
    scale = parts["gamma"] / np.sqrt(parts["var"] + np.float64(np.float32(1e-5)))
    weight = parts["weight"].reshape(4, 3, 3, 3) * scale.reshape(4, 1, 1, 1)
    np.testing.assert_array_equal(outcome.initializer("weight_folded"), weight.astype(np.float32))
    shift = parts["beta"] - scale * parts["mean"]
    np.testing.assert_array_equal(outcome.initializer("c_bias_folded"), shift.astype(np.float32))


def test_dynamic_sizes(lab: Any) -> None:
    outcome = lab.optimize(plain(lab, PLAIN.replace("[2,3,6,5]", "[N,3,H,W]").replace("[N,4,H,W]", "[N,4,A,B]")))
    assert outcome.ops == ["Conv"]
    lab.same_in_ort(outcome, image(lab))


def test_unknown_rank(lab: Any) -> None:
    assert lab.optimize(plain(lab, PLAIN.replace("float[2,3,6,5] x", "float[] x")), check=False).ops == ["Conv"]


@pytest.mark.parametrize("between", ["i = Identity (c)", "i = Dropout (c)", "i, unused = Dropout (c)"])
def test_through_what_passes_on(lab: Any, between: str) -> None:
    text = PLAIN.replace("y = B", f"{between} y = B").replace("n (c,", "n (i,")
    outcome = lab.optimize(plain(lab, text))
    assert outcome.ops == ["Conv"]
    lab.same(outcome, image(lab))


def test_parameters_that_are_computed(lab: Any) -> None:
    """A constant subgraph that feeds the weight or a parameter is computed first."""
    text = (
        "(float[2,3,6,5] x) => (float[N,4,H,W] y) { axes = Constant <value_ints=[1]> () two = Constant"
        " <value_float=2.0> ()"
        " turned = Transpose <perm=[3,2,0,1]> (weight) flat = Unsqueeze (gamma, axes) again = Squeeze (flat, axes)"
        " root = Sqrt (var) back = Pow (root, two) c = Conv (x, turned)"
        " y = BatchNormalization (c, again, beta, mean, back) }"
    )
    outcome = lab.optimize(plain(lab, text, weight=lab.array(3, 3, 3, 4)))
    assert outcome.ops == ["Conv"]
    lab.same(outcome, image(lab))


def test_epsilon_and_zero_gamma(lab: Any) -> None:
    text = PLAIN.replace("Normalization (", "Normalization <epsilon=0.25> (")
    parts = lab.batch_norm(4)
    parts["gamma"][2] = 0.0
    outcome = lab.optimize(plain(lab, text, **parts))
    assert outcome.ops == ["Conv"]
    assert not outcome.initializer("weight_folded")[2].any()
    lab.same(outcome, image(lab))


def test_shared_weight_bias_and_parameters(lab: Any) -> None:
    """Two Convs share everything; a third reader keeps the originals alive."""
    text = (
        "(float[2,3,6,5] x) => (float[N,4,H,W] y, float[N,4,H,W] z, float[N,4,H,W] u) {"
        " c = Conv (x, weight, b) y = BatchNormalization (c, gamma, beta, mean, var)"
        " d = Conv (x, weight, b) z = BatchNormalization <epsilon=0.5> (d, gamma, beta, mean, var)"
        " u = Conv (x, weight, b) }"
    )
    outcome = lab.optimize(plain(lab, text, b=lab.array(4, seed=3)))
    assert outcome.ops == ["Conv"] * 3
    assert [item.rule for item in outcome.result.decisions] == [RULE, RULE]
    assert {item.name for item in outcome.after.graph.initializer} == {
        *("weight", "b", "weight_folded", "b_folded", "weight_folded_1", "b_folded_1")
    }
    lab.same(outcome, image(lab))


def test_metadata_is_handed_down(lab: Any) -> None:
    model = plain(lab)
    for node, text in zip(model.graph.node, ("conv", "norm"), strict=True):
        node.metadata_props.add(key="origin", value=text)
        node.metadata_props.add(key=text, value="kept")
    model.graph.node[0].name = "the_conv"
    model.ir_version = 10
    node = lab.optimize(model).node("Conv")
    found = {item.key: item.value for item in node.metadata_props}
    assert node.name == "the_conv"
    assert found == {"origin": "conv", "conv": "kept", "norm": "kept", "onnxnorm.rule": RULE}


# --- refusals -----------------------------------------------------------------------------------------------------


def test_refuses_training_mode(lab: Any, refused: Any) -> None:
    text = PLAIN.replace("y = BatchNormalization", "y, m2, v2 = BatchNormalization <training_mode=1>")
    outcome = refused(plain(lab, text), RULE, "training_mode is 1")
    assert outcome.only.values == {"training_mode": 1}
    lab.same(outcome, image(lab))


def test_refuses_training_mode_with_one_output(lab: Any, refused: Any) -> None:
    text = PLAIN.replace("Normalization (", "Normalization <training_mode=1> (")
    model = plain(lab, text)
    model.graph.node[1].output.extend(["", ""])
    lab.same(refused(model, RULE, "training_mode is 1", check=False), image(lab))


def test_refuses_statistics_that_are_used(lab: Any, refused: Any) -> None:
    text = PLAIN.replace("[N,4,H,W] y)", "[N,4,H,W] y, float[4] m2)").replace("y = B", "y, m2, v2 = B")
    text = text.replace("Normalization (", "Normalization <training_mode=1> (")
    refused(plain(lab, text), RULE, "training_mode is 1")
    text = text.replace("<training_mode=1> (", "(").replace("y, m2, v2 =", "y, m2, v2, m3, v3 =")
    refused(plain(lab, text, opset=9), RULE, "its statistics outputs are used")


def test_refuses_statistics_outputs_before_opset_14(lab: Any, refused: Any) -> None:
    text = PLAIN.replace("y = B", "y, m, v, sm, sv = B")
    lab.same_in_ort(refused(plain(lab, text, opset=9), RULE, "before opset 14 means training"), image(lab))


def test_refuses_a_scale_per_position(lab: Any, refused: Any) -> None:
    text = PLAIN.replace("Normalization (", "Normalization <spatial=0> (")
    parts = {name: lab.array(4, 4, 3, seed=i, low=0.5) for i, name in enumerate(("gamma", "beta", "mean", "var"))}
    refused(plain(lab, text, opset=7, **parts), RULE, "spatial is 0")


def test_refuses_test_mode_that_is_not_asked_for_before_opset_7(lab: Any, refused: Any) -> None:
    model = plain(lab, opset=6)
    refused(model, RULE, "is_test is 0", check=False)
    model.graph.node[1].attribute.add(name="is_test", type=2, i=1)
    assert lab.optimize(model, check=False).ops == ["Conv"]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("gamma", "gamma"),
        ("beta", "beta"),
        ("mean", "mean"),
        ("var", "variance"),
        ("weight", "Conv's weight"),
        ("b", "Conv's bias"),
    ],
)
def test_refuses_what_a_caller_may_override(lab: Any, refused: Any, name: str, role: str) -> None:
    sizes = "4,3,3,3" if name == "weight" else "4"
    text = PLAIN.replace("] x)", f"] x, float[{sizes}] {name})").replace("(x, weight)", "(x, weight, b)")
    outcome = refused(
        plain(lab, text, b=lab.array(4, seed=3)), RULE, f"its {role} is a graph input that a caller may override"
    )
    assert outcome.only.values == {"input": name}
    other = lab.array(*map(int, sizes.split(",")), seed=77, low=0.2)
    lab.same(outcome, {**image(lab), name: other})
    assert name in {item.name for item in outcome.after.graph.initializer}
    lab.same_in_ort(outcome, {**image(lab), name: other})


@pytest.mark.parametrize("name", ["gamma", "weight", "b"])
def test_refuses_what_is_computed_at_run_time(lab: Any, refused: Any, name: str) -> None:
    sizes = {"weight": (4, 3, 3, 3)}.get(name, (4,))
    text = PLAIN.replace("] x)", f"] x, float[{','.join(map(str, sizes))}] raw)").replace(
        "{ c", f"{{ {name} = Abs (raw) c"
    )
    text = text.replace("(x, weight)", "(x, weight, b)")
    arrays = {"b": lab.array(4, seed=3), name: None}
    outcome = refused(plain(lab, text, **arrays), RULE, f"is not constant: it is computed by Abs {name}")
    lab.same(outcome, {**image(lab), "raw": lab.array(*sizes, seed=5)})


def test_refuses_a_run_time_input(lab: Any, refused: Any) -> None:
    text = PLAIN.replace("] x)", "] x, float[4] gamma)")
    refused(plain(lab, text, gamma=None), RULE, "its gamma is not constant: it is a graph input")


def test_refuses_when_the_layer_has_another_reader(lab: Any, refused: Any) -> None:
    text = PLAIN.replace("[N,4,H,W] y)", "[N,4,H,W] y, float[N,4,H,W] z)").replace("y = B", "z = Relu (c) y = B")
    outcome = refused(plain(lab, text), RULE, "the output of Conv c has 2 readers")
    lab.same(outcome, image(lab))


def test_refuses_when_a_subgraph_reads_the_layer(lab: Any, refused: Any) -> None:
    text = (
        "(float[2,3,6,5] x, bool q) => (float[N,4,H,W] y, float[N,4,H,W] z) { c = Conv (x, weight) y = "
        + NORM
        + " z = If (q)"
        " <then_branch = t () => (float[N,4,H,W] a) { a = Relu (c) }, else_branch = e () => (float[N,4,H,W] b) { b ="
        " Neg (c) }> }"
    )
    outcome = refused(plain(lab, text), RULE, "has 3 readers")
    lab.same_in_ort(outcome, {**image(lab), "q": np.array(True)})


def test_refuses_when_the_layer_is_a_graph_output(lab: Any, refused: Any) -> None:
    text = PLAIN.replace("[N,4,H,W] y)", "[N,4,H,W] y, float[N,4,H,W] c)")
    outcome = refused(plain(lab, text), RULE, "the output of Conv c is also a graph output")
    lab.same(outcome, image(lab))


def test_refuses_a_layer_of_an_outer_graph(lab: Any, refused: Any) -> None:
    text = (
        "(float[2,3,6,5] x, bool q) => (float[N,4,H,W] y) { c = Conv (x, weight) y = If (q)"
        " <then_branch = t () => (float[N,4,H,W] a) { a = " + NORM + " }, else_branch = e () => (float[N,4,H,W] b)"
        " { k = Constant <value_float=1.0> () l = ConstantOfShape (s) b = Add (l, k) }> }"
    )
    outcome = refused(plain(lab, text, s=np.array([2, 4, 4, 3])), RULE, "comes from an outer graph")
    lab.same_in_ort(outcome, {**image(lab), "q": np.array(True)})


@pytest.mark.parametrize(("bad", "value"), [(-1.0, "-0.99999"), (np.inf, "inf"), (np.nan, "nan")])
def test_refuses_a_variance_without_root(lab: Any, refused: Any, bad: float, value: str) -> None:
    parts = lab.batch_norm(4)
    parts["var"][2] = bad
    outcome = refused(plain(lab, **parts), RULE, "variance + epsilon is not positive and finite")
    assert outcome.only.values["channel"] == 2
    assert str(outcome.only.values["value"]).startswith(value)


def test_refuses_another_channel_count(lab: Any, refused: Any) -> None:
    model = plain(
        lab,
        PLAIN.replace("float[2,3,6,5] x", "float[] x").replace("float[N,4,H,W] y", "float[] y"),
        **lab.batch_norm(5),
    )
    assert refused(model, RULE, "has 4 output channels", check=False).only.values == {"batch_norm_channels": 5}


def test_refuses_parameters_of_other_lengths(lab: Any, refused: Any) -> None:
    refused(plain(lab, beta=lab.array(5)), RULE, "its parameters differ in shape", check=False)
    refused(
        plain(lab, **{name: lab.array(1, 4, low=0.5) for name in lab.batch_norm(4)}),
        RULE,
        "differ in shape",
        check=False,
    )


def test_refuses_a_bias_of_another_shape(lab: Any, refused: Any) -> None:
    """onnxscript writes such a bias, (channels, 2), for a Conv3d without one."""
    model = plain(lab, PLAIN.replace("(x, weight)", "(x, weight, b)"), b=lab.array(4, 2))
    outcome = refused(model, RULE, "Conv's bias has not one value per channel", check=False)
    assert outcome.only.values == {"shape": (4, 2), "channels": 4}


def test_refuses_a_weight_with_one_axis(lab: Any, refused: Any) -> None:
    refused(plain(lab, weight=lab.array(4)), RULE, "Conv's weight has less than two axes", check=False)


def test_refuses_whole_numbers(lab: Any, refused: Any) -> None:
    model = plain(lab, gamma=np.ones(4, np.int64))
    refused(model, RULE, "its gamma is no floating-point tensor", check=False)


def half(lab: Any, **changed: Any) -> Any:
    parts = {"weight": lab.array(4, 3, 3, 3, dtype="float16"), **lab.batch_norm(4, "float16")}
    for name, value in changed.items():
        parts[name][1] = value
    return plain(lab, PLAIN.replace("float[", "float16["), **parts)


def test_refuses_overflow(lab: Any, refused: Any) -> None:
    """gamma / sqrt(var) is 4e7: the product with the weight is beyond float16, the layer's own values are not."""
    outcome = refused(half(lab, gamma=6e4, var=2e-6), RULE, "a folded value would overflow float16")
    assert float(outcome.only.values["value"]) > 65504


def test_refuses_a_bias_that_overflows(lab: Any, refused: Any) -> None:
    refused(half(lab, gamma=2.0, mean=6e4), RULE, "a folded value would overflow float16")


def test_refuses_underflow(lab: Any, refused: Any) -> None:
    outcome = refused(half(lab, gamma=6e-8), RULE, "a folded weight would underflow float16")
    assert outcome.only.values["channel"] == 1


def test_refuses_weights_that_are_not_finite(lab: Any, refused: Any) -> None:
    weight = lab.array(4, 3, 3, 3)
    weight[0, 0, 0, 0] = np.inf
    refused(plain(lab, weight=weight), RULE, "a folded value would not be finite")
