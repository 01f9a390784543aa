"""fuse/rms-normalization: ai.onnx RMSNormalization (opset 23) becomes onnxnorm RMSNorm over axes axis .. last.

Refused:
    1. The rank of X is not known, or scale has not exactly the sizes of the normalized axes (ONNX lets it broadcast),
       or these are not known.
    2. X and scale differ in element type, which ONNX allows.
    3. As for fuse/group-normalization: element type, stash_type, functions.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.group_normalization import check_standard_norm
from onnxnorm.passes.graph import attribute, is_op, node_name, rank_of
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN


class FuseRMSNormalization(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/rms-normalization"
    operators: ClassVar[frozenset[str]] = frozenset({"RMSNormalization"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any RMSNormalization of the standard domain."""
        return Match({"norm": node}) if is_op(node, "RMSNormalization") and len(node.inputs) == 2 else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        norm = match["norm"]
        check_standard_norm(norm, context)
        x, scale = norm.inputs
        assert x is not None
        assert scale is not None
        if rank_of(x) is None or scale.shape is None:
            raise Refusal("the rank of X or the shape of scale is not known")
        if scale.dtype is not None and scale.dtype != x.dtype:
            raise Refusal("X and scale differ in element type", X=x.dtype, scale=scale.dtype)
        axes = _axes(norm)
        sizes = [x.shape[axis] for axis in axes if x.shape]
        if list(scale.shape) != sizes or any(isinstance(size, ir.SymbolicDim) and size.value is None for size in sizes):
            raise Refusal("scale has not the sizes of the normalized axes", scale=str(scale.shape), X=str(x.shape))

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op."""
        norm = match["norm"]
        attributes = {"axes": _axes(norm), "epsilon": attribute(norm, "epsilon", 1e-5), "activation": "none"}
        new = ir.node("RMSNorm", list(norm.inputs), attributes, domain=DOMAIN, name=norm.name)
        return Replacement([new], {norm.outputs[0]: new.outputs[0]}, [norm], norm, into=node_name(norm))


def _axes(norm: ir.Node) -> list[int]:
    """The normalized axes, counted from the end."""
    rank = rank_of(norm.inputs[0]) if norm.inputs[0] is not None else None
    assert rank is not None
    axis = attribute(norm, "axis", -1)
    return list(range(axis - rank if axis >= 0 else axis, 0))
