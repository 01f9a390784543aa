"""fold/constant-weight: weights that constants decide, what it refuses, and what it leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

RULE = "fold/constant-weight"
TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}
NORM = "l = ReduceL2 <keepdims=1> (v, axes) d = Div (g, l) w = Mul (v, d)"
CONV = "(float[2,3,6,5] x) => (float[N,4,H,W] y) { " + NORM + " y = Conv (x, w) }"


def parts(lab: Any, dtype: str = "float32", **changed: Any) -> dict[str, Any]:
    arrays = {
        "v": lab.array(4, 3, 3, 3, dtype=dtype),
        "g": lab.array(4, 1, 1, 1, dtype=dtype, seed=2, low=0.5, high=2),
        "axes": np.array([1, 2, 3]),
        **changed,
    }
    return {name: value for name, value in arrays.items() if value is not None}


def image(lab: Any, dtype: str = "float32") -> dict[str, Any]:
    return {"x": lab.array(2, 3, 6, 5, dtype=dtype, seed=9)}


def normed(v: Any, g: Any) -> Any:
    v, g = v.astype(np.float64), g.astype(np.float64)
    return v * (g / np.sqrt((v * v).sum((1, 2, 3), keepdims=True)))


@pytest.mark.parametrize("dtype", TYPE_NAMES)
def test_rounds_once(lab: Any, dtype: str) -> None:
    arrays = parts(lab, dtype)
    model = lab.model(CONV.replace("float[", TYPE_NAMES[dtype] + "["), 22, **arrays)
    outcome = lab.optimize(model, verify=True)
    assert not {"ReduceL2", "Div", "Mul"} & set(outcome.ops)
    (decision,) = (item for item in outcome.result.decisions if item.rule == RULE)
    assert (decision.action.value, decision.node, decision.op) == ("folded", "y", "Conv")
    assert decision.values["weight"] == "computed from g, v (weight norm)"
    (weight,) = (onnx.numpy_helper.to_array(item) for item in outcome.after.graph.initializer)
    truth = normed(arrays["v"], arrays["g"]).astype(arrays["v"].dtype)
    np.testing.assert_array_equal(weight.astype(np.float64), truth.astype(np.float64))
    lab.same(outcome, image(lab, dtype), eps=lab.eps(dtype))


def test_casts_on_the_way_do_not_round(lab: Any) -> None:
    """Float16 parameters whose norm would not be finite in float16."""
    v, g = (
        lab.array(4, 3, 3, 3, dtype="float16", low=200, high=300),
        lab.array(4, 1, 1, 1, dtype="float16", low=1, high=2),
    )
    text = (
        "(float16[2,3,6,5] x) => (float16[N,4,H,W] y) { f = Cast <to=1> (v) q = Mul (f, f) s = ReduceSum (q, axes)"
        " h = Cast <to=10> (s) r = Sqrt (h) k = Div (v, r) w = Mul (k, g) y = Conv (x, w) }"
    )
    outcome = lab.optimize(lab.model(text, **parts(lab, v=v, g=g)), verify=True)
    assert outcome.ops == ["Conv"]
    (weight,) = (onnx.numpy_helper.to_array(item) for item in outcome.after.graph.initializer)
    np.testing.assert_array_equal(weight, normed(v, g).astype(np.float16))


@pytest.mark.parametrize("opset", [18, 20, 21, 23, 24])
def test_batch_norm_folds_after_it(lab: Any, opset: int) -> None:
    text = CONV.replace("y = Conv (x, w)", "c = Conv (x, w) y = BatchNormalization (c, gamma, beta, mean, var)")
    outcome = lab.optimize(lab.model(text, opset, **parts(lab), **lab.batch_norm(4)), verify=True)
    assert outcome.ops == ["Conv"]
    assert [item.rule for item in outcome.result.decisions] == [RULE, "fold/batch-norm-into-conv"]
    lab.same(outcome, image(lab))


LAYERS = {
    "Gemm": ("(float[2,5] x) => (float[2,4] y) { w = Mul (v, g) y = Gemm <transB=1> (x, w) }", (4, 5), (4, 1)),
    "MatMul": ("(float[2,4] x) => (float[2,5] y) { w = Mul (v, g) y = MatMul (x, w) }", (4, 5), (5,)),
    "MatMul of the transpose": (
        "(float[2,5] x) => (float[2,4] y) { w = Mul (v, g) t = Transpose (w) y = MatMul (x, t) }",
        (4, 5),
        (4, 1),
    ),
    "MatMul on the left": ("(float[5,2] x) => (float[4,2] y) { w = Mul (v, g) y = MatMul (w, x) }", (4, 5), (4, 1)),
    "Einsum": (
        '(float[2,5] x) => (float[2,4] y) { w = Mul (v, g) y = Einsum <equation="bi,oi->bo"> (x, w) }',
        (4, 5),
        (1,),
    ),
    "ConvTranspose": (
        "(float[1,4,5,5] x) => (float[1,2,7,7] y) { w = Mul (v, g) y = ConvTranspose (x, w) }",
        (4, 2, 3, 3),
        (1, 2, 1, 1),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(lab: Any, name: str) -> None:
    text, v, g = LAYERS[name]
    model = lab.model(text, v=lab.array(*v), g=lab.array(*g, seed=1))
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == [name.split(maxsplit=1)[0]]
    assert outcome.only.rule == RULE
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    lab.same(outcome, {"x": lab.array(*shape, seed=5)})


def test_embedding(lab: Any) -> None:
    text = "(int64[3] x) => (float[3,4] y) { w = Mul (v, g) y = Gather (w, x) }"
    outcome = lab.optimize(lab.model(text, v=lab.array(7, 4), g=lab.array(7, 1)), verify=True)
    assert (outcome.ops, outcome.only.op) == (["Gather"], "Gather")
    lab.same(outcome, {"x": np.array([0, 6, 3])})


def test_large_weights(lab: Any) -> None:
    """Above every limit of small constants."""
    arrays = {"v": lab.array(500, 400), "g": lab.array(500, 1), "m": lab.array(500, 400) > 0, "z": np.float32(0)}
    text = "(float[2,400] x) => (float[2,500] y) { u = Mul (v, g) w = Where (m, u, z) y = Gemm <transB=1> (x, w) }"
    outcome = lab.optimize(lab.model(text, **arrays), verify=True)
    assert outcome.ops == ["Gemm"]
    assert len(outcome.after.SerializeToString()) < 500 * 400 * 4 + 2000
    lab.same(outcome, {"x": lab.array(2, 400, seed=5)})


def test_one_weight_read_twice(lab: Any) -> None:
    """An embedding tied to the last layer: one weight, and the transposition that the plain model has, too."""
    text = (
        "(int64[3] i, float[2,90] x) => (float[3,90] e, float[2,100] y) { w = Mul (v, g) e = Gather (w, i)"
        " t = Transpose (w) y = MatMul (x, t) }"
    )
    model = lab.model(text, v=lab.array(100, 90), g=lab.array(100, 1))
    outcome = lab.optimize(model, verify=True)
    assert sorted(outcome.ops) == ["Gather", "MatMul", "Transpose"]
    assert len(outcome.after.graph.initializer) == 1
    assert outcome.only.rule == RULE
    lab.same(outcome, {"i": np.array([0, 99, 3]), "x": lab.array(2, 90, seed=5)})


def test_a_layer_that_is_called_twice(lab: Any) -> None:
    """Its norm is computed in each call; the weight is one all the same."""
    one = "l{0} = ReduceL2 <keepdims=1> (v, axes{0}) d{0} = Div (g, l{0}) w{0} = Mul (v, d{0}) {2} = MatMul ({1}, w{0})"
    text = (
        "(float[2,100] x) => (float[2,100] y) {"
        + one.format(1, "x", "h")
        + " r = Relu (h)"
        + one.format(2, "r", "y")
        + "}"
    )
    arrays = {"v": lab.array(100, 100), "g": lab.array(100, 1), "axes1": np.array([1]), "axes2": np.array([1])}
    outcome = lab.optimize(lab.model(text, **arrays), verify=True)
    assert outcome.ops == ["MatMul", "Relu", "MatMul"]
    assert len(outcome.after.graph.initializer) == 1
    assert outcome.only.rule == RULE
    lab.same(outcome, {"x": lab.array(2, 100, seed=5)})


def test_layers_that_differ_share_nothing(lab: Any) -> None:
    """Other axes, another order of the inputs."""
    text = (
        "(float[2,5] x) => (float[2,5] y) { a = ReduceL2 <keepdims=1> (v, k) b = ReduceL2 <keepdims=1> (v, l)"
        " c = Div (v, a) d = Div (v, b) e = Sub (c, d) f = Sub (d, c) h = MatMul (x, e)"
        " r = Relu (h) y = MatMul (r, f) }"
    )
    arrays = {"v": lab.array(5, 5), "k": np.array([0]), "l": np.array([1])}
    outcome = lab.optimize(lab.model(text, **arrays), verify=True)
    assert len(outcome.after.graph.initializer) == 2
    lab.same(outcome, {"x": lab.array(2, 5, seed=5)})


def test_weights_cut_out_of_one(lab: Any) -> None:
    """Query, key and value: the chain is computed, the cut stays as in the plain model."""
    text = (
        "(float[2,60] x) => (float[2,60] q, float[2,60] k) { w = Mul (v, g) a, b = Split <num_outputs=2> (w)"
        " at = Transpose (a) bt = Transpose (b) q = MatMul (x, at) k = MatMul (x, bt) }"
    )
    model = lab.model(text, v=lab.array(120, 60), g=lab.array(120, 1))
    outcome = lab.optimize(model, verify=True)
    assert "Mul" not in outcome.ops
    assert sum(item.rule == RULE for item in outcome.result.decisions) == 1
    lab.same(outcome, {"x": lab.array(2, 60, seed=5)})


def test_parts_of_one_weight(lab: Any) -> None:
    text = (
        "(float[2,100] x) => (float[2,120] y) { a = Tanh (v) w = Concat <axis=0> (a, b) t = Transpose (w)"
        " y = MatMul (x, t) }"
    )
    outcome = lab.optimize(lab.model(text, v=lab.array(60, 100), b=lab.array(60, 100, seed=2)), verify=True)
    assert outcome.ops == ["MatMul"]
    assert outcome.only.values["weight"] == "computed from b, v"
    lab.same(outcome, {"x": lab.array(2, 100, seed=5)})


@pytest.mark.parametrize("place", ["main graph", "branch", "both"])
def test_subgraphs(lab: Any, place: str) -> None:
    outer, inner = {
        "main graph": ("w = Mul (v, g)", ""),
        "branch": ("", "w = Mul (v, g)"),
        "both": ("u = Mul (v, g)", "w = Tanh (u)"),
    }[place]
    text = (
        f"(float[2,3,6,5] x, bool q) => (float[A,B,H,W] y) {{ {outer} y = If (q) <then_branch = t ()"
        f" => (float[A,B,H,W] a) {{ {inner} a = Conv (x, w) }}, else_branch = e () => (float[A,B,H,W] b)"
        " { b = Neg (x) }> }"
    )
    arrays = parts(lab, axes=None)
    outcome = lab.optimize(lab.model(text, **arrays), verify=True)
    (branches,) = (node for node in outcome.after.graph.node if node.op_type == "If")
    assert outcome.ops == ["If"]
    assert sorted(len(item.g.node) for item in branches.attribute) == [1, 1]
    for q in (True, False):
        lab.same(outcome, {**image(lab), "q": np.array(q)})


def test_loop(lab: Any) -> None:
    """A body's own values are no constants."""
    text = (
        "(float[2,4] x, int64 n) => (float[2,4] y) { go = Constant <value=bool {1}> () y = Loop (n, go, x) <body = b"
        " (int64 i, bool c, float[2,4] s) => (bool d, float[2,4] r) { d = Identity (c) w = Mul (v, g)"
        " r = MatMul (s, w) }> }"
    )
    outcome = lab.optimize(lab.model(text, v=lab.array(4, 4), g=lab.array(4, 1)), verify=True)
    body = outcome.node("Loop").attribute[0].g
    assert [node.op_type for node in body.node] == ["Identity", "MatMul"]
    lab.same(outcome, {"x": lab.array(2, 4, seed=3), "n": np.array(3)})


