"""fuse/positions-reshape: a norm of positions between two Reshapes that only arrange these is one of x itself.

    Reshape(norm(Reshape(x, (N, C, ...))), shape of x)  =  norm(x)

for every onnxnorm op that reads (N, C, *) and does not care how the positions are arranged: ``x.view(N, C, -1)`` in
front of switchable norm and others.

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
        split = norm.inputs[0].producer()
        if split is None or not is_op(split, "Reshape") or split.inputs[0] is None or len(norm.outputs) > 1:
            return None
        x, parts = split.inputs[0], norm.inputs[0].shape
        if x.shape is None or parts is None or len(x.shape) < 3 or len(parts) < 3 or x.dtype != norm.inputs[0].dtype:
            return None
        if attribute(norm, "channels_last", 0) or not same_size(parts[1], x.shape[1]):
            return None
        return Match({"split": split, "norm": norm, "joined": node})

    def check(self, match: Match, context: Context) -> None:
        """Both reasons of the module."""
        split, norm, joined = match["split"], match["norm"], match["joined"]
        check_graph(match.nodes.values(), context)
        for value in (split.outputs[0], norm.outputs[0]):
            if value.is_graph_output():
                raise Refusal("a value in between is a graph output", output=value.name)
            for use in value.uses():
                if use.node not in (norm, joined):
                    raise Refusal("a value in between has another reader", reader=node_name(use.node))
        x, parts = split.inputs[0], split.outputs[0].shape
        assert x is not None
        if x.shape is None or parts is None or not same_size(parts[0], x.shape[0]):
            raise Refusal("the Reshape in front is not known to keep the items", before=str(x.shape), after=str(parts))
        if not keeps_shape(joined, x):
            raise Refusal("the Reshape behind is not known to give the shape of x", x=str(x.shape))

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The norm of x itself."""
        split, norm, joined = match["split"], match["norm"], match["joined"]
        x = split.inputs[0]
        assert x is not None
        new = ir.node(norm.op_type, [x, *norm.inputs[1:]], norm.attributes, domain=DOMAIN, name=norm.name)
        new.outputs[0].type, new.outputs[0].shape = x.type, x.shape
        return Replacement(
            [new], {joined.outputs[0]: new.outputs[0]}, [split, norm, joined], norm, into=node_name(norm)
        )

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]
