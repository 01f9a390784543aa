"""Cleaning changes no result: each test is a valid model that a clean-up of a well-known library gets wrong."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import pytest

from onnxnorm.errors import ModelError

X = "(float[2,3] x) => (float[2,3] y)"


def unchanged(lab: Any, model: Any, *feeds: dict[str, Any], **options: Any) -> Any:
    outcome = lab.optimize(model, **options)
    for feed in feeds:
        for old, new in zip(lab.ort(model, feed), lab.ort(outcome.after, feed), strict=True):
            np.testing.assert_array_equal(old, new)
    return outcome


def x(lab: Any) -> dict[str, Any]:
    return {"x": lab.array(2, 3)}


BRANCHES = (
    "<then_branch = t () => (float[2,3] a) { a = Relu (x) }, else_branch = e () => (float[2,3] b) { b = Neg (x) }>"
)


def test_a_condition_that_a_caller_may_override(lab: Any) -> None:
    model = lab.model(f"(float[2,3] x, bool q) => (float[2,3] y) {{ y = If (q) {BRANCHES} }}", q=np.array(True))
    unchanged(lab, model, x(lab), {**x(lab), "q": np.array(False)})


@pytest.mark.parametrize(
    ("nodes", "default", "other"),
    [
        ("y = Expand (x, k)", [2, 3], [4, 2, 3]),
        ("y = Reshape (x, k)", [2, 3], [3, 2]),
        ("s = Shape (x) i = Gather (s, k) y = ConstantOfShape (i)", [0], [0, 1]),
        ("s = Shape (k) y = ConstantOfShape (s)", [0], [5]),
    ],
)
def test_shapes_and_indices_that_a_caller_may_override(
    lab: Any, nodes: str, default: list[int], other: list[int]
) -> None:
    model = lab.model(f"(float[2,3] x, int64[K] k) => (float[A,B] y) {{ {nodes} }}", k=np.array(default))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    unchanged(lab, model, x(lab), {**x(lab), "k": np.array(other)}, check=False)


def test_a_rank_that_a_caller_may_override(lab: Any) -> None:
    """With the default shape MatMul makes a matrix, with another one BatchNormalization's axis is another."""
    text = (
        "(float[4,3] x, int64[K] k) => (float y) { r = Reshape (x, k) m = MatMul (r, w)"
        " y = BatchNormalization (m, gamma, beta, mean, var) }"
    )
    model = lab.model(text, w=lab.array(3, 4), k=np.array([4, 3]), **lab.batch_norm(4))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    feeds = ({"x": lab.array(4, 3)}, {"x": lab.array(4, 3), "k": np.array([1, 4, 3])})
    outcome = unchanged(lab, model, *feeds, check=False)
    assert outcome.only.reason.startswith("the rank of MatMul's output is not known")


def test_the_default_of_an_input_stays_when_nothing_reads_it(lab: Any) -> None:
    model = lab.model("(float[2,3] x, float[4] k) => (float[2,3] y) { s = Shape (k) y = Neg (x) }", k=lab.array(4))
    outcome = unchanged(lab, model, x(lab))
    assert [item.name for item in outcome.after.graph.initializer] == ["k"]
    assert outcome.ops == ["Neg"]


def test_dropout_that_a_caller_may_switch_on(lab: Any) -> None:
    text = "(float[2,3] x, bool t) => (float[2,3] y) { d = Dropout (x, r, t) y = Neg (d) }"
    model = lab.model(text, t=np.array(False), r=np.array(0.9, np.float32))
    assert unchanged(lab, model, x(lab)).ops == ["Dropout", "Neg"]


@pytest.mark.parametrize(
    ("node", "skipped", "opset"),
    [
        ("d = Dropout (x)", True, 18),
        ("d = Dropout (x)", True, 7),
        ("d, m = Dropout (x)", True, 12),
        ("d = Dropout (x, r)", True, 12),
        ("d = Dropout (x, r, off)", True, 12),
        ("d = Dropout (x, r, on)", False, 12),
        ("d = Identity (x)", True, 13),
        ("d = Div (x, one)", True, 13),
        ("d = Mul (x, one)", True, 13),
        ("d = Div (x, r)", False, 13),
        ("d = Div (one, x)", False, 13),
        ("d = Div (x, spread)", False, 13),
    ],
)
def test_what_passes_on(lab: Any, node: str, skipped: bool, opset: int) -> None:
    arrays = {"r": np.array(0.5, np.float32), "on": np.array(True), "off": np.array(False)}
    arrays |= {"one": np.array(1.0, np.float32), "spread": np.ones((1, 1, 1), np.float32)}
    used = {
        name: value
        for name, value in arrays.items()
        if name in node.replace(")", ",").replace(" ", "").split("(")[1].split(",")
    }
    text = X.replace("[2,3] y", "[1,2,3] y") if "spread" in node else X
    outcome = lab.optimize(lab.model(f"{text} {{ {node} y = Neg (d) }}", opset, **used))
    assert (outcome.ops == ["Neg"]) == skipped


