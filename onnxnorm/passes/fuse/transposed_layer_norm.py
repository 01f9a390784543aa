"""fuse/transposed-layer-norm: a layer norm between two Transposes becomes one over other axes.

    Transpose(LayerNorm over axes(Transpose(x, p)), inverse of p)  =  LayerNorm over p[axes](x)

Channels-first layer norm as ConvNeXt, hubert and others write it: to channels last, norm over the last axis, and back.
The norm is LayerNormalization of ai.onnx, or onnxnorm LayerNorm, RMSNorm or L2Norm.

Refused:
    1. What is in between has other readers, is a graph output, or stands in an outer graph.
    2. The second permutation is not the inverse of the first.
    3. The normalized axes come in another order in x: scale would have to be turned.
    4. As for fuse/layer-normalization: scale and bias have not exactly the sizes of the normalized axes, or differ
       from x in element type; Mean or InvStdDev is used; stash_type; functions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.group_normalization import check_standard_norm
from onnxnorm.passes.fuse.product import check_graph
from onnxnorm.passes.graph import attribute, is_op, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN

_OPS = ("LayerNorm", "RMSNorm", "L2Norm")


class FuseTransposedLayerNorm(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/transposed-layer-norm"
    operators: ClassVar[frozenset[str]] = frozenset({"Transpose"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A Transpose behind a norm behind a Transpose."""
        norm = node.inputs[0].producer() if is_op(node, "Transpose") and node.inputs[0] is not None else None
        if norm is None or not (is_op(norm, "LayerNormalization") or (norm.domain == DOMAIN and norm.op_type in _OPS)):
            return None
        before = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        if before is None or not is_op(before, "Transpose") or before.inputs[0] is None:
            return None
        if before.inputs[0].shape is None or norm.inputs[0] is None or node.inputs[0] is not norm.outputs[0]:
            return None
        return Match({"before": before, "norm": norm, "behind": node})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 4 of the module."""
        before, norm, behind = match["before"], match["norm"], match["behind"]
        check_graph(match.nodes.values(), context)
        for value in (before.outputs[0], norm.outputs[0]):
            if value.is_graph_output():
                raise Refusal("a value in between is a graph output", output=value.name)
            for use in value.uses():
                if use.node not in (norm, behind):
                    raise Refusal("a value in between has another reader", reader=node_name(use.node))
        x = before.inputs[0]
        assert x is not None
        rank = len(x.shape or ())
        order, back = _order(before, rank), _order(behind, rank)
        if [order[axis] for axis in back] != list(range(rank)):
            raise Refusal("the second permutation is not the inverse of the first", first=order, second=back)
        axes = [order[axis] for axis in _axes(norm, rank)]
        if axes != sorted(axes):
            raise Refusal("the normalized axes come in another order in x", axes=axes)
        if norm.domain != DOMAIN:
            _check_standard(norm, x, axes, context)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op on what the first Transpose reads."""
        before, norm, behind = match["before"], match["norm"], match["behind"]
        x = before.inputs[0]
        assert x is not None
        assert x.dtype is not None
        rank = len(x.shape or ())
        order = _order(before, rank)
        axes = [order[axis] - rank for axis in _axes(norm, rank)]
        attributes: dict[str, Any] = {
            "axes": axes,
            "epsilon": attribute(norm, "epsilon", 1e-5),
            "activation": attribute(norm, "activation", "none") if norm.domain == DOMAIN else "none",
        }
        inputs = [x, *norm.inputs[1:]]
        op_type = norm.op_type if norm.domain == DOMAIN else "LayerNorm"
        if op_type == "LayerNorm" and (len(inputs) < 3 or inputs[2] is None):
            sizes = [size for size in (x.shape[axis] for axis in axes) if isinstance(size, int)]  # type: ignore[index]
            inputs = [*inputs[:2], context.constant(f"{node_name(norm)}_bias", np.zeros(sizes), x.dtype)]
        new = ir.node(op_type, inputs, attributes, domain=DOMAIN, name=norm.name)
        new.outputs[0].dtype, new.outputs[0].shape = x.dtype, x.shape
        return Replacement(
            [new], {behind.outputs[0]: new.outputs[0]}, [before, norm, behind], norm, into=node_name(norm)
        )

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]


def _order(transpose: ir.Node, rank: int) -> list[int]:
    order = attribute(transpose, "perm", None)
    return list(range(rank))[::-1] if order is None else list(order)


def _axes(norm: ir.Node, rank: int) -> list[int]:
    """The normalized axes, ascending."""
    if norm.domain == DOMAIN:
        return sorted(axis % rank for axis in attribute(norm, "axes", ()))
    return list(range(attribute(norm, "axis", -1) % rank, rank))


def _check_standard(norm: ir.Node, x: ir.Value, axes: list[int], context: Context) -> None:
    """Reason 4 of the module."""
    check_standard_norm(norm, context)
    sizes = [x.shape[axis] for axis in axes] if x.shape is not None else []
    for role, value in zip(("scale", "bias"), norm.inputs[1:], strict=False):
        if value is None:
            continue
        if value.shape is None or list(value.shape) != sizes or any(not isinstance(size, int) for size in sizes):
            raise Refusal(f"{role} is not known to have the sizes of the normalized axes", **{role: str(value.shape)})
        if value.dtype != x.dtype:
            raise Refusal(f"X and {role} differ in element type", X=x.dtype, **{role: value.dtype})
    for output in norm.outputs[1:]:
        if output.uses() or output.is_graph_output():
            raise Refusal("its Mean or InvStdDev is used", output=output.name)
