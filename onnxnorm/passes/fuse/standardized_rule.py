"""What the rules for layer, group and instance norm in primitive operators share: the search, checks and new nodes."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.product import (
    attribute_of_epsilon,
    check_graph,
    check_private_nodes,
    check_types,
    check_weight_types,
    put,
)
from onnxnorm.passes.fuse.rms_norm_power import Power
from onnxnorm.passes.fuse.standardized import ANCHORS, Standardized, find_standardized
from onnxnorm.passes.graph import node_name
from onnxnorm.passes.lower.choice import ChoosingRule
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement
from onnxnorm.spec.record import DOMAIN


class StandardizedRule(ChoosingRule):
    """Finds what is standardized behind a root, and leaves to the rule what it is and what it becomes."""

    recognizes: ClassVar[bool] = True
    operators: ClassVar[frozenset[str]] = ANCHORS
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """The norm that reads the node's result, where it is this rule's."""
        found = find_standardized(node, context)
        return None if found is None else self.take(found, context)

    @abc.abstractmethod
    def take(self, found: Standardized, context: Context) -> Match | None:
        """The match where this rule makes the op of it; facts hold ``found``."""

    def check(self, match: Match, context: Context) -> None:
        """What is asked of each of these norms."""
        found: Standardized = match.facts["found"]
        check_graph(match.nodes.values(), context)
        check_private_nodes(match.nodes.values(), self.subject(match), found.shared)
        check_spread(found.power)
        check_types(_with_types(found), result_of(found), found.x.dtype)
        check_weight_types([*found.weights, *(value for value, _ in found.shifts)], result_of(found))


def result_of(found: Standardized) -> ir.Value:
    """What the root makes."""
    return found.root.outputs[0]


def check_spread(power: Power) -> None:
    """Refusal unless the power is the inverse root of variance and epsilon, as the ops have it."""
    if power.problem is not None:
        raise Refusal(power.problem)
    if power.total:
        raise Refusal("it divides a sum of squares by a number, and how many they are is not known")
    if power.exponent != -0.5:
        raise Refusal("its power is not the inverse square root", exponent=power.exponent)
    if power.floor:
        raise Refusal("the variance is clamped, which is no epsilon in the root", floor=power.floor)
    if power.raw and power.epsilon <= 0:
        raise Refusal("the variance is E[x^2] - E[x]^2, which rounding makes negative, and there is no epsilon")


def _with_types(found: Standardized) -> Power:
    return replace(found.power, dtypes=found.dtypes)


def put_norm(
    op: str, found: Standardized, attributes: dict[str, Any], sizes: Sequence[int], context: Context
) -> Replacement:
    """The op with scale and bias of those sizes, then a product with each weight and the sum with each shift."""
    root, result = found.root, result_of(found)
    dtype = result.dtype
    assert dtype is not None
    nodes: list[ir.Node] = []
    x = input_of(found.inputs, found.x, dtype, nodes)
    inputs = [x, *parameters(root, np.full(sizes, found.factor), np.zeros(sizes), dtype, context)]
    attributes = {**attributes, "epsilon": attribute_of_epsilon(found.power.epsilon, dtype), "activation": "none"}
    nodes.append(ir.node(op, inputs, attributes, domain=DOMAIN, name=root.name))
    nodes[-1].outputs[0].dtype, nodes[-1].outputs[0].shape = dtype, found.x.shape
    for weight in found.weights:
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], weight]))
        nodes[-1].outputs[0].dtype = dtype
    for shift, below in found.shifts:
        nodes.append(ir.node("Sub" if below else "Add", [nodes[-1].outputs[0], shift]))
        nodes[-1].outputs[0].dtype = dtype
    nodes[-1].outputs[0].shape = result.shape
    return put(nodes, found.matched.values(), found.shared, root)


def parameters(root: ir.Node, scale: Any, bias: Any, dtype: ir.DataType, context: Context) -> tuple[ir.Value, ir.Value]:
    """Scale and bias as constants."""
    name = node_name(root)
    return context.constant(f"{name}_scale", scale, dtype), context.constant(f"{name}_bias", bias, dtype)


def input_of(inputs: Sequence[ir.Value], x: ir.Value, dtype: ir.DataType, nodes: list[ir.Node]) -> ir.Value:
    """X in that element type: as it stands in the graph, or through a Cast that is added to the nodes."""
    for value in (x, *inputs):
        if value.dtype == dtype:
            return value
    nodes.append(ir.node("Cast", [x], {"to": int(dtype)}))
    nodes[-1].outputs[0].dtype, nodes[-1].outputs[0].shape = dtype, x.shape
    return nodes[-1].outputs[0]
