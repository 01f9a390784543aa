"""lower/contrib-gelu: com.microsoft Gelu, BiasGelu, FastGelu and QuickGelu in standard operators.

    Gelu(x) = x / 2 * (1 + erf(x / sqrt(2)));   BiasGelu(x, b) = Gelu(x + b);   QuickGelu(x) = x * sigmoid(alpha x)
    FastGelu(x, b) = h / 2 * (1 + tanh(sqrt(2 / pi) * (h + 0.044715 h^3))),  h = x + b

For the target "standard" only: ONNX Runtime's CPU provider has kernels for them.

Refused:
    1. As every rule for ONNX Runtime's own operators: in a model-local function, before opset 15.
    2. The element type of X is not known.
"""

from __future__ import annotations

import math
from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.contrib import CONTRIB, ContribRule, Emitter, element_type, optional_input
from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import attribute, node_name
from onnxnorm.passes.lower.bias_split_gelu import gelu, number
from onnxnorm.passes.rule import Context, Match, Replacement


class LowerContribGelu(ContribRule):
    """See the module."""

    id: ClassVar[str] = "lower/contrib-gelu"
    operators: ClassVar[frozenset[str]] = frozenset({"Gelu", "BiasGelu", "FastGelu", "QuickGelu"})
    action: ClassVar[Action] = Action.LOWERED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """One of the four of com.microsoft, for the target "standard"."""
        if self.target != "standard" or node.domain != CONTRIB or not node.inputs or node.inputs[0] is None:
            return None
        return Match({"gelu": node})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 and 2 of the module."""
        super().check(match, context)
        element_type(match["gelu"].inputs[0])

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The operators in X's own type."""
        node = match["gelu"]
        x, bias = node.inputs[0], optional_input(node, 1)
        assert x is not None
        emit = Emitter(context, node_name(node))
        h = x if bias is None else emit.op("Add", x, bias, like=x)
        if node.op_type == "QuickGelu":
            scaled = emit.op("Mul", h, number(attribute(node, "alpha", 1.702), x, context), like=x)
            y = emit.op("Mul", h, emit.op("Sigmoid", scaled, like=x), like=x)
        elif node.op_type == "FastGelu":
            y = _with_tanh(h, emit, context)
        else:
            y = gelu(h, emit, context)
        return emit.replacement(node, [y], "standard operators", tolerance=1e-3)  # constants in X's type


def _with_tanh(x: ir.Value, emit: Emitter, context: Context) -> ir.Value:
    if context.opset >= 20:
        return emit.op("Gelu", x, like=x, approximate="tanh")
    square = emit.op("Mul", x, x, like=x)
    factor = emit.op("Mul", square, number(0.044715 * math.sqrt(2.0 / math.pi), x, context), like=x)
    factor = emit.op("Add", factor, number(math.sqrt(2.0 / math.pi), x, context), like=x)
    gate = emit.op("Tanh", emit.op("Mul", x, factor, like=x), like=x)
    gate = emit.op("Add", gate, number(1.0, x, context), like=x)
    return emit.op("Mul", emit.op("Mul", x, number(0.5, x, context), like=x), gate, like=x)
