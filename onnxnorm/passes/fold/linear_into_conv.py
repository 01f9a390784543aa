"""fold/linear-into-conv: Conv(Conv1x1(x, W1, B1), W2, B2) = Conv(x, W, B), W = W2 W1 by position, B = B2 + sum W2 B1.

A decorrelation or whitening of the channels in front of a convolution is such a pair. W1 is (K, D, 1, ...), W2 is
(E, K, *kernel), both with group 1; per position of the result D * E * kernel multiplications take the place of
D * K + K * E * kernel or more. Zero padding of the second convolution is exact where B1 is 0 or missing.

Refused:
    1. A weight or bias is a graph input that a caller may override, or not constant.
    2. The first result has another reader, is a graph output, or stands in another graph.
    3. The merged convolution would take more multiplications.
    4. The second one pads with zeros and B1 is not 0.
    5. A merged value would overflow, underflow or not be finite.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fold.affine_into_conv import pads
from onnxnorm.passes.fold.affine_into_layer import with_bias
from onnxnorm.passes.fold.affine_layout import FloatArray
from onnxnorm.passes.fold.batch_norm import check_private
from onnxnorm.passes.fold.linear_into_linear import worth_telling
from onnxnorm.passes.graph import attribute, constant_tensor, is_op, is_overridable, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, check_underflow, constant_array


class FoldLinearIntoConv(Rule):
    """See the module."""

    id: ClassVar[str] = "fold/linear-into-conv"
    operators: ClassVar[frozenset[str]] = frozenset({"Conv"})
    action: ClassVar[Action] = Action.FOLDED
    recognizes: ClassVar[bool] = True

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A Conv of a Conv with kernel 1, stride 1 and no padding, both with group 1."""
        first = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if first is None or not (is_op(node, "Conv") and is_op(first, "Conv")) or not _pointwise(first):
            return None
        if attribute(node, "group", 1) != 1 or not _has_weight(node):
            return None
        return worth_telling(self, Match({"second": node, "first": first}), context)

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 4."""
        first, second = match["first"], match["second"]
        check_private(first.outputs[0], second, context)
        one, two = (constant_array(conv.inputs[1], "Conv's weight") for conv in (first, second))
        if one.shape[0] != two.shape[1] or one.ndim != two.ndim:
            raise Refusal("the weights do not fit", first=one.shape, second=two.shape)
        before, after = one.size + two.size, two.size // two.shape[1] * one.shape[1]
        if after > before:
            raise Refusal("one convolution would take more multiplications than two", two=before, one=after)
        if pads(second, two.shape[2:]) and _bias(first).any():
            raise Refusal("the second convolution pads with zeros, which the first one's bias would not reach")

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """One Conv with the second one's attributes."""
        first, second = match["first"], match["second"]
        value = second.inputs[1]
        tensor = constant_tensor(value)
        assert value is not None
        assert tensor is not None
        one = constant_array(first.inputs[1], "Conv's weight").astype(np.float64)
        two = constant_array(value, "Conv's weight").astype(np.float64)
        matrix = one.reshape(one.shape[:2])
        merged = np.ascontiguousarray(np.moveaxis(np.tensordot(two, matrix, axes=(1, 0)), -1, 1))
        check_underflow(merged, tensor.dtype, 0)
        check_underflow(merged, tensor.dtype, 1)
        bias = two.reshape(*two.shape[:2], -1).sum(axis=2) @ np.broadcast_to(_bias(first), (one.shape[0],))
        weight = context.constant(f"{value.name}_folded", merged, tensor.dtype)
        data = first.inputs[0]
        assert data is not None
        new = with_bias(second, data, weight, bias if bias.any() else None, context)
        return Replacement([new], {second.outputs[0]: new.outputs[0]}, [first, second], first, into=node_name(second))


def _bias(conv: ir.Node) -> FloatArray:
    value = conv.inputs[2] if len(conv.inputs) > 2 else None
    return np.zeros(1) if value is None else constant_array(value, "Conv's bias").astype(np.float64)


def _has_weight(conv: ir.Node) -> bool:
    value = conv.inputs[1]
    return value is not None and (is_overridable(value) or constant_tensor(value) is not None)


def _pointwise(conv: ir.Node) -> bool:
    """Whether the convolution is a matrix at each position."""
    value = conv.inputs[1]
    tensor = None if value is None else (value.const_value if is_overridable(value) else constant_tensor(value))
    if tensor is None or attribute(conv, "group", 1) != 1:
        return False
    sizes = tuple(tensor.shape.numpy())
    strides = attribute(conv, "strides", ())
    plain = len(sizes) >= 3 and all(size == 1 for size in sizes[2:]) and not pads(conv, sizes[2:])
    return plain and strides is not None and all(step == 1 for step in strides)
