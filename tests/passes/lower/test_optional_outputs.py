"""Nodes of one op agree on their optional outputs, since they share one function body."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxnorm.norms import all_specs

ATTRIBUTES = 'num_groups=3, epsilon=0.00001, activation="none", channels_last=0'
NODE = f"onnxnorm.SkipGroupNorm <{ATTRIBUTES}>"


def build(lab: Any, nodes: str, outputs: str = "float[2,6,5] y", more: str = "") -> Any:
    text = f"(float[2,6,5] x, float[2,6,5] r{more}) => ({outputs}) {{ {nodes} }}"
    return lab.model(text, 20, 10, ', "onnxnorm" : 1', scale=lab.array(6), bias=lab.array(6, seed=1))


def feeds(lab: Any) -> dict[str, Any]:
    return {"x": lab.array(2, 6, 5, seed=4), "r": lab.array(2, 6, 5, seed=5)}


def test_an_output_that_nobody_reads_goes(lab: Any) -> None:
    outcome = lab.optimize(build(lab, f"y, s = {NODE} (x, r, scale, bias)"))
    assert list(outcome.node("SkipGroupNorm").output) == ["y"]
    assert [list(function.output) for function in outcome.after.functions] == [["Y"]]
    lab.same_in_ort(outcome, feeds(lab))


@pytest.mark.parametrize("taken", ["", " t = Neg (r) "])
def test_an_output_that_another_node_needs_is_named(lab: Any, taken: str) -> None:
    """Under a name that is new to the model."""
    first = f"a, s = {NODE} (x, r, scale, bias)"
    nodes = f"{first}{taken.replace('t', 'y_sum')} y = {NODE} (a, s, scale, bias)"
    outputs = "float[2,6,5] y" + (", float[2,6,5] y_sum" if taken else "")
    outcome = lab.optimize(build(lab, nodes, outputs))
    one, two = (node for node in outcome.after.graph.node if node.op_type == "SkipGroupNorm")
    assert list(one.output) == ["a", "s"]
    assert list(two.output) == ["y", "y_sum_1" if taken else "y_sum"]
    lab.same_in_ort(outcome, feeds(lab))


def test_a_graph_output_and_a_reader_in_a_subgraph_count(lab: Any) -> None:
    shown = lab.optimize(build(lab, f"y, s = {NODE} (x, r, scale, bias)", "float[2,6,5] y, float[2,6,5] s"))
    assert list(shown.node("SkipGroupNorm").output) == ["y", "s"]
    lab.same_in_ort(shown, feeds(lab))
    inner = (
        f"a, s = {NODE} (x, r, scale, bias) y = If (q) <then_branch = t () => (float[2,6,5] b) {{ b = Add (s, a) }},"
        " else_branch = e () => (float[2,6,5] c) { c = Neg (a) }>"
    )
    outcome = lab.optimize(build(lab, inner, more=", bool q"))
    assert list(outcome.node("SkipGroupNorm").output) == ["a", "s"]
    for q in (True, False):
        lab.same_in_ort(outcome, {**feeds(lab), "q": np.array(q)})


def test_in_a_function(lab: Any) -> None:
    text = (
        "(float[2,6,5] x, float[2,6,5] r) => (float[2,6,5] y) { a, s = local.block (x, r, scale, bias)"
        f" b = {NODE} (a, s, scale, bias) y = Relu (b) }}"
        '\n<domain: "local", opset_import: ["" : 20, "onnxnorm" : 1]> block (p, q, u, v) => (c, d)'
        f" {{ c, d = {NODE} (p, q, u, v) }}"
    )
    model = lab.model(text, 20, 10, ', "local" : 1, "onnxnorm" : 1', scale=lab.array(6), bias=lab.array(6, seed=1))
    outcome = lab.optimize(model)
    (block,) = (function for function in outcome.after.functions if function.name == "block")
    assert list(block.node[0].output) == ["c", "d"]
    x, r, scale, bias = (
        value.astype(np.float64) for value in (*feeds(lab).values(), lab.array(6), lab.array(6, seed=1))
    )
    attributes = {"num_groups": 3, "epsilon": 1e-5, "activation": "none", "channels_last": 0}
    reference = all_specs()["SkipGroupNorm"].reference
    a, s = reference((x, r, scale, bias), attributes)
    truth, _ = reference((a, s, scale, bias), attributes)
    np.testing.assert_allclose(lab.ort(outcome.after, feeds(lab))[0], np.maximum(truth, 0), atol=2e-6)


def test_more_outputs_than_the_op_has(lab: Any) -> None:
    from onnxnorm.errors import ModelError

    with pytest.raises(ModelError, match=r"it has 3 outputs; SkipGroupNorm has Y, sum, of which the first is used"):
        lab.optimize(build(lab, f"y, s, t = {NODE} (x, r, scale, bias)"), check=False)
