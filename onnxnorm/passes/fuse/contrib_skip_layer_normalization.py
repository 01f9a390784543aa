"""fuse/contrib-skip-layer-normalization: com.microsoft SkipLayerNormalization becomes additions and the norm.

    sum = input + skip + bias;   output = gamma * (sum - mean) / sqrt(variance + epsilon) + beta   over the last axis

skip may lack the batch: (1, S, C) or (S, C). beta and bias may be missing. The norm is ai.onnx LayerNormalization,
which fuse/layer-normalization and fuse/skip turn into onnxnorm's op where that is faster. The CPU provider has kernels
of the operator in float32 and float16, which are slower than onnxnorm's and less exact (the table in choice.py), and in
ONNX Runtime 1.20 give no statistics.

Refused:
    1. As every rule for ONNX Runtime's own operators: in a model-local function, before opset 15.
    2. Before opset 17 there is no LayerNormalization.
    3. The element type of input is not known.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.contrib import (
    ContribRule,
    Emitter,
    element_type,
    is_contrib,
    optional_input,
    output,
)
from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import attribute, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement


class FuseContribSkipLayerNormalization(ContribRule):
    """See the module."""

    id: ClassVar[str] = "fuse/contrib-skip-layer-normalization"
    operators: ClassVar[frozenset[str]] = frozenset({"SkipLayerNormalization"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any SkipLayerNormalization of com.microsoft."""
        if not self.applies() or not is_contrib(node, "SkipLayerNormalization") or None in (*node.inputs[:3],):
            return None
        return Match({"norm": node}) if 3 <= len(node.inputs) <= 5 else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        super().check(match, context)
        element_type(match["norm"].inputs[0], "input")
        if context.opset < 17:
            raise Refusal("LayerNormalization came with opset 17", opset=context.opset)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The additions and the norm."""
        norm = match["norm"]
        gamma, beta = norm.inputs[2], optional_input(norm, 3)
        emit = Emitter(context, node_name(norm))
        total = summed(norm, optional_input(norm, 4), emit)
        statistics = 2 if output(norm, 1) or output(norm, 2) else 0
        y = emit.op(
            "LayerNormalization",
            *((total, gamma) if beta is None else (total, gamma, beta)),
            like=total,
            outputs=1 + statistics,
            axis=-1,
            epsilon=attribute(norm, "epsilon", 1e-12),
            stash_type=int(ir.DataType.FLOAT),
        )
        emit.name_last(norm)
        found = emit.nodes[-1].outputs[1:] if statistics else (None, None)
        for value in found:
            if value is not None:
                value.dtype = ir.DataType.FLOAT
        return emit.replacement(norm, [y, *found, total], node_name(norm))


def summed(norm: ir.Node, bias: ir.Value | None, emit: Emitter) -> ir.Value:
    """Emits input + bias + skip, which has the shape of input."""
    x, skip = norm.inputs[:2]
    assert x is not None
    total = x if bias is None else emit.op("Add", x, bias, like=x)
    return emit.op("Add", total, skip, like=x)
