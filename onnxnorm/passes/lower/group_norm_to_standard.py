"""lower/group-norm-to-standard: onnxnorm GroupNorm becomes ai.onnx GroupNormalization and the activation's operators.

Refused (the general rule lower/body-to-standard then writes it in primitive operators):
    1. Before opset 21 GroupNormalization has one scale per group.
    2. channels_last: the standard operator is channels-first only.
    3. bfloat16, or a type that is not known: ONNX Runtime CPU cannot run the operator's expansion in bfloat16.
    4. float64: the expansion takes epsilon as a float32, which costs a quarter of the digits.
    5. X is (N, C): a group has a few values then, which may lie close together, and the expansion computes the variance
       as E[x^2] - E[x]^2. Measured on pairs: 100 times as far from the truth as PyTorch.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import rank_of
from onnxnorm.passes.lower.standard import attributes_of, builder_for, known_type, replacement
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN


class LowerGroupNormToStandard(Rule):
    """See the module."""

    id: ClassVar[str] = "lower/group-norm-to-standard"
    operators: ClassVar[frozenset[str]] = frozenset({"GroupNorm"})
    action: ClassVar[Action] = Action.LOWERED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any onnxnorm GroupNorm."""
        return Match({"norm": node}) if node.domain == DOMAIN and node.op_type == "GroupNorm" else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 5 of the module."""
        norm = match["norm"]
        if context.opset < 21:
            raise Refusal("GroupNormalization with one scale per channel came with opset 21", opset=context.opset)
        if attributes_of(norm)["channels_last"]:
            raise Refusal("GroupNormalization is channels-first only", channels_last=1)
        dtype = known_type(norm)
        if dtype == ir.DataType.BFLOAT16:
            raise Refusal("ONNX Runtime CPU does not run GroupNormalization in bfloat16")
        if dtype == ir.DataType.DOUBLE:
            raise Refusal("ONNX Runtime takes GroupNormalization's epsilon as a float32")
        x = norm.inputs[0]
        if x is not None and rank_of(x) == 2:
            raise Refusal("ONNX Runtime's GroupNormalization loses the variance of a few values", rank=2)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """GroupNormalization, then the activation."""
        norm = match["norm"]
        builder = builder_for(norm, context)
        attributes = attributes_of(norm)
        x, scale, bias = norm.inputs
        assert x is not None
        assert scale is not None
        assert bias is not None
        y = builder.op(
            "GroupNormalization",
            x,
            scale,
            bias,
            num_groups=attributes["num_groups"],
            epsilon=attributes["epsilon"],
            stash_type=int(builder.compute),
        )
        if attributes["activation"] != "none":
            y = builder.narrow(builder.activation(builder.widen(y)), like=x)
        return replacement(norm, builder, [y], context, "GroupNormalization")
