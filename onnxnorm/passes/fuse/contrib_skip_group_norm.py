"""fuse/contrib-skip-group-norm: com.microsoft SkipGroupNorm becomes additions and onnxnorm GroupNorm.

    S = X + skip + bias;   Y = act(gamma * (S - mean) / sqrt(variance + epsilon) + beta)

skip has X's shape, or is one vector for each item: (N, C), (N, 1, 1, C) with channels last, (N, C, 1, 1) with channels
first. The bias is added to the smaller of both. Where the shapes are equal, fuse/skip makes onnxnorm SkipGroupNorm of
the addition and the norm. About parameters in float32 see fuse/contrib-group-norm.

Refused:
    1. As for fuse/contrib-group-norm.
    2. The rank of X is not known or not 4, or that of skip is neither 2 nor 4, or the sizes of skip are those of no
       such shape.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.contrib import ContribRule, Emitter, element_type, is_contrib, optional_input, output, rank
from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.contrib_group_norm import ROUNDED, check_group_norm, group_norm
from onnxnorm.passes.graph import attribute, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement


class FuseContribSkipGroupNorm(ContribRule):
    """See the module."""

    id: ClassVar[str] = "fuse/contrib-skip-group-norm"
    operators: ClassVar[frozenset[str]] = frozenset({"SkipGroupNorm"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any SkipGroupNorm of com.microsoft with its four inputs."""
        if not self.applies() or not is_contrib(node, "SkipGroupNorm") or None in (*node.inputs[:4],):
            return None
        return Match({"norm": node}) if 4 <= len(node.inputs) <= 5 else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 and 2 of the module."""
        super().check(match, context)
        norm = match["norm"]
        for value, role in zip(norm.inputs, ("X", "gamma", "beta", "skip"), strict=False):
            element_type(value, role)
        check_group_norm(norm)
        x, skip = norm.inputs[0], norm.inputs[3]
        assert x is not None
        assert skip is not None
        if rank(x) != 4 or rank(skip, "skip") not in (2, 4):
            raise Refusal("X has 4 axes and skip 4 or 2", X=str(x.shape), skip=str(skip.shape))
        if rank(skip) == 4:
            _check_sizes(x, skip, bool(attribute(norm, "channels_last", 1)))

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The additions and the norm."""
        norm = match["norm"]
        x, gamma, beta, skip = norm.inputs[:4]
        bias = optional_input(norm, 4)
        assert x is not None
        assert gamma is not None
        assert beta is not None
        assert skip is not None
        emit = Emitter(context, node_name(norm))
        last = bool(attribute(norm, "channels_last", 1))
        if rank(skip) == 2:
            skip = _per_item(skip, last, emit)
        if bias is not None and not last:
            bias = emit.op("Unsqueeze", bias, emit.ints("axes", 1, 2), dtype=bias.dtype, shape=_spread(bias))
        total = x
        if bias is not None and _is_per_item(skip, last):
            skip = emit.op("Add", skip, bias, like=skip)
        elif bias is not None:
            total = emit.op("Add", x, bias, like=x)
        total = emit.op("Add", total, skip, like=x)
        y = group_norm(norm, total, gamma, beta, emit, context)
        return emit.replacement(norm, [y, total if output(norm, 1) is not None else None], node_name(norm), ROUNDED)


def _per_item(skip: ir.Value, last: bool, emit: Emitter) -> ir.Value:
    """(N, C) as (N, 1, 1, C), or as (N, C, 1, 1) with channels first."""
    assert skip.shape is not None
    n, c = skip.shape
    axes, shape = ((1, 2), [n, 1, 1, c]) if last else ((2, 3), [n, c, 1, 1])
    return emit.op("Unsqueeze", skip, emit.ints("axes", *axes), dtype=skip.dtype, shape=shape)


def _is_per_item(skip: ir.Value, last: bool) -> bool:
    """Whether it is surely one vector for each item."""
    assert skip.shape is not None
    return list(skip.shape)[1:3] == [1, 1] if last else list(skip.shape)[2:] == [1, 1]


def _spread(bias: ir.Value) -> list[int | ir.SymbolicDim]:
    assert bias.shape is not None
    return [bias.shape[0], 1, 1]


def _check_sizes(x: ir.Value, skip: ir.Value, last: bool) -> None:
    """Refusal (reason 2) where a size that is known is neither X's nor, at a position, 1."""
    assert x.shape is not None
    assert skip.shape is not None
    positions = (1, 2) if last else (2, 3)
    for axis, (have, want) in enumerate(zip(skip.shape, x.shape, strict=True)):
        if not isinstance(have, int) or not isinstance(want, int) or have == want:
            continue
        if axis not in positions or have != 1:
            raise Refusal("skip has neither X's shape nor one vector for each item", X=str(x.shape), skip=skip.shape)