def test_functions(lab: Any) -> None:
    text = (
        "(float[2,2] x) => (float[2,2] y) { y = local.block (x) }"
        '\n<domain: "local", opset_import: ["" : 18]> block (p) => (r) { v = Constant <value = float[2,2] {1,2,3,4}> ()'
        " g = Constant <value = float[2,1] {0.5,3}> () w = Mul (v, g) r = MatMul (p, w) }"
    )
    outcome = lab.optimize(lab.model(text, 18, domains=', "local" : 1'))
    assert [node.op_type for node in outcome.after.functions[0].node] == ["Constant", "MatMul"]
    lab.same(outcome, {"x": lab.array(2, 2)})


@pytest.mark.usefixtures("functions_stay")
def test_an_attribute_of_a_function(lab: Any) -> None:
    text = (
        "(float[2,2] x) => (float[2,2] y) { y = local.block <a=0> (x) }"
        '\n<domain: "local", opset_import: ["" : 18]> block <a> (p) => (r) {'
        " v = Constant <value = float[2,2] {1,2,3,4}> ()"
        " w = Softmax <axis: int = @a> (v) r = MatMul (p, w) }"
    )
    outcome = lab.optimize(lab.model(text, 18, domains=', "local" : 1'))
    assert [node.op_type for node in outcome.after.functions[0].node] == ["Constant", "Softmax", "MatMul"]


