"""lower/rms-norm-to-standard: onnxnorm RMSNorm becomes ai.onnx RMSNormalization and the activation's operators.

Refused (the general rule lower/body-to-standard then writes it in primitive operators):
    1. RMSNormalization came with opset 23.
    2. The axes are not the last ones in a row, or the rank of X is not known and axes are not all negative.
    3. bfloat16, or a type that is not known: ONNX Runtime CPU cannot run the operator's expansion in bfloat16.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import rank_of
from onnxnorm.passes.lower.standard import attributes_of, builder_for, known_type, replacement
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN


class LowerRMSNormToStandard(Rule):
    """See the module."""

    id: ClassVar[str] = "lower/rms-norm-to-standard"
    operators: ClassVar[frozenset[str]] = frozenset({"RMSNorm"})
    action: ClassVar[Action] = Action.LOWERED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any onnxnorm RMSNorm."""
        return Match({"norm": node}) if node.domain == DOMAIN and node.op_type == "RMSNorm" else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        norm = match["norm"]
        if context.opset < 23:
            raise Refusal("RMSNormalization came with opset 23", opset=context.opset)
        _first_axis(norm)
        if known_type(norm) == ir.DataType.BFLOAT16:
            raise Refusal("ONNX Runtime CPU does not run RMSNormalization in bfloat16")

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """RMSNormalization, then the activation."""
        norm = match["norm"]
        builder = builder_for(norm, context)
        attributes = attributes_of(norm)
        x, scale = norm.inputs
        assert x is not None
        assert scale is not None
        y = builder.op(
            "RMSNormalization",
            x,
            scale,
            axis=_first_axis(norm),
            epsilon=attributes["epsilon"],
            stash_type=int(builder.compute),
        )
        if attributes["activation"] != "none":
            y = builder.narrow(builder.activation(builder.widen(y)), like=x)
        return replacement(norm, builder, [y], context, "RMSNormalization")


def _first_axis(norm: ir.Node) -> int:
    """The first normalized axis, counted from the end; Refusal (reason 2) unless they are the last ones."""
    axes = attributes_of(norm)["axes"]
    rank = rank_of(norm.inputs[0]) if norm.inputs[0] is not None else None
    if rank is None and any(axis >= 0 for axis in axes):
        raise Refusal("the rank of X is not known", axes=list(axes))
    from_end = sorted(axis - rank if rank is not None and axis >= 0 else axis for axis in axes)
    if from_end != list(range(-len(axes), 0)):
        raise Refusal("RMSNormalization takes the last axes in a row", axes=list(axes))
    return -len(axes)
