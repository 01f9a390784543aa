"""fuse/skip: an addition goes into the norm behind it, wherever that is the same and no slower."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxnorm.norms import all_specs
from onnxnorm.passes.fuse.skip import NORMS

RULE = "fuse/skip"
GROUP = 'onnxnorm.GroupNorm <num_groups=3, epsilon=0.00001, activation="none", channels_last=0>'
LAYER = 'onnxnorm.LayerNorm <axes=[1], epsilon=0.00001, activation="none">'
ROWS = 'onnxnorm.LayerNorm <axes=[-1], epsilon=0.00001, activation="none">'
ROOT = 'onnxnorm.RMSNorm <axes=[-1], epsilon=0.00001, activation="none">'
SIZES = "[2,6,4,3]"
TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}


def build(
    lab: Any,
    nodes: str = f"s = Add (x, r) y = {GROUP} (s, scale, bias)",
    *,
    dtype: str = "float32",
    sizes: str = SIZES,
    inputs: str = "",
    outputs: str = "",
    **arrays: Any,
) -> Any:
    kind = TYPE_NAMES[dtype]
    text = f"({kind}{sizes} x, {kind}{sizes} r{inputs}) => ({kind}{sizes} y{outputs}) {{ {nodes} }}"
    parameters = {"scale": lab.array(6, dtype=dtype), "bias": lab.array(6, dtype=dtype, seed=1)} | arrays
    return lab.model(text, 20, 10, ', "onnxnorm" : 1', **parameters)


def feeds(lab: Any, dtype: str = "float32", shape: tuple[int, ...] = (2, 6, 4, 3)) -> dict[str, Any]:
    return {"x": lab.array(*shape, dtype=dtype, seed=9), "r": lab.array(*shape, dtype=dtype, seed=8)}


def rule_of(outcome: Any) -> tuple[str, str]:
    return outcome.only.action.value, outcome.only.rule


@pytest.mark.parametrize("dtype", TYPE_NAMES)
def test_fires(lab: Any, dtype: str) -> None:
    outcome = lab.optimize(build(lab, dtype=dtype))
    assert outcome.ops == ["SkipGroupNorm"]
    assert rule_of(outcome) == ("fused", RULE)
    assert len(outcome.node("SkipGroupNorm").output) == 1
    lab.same(outcome, feeds(lab, dtype), eps=lab.eps(dtype))
    if dtype != "bfloat16":  # which the lab gives to no session
        lab.same_in_ort(outcome, feeds(lab, dtype), eps=lab.eps(dtype))


@pytest.mark.parametrize("name", sorted(NORMS))
def test_every_norm_that_has_a_skip_form(lab: Any, name: str) -> None:
    """On its first sample, by the record that its kernel and its body are tested with; with an activation."""
    spec = all_specs()[name]
    sample = next(iter(spec.samples()))
    x, *parameters = (np.asarray(item, np.float32) for item in sample.inputs)
    norm = helper.make_node(
        name,
        ["s", *(item.name for item in spec.inputs[1:])],
        ["y"],
        domain="onnxnorm",
        **sample.attributes | {"activation": "relu"},
    )
    info = [helper.make_tensor_value_info(item, TensorProto.FLOAT, x.shape) for item in ("x", "r", "y")]
    given = [numpy_helper.from_array(value, item.name) for value, item in zip(parameters, spec.inputs[1:], strict=True)]
    graph = helper.make_graph([helper.make_node("Add", ["x", "r"], ["s"]), norm], "g", info[:2], info[2:], given)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("onnxnorm", 1)]
    outcome = lab.optimize(helper.make_model(graph, opset_imports=imports, ir_version=10))
    assert outcome.ops == [f"Skip{name}"]
    lab.same(outcome, feeds(lab, shape=x.shape))


@pytest.mark.parametrize("opset", [15, 17, 18, 21])
def test_opsets(lab: Any, opset: int) -> None:
    model = build(lab)
    model.opset_import[0].version = opset
    outcome = lab.optimize(model)
    assert outcome.ops == ["SkipGroupNorm"]
    lab.same_in_ort(outcome, feeds(lab))


def test_readers_of_the_sum(lab: Any) -> None:
    """Also one that comes before the norm, a second norm, and the sum as a graph output."""
    nodes = (
        f"s = Add (x, r) e = Exp (s) a = {GROUP} (s, scale, bias) b = {GROUP} (s, bias, scale) "
        "d = Mul (a, b) y = Add (d, e)"
    )
    outcome = lab.optimize(build(lab, nodes, outputs=f", float{SIZES} s"))
    assert sorted(outcome.ops) == ["Add", "Exp", "GroupNorm", "Mul", "SkipGroupNorm"]
    assert list(outcome.node("SkipGroupNorm").output) == ["a", "s"]
    lab.same(outcome, feeds(lab))
    lab.same_in_ort(outcome, feeds(lab))


def test_the_sum_goes_on_to_the_next_block(lab: Any) -> None:
    nodes = (
        f"s = Add (x, r) a = {GROUP} (s, scale, bias) f = Tanh (a) t = Add (s, f) b = {GROUP} (t, scale, bias) "
        "g = Tanh (b) y = Add (t, g)"
    )
    outcome = lab.optimize(build(lab, nodes))
    assert outcome.ops == ["SkipGroupNorm", "Tanh", "SkipGroupNorm", "Tanh", "Add"]
    lab.same_in_ort(outcome, feeds(lab))


def test_the_same_tensor_twice(lab: Any) -> None:
    outcome = lab.optimize(build(lab, f"s = Add (x, x) z = Exp (r) a = {GROUP} (s, scale, bias) y = Mul (a, z)"))
    assert "SkipGroupNorm" in outcome.ops
    lab.same_in_ort(outcome, feeds(lab))


@pytest.mark.parametrize("activation", ["y = Relu (n)", "g = Sigmoid (n) y = Mul (n, g)", "y = Gelu (n)"])
@pytest.mark.parametrize("shared", [False, True])
def test_an_activation_behind_it(lab: Any, shared: bool, activation: str) -> None:
    nodes = f"s = Add (x, r) n = {GROUP} (s, scale, bias) {activation}"
    nodes += " z = Exp (s)" if shared else ""
    outcome = lab.optimize(build(lab, nodes, outputs=f", float{SIZES} z" if shared else ""))
    assert outcome.ops == ["SkipGroupNorm", "Exp"] if shared else ["SkipGroupNorm"]
    assert "fuse/activation, fuse/skip" in outcome.only.rule
    lab.same(outcome, feeds(lab))
    lab.same_in_ort(outcome, feeds(lab))


def test_an_activation_behind_a_skip_form(lab: Any) -> None:
    """A reader of the sum that stands between the norm and the activation still comes after the new node."""
    nodes = (
        f"n, s = {GROUP.replace('GroupNorm', 'SkipGroupNorm')} (x, r, scale, bias) e = Exp (s) g = Sigmoid (n) "
        "a = Mul (n, g) y = Mul (a, e)"
    )
    outcome = lab.optimize(build(lab, nodes))
    assert sorted(outcome.ops) == ["Exp", "Mul", "SkipGroupNorm"]
    assert b"silu" in [item.s for item in outcome.node("SkipGroupNorm").attribute]
    lab.same_in_ort(outcome, feeds(lab))


def test_sizes_of_the_same_name(lab: Any) -> None:
    outcome = lab.optimize(build(lab, sizes="[N,6,H,W]"))
    assert outcome.ops == ["SkipGroupNorm"]
    lab.same_in_ort(outcome, feeds(lab))


def test_verified(lab: Any) -> None:
    nodes = f"s = Add (x, r) a = {GROUP} (s, scale, bias) y = Mul (a, s)"
    assert lab.optimize(build(lab, nodes), verify=True).ops == ["SkipGroupNorm", "Mul"]


def test_in_a_subgraph(lab: Any) -> None:
    body = f"then () => (float{SIZES} t) {{ u = Add (x, r) t = {GROUP} (u, scale, bias) }}"
    other = f"otherwise () => (float{SIZES} o) {{ o = Identity (x) }}"
    nodes = f"y = If (c) <then_branch = {body}, else_branch = {other}>"
    outcome = lab.optimize(build(lab, nodes, inputs=", bool c"))
    branch = next(item.g for item in outcome.after.graph.node[0].attribute if item.name == "then_branch")
    assert [node.op_type for node in branch.node] == ["SkipGroupNorm"]
    for c in (False, True):
        lab.same_in_ort(outcome, feeds(lab) | {"c": np.array(c)})


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["[1,6,1,1]", "[2,6,4,1]", "[6,4,3]", "[N,6,4,3]", "[]"])
def test_refuses_other_shapes(lab: Any, refused: Any, shape: str) -> None:
    """A bias is no residual, nor is what may be one."""
    model = build(lab)
    other = f"float{shape} r".replace("[]", "") if shape == "[]" else f"float{shape} r"
    text = f"(float{SIZES} x, {other}) => (float{SIZES} y) {{ s = Add (x, r) y = {GROUP} (s, scale, bias) }}"
    scale, bias = (numpy_helper.to_array(item) for item in model.graph.initializer)
    refused(
        lab.model(text, 20, 10, ', "onnxnorm" : 1', scale=scale, bias=bias),
        RULE,
        "the operands have not surely the same shape",
    )


def test_refuses_sizes_without_a_name(lab: Any, refused: Any) -> None:
    model = build(lab, sizes="[N,6,H,W]")
    for item in model.graph.input:
        item.type.tensor_type.shape.dim[2].Clear()
    refused(model, RULE, "the operands have not surely the same shape")


def test_refuses_unknown_types(lab: Any) -> None:
    model = build(lab, f"z = own.Strange (x) w = own.Strange (r) s = Add (z, w) y = {GROUP} (s, scale, bias)")
    model.opset_import.append(helper.make_opsetid("own", 1))
    outcome = lab.optimize(model, check=False)
    assert rule_of(outcome) == ("refused", RULE)
    assert "element type" in outcome.only.reason


def test_refuses_an_addition_outside(lab: Any, refused: Any) -> None:
    body = f"then () => (float{SIZES} t) {{ t = {GROUP} (s, scale, bias) }}"
    other = f"otherwise () => (float{SIZES} o) {{ o = Identity (x) }}"
    nodes = f"s = Add (x, r) y = If (c) <then_branch = {body}, else_branch = {other}>"
    refused(build(lab, nodes, inputs=", bool c"), RULE, "the addition stands in an outer graph")


def test_refuses_parameters_that_are_computed(lab: Any, refused: Any) -> None:
    nodes = f"s = Add (x, r) k = ReduceMax <keepdims=0> (s, axes) y = {GROUP} (s, k, bias)"
    refused(build(lab, nodes, axes=np.array([0, 2, 3])), RULE, "a parameter of the norm is computed")


def test_a_constant_is_no_residual(lab: Any) -> None:
    model = build(lab, f"s = Add (x, b) t = Tanh (r) n = {GROUP} (s, scale, bias) y = Mul (n, t)", b=lab.array(6, 1, 1))
    outcome = lab.optimize(model)
    assert "GroupNorm" in outcome.ops
    assert outcome.only.action.value == "kept"


# --- what ONNX Runtime does better --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("norm", [ROWS, "LayerNormalization"])
def test_rows(lab: Any, norm: str, dtype: str) -> None:
    """Which ONNX Runtime's CPU provider would fuse with the addition into an operator that is slow and less exact."""
    parameters = {name: lab.array(3, dtype=dtype, seed=index) for index, name in enumerate(("scale", "bias"))}
    outcome = lab.optimize(build(lab, f"s = Add (x, r) y = {norm} (s, scale, bias)", dtype=dtype, **parameters))
    assert outcome.ops == ["SkipLayerNorm"]
    lab.same(outcome, feeds(lab, dtype), eps=lab.eps(dtype))