def test_initializers_that_are_inputs(lab: Any) -> None:
    """Before IR version 4 each is one: new constants are nodes there."""
    text = (
        "(float[2,3,6,5] x) => (float[N,4,H,W] y) { k = Constant <value = float[4,3,1,1] {1,2,3,4,5,6,7,8,9,8,7,6}> ()"
        " w = Tanh (k) y = Conv (x, w) }"
    )
    outcome = lab.optimize(lab.model(text, 8, ir_version=3))
    assert (outcome.ops, len(outcome.after.graph.initializer)) == (["Constant", "Conv"], 0)
    lab.same(outcome, image(lab))


def test_the_raw_weight_has_another_reader(lab: Any) -> None:
    """Small ones are computed all the same, and the other reader keeps what it reads."""
    text = CONV.replace("y = Conv (x, w)", "y = Conv (x, w) o = Conv (x, v)").replace(
        "W] y)", "W] y, float[N,4,H,W] o)"
    )
    outcome = lab.optimize(lab.model(text, **parts(lab)), verify=True)
    assert outcome.ops == ["Conv", "Conv"]
    lab.same(outcome, image(lab))


def test_disable(lab: Any) -> None:
    outcome = lab.optimize(lab.model(CONV, **parts(lab)), disable=[RULE])
    assert outcome.ops == ["ReduceL2", "Div", "Mul", "Conv"]
    assert not outcome.result.decisions


