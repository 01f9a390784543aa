"""lower/rms-norm-to-standard: onnxnorm RMSNorm becomes ai.onnx RMSNormalization and the activation's operators.

Refused (the general rule lower/body-to-standard then writes it in primitive operators):
    1. RMSNormalization came with opset 23.
    2. The axes are not the last ones in a row, or the rank of X is not known and axes are not all negative.
    3. bfloat16, or a type that is not known: ONNX Runtime CPU cannot run the operator's expansion in bfloat16.
    4. float64: the expansion takes epsilon as a float32, which costs a quarter of the digits.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.lower.standard import attributes_of, builder_for, first_axis, known_type, replacement
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
        """Reasons 1 to 4 of the module."""
        norm = match["norm"]
        if context.opset < 23:
            raise Refusal("RMSNormalization came with opset 23", opset=context.opset)
        first_axis(norm, "RMSNormalization")
        dtype = known_type(norm)
        if dtype == ir.DataType.BFLOAT16:
            raise Refusal("ONNX Runtime CPU does not run RMSNormalization in bfloat16")
        if dtype == ir.DataType.DOUBLE:
            raise Refusal("ONNX Runtime takes RMSNormalization's epsilon as a float32")

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
            axis=first_axis(norm, "RMSNormalization"),
            epsilon=attributes["epsilon"],
            stash_type=int(builder.compute),
        )
        if attributes["activation"] != "none":
            y = builder.narrow(builder.activation(builder.widen(y)), like=x)
        return replacement(norm, builder, [y], context, "RMSNormalization")