@pytest.mark.parametrize(("provider", "op"), [("cpu", "LayerNorm"), ("cuda", "LayerNormalization")])
def test_rows_without_a_residual(lab: Any, provider: str, op: str) -> None:
    parameters = {"scale": lab.array(3), "bias": lab.array(3, seed=1), "b": lab.array(3, seed=2)}
    for text in (f"t = Exp (r) y = {ROWS} (t, scale, bias)", f"t = Add (r, b) y = {ROWS} (t, scale, bias)"):
        assert lab.optimize(build(lab, text, **parameters), provider=provider).ops[-1] == op


def test_rows_behind_another_addition(lab: Any) -> None:
    """One that may broadcast stays, and so does onnxnorm's op behind it."""
    parameters = {"scale": lab.array(3), "bias": lab.array(3, seed=1)}
    model = build(lab, f"s = Add (x, r) y = {ROWS} (s, scale, bias)", **parameters)
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 1
    outcome = lab.optimize(model)
    assert outcome.ops == ["Add", "LayerNorm"]
    lab.same_in_ort(outcome, {"x": lab.array(2, 6, 4, 3), "r": lab.array(1, 6, 4, 3)})


def test_rows_on_cuda(lab: Any, refused: Any) -> None:
    parameters = {"scale": lab.array(3), "bias": lab.array(3, seed=1)}
    model = build(lab, f"s = Add (x, r) y = {ROWS} (s, scale, bias)", **parameters)
    outcome = lab.optimize(model, provider="cuda")
    assert outcome.ops == ["Add", "LayerNormalization"]
    reason = "ONNX Runtime fuses the addition into LayerNormalization itself"
    refused(model, RULE, reason, provider="cuda", disable=["lower/layer-norm-to-standard"])


