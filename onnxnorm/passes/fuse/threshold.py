"""fuse/threshold: max(FilterResponseNorm(x, tau), t) = FilterResponseNorm(x, max(tau, t)).

The thresholded linear unit: t has one value per channel or one for all. Recognized as Max, as Clip with a lower bound,
as Where(y <= t, t, y) and Where(y < t, t, y), which keep a NaN as Max does, and as Relu(y - t) + t. The threshold is
the op's last step, so that it does not matter whether it has an activation.

Refused:
    1. The norm's own result has other readers, or is a graph output, or the norm stands in another graph.
    2. t is computed at run time, or a caller may override it; tau likewise.
    3. t varies along another axis than the channels, or differs from the norm in element type.
    4. It is Where(y > t, y, t) or Where(y >= t, y, t): a NaN would become the threshold, where the op keeps it.
    5. t holds a NaN; or, in Relu(y - t) + t, an infinity.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.product import check_graph
from onnxnorm.passes.fuse.sizes import channel_vector
from onnxnorm.passes.graph import attribute, is_op, node_name, sole_consumer
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, constant_array
from onnxnorm.spec.record import DOMAIN

#: Comparison of y with t -> whether its truth stands for the threshold, and so a NaN for y.
_COMPARISONS = {"Less": True, "LessOrEqual": True, "Greater": False, "GreaterOrEqual": False}
_TURNED = {"Less": "Greater", "LessOrEqual": "GreaterOrEqual", "Greater": "Less", "GreaterOrEqual": "LessOrEqual"}


class FuseThreshold(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/threshold"
    operators: ClassVar[frozenset[str]] = frozenset({"Max", "Clip", "Where", "Sub"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A norm's result and a threshold."""
        root: ir.Node | None = node
        if is_op(node, "Sub"):  # before the shift becomes part of the norm
            root = _end_of_shifted_relu(node)
            found = None if root is None else (_norm_of(node.inputs[0]), node.inputs[1], _before(root, node), True)
        else:
            found = _where(node) if is_op(node, "Where") else _bounded(node, context)
        if found is None or root is None:
            return None
        norm, threshold, inner, keeps_nan = found
        if norm is None or threshold is None:
            return None
        nodes = {"norm": norm, **{str(index): item for index, item in enumerate(inner)}, "root": root}
        return Match(nodes, {"threshold": threshold, "keeps_nan": keeps_nan})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 and 4 of the module."""
        norm, matched = match["norm"], set(match.nodes.values())
        check_graph(matched, context)
        if norm.outputs[0].is_graph_output():
            raise Refusal("the norm's own result is a graph output", output=norm.outputs[0].name)
        for value in [value for node in matched - {match["root"]} for value in node.outputs]:
            for use in value.uses():
                if use.node not in matched:
                    raise Refusal("the norm's own result has another reader", reader=node_name(use.node))
        if not match.facts["keeps_nan"]:
            raise Refusal("a NaN would become the threshold, where the op keeps it", operator="Where")

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The norm with the larger threshold."""
        norm, root = match["norm"], match["root"]
        x, threshold = norm.inputs[0], match.facts["threshold"]
        assert x is not None
        assert x.dtype is not None
        if threshold.dtype != x.dtype:
            raise Refusal("the threshold and the norm differ in element type", threshold=threshold.dtype, norm=x.dtype)
        tau = constant_array(norm.inputs[3], "tau").astype(np.float64)
        given = channel_vector(threshold, x, bool(attribute(norm, "channels_last", 0)), "threshold")
        if np.isnan(given).any():
            raise Refusal("the threshold holds a NaN", channel=int(np.isnan(given).argmax()))
        if is_op(root, "Add") and np.isinf(given).any():
            raise Refusal("the threshold is infinite, and is taken from itself", channel=int(np.isinf(given).argmax()))
        exact = np.maximum(tau, given)
        value = context.constant(f"{node_name(norm)}_tau", exact, x.dtype, infinite=True)
        new = ir.node(norm.op_type, [*norm.inputs[:3], value], norm.attributes, domain=DOMAIN, name=norm.name)
        new.outputs[0].type, new.outputs[0].shape = norm.outputs[0].type, norm.outputs[0].shape
        return Replacement(
            [new], {root.outputs[0]: new.outputs[0]}, list(match.nodes.values()), norm, into=node_name(norm)
        )

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]


_Found = tuple[ir.Node, ir.Value, list[ir.Node], bool]


def _norm_of(value: ir.Value | None) -> ir.Node | None:
    norm = value.producer() if value is not None else None
    return norm if norm is not None and norm.domain == DOMAIN and norm.op_type == "FilterResponseNorm" else None


def _end_of_shifted_relu(sub: ir.Node) -> ir.Node | None:
    """The Add of ``Relu(y - t) + t``, for its Sub."""
    relu = sole_consumer(sub.outputs[0])
    add = sole_consumer(relu.outputs[0]) if relu is not None and is_op(relu, "Relu") else None
    if relu is None or add is None or not is_op(add, "Add"):
        return None
    other = add.inputs[1] if add.inputs[0] is relu.outputs[0] else add.inputs[0]
    return add if other is sub.inputs[1] else None


def _before(root: ir.Node, sub: ir.Node) -> list[ir.Node]:
    """The Sub and the Relu."""
    return [sub, *(use.node for use in sub.outputs[0].uses() if use.node is not root)]


def _bounded(node: ir.Node, context: Context) -> _Found | None:
    """Max(y, t) and Clip(y, t)."""
    if len(node.inputs) < 2 or any(value is not None for value in node.inputs[2:]):
        return None
    if not is_op(node, "Max") and not (is_op(node, "Clip") and context.opset >= 11):
        return None
    first, second = node.inputs[:2]
    pairs = [(first, second)] if is_op(node, "Clip") else [(first, second), (second, first)]
    for y, threshold in pairs:
        norm = _norm_of(y)
        if norm is not None and threshold is not None and threshold is not y:
            return norm, threshold, [], True
    return None


def _where(node: ir.Node) -> _Found | None:
    """Where with a comparison of y and t."""
    condition = node.inputs[0].producer() if node.inputs[0] is not None else None
    if condition is None or condition.op_type not in _COMPARISONS or not is_op(condition, condition.op_type):
        return None
    first, second = condition.inputs
    for y, threshold, comparison in (
        (first, second, condition.op_type),
        (second, first, _TURNED[condition.op_type]),
    ):
        norm = _norm_of(y)
        chosen = [threshold, y] if _COMPARISONS[comparison] else [y, threshold]
        if norm is not None and threshold is not None and list(node.inputs[1:]) == chosen:
            return norm, threshold, [condition], _COMPARISONS[comparison]
    return None
