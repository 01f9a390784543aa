"""fuse/lp-normalization: ai.onnx LpNormalization with p = 2 becomes onnxnorm L2Norm over its axis.

    x / length, 0 where the length is 0  =  L2Norm(x, ones, epsilon = the smallest normal float32)

as ONNX Runtime computes it, which has no kernel of it in half types. Weights behind it are taken in by
fuse/rms-norm-weight.

Refused:
    1. p is 1: the sum of absolute values is no length that the op knows.
    2. The rank of X, or the size of the axis, is not known, or that is 0.
    3. As for fuse/group-normalization: element type, functions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.group_normalization import check_standard_norm
from onnxnorm.passes.fuse.product import known_sizes
from onnxnorm.passes.graph import attribute, is_op, node_name, rank_of
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN

_SMALLEST = float(np.finfo(np.float32).tiny)


class FuseLpNormalization(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/lp-normalization"
    operators: ClassVar[frozenset[str]] = frozenset({"LpNormalization"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any LpNormalization of the standard domain."""
        known = is_op(node, "LpNormalization") and bool(node.inputs) and node.inputs[0] is not None
        return Match({"norm": node}) if known else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        norm = match["norm"]
        check_standard_norm(norm, context)
        if attribute(norm, "p", 2) != 2:
            raise Refusal("it divides by the sum of absolute values", p=attribute(norm, "p", 2))
        x = norm.inputs[0]
        assert x is not None
        rank = rank_of(x)
        if rank is None or not -rank <= attribute(norm, "axis", -1) < rank:
            raise Refusal("the rank of X is not known, or has no such axis", X=str(x.shape))
        known_sizes(x, _axes(norm, rank))

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op."""
        norm = match["norm"]
        x = norm.inputs[0]
        assert x is not None
        assert x.dtype is not None
        rank = rank_of(x) or 1
        axes = _axes(norm, rank)
        scale = context.constant(f"{node_name(norm)}_scale", np.ones(known_sizes(x, axes)), x.dtype)
        attributes: dict[str, Any] = {
            "axes": [axis - rank for axis in axes],
            "epsilon": _SMALLEST,
            "activation": "none",
        }
        new = ir.node("L2Norm", [x, scale], attributes, domain=DOMAIN, name=norm.name)
        new.outputs[0].type, new.outputs[0].shape = x.type, x.shape
        return Replacement([new], {norm.outputs[0]: new.outputs[0]}, [norm], norm, into=node_name(norm))


def _axes(norm: ir.Node, rank: int) -> tuple[int, ...]:
    return (int(attribute(norm, "axis", -1)) % rank,)
