"""lower/packed-attention: com.microsoft MultiHeadAttention with packed inputs gets them one by one.

    packed QKV (N, S, heads, 3, H), and packed KV (N, L, heads, 2, H) beside a query (N, S, D)
    ->  query, key, value (N, *, heads * H)

ONNX Runtime's optimizer packs them for CUDA, and its CPU kernel stops there ("Packed KV not implemented for CPU").

Refused:
    1. As every rule for ONNX Runtime's own operators: in a model-local function, before opset 15.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.contrib import ContribRule, Emitter, is_contrib, optional_input
from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import node_name, rank_of
from onnxnorm.passes.rule import Context, Match, Replacement


class LowerPackedAttention(ContribRule):
    """See the module."""

    id: ClassVar[str] = "lower/packed-attention"
    operators: ClassVar[frozenset[str]] = frozenset({"MultiHeadAttention"})
    action: ClassVar[Action] = Action.LOWERED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A MultiHeadAttention that has its values in its keys, or both in its query."""
        if not self.applies() or not is_contrib(node, "MultiHeadAttention") or optional_input(node, 2) is not None:
            return None
        packed = optional_input(node, 1) or optional_input(node, 0)
        return Match({"attention": node}) if packed is not None and rank_of(packed) == 5 else None

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """Split and Reshape in front of the operator."""
        node = match["attention"]
        query, key = optional_input(node, 0), optional_input(node, 1)
        emit = Emitter(context, node_name(node))
        if key is None:
            assert query is not None
            inputs: list[ir.Value | None] = list(_unpacked(query, 3, emit))
        else:
            inputs = [query, *_unpacked(key, 2, emit)]
        emit.op(
            node.op_type,
            *inputs,
            *node.inputs[3:],
            like=node.outputs[0],
            domain=node.domain,
            outputs=len(node.outputs),
            copied=node.attributes,
        )
        emit.name_last(node)
        return emit.replacement(node, emit.nodes[-1].outputs, "MultiHeadAttention")


def _unpacked(packed: ir.Value, count: int, emit: Emitter) -> list[ir.Value]:
    """The parts of (N, S, heads, count, H), each as (N, S, heads * H)."""
    assert packed.shape is not None
    n, s, heads, _, width = packed.shape
    hidden = heads * width if isinstance(heads, int) and isinstance(width, int) else None
    emit.op("Split", packed, emit.ints("parts", *[1] * count), outputs=count, axis=3)
    parts = list(emit.nodes[-1].outputs)
    for part in parts:
        part.type, part.shape = packed.type, ir.Shape([n, s, heads, 1, width])
    shape = emit.ints("shape", 0, 0, -1 if hidden is None else hidden)
    return [emit.op("Reshape", part, shape, dtype=packed.dtype, shape=[n, s, hidden]) for part in parts]
