"""fuse/group-norm-reshape: a GroupNorm of one group per channel between two Reshapes becomes one of fewer groups.

    Reshape(GroupNorm_G(Reshape(x, (N, G, -1)), s, b), shape of x)  =  GroupNorm_G(x, s repeated, b repeated)

which is how PyTorch writes group norm in opset 18: InstanceNormalization over groups as if they were channels, then a
factor and a shift per channel, which fuse/channel-affine takes in.

Refused:
    1. The Reshape in front is not known to keep the items, or the one behind not to give the shape of x.
    2. What is in between has other readers, is a graph output, has an activation, or stands in an outer graph.
    3. The number of channels is not known, or no multiple of that of groups.
    4. scale or bias is computed at run time, or a caller may override it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.product import check_graph
from onnxnorm.passes.fuse.sizes import channel_count, keeps_shape, same_size
from onnxnorm.passes.graph import attribute, is_op, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, constant_array
from onnxnorm.spec.record import DOMAIN


class FuseGroupNormReshape(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/group-norm-reshape"
    operators: ClassVar[frozenset[str]] = frozenset({"Reshape"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A Reshape behind a norm of one group per channel behind a Reshape."""
        norm = node.inputs[0].producer() if is_op(node, "Reshape") and node.inputs[0] is not None else None
        if norm is None or norm.domain != DOMAIN or norm.op_type != "GroupNorm" or norm.inputs[0] is None:
            return None
        split, shape = norm.inputs[0].producer(), norm.inputs[0].shape
        if split is None or not is_op(split, "Reshape") or split.inputs[0] is None or shape is None:
            return None
        if len(shape) < 3 or shape[1] != attribute(norm, "num_groups", None) or attribute(norm, "channels_last", 0):
            return None
        return Match({"split": split, "norm": norm, "joined": node})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        split, norm, joined = match["split"], match["norm"], match["joined"]
        check_graph(match.nodes.values(), context)
        x, groups = split.inputs[0], attribute(norm, "num_groups", None)
        assert x is not None
        present = attribute(norm, "activation", "none")
        if present != "none":
            raise Refusal("the norm has an activation", activation=present)
        for value in (split.outputs[0], norm.outputs[0]):
            if value.is_graph_output():
                raise Refusal("a value in between is a graph output", output=value.name)
            for use in value.uses():
                if use.node not in (norm, joined):
                    raise Refusal("a value in between has another reader", reader=node_name(use.node))
        channels = channel_count(x, False)
        if channels % groups:
            raise Refusal("the groups do not divide the channels", groups=groups, channels=channels)
        parts = split.outputs[0].shape
        if x.shape is None or parts is None or not same_size(parts[0], x.shape[0]):
            raise Refusal("the Reshape in front is not known to keep the items", before=str(x.shape), after=str(parts))
        if not keeps_shape(joined, x):
            raise Refusal("the Reshape behind is not known to give the shape of x", x=str(x.shape))

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The norm of x itself."""
        split, norm, joined = match["split"], match["norm"], match["joined"]
        x = split.inputs[0]
        assert x is not None
        assert x.dtype is not None
        repeats = channel_count(x, False) // attribute(norm, "num_groups", None)
        inputs: list[Any] = [x]
        for role, value in zip(("scale", "bias"), norm.inputs[1:], strict=True):
            exact = np.repeat(constant_array(value, role).astype(np.float64), repeats)
            inputs.append(context.constant(f"{node_name(norm)}_{role}", exact, x.dtype))
        new = ir.node("GroupNorm", inputs, norm.attributes, domain=DOMAIN, name=norm.name)
        new.outputs[0].dtype, new.outputs[0].shape = x.dtype, x.shape
        return Replacement(
            [new], {joined.outputs[0]: new.outputs[0]}, [split, norm, joined], norm, into=node_name(norm)
        )

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]