# --- refusals -----------------------------------------------------------------------------------------------------


def test_refuses_a_graph_output(lab: Any, refused: Any) -> None:
    text = CONV.replace("W] y)", "W] y, float[4,3,3,3] w)")
    outcome = refused(lab.model(text, **parts(lab)), RULE, "its computed weight is also a graph output")
    assert outcome.only.values == {"output": "w"}
    lab.same(outcome, image(lab))


@pytest.mark.parametrize("shared", [False, True])
def test_refuses_to_make_the_model_larger(lab: Any, refused: Any, shared: bool) -> None:
    if shared:
        nodes, arrays = "w = Mul (a, b) z = Neg (a)", {"a": lab.array(100, 90), "b": lab.array(90)}
    else:
        nodes, arrays = "w = MatMul (a, b)", {"a": lab.array(100, 5), "b": lab.array(5, 90)}
    text = f"(float[2,100] x) => (float[2,90] y{', float[100,90] z' if shared else ''}) {{ {nodes} y = MatMul (x, w) }}"
    outcome = refused(lab.model(text, **arrays), RULE, "as a constant it would make the model larger")
    assert outcome.only.values == {"bytes": 36000, "freed": 360 if shared else 3800}


def test_refuses_what_overflows(lab: Any, refused: Any) -> None:
    text = CONV.replace("float[", "float16[").replace(
        "w = Mul (v, d)", "u = Mul (v, d) t = Mul (u, big) w = Mul (t, big)"
    )
    big = np.array(6e4, np.float16)
    refused(lab.model(text, **parts(lab, "float16", big=big)), RULE, "would overflow float16")


def test_refuses_what_is_not_finite(lab: Any, refused: Any) -> None:
    v = lab.array(4, 3, 3, 3)
    v[1] = 0
    outcome = refused(lab.model(CONV, **parts(lab, v=v)), RULE, "would not be finite")
    assert outcome.ops == ["ReduceL2", "Div", "Mul", "Conv"]


