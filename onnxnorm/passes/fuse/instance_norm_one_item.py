"""fuse/instance-norm-one-item: batch norm with its own statistics of one item is instance norm, GroupNorm of C groups.

    batch norm(x of shape (1, C, *))  =  GroupNorm(x) of one group per channel

where the batch norm takes the statistics of what it normalizes, as for fuse/instance-norm-items: this is what is left
of that where the batch size is 1. Statistics of a batch that is not known to be one item, or of one that a Reshape
made of several, are not this rule's.

Refused:
    1. The number of channels is not known, or scale or bias has not one value for each, or differs in element type.
    2. A statistic has other readers, is a graph output, or stands in an outer graph.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.instance_norm_items import is_batch_norm, own_statistics
from onnxnorm.passes.fuse.instance_normalization import group_norm_of_channels
from onnxnorm.passes.fuse.product import check_graph, check_private_nodes, put
from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES
from onnxnorm.passes.fuse.sizes import channel_count
from onnxnorm.passes.graph import is_op, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule


class FuseInstanceNormOneItem(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/instance-norm-one-item"
    operators: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A BatchNormalization with the statistics of its own input."""
        x = node.inputs[0] if node.inputs else None
        if x is None or not is_batch_norm(node) or not is_op(node, "BatchNormalization") or context.in_function:
            return None
        if x.shape is None or len(x.shape) < 3 or x.shape[0] != 1 or x.dtype not in FLOAT_TYPES or _is_split(node, x):
            return None
        statistics = own_statistics(node, context.opset)
        if statistics is None:
            return None
        inner, shared = statistics
        nodes = {**{str(index): item for index, item in enumerate(inner)}, "norm": node}
        return Match(nodes, {"x": x, "shared": shared})

    def check(self, match: Match, context: Context) -> None:
        """Both reasons of the module."""
        norm, x = match["norm"], match.facts["x"]
        channels = channel_count(x, False)
        for role, value in zip(("scale", "bias"), norm.inputs[1:3], strict=True):
            if value is None or value.shape is None or list(value.shape) != [channels]:
                raise Refusal(f"{role} is not known to have one value per channel", channels=channels)
            if value.dtype != x.dtype:
                raise Refusal(f"x and its {role} differ in element type", x=x.dtype, other=value.dtype)
        check_graph(match.nodes.values(), context)
        check_private_nodes(match.nodes.values(), norm, match.facts["shared"])

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op."""
        norm, x = match["norm"], match.facts["x"]
        new = group_norm_of_channels(norm, x, norm.inputs[1:3])
        shared = [item for item in match.facts["shared"] if item.graph is context.graph]
        result = put([new], match.nodes.values(), shared, norm)
        result.subject, result.into = norm, node_name(norm)
        return result


def _is_split(norm: ir.Node, x: ir.Value) -> bool:
    """Whether it stands between two Reshapes."""
    readers = [use.node for use in norm.outputs[0].uses()]
    producer = x.producer()
    return producer is not None and is_op(producer, "Reshape") and any(is_op(node, "Reshape") for node in readers)
