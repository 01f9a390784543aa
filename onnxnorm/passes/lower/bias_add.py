"""lower/bias-add: com.microsoft BiasAdd becomes two additions: Y = X + bias + skip.

ONNX Runtime has no CPU kernel of the operator.

Refused:
    1. As every rule for ONNX Runtime's own operators: in a model-local function, before opset 15.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.contrib import ContribRule, Emitter, is_contrib
from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import node_name
from onnxnorm.passes.rule import Context, Match, Replacement


class LowerBiasAdd(ContribRule):
    """See the module."""

    id: ClassVar[str] = "lower/bias-add"
    operators: ClassVar[frozenset[str]] = frozenset({"BiasAdd"})
    action: ClassVar[Action] = Action.LOWERED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any BiasAdd of com.microsoft."""
        found = self.applies() and is_contrib(node, "BiasAdd") and len(node.inputs) == 3
        return Match({"add": node}) if found and None not in node.inputs else None

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The additions."""
        node = match["add"]
        x, bias, skip = node.inputs
        emit = Emitter(context, node_name(node))
        biased = emit.op("Add", x, bias, like=x)
        return emit.replacement(node, [emit.op("Add", biased, skip, like=x)], "Add")
