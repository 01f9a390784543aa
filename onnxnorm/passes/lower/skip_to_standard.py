"""lower/skip-to-standard: the skip form of an onnxnorm op becomes an addition and the plain op.

    y, sum = Skip<norm>(x, skip)   ->   sum = x + skip;   y = norm(sum)

For the target "standard", where the plain op then has a standard operator or a body of its own.

Refused: it stands in a model-local function, whose element types differ from call to call.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.contrib import Emitter
from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.skip import NORMS
from onnxnorm.passes.graph import node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN


class LowerSkipToStandard(Rule):
    """See the module."""

    id: ClassVar[str] = "lower/skip-to-standard"
    operators: ClassVar[frozenset[str]] = frozenset(f"Skip{name}" for name in NORMS)
    action: ClassVar[Action] = Action.LOWERED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any skip form."""
        return Match({"norm": node}) if node.domain == DOMAIN and len(node.inputs) > 2 else None

    def check(self, match: Match, context: Context) -> None:
        """The refusal of the module."""
        if context.in_function:
            raise Refusal("it stands in a model-local function")

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """Addition and norm."""
        norm = match["norm"]
        x, skip, *parameters = norm.inputs
        assert x is not None
        emit = Emitter(context, node_name(norm))
        total = emit.op("Add", x, skip, like=x)
        y = emit.op(
            norm.op_type.removeprefix("Skip"), total, *parameters, like=x, domain=DOMAIN, copied=norm.attributes
        )
        emit.name_last(norm)
        return emit.replacement(norm, [y, total], "Add and the plain op")
