"""The frame: fixpoint, decisions, subgraphs, functions, names, constants."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from onnxnorm.passes.decision import Action
from onnxnorm.passes.engine import RULE_KEY, Engine
from onnxnorm.passes.names import Names
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule

NORM = "BatchNormalization (c, gamma, beta, mean, var)"
PARTS = "float[4] gamma, float[4] beta, float[4] mean, float[4] var"


class ReluToNeg(Rule):
    """Relu(Relu(x)) -> Relu(x), so that a chain takes as many steps as it has nodes."""

    id: ClassVar[str] = "test/shorten"
    operators: ClassVar[frozenset[str]] = frozenset({"Relu"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        source = node.inputs[0]
        first = source.producer() if source is not None else None
        return Match({"first": first, "second": node}) if first is not None and first.op_type == "Relu" else None

    def check(self, match: Match, context: Context) -> None:
        if match["first"].name == "stop":
            raise Refusal("stop", at=match["first"].name)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        first, second = match["first"], match["second"]
        new = ir.node("Relu", [first.inputs[0]], name=first.name)
        return Replacement([new], {second.outputs[0]: new.outputs[0]}, [first, second], second)


def engine_for(lab: Any, text: str, **arrays: Any) -> Engine:
    return Engine(ir.from_proto(lab.model(text, **arrays)))


def test_runs_until_nothing_changes(lab: Any) -> None:
    chain = " ".join(f"a{i + 1} = Relu (a{i})" for i in range(20))
    engine = engine_for(lab, f"(float[2] a0) => (float[2] a20) {{ {chain} }}")
    engine.run([ReluToNeg()])
    nodes = list(engine.model.graph)
    assert [node.op_type for node in nodes] == ["Relu"]
    assert nodes[0].outputs[0].name == "a20"
    assert nodes[0].metadata_props[RULE_KEY] == "test/shorten"


def test_a_refusal_is_asked_again_and_told_once(lab: Any) -> None:
    engine = engine_for(
        lab, "(float[2] x) => (float[2] y, float[2] z) { a = Relu (x) y = Relu (a) b = Relu (x) z = Relu (b) }"
    )
    next(node for node in engine.model.graph if node.outputs[0].name == "b").name = "stop"
    engine.run([ReluToNeg()])
    assert [node.outputs[0].name for node in engine.model.graph] == ["y", "b", "z"]
    assert len(engine.account()) == 1  # the refused Relu is no norm, so only what was done is told


def test_no_rules_change_nothing(lab: Any) -> None:
    engine = engine_for(lab, "(float[2] x) => (float[2] y) { y = Relu (x) }")
    engine.run([])
    assert [node.op_type for node in engine.model.graph] == ["Relu"]


# --- decisions ----------------------------------------------------------------------------------------------------


def test_one_decision_for_each_norm(lab: Any) -> None:
    text = (
        "(float[2,3,6,5] x) => (float[N,4,H,W] y, float[N,4,H,W] z, float[N,3,H,W] u, float[N,4,H,W] v) {"
        " c = Conv (x, w) y = BatchNormalization (c, gamma, beta, mean, var)"
        " d = Conv (x, w) z = BatchNormalization (d, gamma, beta, mean, var) v = Relu (d)"
        " u = LpNormalization (x) }"
    )
    model = lab.model(text, w=lab.array(4, 3, 3, 3), **lab.batch_norm(4))
    outcome = lab.optimize(model, disable=["fuse/lp-normalization"])
    told = {item.node: (item.action.value, item.rule) for item in outcome.result.decisions}
    assert told == {
        "y": ("folded", "fold/batch-norm-into-conv"),
        "z": ("refused", "fold/batch-norm-into-conv"),
        "u": ("kept", None),
    }
    kept = next(item for item in outcome.result.decisions if item.node == "u")
    assert kept.reason == "no rule takes it; its input is a graph input"
    assert str(kept) == "LpNormalization u: kept: no rule takes it; its input is a graph input"


def test_rules_that_follow_each_other_share_a_decision(lab: Any) -> None:
    text = "(float[2,6,4] x) => (float[2,6,4] y) { n = GroupNormalization <num_groups=3> (x, s, s) y = Relu (n) }"
    outcome = lab.optimize(lab.model(text, 21, 10, s=lab.array(6)))
    decision = outcome.only
    assert (decision.op, decision.action, decision.rule) == (
        "GroupNormalization",
        Action.FUSED,
        "fuse/group-normalization, fuse/activation",
    )
    assert decision.values == {"activation": "relu"}
    history = {item.key: item.value for item in outcome.node("GroupNorm").metadata_props}
    assert history[RULE_KEY] == "fuse/group-normalization,fuse/activation"
    lowered = lab.optimize(outcome.after, target="standard")
    assert lowered.only.rule == "lower/group-norm-to-standard"


def test_the_module_is_told(lab: Any) -> None:
    model = lab.model("(float[2,3] x) => (float[2,3] y) { y = InstanceNormalization (x, s, s) }", s=lab.array(3))
    for text, module in (
        ("['', 'layer1.0.bn2', 'batch_norm']", "layer1.0.bn2"),
        ("__import__('os')", None),
        ("['one']", None),
        ("[", None),
    ):
        del model.graph.node[0].metadata_props[:]
        model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=text)
        assert lab.optimize(model, check=False).only.module == module


def test_a_decision_as_json(lab: Any) -> None:
    text = (
        "(float[2,3,6,5] x) => (float[N,4,H,W] y) { c = Conv (x, w) y = BatchNormalization <training_mode=1> (c,"
        " gamma, beta, mean, var) }"
    )
    model = lab.model(text, w=lab.array(4, 3, 3, 3), **lab.batch_norm(4))
    found = lab.optimize(model, check=False).only.to_json()
    assert (found["action"], found["values"]) == ("refused", {"training_mode": "1"})


# --- subgraphs and functions --------------------------------------------------------------------------------------


def test_folds_in_both_branches_with_captured_values(lab: Any) -> None:
    """Weights of the outer graph and of the branch; the input is captured; both branches use the same names inside."""
    text = (
        "(float[2,3,6,5] x, bool q) => (float[N,4,H,W] y) { y = If (q)"
        f" <then_branch = t () => (float[N,4,H,W] a) {{ c = Conv (x, w) a = {NORM} }},"
        f" else_branch = e () => (float[N,4,H,W] b) {{ v = Constant <value = float[4,3,1,1]"
        f" {{1,2,3,4,5,6,7,8,9,8,7,6}}> ()"
        f" c = Conv <pads=[0,0,0,0], strides=[1,1]> (x, v) r = Relu (c) s = Conv (x, w) b = BatchNormalization (s,"
        f" gamma, beta, mean, var) }}> }}"
    )
    outcome = lab.optimize(lab.model(text, w=lab.array(4, 3, 3, 3), **lab.batch_norm(4)))
    assert [item.action.value for item in outcome.result.decisions] == ["folded", "folded"]
    assert not outcome.after.graph.initializer
    for q in (True, False):
        feeds = {"x": lab.array(2, 3, 6, 5), "q": np.array(q)}
        lab.same(outcome, feeds)
        lab.same_in_ort(outcome, feeds)


def test_folds_in_a_loop_and_a_scan(lab: Any) -> None:
    text = (
        "(float[3,4] x, int64 n) => (float[3,4] y, float[5,3,4] z) { go = Constant <value=bool {1}> ()"
        f" y = Loop (n, go, x) <body = b (int64 i, bool g, float[3,4] v) => (bool h, float[3,4] o)"
        f" {{ h = Identity (g) c = MatMul (v, w) o = {NORM} }}>"
        " many = Expand (x, shape) z = Scan <num_scan_inputs=1, body = s (float[3,4] e) => (float[3,4] f)"
        " { p = Gemm (e, w) f = BatchNormalization (p, gamma, beta, mean, var) }> (many) }"
    )
    outcome = lab.optimize(lab.model(text, w=lab.array(4, 4), shape=np.array([5, 3, 4]), **lab.batch_norm(4)))
    assert sorted(item.rule for item in outcome.result.decisions) == [
        "fold/batch-norm-into-gemm",
        "fold/batch-norm-into-matmul",
    ]
    feeds = {"x": lab.array(3, 4), "n": np.array(3)}
    lab.same_in_ort(outcome, feeds)


FUNCTION = (
    '\n<domain: "local", opset_import: ["" : 18]> block (p) => (r) {'
    " w = Constant <value = float[4,4] {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}> () v = Constant <value_floats ="
    " [1.0,2.0,3.0,4.0]> ()"
    " c = Gemm (p, w) r = BatchNormalization (c, v, v, v, v) }"
)


def test_folds_in_a_function(lab: Any) -> None:
    text = "(float[3,4] x) => (float[3,4] y) { a = local.block (x) b = Relu (a) y = local.block (b) }" + FUNCTION
    outcome = lab.optimize(lab.model(text, domains=', "local" : 1'))
    body = outcome.after.functions[0]
    assert sorted(node.op_type for node in body.node) == ["Constant", "Constant", "Gemm"]
    assert outcome.only.action is Action.FOLDED
    lab.same_in_ort(outcome, {"x": lab.array(3, 4)})


@pytest.mark.usefixtures("functions_stay")
def test_parameters_that_a_function_takes_are_not_constant(lab: Any, refused: Any) -> None:
    text = (
        "(float[3,4] x) => (float[3,4] y) { a = local.block (x, one) y = local.block (a, two) }"
        '\n<domain: "local", opset_import: ["" : 18]> block (p, v) => (r) {'
        " w = Constant <value = float[4,4] {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}> () c = Gemm (p, w) r ="
        " BatchNormalization (c, v, v, v, v) }"
    )
    arrays = {"one": lab.array(4, low=0.1), "two": lab.array(4, low=0.1, seed=1)}
    outcome = refused(
        lab.model(text, domains=', "local" : 1', **arrays),
        "fold/batch-norm-into-gemm",
        "its gamma is not constant: it is a graph input",
    )
    lab.same_in_ort(outcome, {"x": lab.array(3, 4)})


def test_an_operator_of_another_domain_is_another_operator(lab: Any) -> None:
    text = (
        "(float[3,4] x) => (float[3,4] y) { c = other.Gemm (x, w) y = BatchNormalization (c, gamma, beta, mean, var) }"
    )
    model = lab.model(text, domains=', "other" : 1', w=lab.array(4, 4), **lab.batch_norm(4))
    assert lab.optimize(model).only.action is Action.KEPT


# --- names and constants ------------------------------------------------------------------------------------------


def test_new_names_differ_from_all_others(lab: Any) -> None:
    """Names that the fold would take are taken: by an initializer, a node, a value, an input, in a branch too."""
    text = (
        "(float[2,3,6,5] x, float[4] c_bias_folded) => (float[N,4,H,W] y, float[N,4,H,W] z, float[4] u) {"
        " c = Conv (x, w) y = BatchNormalization (c, gamma, beta, mean, var) w_folded_1 = Neg (c_bias_folded) u ="
        " Add (w_folded_1, w_folded)"
        " q = Constant <value=bool {1}> () z = If (q) <then_branch = t () => (float[N,4,H,W] a) { w_folded_2 = Conv"
        " (x, w) a = Neg (w_folded_2) },"
        " else_branch = e () => (float[N,4,H,W] b) { b = Conv (x, w) }> }"
    )
    outcome = lab.optimize(lab.model(text, w=lab.array(4, 3, 3, 3), w_folded=lab.array(4), **lab.batch_norm(4)))
    assert outcome.only.action is Action.FOLDED
    assert list(outcome.node("Conv").input) == ["x", "w_folded_3", "c_bias_folded_1"]
    lab.same_in_ort(outcome, {"x": lab.array(2, 3, 6, 5), "c_bias_folded": lab.array(4)})


def test_nodes_and_values_without_names(lab: Any) -> None:
    outcome = lab.optimize(
        lab.model(
            "(float[3,3] x) => (float[N,4] y) { c = MatMul (x, w) y = " + NORM + " }",
            w=lab.array(3, 4),
            **lab.batch_norm(4),
        )
    )
    names = [node.name for node in outcome.after.graph.node]
    assert all(names)
    assert len(set(names)) == 2


def test_a_copied_node_gets_a_name_of_its_own(lab: Any) -> None:
    """Two layers read a map through one ReduceMean, of which each gets a copy; ONNX Runtime refuses equal names."""
    model = lab.model(
        "(float[2,4,3,3] x) => (float[2,5] y, float[2,6] z) { r = Relu (x) c = BatchNormalization (r, gamma, beta,"
        " mean, var) m = ReduceMean <axes=[2,3], keepdims=0> (c) y = Gemm (m, v) z = Gemm (m, w) }",
        opset=17,
        v=lab.array(4, 5),
        w=lab.array(4, 6),
        **lab.batch_norm(4),
    )
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
    outcome = lab.optimize(model)
    names = [node.name for node in outcome.after.graph.node]
    assert len(set(names)) == len(names), names
    assert "BatchNormalization" not in outcome.ops
    lab.same_in_ort(outcome, {"x": lab.array(2, 4, 3, 3)})


@pytest.mark.parametrize("weights", ["shared", "own"])
def test_no_float64_copy_of_a_weight_stays(lab: Any, weights: str) -> None:
    text = "(float[3,3] x) => (float[N,4] y) { c = Gemm (x, w) y = " + NORM + " }"
    result = lab.optimize(lab.model(text, w=lab.array(3, 4), **lab.batch_norm(4))).result
    for value in result.model.graph.initializers.values():
        assert not value.meta
        assert value.const_value is not None
        assert value.const_value.dtype == ir.DataType.FLOAT


def test_fresh_names_and_constants_leave_the_graph_alone(lab: Any) -> None:
    model = ir.from_proto(lab.model("(float[2] x) => (float[2] y) { y = Relu (x) }"))
    context = Context(model.graph, 18, False, Names({"y"}), True)
    assert [context.fresh_name("y"), context.fresh_name("y"), context.fresh_name("z")] == ["y_1", "y_2", "z"]
    value = context.constant("k", np.array([1e-3, 1.0]), ir.DataType.FLOAT16)
    assert value.dtype == ir.DataType.FLOAT16
    assert not model.graph.initializers
    with pytest.raises(Refusal) as refusal:
        context.constant("k", np.array([1e6]), ir.DataType.FLOAT16)
    assert refusal.value.values == {"value": "1e+06"}
