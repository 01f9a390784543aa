"""fuse/positions-reshape: a norm of positions between two Reshapes that only arrange these is one of x itself.

    Reshape(norm(Reshape(x, (N, C, ...))), shape of x)  =  norm(x)

for every onnxnorm op that reads (N, C, *) and does not care how the positions are arranged: ``x.view(N, C, -1)`` in
front of switchable norm and others. A Reshape behind such a norm to the shape that is there goes by itself.

Refused:
    1. The Reshape in front is not known to keep items and channels, or the one behind not to give the shape of x.
    2. What is in between has other readers, is a graph output, or stands in an outer graph.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.product import check_graph
from onnxnorm.passes.fuse.sizes import keeps_shape, same_size
from onnxnorm.passes.graph import attribute, is_op, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN

_OPS = frozenset(
    {"BatchInstanceNorm", "EvoNormS0", "FilterResponseNorm", "GlobalResponseNorm", "GroupNorm", "SwitchableNorm"}
)


class FusePositionsReshape(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/positions-reshape"
    operators: ClassVar[frozenset[str]] = frozenset({"Reshape"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A Reshape behind a norm behind a Reshape that keeps the number of channels."""
        norm = node.inputs[0].producer() if is_op(node, "Reshape") and node.inputs[0] is not None else None
        if norm is None or norm.domain != DOMAIN or norm.op_type not in _OPS or norm.inputs[0] is None:
            return None
        if len(norm.outputs) > 1:
            return None
        split = norm.inputs[0].producer()
        if split is not None and _arranges(split, norm):
            return Match({"split": split, "norm": norm, "joined": node})
        return Match({"norm": norm, "joined": node}) if keeps_shape(node, norm.inputs[0]) else None

    def check(self, match: Match, context: Context) -> None:
        """Both reasons of the module."""
        norm, joined, split = match["norm"], match["joined"], match.nodes.get("split")
        check_graph(match.nodes.values(), context)
        for value in (item.outputs[0] for item in match.nodes.values() if item is not joined):
            if value.is_graph_output():
                raise Refusal("a value in between is a graph output", output=value.name)
            for use in value.uses():
                if use.node not in (norm, joined):
                    raise Refusal("a value in between has another reader", reader=node_name(use.node))
        if split is None:
            return
        x, parts = split.inputs[0], split.outputs[0].shape
        assert x is not None
        if x.shape is None or parts is None or not same_size(parts[0], x.shape[0]):
            raise Refusal("the Reshape in front is not known to keep the items", before=str(x.shape), after=str(parts))
        if not keeps_shape(joined, x):
            raise Refusal("the Reshape behind is not known to give the shape of x", x=str(x.shape))

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The norm of x itself."""
        norm, joined = match["norm"], match["joined"]
        x = match.nodes.get("split", norm).inputs[0]
        assert x is not None
        new = ir.node(norm.op_type, [x, *norm.inputs[1:]], norm.attributes, domain=DOMAIN, name=norm.name)
        new.outputs[0].type, new.outputs[0].shape = x.type, x.shape
        return Replacement(
            [new], {joined.outputs[0]: new.outputs[0]}, list(match.nodes.values()), norm, into=node_name(norm)
        )

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]


def _arranges(split: ir.Node, norm: ir.Node) -> bool:
    """Whether the node in front of the norm is a Reshape that keeps the number of channels."""
    if not is_op(split, "Reshape") or split.inputs[0] is None or attribute(norm, "channels_last", 0):
        return False
    x, parts = split.inputs[0], split.outputs[0]
    if x.shape is None or parts.shape is None or len(x.shape) < 3 or len(parts.shape) < 3 or x.dtype != parts.dtype:
        return False
    return same_size(parts.shape[1], x.shape[1])
