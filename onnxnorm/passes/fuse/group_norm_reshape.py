"""fuse/group-norm-reshape: a GroupNorm of one group per channel between two Reshapes becomes one of fewer groups.

    Reshape(GroupNorm_G(Reshape(x, (N, G, -1)), s, b), shape of x)  =  GroupNorm_G(x, s repeated, b repeated)

which is how PyTorch writes group norm in opset 18: InstanceNormalization over groups as if they were channels, then a
factor and a shift per channel, which fuse/channel-affine takes in. Likewise with LayerNorm over all that is in a group.

Refused:
    1. The Reshape in front is not known to keep the items, or the one behind not to give the shape of x.
    2. What is in between has other readers, is a graph output, has an activation, or stands in an outer graph.
    3. The number of channels is not known, or no multiple of that of groups.
    4. scale or bias is computed at run time, or a caller may override it; or LayerNorm's varies within a channel.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.product import check_graph
from onnxnorm.passes.fuse.sizes import FloatArray, channel_count, keeps_shape, same_size, shape_nodes
from onnxnorm.passes.graph import attribute, is_op, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, constant_array
from onnxnorm.spec.record import DOMAIN

_OPS = ("GroupNorm", "LayerNorm")


class FuseGroupNormReshape(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/group-norm-reshape"
    operators: ClassVar[frozenset[str]] = frozenset({"Reshape"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A Reshape behind a norm of one group per channel, or of all behind these, behind a Reshape."""
        norm = node.inputs[0].producer() if is_op(node, "Reshape") and node.inputs[0] is not None else None
        if norm is None or norm.domain != DOMAIN or norm.op_type not in _OPS or norm.inputs[0] is None:
            return None
        split, shape = norm.inputs[0].producer(), norm.inputs[0].shape
        if split is None or not is_op(split, "Reshape") or split.inputs[0] is None or shape is None:
            return None
        if len(shape) < 3 or _groups(norm) is None or split.inputs[0].shape is None:
            return None
        if norm.op_type == "LayerNorm" and len(split.inputs[0].shape) < 3:
            return None
        return Match({"split": split, "norm": norm, "joined": node})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        split, norm, joined = match["split"], match["norm"], match["joined"]
        check_graph(match.nodes.values(), context)
        x, groups = split.inputs[0], _groups(norm)
        assert x is not None
        assert groups is not None
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
        groups = _groups(norm) or 1
        repeats = channel_count(x, False) // groups
        inputs: list[Any] = [x]
        for role, value in zip(("scale", "bias"), norm.inputs[1:], strict=True):
            exact = constant_array(value, role).astype(np.float64)
            exact = np.repeat(exact, repeats) if norm.op_type == "GroupNorm" else _per_channel(exact, repeats, groups)
            inputs.append(context.constant(f"{node_name(norm)}_{role}", exact, x.dtype))
        attributes = {name: norm.attributes[name].value for name in ("epsilon", "activation")}
        attributes |= {"num_groups": groups, "channels_last": 0}
        new = ir.node("GroupNorm", inputs, attributes, domain=DOMAIN, name=norm.name)
        new.outputs[0].dtype, new.outputs[0].shape = x.dtype, x.shape
        gone = [split, norm, joined]
        result = Replacement([new], {joined.outputs[0]: new.outputs[0]}, gone, norm, into=node_name(norm))
        result.before = list(dict.fromkeys([*shape_nodes(split), *shape_nodes(joined), *gone]))
        return result

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]


def _groups(norm: ir.Node) -> int | None:
    """How many groups are normalized, each a channel of what the norm reads; None where it is something else."""
    shape = norm.inputs[0].shape if norm.inputs[0] is not None else None
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        return None
    if norm.op_type == "GroupNorm":
        fits = shape[1] == attribute(norm, "num_groups", None) and not attribute(norm, "channels_last", 0)
    else:
        axes = attribute(norm, "axes", None) or ()
        fits = sorted(axis % len(shape) for axis in axes) == list(range(2, len(shape)))
    return shape[1] if fits else None


def _per_channel(exact: FloatArray, repeats: int, groups: int) -> FloatArray:
    """One number for each channel of all groups; Refusal (reason 4) where they differ within a channel."""
    rows = exact.reshape(repeats, -1) if exact.size % repeats == 0 else exact.reshape(1, -1)
    if len(rows) != repeats or np.any(rows != rows[:, :1]):
        raise Refusal("the scale or bias varies within a channel", shape=list(exact.shape))
    return np.tile(rows[:, 0], groups)
