"""fuse/rows-reshape: a norm of rows between two Reshapes that keep the rows is one of the tensor itself.

    Reshape(norm over the last axes(Reshape(x, (..., D))), shape of x)  =  norm over the last axes(x),   x of (..., D)

for onnxnorm LayerNorm, RMSNorm and L2Norm: tokens that were flattened to (N * L, D) for a norm alone.

Refused:
    1. The Reshape in front is not known to keep the normalized axes, or the one behind not to give the shape of x.
    2. What is in between has other readers, is a graph output, or stands in an outer graph.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.product import check_graph
from onnxnorm.passes.fuse.rms_norm_weight import check_private
from onnxnorm.passes.fuse.sizes import keeps_shape, shape_nodes
from onnxnorm.passes.graph import attribute, is_op, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN

_OPS = frozenset({"LayerNorm", "RMSNorm", "L2Norm"})


class FuseRowsReshape(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/rows-reshape"
    operators: ClassVar[frozenset[str]] = frozenset({"Reshape"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A Reshape behind a norm of the last axes behind a Reshape."""
        norm = node.inputs[0].producer() if is_op(node, "Reshape") and node.inputs[0] is not None else None
        if norm is None or norm.domain != DOMAIN or norm.op_type not in _OPS or norm.inputs[0] is None:
            return None
        split, parts = norm.inputs[0].producer(), norm.inputs[0].shape
        if split is None or not is_op(split, "Reshape") or split.inputs[0] is None or parts is None:
            return None
        if split.inputs[0].shape is None or _rows(norm, len(parts)) is None:
            return None
        return Match({"split": split, "norm": norm, "joined": node})

    def check(self, match: Match, context: Context) -> None:
        """Both reasons of the module."""
        split, norm, joined = match["split"], match["norm"], match["joined"]
        check_graph(match.nodes.values(), context)
        check_private(norm, joined, context)
        made, x = split.outputs[0], split.inputs[0]
        if made.is_graph_output():
            raise Refusal("a value in between is a graph output", output=made.name)
        for use in made.uses():
            if use.node is not norm:
                raise Refusal("a value in between has another reader", reader=node_name(use.node))
        assert x is not None
        whole, parts = list(x.shape or ()), list(made.shape or ())
        rows = _rows(norm, len(parts)) or 0
        kept = [size for size in parts[len(parts) - rows :] if isinstance(size, int)]
        if len(kept) < rows or whole[max(len(whole) - rows, 0) :] != kept:
            raise Refusal(
                "the Reshape in front is not known to keep the rows", before=str(x.shape), after=str(made.shape)
            )
        if not keeps_shape(joined, x):
            raise Refusal("the Reshape behind is not known to give the shape of x", x=str(x.shape))

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The norm of x itself."""
        split, norm, joined = match["split"], match["norm"], match["joined"]
        x, made = split.inputs[0], split.outputs[0]
        assert x is not None
        rows = _rows(norm, len(made.shape or ())) or 0
        attributes = {name: item.value for name, item in norm.attributes.items()} | {"axes": list(range(-rows, 0))}
        new = ir.node(norm.op_type, [x, *norm.inputs[1:]], attributes, domain=DOMAIN, name=norm.name)
        new.outputs[0].type, new.outputs[0].shape = x.type, x.shape
        gone = [split, norm, joined]
        result = Replacement([new], {joined.outputs[0]: new.outputs[0]}, gone, norm, into=node_name(norm))
        result.before = list(dict.fromkeys([*shape_nodes(split), *shape_nodes(joined), *gone]))
        return result

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]


def _rows(norm: ir.Node, rank: int) -> int | None:
    """How many axes are normalized, where these are the last ones and not all."""
    axes = sorted(axis % rank for axis in attribute(norm, "axes", None) or ()) if rank else []
    return len(axes) if axes and axes == list(range(rank - len(axes), rank)) and len(axes) < rank else None