def test_the_mask_of_dropout_is_kept(lab: Any) -> None:
    model = lab.model("(float[2,3] x) => (float[2,3] y, bool[2,3] m) { d, m = Dropout (x) y = Neg (d) }")
    assert unchanged(lab, model, x(lab)).ops == ["Dropout", "Neg"]


def test_a_branch_that_returns_an_outer_value(lab: Any) -> None:
    text = (
        "(float[2,3] x, bool q) => (float[2,3] y) { n = Neg (x) y = If (q) <then_branch = t () => (float[2,3] a)"
        " { a = Identity (n) }, else_branch = e () => (float[2,3] b) { b = Abs (n) }> }"
    )
    unchanged(lab, lab.model(text), *({**x(lab), "q": np.array(q)} for q in (True, False)))


def test_two_outputs_of_one_value(lab: Any) -> None:
    model = lab.model(
        "(float[2,3] x) => (float[2,3] y, float[2,3] z, float[2,3] u) { y = Neg (x) z = Identity (y) u = Identity (x) }"
    )
    unchanged(lab, model, x(lab))


def test_constants_that_are_outputs(lab: Any) -> None:
    text = (
        "(float[2,3] x) => (float[2] y, float[2] c, int64[2] s, float[2,3] z) { c = Constant"
        " <value_floats=[1.0,2.0]> ()"
        " y = Add (c, c) s = Shape (x) z = Neg (x) }"
    )
    unchanged(lab, lab.model(text, 18), x(lab))
    unchanged(lab, lab.model("(float[2,3] x) => (int64[2] s, float[2,3] z) { s = Shape (x) z = Neg (x) }", 9), x(lab))


def test_constants_in_branches(lab: Any) -> None:
    text = (
        "(float[2] x, bool q) => (float[2] y) { y = If (q) <then_branch = t () => (float[2] a) { k = Constant"
        " <value_floats=[1.0,2.0]> ()"
        " l = Add (k, k) a = Add (l, k) }, else_branch = e () => (float[2] b) { k2 = Constant"
        " <value_floats=[3.0,2.0]> () b = Mul (x, k2) }> }"
    )
    unchanged(lab, lab.model(text), *({"x": lab.array(2), "q": np.array(q)} for q in (True, False)))


def test_loop_with_captured_and_carried_values(lab: Any) -> None:
    text = (
        "(float[2,3] x, int64 n) => (float[2,3] y, float[I,2,3] all) { go = Constant <value=bool {1}> () k = Relu (x)"
        " y, all = Loop (n, go, x) <body = b (int64 i, bool c, float[2,3] v) => (bool d, float[2,3] w, float[2,3] o)"
        " { d = Identity (c) two = Constant <value_float=2.0> () w = Mul (v, two) o = Add (w, k) }> }"
    )
    unchanged(lab, lab.model(text), {**x(lab), "n": np.array(3)})


def test_scan(lab: Any) -> None:
    text = (
        "(float[4,2] x) => (float[2] y, float[4,2] all) { zero = Constant <value_floats=[0.0,0.0]> ()"
        " y, all = Scan <num_scan_inputs=1, body = b (float[2] s, float[2] v) => (float[2] t, float[2] o) { t = Add"
        " (s, v) o = Identity (t) }> (zero, x) }"
    )
    unchanged(lab, lab.model(text), {"x": lab.array(4, 2)})


def test_sequences_and_strings(lab: Any) -> None:
    text = (
        "(float[5,3] x) => (float[A,3] y, int64[2] z) { sizes = Constant <value_ints=[2,3]> () q = SplitToSequence"
        " <axis=0> (x, sizes)"
        " one = Constant <value_int=1> () p = Identity (q) y = SequenceAt (p, one) t = Constant"
        ' <value_strings=["a","b"]> ()'
        " s, u1, u2, w = Unique <axis=0> (t) z = Cast <to=7> (w) }"
    )
    unchanged(lab, lab.model(text, 16), {"x": lab.array(5, 3)})


def test_optional_and_empty_inputs(lab: Any) -> None:
    text = '(float[2,3] x) => (float[2,3] y) { hi = Constant <value_float=0.5> () c = Clip (x, "", hi) y = Neg (c) }'
    unchanged(lab, lab.model(text), x(lab))