def test_rows_with_statistics_that_are_read(lab: Any) -> None:
    """ONNX Runtime does not fuse them either."""
    parameters = {"scale": lab.array(3), "bias": lab.array(3, seed=1)}
    nodes = "s = Add (x, r) y, m = LayerNormalization (s, scale, bias) q = Exp (m)"
    outcome = lab.optimize(build(lab, nodes, outputs=", float[2,6,4,1] q", **parameters))
    assert outcome.ops == ["Add", "LayerNormalization", "Exp"]


def test_channels_of_images(lab: Any) -> None:
    outcome = lab.optimize(build(lab, f"s = Add (x, r) y = {LAYER} (s, scale, bias)"))
    assert outcome.ops == ["SkipLayerNorm"]
    lab.same_in_ort(outcome, feeds(lab))


def test_root_mean_square_of_rows(lab: Any) -> None:
    outcome = lab.optimize(build(lab, f"s = Add (x, r) y = {ROOT} (s, scale)", scale=lab.array(3)))
    assert outcome.ops == ["SkipRMSNorm"]
    lab.same_in_ort(outcome, feeds(lab))


def convolved(lab: Any, nodes: str = "", outputs: str = "", dtype: str = "float32", order: str = "c, r") -> Any:
    weight = lab.array(6, 6, 1, 1, dtype=dtype)
    nodes = f"c = Conv (x, w) s = Add ({order}) y = {GROUP} (s, scale, bias) {nodes}"
    return build(lab, nodes, outputs=outputs, dtype=dtype, w=weight)


@pytest.mark.parametrize("order", ["c, r", "r, c"])
def test_a_convolution_adds_the_residual(lab: Any, refused: Any, order: str) -> None:
    outcome = refused(convolved(lab, order=order), RULE, "ONNX Runtime adds the residual in the convolution")
    assert outcome.ops == ["Conv", "Add", "GroupNorm"]


def test_a_convolution_that_others_read(lab: Any) -> None:
    outcome = lab.optimize(convolved(lab, "z = Exp (c)", f", float{SIZES} z"))
    assert outcome.ops == ["Conv", "SkipGroupNorm", "Exp"]
    lab.same_in_ort(outcome, feeds(lab))


def test_a_convolution_in_float16_or_on_cuda(lab: Any) -> None:
    assert lab.optimize(convolved(lab, dtype="float16")).ops == ["Conv", "SkipGroupNorm"]
    assert lab.optimize(convolved(lab), provider="cuda").ops == ["Conv", "SkipGroupNorm"]


def test_not_for_standard_operators(lab: Any) -> None:
    outcome = lab.optimize(build(lab), target="standard")
    assert not [node for node in outcome.after.graph.node if node.domain]
    assert isinstance(outcome.after, onnx.ModelProto)
