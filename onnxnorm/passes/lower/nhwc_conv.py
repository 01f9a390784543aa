"""lower/nhwc-conv: com.microsoft NhwcConv becomes Conv between transpositions.

    Y = to_last(Conv(to_first(X), to_first(W), B)),   to_first (N, *, C) -> (N, C, *)

X and Y have their channels last, and so has W: (M, kH, kW, C / group), which is what ONNX Runtime's optimizer writes
and its CUDA kernel reads, whatever the operator's documentation says. A constant W is turned at once; the
transpositions of X and Y go where they meet others (``canonicalize/transposes``). ONNX Runtime has no CPU kernel of the
operator.

Refused:
    1. As every rule for ONNX Runtime's own operators: in a model-local function, before opset 15.
    2. The rank of W is not known or less than 3, or W does not fit: its sizes are not kernel_shape, or its last one is
       not the channels of X divided by group.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.contrib import ContribRule, Emitter, is_contrib, optional_input, rank
from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import attribute, node_name, sole_consumer, tensor_of
from onnxnorm.passes.permutation import permuted, to_first, to_last
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement


class LowerNhwcConv(ContribRule):
    """See the module."""

    id: ClassVar[str] = "lower/nhwc-conv"
    operators: ClassVar[frozenset[str]] = frozenset({"NhwcConv"})
    action: ClassVar[Action] = Action.LOWERED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any NhwcConv of com.microsoft."""
        if not self.applies() or not is_contrib(node, "NhwcConv") or None in (*node.inputs[:2],):
            return None
        return Match({"conv": node}) if 2 <= len(node.inputs) <= 3 else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 and 2 of the module."""
        super().check(match, context)
        conv = match["conv"]
        x, weight = conv.inputs[:2]
        assert x is not None
        assert weight is not None
        if rank(weight, "W") < 3:
            raise Refusal("W has less than 3 axes", W=str(weight.shape))
        assert weight.shape is not None
        sizes, kernel = list(weight.shape), attribute(conv, "kernel_shape", None)
        if kernel is not None and any(_differ(have, want) for have, want in zip(sizes[1:-1], kernel, strict=True)):
            raise Refusal("W does not have its channels last", W=str(weight.shape), kernel_shape=list(kernel))
        channels = x.shape[-1] if x.shape is not None else None
        group = attribute(conv, "group", 1)
        if _differ(sizes[-1] * group if isinstance(sizes[-1], int) else None, channels):
            raise Refusal("W does not have the channels of X last", W=str(weight.shape), X=str(x.shape), group=group)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The convolution with channels first, and its transpositions."""
        conv = match["conv"]
        x, weight = conv.inputs[:2]
        assert x is not None
        assert weight is not None
        axes = rank(weight)
        emit = Emitter(context, node_name(conv))
        first, last = to_first(axes), to_last(axes)
        x_first = emit.op("Transpose", x, dtype=x.dtype, shape=permuted(x.shape, first), perm=list(first))
        bias = optional_input(conv, 2)
        y = emit.op(
            "Conv",
            x_first,
            _weight_first(weight, emit, context),
            *(() if bias is None else (bias,)),
            dtype=x.dtype,
            shape=permuted(conv.outputs[0].shape, first),
            copied=conv.attributes,
        )
        emit.name_last(conv)
        y_last = emit.op("Transpose", y, dtype=x.dtype, shape=conv.outputs[0].shape, perm=list(last))
        return emit.replacement(conv, [y_last], f"Conv {emit.nodes[-2].name}")


def _weight_first(weight: ir.Value, emit: Emitter, context: Context) -> ir.Value:
    """W as (M, C / group, kH, kW): a constant of its own where nothing else reads it."""
    order = to_first(rank(weight))
    array = tensor_of(weight) if sole_consumer(weight) is not None else None
    if array is None or weight.dtype is None:
        return emit.op("Transpose", weight, dtype=weight.dtype, shape=permuted(weight.shape, order), perm=list(order))
    name = context.fresh_name(f"{weight.name}_channels_first")
    turned = np.ascontiguousarray(array.transpose(order))
    value = ir.Value(name=name, type=ir.TensorType(weight.dtype), shape=ir.Shape(turned.shape))
    value.const_value = ir.tensor(turned, name=name, dtype=weight.dtype)
    return value


def _differ(have: Any, want: Any) -> bool:
    """Whether two sizes are surely different."""
    return isinstance(have, int) and isinstance(want, int) and have != want