def test_a_sparse_constant(lab: Any) -> None:
    """onnx_ir knows none: better an error than a model without it."""
    model = lab.model(f"{X} {{ k = Abs (x) y = Add (x, k) }}")
    dense = onnx.helper.make_tensor("values", 1, [1], [5.0])
    sparse = onnx.helper.make_sparse_tensor(dense, onnx.helper.make_tensor("indices", 7, [1], [4]), [2, 3])
    model.graph.node[0].CopyFrom(onnx.helper.make_node("Constant", [], ["k"], sparse_value=sparse))
    with pytest.raises(ModelError, match="cannot be read"):
        lab.optimize(model)


def test_quantized(lab: Any) -> None:
    text = (
        "(float[2,3] x) => (float[2,4] y) { q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
        " w = DequantizeLinear <axis=1> (weight, ws, wz) y = MatMul (d, w) }"
    )
    arrays = {
        "weight": lab.array(3, 4, high=100).astype(np.int8),
        "ws": lab.array(4, low=0.1),
        "wz": np.zeros(4, np.int8),
    }
    outcome = unchanged(
        lab, lab.model(text, 13, s=np.array(0.01, np.float32), z=np.array(3, np.uint8), **arrays), x(lab)
    )
    assert "DequantizeLinear" in outcome.ops


def test_attributes_of_a_function(lab: Any) -> None:
    """One body, two values of its attribute: what depends on it cannot be computed in the body."""
    text = (
        "(float[2,3] x) => (float[2,3] y) { a = local.block <k=0> (x) y = local.block <k=1> (a) }"
        '\n<domain: "local", opset_import: ["" : 18]> block <k> (p) => (r) { c = Constant <value = float[2,3]'
        " {1,2,3,4,5,7}> ()"
        " t = Neg (c) s = Softmax <axis: int = @k> (t) r = Add (p, s) }"
    )
    outcome = unchanged(lab, lab.model(text, 18, domains=', "local" : 1'), x(lab))
    assert [node.op_type for node in outcome.after.functions[0].node] == ["Constant", "Softmax", "Add"]


def test_the_opset_of_a_function(lab: Any) -> None:
    """Its Squeeze has the axes as an attribute, as opset 12 has it; the model has opset 18."""
    text = (
        "(float[2,3] x) => (float[2,3] y) { y = local.block (x) }"
        '\n<domain: "local", opset_import: ["" : 12]> block (p) => (r) { u = Constant <value = float[1,3,1] {1,2,3}> ()'
        " v = Squeeze <axes=[0]> (u) w = Squeeze <axes=[1]> (v) r = Mul (p, w) }"
    )
    outcome = lab.optimize(lab.model(text, 18, domains=', "local" : 1'), check=False)  # the checker wants one opset
    assert [node.op_type for node in outcome.after.functions[0].node] == ["Constant", "Mul"]
    lab.same(outcome, x(lab))


def test_an_ir_version_in_which_every_initializer_is_an_input(lab: Any) -> None:
    """New constants are then nodes: an initializer that is no input would make the model invalid."""
    text = (
        "(float[2,3,5,5] x) => (float[2,4,3,3] y) { v = Constant <value = float[4,3,1,1] {1,2,3,4,5,6,7,8,9,8,7,6}> ()"
        " w = Neg (v) g = Constant <value = float[4] {1,2,3,4}> () e = Mul (g, g) c = Conv <strides=[2,2]> (x, w)"
        " y = BatchNormalization (c, g, e, g, g) }"
    )
    model = lab.model(text, 8, ir_version=3)
    outcome = lab.optimize(model)
    assert sorted(outcome.ops) == ["Constant", "Constant", "Conv"]
    assert not outcome.after.graph.initializer
    lab.same_in_ort(outcome, {"x": lab.array(2, 3, 5, 5)})


def test_unused_nodes_and_initializers_go(lab: Any) -> None:
    text = (
        "(float[2,3] x, bool q) => (float[2,3] y) { d = Mul (x, dead) e = Relu (d) z = If (q) <then_branch = t () =>"
        " (float[2,3] a)"
        " { a = Mul (x, inner) }, else_branch = f () => (float[2,3] b) { b = Neg (e) }> y = If (q)"
        " <then_branch = t2 () => (float[2,3] a2) { u = Mul (x, x) a2 = Neg (x) }, else_branch = f2 () =>"
        " (float[2,3] b2) { b2 = Abs (x) }> }"
    )
    outcome = unchanged(lab, lab.model(text, dead=lab.array(3), inner=lab.array(3)), {**x(lab), "q": np.array(True)})
    assert outcome.ops == ["If"]
    assert not outcome.after.graph.initializer
    assert [node.op_type for node in outcome.after.graph.node[0].attribute[0].g.node] in (["Neg"], ["Abs"])


