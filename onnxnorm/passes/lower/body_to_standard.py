"""lower/body-to-standard: any onnxnorm op becomes its body in primitive standard operators.

The last of the lowering rules: it takes what no rule with a single standard operator took.

Refused: an attribute is a reference to one of the function that the node stands in, or the opset is older than bodies
can be written for.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.decision import Action
from onnxnorm.passes.lower.standard import attributes_of, builder_for, replacement, spec_of
from onnxnorm.passes.rule import Context, Match, Replacement, Rule


class LowerBodyToStandard(Rule):
    """See the module."""

    id: ClassVar[str] = "lower/body-to-standard"
    operators: ClassVar[frozenset[str]] = frozenset(all_specs())
    action: ClassVar[Action] = Action.LOWERED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any onnxnorm op."""
        return Match({"norm": node}) if spec_of(node) is not None else None

    def check(self, match: Match, context: Context) -> None:
        """The builder refuses what it cannot write."""
        attributes_of(match["norm"])

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The body with the node's attributes."""
        norm = match["norm"]
        spec = spec_of(norm)
        assert spec is not None
        builder = builder_for(norm, context)
        outputs = spec.body(builder, [value for value in norm.inputs if value is not None])
        return replacement(norm, builder, outputs, context, "primitive operators")
