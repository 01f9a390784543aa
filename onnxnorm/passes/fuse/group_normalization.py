"""fuse/group-normalization: ai.onnx GroupNormalization (opset 21) becomes onnxnorm GroupNorm with the same meaning.

ONNX Runtime CPU has no kernel for it: it expands to a function that is several times slower, and wrong on data with
|mean| >> std.

Refused:
    1. The model has opset 18 to 20, where scale and bias have one value per group (a different operator).
    2. The element type is not one that onnxnorm's ops take, or is not known.
    3. stash_type is a half type: the statistics would be asked for in less than float32.
    4. It stands in a model-local function, whose element types and attributes differ from call to call.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import attribute, is_op, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


class FuseGroupNormalization(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/group-normalization"
    operators: ClassVar[frozenset[str]] = frozenset({"GroupNormalization"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any GroupNormalization of the standard domain."""
        return Match({"norm": node}) if is_op(node, "GroupNormalization") and len(node.inputs) == 3 else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 4 of the module."""
        if context.opset < 21:
            raise Refusal("before opset 21 scale and bias have one value per group", opset=context.opset)
        check_standard_norm(match["norm"], context)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op."""
        norm = match["norm"]
        attributes = {
            "num_groups": attribute(norm, "num_groups", None),
            "epsilon": attribute(norm, "epsilon", 1e-5),
            "activation": "none",
            "channels_last": 0,
        }
        new = ir.node("GroupNorm", list(norm.inputs), attributes, domain=DOMAIN, name=norm.name)
        return Replacement([new], {norm.outputs[0]: new.outputs[0]}, [norm], norm, into=node_name(norm))


def check_standard_norm(norm: ir.Node, context: Context) -> None:
    """Refusal unless a standard norm's element type and stash_type are ones that onnxnorm's op honours."""
    if context.in_function:
        raise Refusal("it stands in a model-local function")
    dtype = norm.inputs[0].dtype if norm.inputs[0] is not None else None
    if dtype not in FLOAT_TYPES:
        known = {} if dtype is None else {"dtype": dtype.name.lower()}
        raise Refusal("its element type " + ("has no kernel" if known else "is not known"), **known)
    stash = attribute(norm, "stash_type", 1)
    if stash in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        raise Refusal("stash_type asks for statistics in a half type", stash_type=stash)
