"""fuse/instance-normalization: ai.onnx InstanceNormalization becomes onnxnorm GroupNorm with one group per channel.

ONNX Runtime's own kernel loses digits on data with |mean| >> std, and it has none for float64.

Refused:
    1. The rank of X is less than 3 or not known, or the number of channels is not known: it is the op's num_groups.
    2. scale or bias has not one value per channel, or its shape is not known, or differs from X in element type.
    3. As for fuse/group-normalization: element type, functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.group_normalization import check_standard_norm
from onnxnorm.passes.fuse.sizes import channel_count
from onnxnorm.passes.graph import attribute, is_op, node_name, rank_of
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN


class FuseInstanceNormalization(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/instance-normalization"
    operators: ClassVar[frozenset[str]] = frozenset({"InstanceNormalization"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any InstanceNormalization of the standard domain, with epsilon as an attribute (opset 6)."""
        known = is_op(node, "InstanceNormalization") and context.opset >= 6 and len(node.inputs) == 3
        return Match({"norm": node}) if known and None not in node.inputs else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        norm = match["norm"]
        check_standard_norm(norm, context)
        x, scale, bias = norm.inputs
        assert x is not None
        if (rank_of(x) or 0) < 3:
            raise Refusal("the rank of X is less than 3 or not known", X=str(x.shape))
        channels = channel_count(x, False)
        for role, value in (("scale", scale), ("bias", bias)):
            assert value is not None
            if value.shape is None or list(value.shape) != [channels]:
                raise Refusal(f"{role} is not known to have one value per channel", shape=str(value.shape))
            if value.dtype != x.dtype:
                raise Refusal(f"X and {role} differ in element type", X=x.dtype, **{role: value.dtype})

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op."""
        norm = match["norm"]
        x = norm.inputs[0]
        assert x is not None
        new = group_norm_of_channels(norm, x, norm.inputs[1:3])
        return Replacement([new], {norm.outputs[0]: new.outputs[0]}, [norm], norm, into=node_name(norm))


def group_norm_of_channels(norm: ir.Node, x: ir.Value, parameters: Sequence[ir.Value | None]) -> ir.Node:
    """The onnxnorm op with one group per channel in the place of a norm that has its epsilon as an attribute."""
    attributes: dict[str, Any] = {
        "num_groups": channel_count(x, False),
        "epsilon": attribute(norm, "epsilon", 1e-5),
        "activation": "none",
        "channels_last": 0,
    }
    new = ir.node("GroupNorm", [x, *parameters], attributes, domain=DOMAIN, name=norm.name)
    new.outputs[0].type, new.outputs[0].shape = x.type, x.shape
    return new
