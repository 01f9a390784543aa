"""fuse/simplified-layer-normalization: SimplifiedLayerNormalization becomes onnxnorm RMSNorm over axes axis .. last.

ONNX Runtime adds the operator to ai.onnx. No other runtime knows it, and ONNX has none of that name: its own is
RMSNormalization (opset 23). Left alone for the provider "cuda" with the target "onnxnorm".

Refused:
    1. As for fuse/rms-normalization: rank, sizes and element types, stash_type, functions.
    2. Its output inv_std_var is read, or is a graph output.
    3. As every rule for ONNX Runtime's own operators: before opset 15.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.contrib import ContribRule, is_used
from onnxnorm.passes.fuse.rms_normalization import FuseRMSNormalization
from onnxnorm.passes.graph import is_op
from onnxnorm.passes.rule import Context, Match, Refusal


class FuseSimplifiedLayerNormalization(ContribRule, FuseRMSNormalization):
    """See the module."""

    id: ClassVar[str] = "fuse/simplified-layer-normalization"
    operators: ClassVar[frozenset[str]] = frozenset({"SimplifiedLayerNormalization"})

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any SimplifiedLayerNormalization of the standard domain."""
        found = self.applies() and is_op(node, "SimplifiedLayerNormalization") and len(node.inputs) == 2
        return Match({"norm": node}) if found and None not in node.inputs else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        ContribRule.check(self, match, context)
        FuseRMSNormalization.check(self, match, context)
        for value in match["norm"].outputs[1:]:
            if is_used(value):
                raise Refusal("its inv_std_var is used", output=value.name)