def test_refuses_what_cannot_be_computed(lab: Any, refused: Any) -> None:
    """Runtimes do not agree on ReduceL2 over no axes."""
    text = CONV.replace("<keepdims=1>", "<noop_with_empty_axes=1>")
    refused(lab.model(text, **parts(lab, axes=np.zeros(0, np.int64))), RULE, "ReduceL2 l cannot be computed")


# --- what is not this rule's --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nodes",
    [
        "r = RandomNormal <shape=[4,3,3,3]> () w = Mul (v, r)",
        "r = RandomNormalLike (v) w = Mul (v, r)",
        "r = Bernoulli (v) w = Mul (v, r)",
        "s = ReduceMean (x) w = Mul (v, s)",
        "w = DequantizeLinear (q, g1)",
        "u = DequantizeLinear (q, g1) w = Mul (u, v)",
    ],
)
def test_leaves(lab: Any, nodes: str) -> None:
    arrays = {"v": lab.array(4, 3, 3, 3, low=0.1), "q": np.ones((4, 3, 3, 3), np.int8), "g1": np.float32(0.5)}
    used = {name: value for name, value in arrays.items() if f"{name})" in nodes or f"{name}," in nodes}
    text = "(float[2,3,6,5] x) => (float[N,4,H,W] y) { " + nodes + " y = Conv (x, w) }"
    outcome = lab.optimize(lab.model(text, **used))
    assert outcome.ops == [node.op_type for node in outcome.before.graph.node]
    assert not outcome.result.decisions


@pytest.mark.parametrize("name", ["v", "g"])
def test_leaves_what_a_caller_may_override(lab: Any, name: str) -> None:
    shape = {"v": "4,3,3,3", "g": "4,1,1,1"}[name]
    model = lab.model(CONV.replace("x)", f"x, float[{shape}] {name})", 1), **parts(lab))
    outcome = lab.optimize(model)
    assert outcome.ops[-3:] == ["Div", "Mul", "Conv"]
    assert not outcome.result.decisions
    other = {name: lab.array(*map(int, shape.split(",")), seed=7)}
    for feeds in (image(lab), {**image(lab), **other}):
        lab.same(outcome, feeds)


def test_a_transposed_weight_alone_is_no_news(lab: Any) -> None:
    outcome = lab.optimize(
        lab.model("(float[2,5] x) => (float[2,4] y) { t = Transpose (w) y = MatMul (x, t) }", w=lab.array(4, 5))
    )
    assert (outcome.ops, outcome.result.decisions) == (["MatMul"], ())


def test_other_consumers_of_the_chain_keep_it(lab: Any) -> None:
    """The length is an output of its own."""
    text = CONV.replace("W] y)", "W] y, float[4,1,1,1] l)")
    outcome = lab.optimize(lab.model(text, **parts(lab)), verify=True)
    assert sorted(outcome.ops) == ["Conv", "ReduceL2"]
    assert outcome.only.action.value == "folded"
    lab.same(outcome, image(lab))


OLDER = [
    (7, "w = Clip <min=-0.5, max=0.25> (d)"),
    (9, "w = Pad <pads=[0,0,0,0,0,0,1,1], value=0.5> (d)"),
    (8, "m = Max (d, k) w = Min (m, g)"),
    (9, "t = Greater (d, k) w = Where (t, d, g)"),
    (8, "e = Expand (g, sizes) w = Mul (d, e)"),
    (9, "e = ConstantOfShape <value=float[1]{0.5}> (sizes) w = Mul (d, e)"),
    (7, "m = ReduceMax <axes=[1,2,3], keepdims=1> (d) w = Div (d, m)"),
]


@pytest.mark.parametrize(("opset", "nodes"), OLDER)
def test_older_forms(lab: Any, opset: int, nodes: str) -> None:
    arrays = {"v": lab.array(4, 3, 2, 2), "g": lab.array(4, 1, 1, 1, seed=1), "k": np.full((1,), -0.1, np.float32)}
    model = lab.model(
        f"(float[2,3,6,5] x) => (float[N,4,H,W] y) {{ d = Neg (v) {nodes} y = Conv (x, w) }}",
        opset,
        7,
        **arrays,
        sizes=np.array([4, 3, 2, 2]),
    )
    outcome = lab.optimize(model)
    assert outcome.ops == ["Conv"]
    x = {"x": lab.array(2, 3, 6, 5)}
    np.testing.assert_allclose(lab.ort(outcome.after, x)[0], lab.ort(model, x)[0], rtol=1e-5, atol=1e-6)
