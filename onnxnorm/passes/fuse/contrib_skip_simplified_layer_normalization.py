"""fuse/contrib-skip-simplified-layer-normalization: com.microsoft's operator becomes additions and onnxnorm RMSNorm.

    sum = input + skip + bias;   output = gamma * sum / sqrt(mean(sum^2) + epsilon)   over the last axis

skip may lack the batch: (1, S, C) or (S, C). fuse/skip makes onnxnorm SkipRMSNorm of the last addition and the norm
where the shapes are equal. The CPU provider has kernels of the operator in float32 and float16, which are slower than
onnxnorm's (128 x 768 on one thread: 108 us and 81 us in float32, 229 us and 75 us in float16).

Refused:
    1. As every rule for ONNX Runtime's own operators: in a model-local function, before opset 15.
    2. The element type of input is not known.
    3. mean or inv_std_var is read, or is a graph output: onnxnorm's op does not give them.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.contrib import ContribRule, Emitter, element_type, is_contrib, is_used, optional_input
from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.contrib_skip_layer_normalization import summed
from onnxnorm.passes.graph import attribute, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement
from onnxnorm.spec.record import DOMAIN


class FuseContribSkipSimplifiedLayerNormalization(ContribRule):
    """See the module."""

    id: ClassVar[str] = "fuse/contrib-skip-simplified-layer-normalization"
    operators: ClassVar[frozenset[str]] = frozenset({"SkipSimplifiedLayerNormalization"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any SkipSimplifiedLayerNormalization of com.microsoft."""
        found = is_contrib(node, "SkipSimplifiedLayerNormalization") and None not in (*node.inputs[:3],)
        if not self.applies() or not found:
            return None
        return Match({"norm": node}) if 3 <= len(node.inputs) <= 4 else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        super().check(match, context)
        norm = match["norm"]
        element_type(norm.inputs[0], "input")
        for value in norm.outputs[1:3]:
            if is_used(value):
                raise Refusal("its mean or inv_std_var is used", output=value.name)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The additions and the norm."""
        norm = match["norm"]
        emit = Emitter(context, node_name(norm))
        total = summed(norm, optional_input(norm, 3), emit)
        y = emit.op(
            "RMSNorm",
            total,
            norm.inputs[2],
            like=total,
            domain=DOMAIN,
            axes=[-1],
            epsilon=attribute(norm, "epsilon", 1e-12),
            activation="none",
        )
        emit.name_last(norm)
        return emit.replacement(norm, [y, None, None, total], node_name(norm))
