"""lower/bias-split-gelu: com.microsoft BiasSplitGelu, a gated gelu, in standard operators.

    h = X + bias, cut into halves of the last axis:   Y = left * gelu(right),   gelu(v) = v / 2 * (1 + erf(v / sqrt(2)))

From a float16 X it is computed in float32 and rounded once. ONNX Runtime has no CPU kernel of the operator.

Refused:
    1. As every rule for ONNX Runtime's own operators: in a model-local function, before opset 15.
    2. The element type of X is not known.
    3. The size of the last axis is not known, or is odd.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.contrib import ContribRule, Emitter, element_type, is_contrib
from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement


class LowerBiasSplitGelu(ContribRule):
    """See the module."""

    id: ClassVar[str] = "lower/bias-split-gelu"
    operators: ClassVar[frozenset[str]] = frozenset({"BiasSplitGelu"})
    action: ClassVar[Action] = Action.LOWERED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any BiasSplitGelu of com.microsoft."""
        found = self.applies() and is_contrib(node, "BiasSplitGelu") and len(node.inputs) == 2
        return Match({"gelu": node}) if found and None not in node.inputs else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        super().check(match, context)
        element_type(match["gelu"].inputs[0])
        _half(match["gelu"])

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """Addition, Split, gelu and product in float32 or wider."""
        node = match["gelu"]
        x, bias = node.inputs
        assert x is not None
        assert bias is not None
        dtype = element_type(x)
        wide = ir.DataType.DOUBLE if dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
        emit = Emitter(context, node_name(node))
        hidden = emit.op("Add", emit.cast(x, wide), emit.cast(bias, wide), like=x, dtype=wide)
        half = _half(node)
        hidden.shape = None if x.shape is None else ir.Shape([*list(x.shape)[:-1], 2 * half])
        shape = None if x.shape is None else [*list(x.shape)[:-1], half]
        left = emit.op("Split", hidden, emit.ints("halves", half, half), dtype=wide, shape=shape, outputs=2, axis=-1)
        right = emit.nodes[-1].outputs[1]
        right.dtype, right.shape = wide, None if shape is None else ir.Shape(shape)
        y = emit.op("Mul", left, gelu(right, emit, context), like=left)
        return emit.replacement(node, [emit.cast(y, dtype)], "standard operators")


def gelu(x: ir.Value, emit: Emitter, context: Context) -> ir.Value:
    """Emits the exact gelu: one operator from opset 20 on."""
    if context.opset >= 20:
        return emit.op("Gelu", x, like=x, approximate="none")
    erf = emit.op("Erf", emit.op("Mul", x, number(math.sqrt(0.5), x, context), like=x), like=x)
    gate = emit.op("Add", erf, number(1.0, x, context), like=x)
    return emit.op("Mul", emit.op("Mul", x, number(0.5, x, context), like=x), gate, like=x)


def number(value: float, like: ir.Value, context: Context) -> ir.Value:
    """A scalar constant of a value's element type."""
    return context.constant("number", np.array(value), element_type(like))


def _half(node: ir.Node) -> int:
    """Half the size of the last axis; Refusal (reason 3)."""
    sizes: list[Any] = [
        value.shape[-1] for value in node.inputs if value is not None and value.shape is not None and len(value.shape)
    ]
    known = [size for size in sizes if isinstance(size, int)]
    if not known or known[0] % 2:
        raise Refusal("the size of the last axis is not known or odd", sizes=[str(size) for size in sizes])
    return int(known[0] // 2)
