"""fuse/skip-reshape: a Reshape between a residual addition and a norm of rows goes behind the norm's skip form.

    s = Reshape(x + residual);   y = norm(s)   =   y', s' = Skip<norm>(x, residual);   y = Reshape(y'), s = Reshape(s')

for onnxnorm LayerNorm and RMSNorm over the last axes, which the Reshape keeps: windowed transformers go between (N, H,
W, C) and (N, H W, C) there. A Reshape moves no data, the addition by itself reads and writes the whole tensor once
more. The Reshape of the sum stays where others read it.

Refused:
    1. The reasons 1 to 5 of fuse/skip.
    2. The Reshape is not known to keep the normalized axes.
    3. The shape that it reads is computed behind other readers of the sum.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.fuse.sizes import shape_nodes
from onnxnorm.passes.fuse.skip import NORMS, FuseSkip, residual_addition
from onnxnorm.passes.graph import attribute, constant_tensor, is_op, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement
from onnxnorm.spec.record import DOMAIN

_NORMS = NORMS & {"LayerNorm", "RMSNorm"}


class FuseSkipReshape(FuseSkip):
    """See the module."""

    id: ClassVar[str] = "fuse/skip-reshape"
    operators: ClassVar[frozenset[str]] = _NORMS

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A norm of rows behind a Reshape behind a sum of two tensors that are both computed."""
        if node.domain != DOMAIN or node.op_type not in _NORMS or node.inputs[0] is None:
            return None
        reshape = node.inputs[0].producer()
        if reshape is None or not is_op(reshape, "Reshape") or reshape.inputs[0] is None:
            return None
        add = residual_addition(reshape.inputs[0])
        return None if add is None else Match({"add": add, "reshape": reshape, "norm": node})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 and 2 of the module."""
        super().check(match, context)
        reshape, norm = match["reshape"], match["norm"]
        if reshape.graph is not context.graph:
            raise Refusal("the Reshape stands in an outer graph")
        axes = sorted(attribute(norm, "axes", ()))
        before, after = reshape.inputs[0].shape, reshape.outputs[0].shape  # type: ignore[union-attr]
        if axes != list(range(-len(axes), 0)) or before is None or after is None or len(before) <= len(axes):
            raise Refusal("the normalized axes are not the last ones", axes=axes)
        kept, wanted = list(before)[-len(axes) :], list(after)[-len(axes) :]
        if kept != wanted or not all(isinstance(size, int) for size in kept):
            raise Refusal("the Reshape is not known to keep the normalized axes", before=str(before), after=str(after))

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The skip form, then the Reshape of each of its results that is read."""
        add, reshape, norm = match["add"], match["reshape"], match["norm"]
        total, turned, shape = add.outputs[0], reshape.outputs[0], reshape.inputs[1]
        read_before = total.is_graph_output() or any(use.node is not reshape for use in total.uses())
        read_behind = turned.is_graph_output() or any(use.node is not norm for use in turned.uses())
        fixed = constant_tensor(shape) is not None
        if read_before and not fixed:
            raise Refusal("the shape is computed behind other readers of the sum", shape=shape.name if shape else None)
        new = ir.node(
            f"Skip{norm.op_type}",
            [*add.inputs, *norm.inputs[1:]],
            dict(norm.attributes),
            domain=DOMAIN,
            num_outputs=2 if read_before or read_behind else 1,
            name=norm.name,
        )
        for value in new.outputs:
            value.type, value.shape = total.type, total.shape
        nodes, outputs = [new], {}
        for old, value in [(norm.outputs[0], new.outputs[0]), *([(turned, new.outputs[1])] if read_behind else [])]:
            nodes.append(ir.node("Reshape", [value, shape], dict(reshape.attributes)))
            nodes[-1].outputs[0].type, nodes[-1].outputs[0].shape = old.type, old.shape
            outputs[old] = nodes[-1].outputs[0]
        if read_before:
            outputs[total] = new.outputs[1]
        removed = [norm, reshape, add] if fixed else [norm, add, reshape]
        before = [*shape_nodes(reshape), add, reshape, norm]
        return Replacement(nodes, outputs, removed, norm, into=node_name(norm), before=before)