def test_large_weights_change_their_layout_only_when_nothing_else_reads_them(lab: Any) -> None:
    large = lab.array(100, 100)
    text = "(float[2,100] x) => (float[2,100] y) { t = Transpose (w) m = MatMul (x, t) r = Relu (m) y = MatMul (r, v) }"
    assert lab.optimize(lab.model(text, w=large, v=large)).ops == ["MatMul", "Relu", "MatMul"]
    shared = lab.optimize(lab.model(text.replace("(r, v)", "(r, w)"), w=large))
    assert shared.ops == ["Transpose", "MatMul", "Relu", "MatMul"]


def test_a_large_weight_is_cast_when_it_becomes_no_larger(lab: Any) -> None:
    text = "(float16[2,100] x) => (float16[2,100] y) { t = Cast <to=10> (w) y = MatMul (x, t) }"
    large = lab.array(100, 100)
    outcome = lab.optimize(lab.model(text, w=large))
    assert (outcome.ops, outcome.result.decisions) == (["MatMul"], ())
    (weight,) = outcome.after.graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), large.astype(np.float16))
    wider = text.replace("float16[", "float[").replace("to=10", "to=1")
    assert lab.optimize(lab.model(wider, w=large.astype(np.float16))).ops == ["Cast", "MatMul"]


def test_a_node_that_cannot_be_inferred_hides_no_other(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The rank behind it is still known, and nothing is printed."""
    text = (
        "(float[4,3] x) => (float[4,4] y, float[9] z) { bad = Reshape (x, five) z = other.Unknown (bad) m = MatMul"
        " (x, w)"
        " y = BatchNormalization (m, gamma, beta, mean, var) }"
    )
    model = lab.model(text, 18, 8, ', "other" : 1', five=np.array([5, 5]), w=lab.array(3, 4), **lab.batch_norm(4))
    with caplog.at_level(logging.WARNING):
        outcome = lab.optimize(model, check=False)
    assert "BatchNormalization" not in outcome.ops
    assert not caplog.records


def test_initializers_keep_their_order(lab: Any) -> None:
    arrays = {"b": lab.array(1), "large": lab.array(40, 40), "a": lab.array(1), "huge": lab.array(40, 60)}
    text = (
        "(float[2,40] x) => (float[2,60] y) { p = Add (x, a) u = Relu (p) q = Add (u, b) v = Relu (q) w = MatMul"
        " (v, large) r = Relu (w) y = MatMul (r, huge) }"
    )
    outcome = lab.optimize(lab.model(text, **arrays))
    assert [item.name for item in outcome.after.graph.initializer] == list(arrays)


def test_the_interface_stays_as_it_was_declared(lab: Any) -> None:
    """Inference knows more than was declared; the user's own words stand."""
    model = lab.model("(float[N,3] x) => (float[M,K] y) { i = Identity (x) y = MatMul (i, w) }", w=lab.array(3, 4))
    model.graph.input[0].doc_string = model.graph.output[0].doc_string = "in words"
    model.graph.output[0].metadata_props.add(key="unit", value="dB")
    model.graph.doc_string, model.doc_string, model.producer_name, model.model_version = "g", "m", "p", 7
    model.metadata_props.add(key="author", value="me")
    model.opset_import.add(domain="com.example", version=3)
    outcome = lab.optimize(model)
    for name in ("doc_string", "producer_name", "model_version", "metadata_props", "opset_import", "ir_version"):
        assert str(getattr(outcome.after, name)) == str(getattr(model, name)), name
    assert (outcome.after.graph.doc_string, outcome.after.graph.name) == ("g", model.graph.name)


def test_identities_in_front_of_outputs_go(lab: Any) -> None:
    """The output keeps its name; an input, a constant and what has another reader need the node."""
    text = (
        "(float[N,4] x) => (float[A,B] a, float[C,D] b, float[E] c, float[F,G] d, float[H,I] e)"
        " { r = Relu (x) a = Identity (r) b = Identity (x) c = Identity (k) n = Neg (x) d = Dropout (n) e = Abs (n) }"
    )
    outcome = lab.optimize(lab.model(text, k=lab.array(3)))
    assert outcome.ops == ["Relu", "Identity", "Identity", "Neg", "Dropout", "Abs"]
    assert outcome.node("Relu").output[0] == "a"
    lab.same(outcome, {"x": lab.array(2, 4)})
