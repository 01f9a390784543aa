"""fold/conv-into-pointwise: Conv1x1(Conv(x, W1, B1), W2, B2) = Conv(x, W2 W1, W2 B1 + B2), product over the channels.

The second convolution is a matrix at each position, without padding; its stride s2 multiplies the first one's, with
whose taps and padding the result reads: bias and padding of the first one are exact. In g1 and g2 groups, both are
block diagonal in gcd(g1, g2) groups, and so is their product. (A pointwise convolution in front is the other rule's,
``linear_into_conv``.)

Refused:
    1. A weight or bias is a graph input that a caller may override, or not constant.
    2. The first result has another reader, is a graph output, or stands in another graph.
    3. The merged convolution would take more multiplications.
    4. An attribute is one of the function that a convolution stands in, the first one's padding depends on the input's
       size and it has a stride, or the weights do not fit.
    5. A merged value would overflow, underflow or not be finite.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fold.affine_layout import FloatArray
from onnxnorm.passes.fold.batch_norm import check_private
from onnxnorm.passes.fold.conv_taps import Taps, dense, taps_of, with_taps
from onnxnorm.passes.fold.layer_output import is_parameter
from onnxnorm.passes.fold.linear_into_linear import worth_telling
from onnxnorm.passes.graph import is_op, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, check_underflow, constant_array


class FoldConvIntoPointwise(Rule):
    """See the module."""

    id: ClassVar[str] = "fold/conv-into-pointwise"
    operators: ClassVar[frozenset[str]] = frozenset({"Conv"})
    action: ClassVar[Action] = Action.FOLDED
    recognizes: ClassVar[bool] = True

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A Conv with kernel 1 and no padding behind a Conv."""
        first = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if first is None or not (is_op(node, "Conv") and is_op(first, "Conv")) or not _pointwise(node):
            return None
        if not is_parameter(first.inputs[1]) or (_pointwise(first) and _plain(first) and _plain(node)):
            return None
        return worth_telling(self, Match({"second": node, "first": first}), context)

    def subject(self, match: Match) -> ir.Node:
        """The first convolution."""
        return match["first"]

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 4."""
        first, second = match["first"], match["second"]
        check_private(first.outputs[0], second, context)
        one, two = _taps(first), _taps(second)
        if one.outputs != two.inputs or len(one.axes) != len(two.axes):
            raise Refusal("the weights do not fit", first=one.outputs, second=two.inputs)
        whole, before = _whole(one, two), one.products + two.products
        if whole.products > before:
            raise Refusal("one convolution would take more multiplications than two", two=before, one=whole.products)
        for conv in (first, second):
            _bias(conv, _taps(conv).outputs)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """One Conv with the first one's taps."""
        first, second = match["first"], match["second"]
        one, two = _taps(first), _taps(second)
        whole = _whole(one, two)
        value = second.inputs[1]
        assert value is not None
        array = constant_array(value, "Conv's weight")
        dtype = ir.DataType.from_numpy(array.dtype)
        inner = dense(constant_array(first.inputs[1], "Conv's weight").astype(np.float64), one, whole.group)
        outer = dense(array.astype(np.float64), two, whole.group)
        matrix = outer.reshape(whole.group, two.outputs // whole.group, -1)
        blocks = inner.reshape(whole.group, one.outputs // whole.group, -1)
        weight = (matrix @ blocks).reshape(whole.outputs, *inner.shape[1:])
        check_underflow(weight, dtype, 0)
        shift = _bias(first, one.outputs).reshape(whole.group, -1, 1)
        bias = (matrix @ shift).reshape(-1) + _bias(second, two.outputs)
        inputs = [first.inputs[0], context.constant(f"{value.name}_merged", weight, dtype)]
        if bias.any():
            inputs.append(context.constant(f"{node_name(second)}_bias_merged", bias, dtype))
        new = ir.node("Conv", inputs, with_taps(whole), name=second.name)
        new.outputs[0].type, new.outputs[0].shape = second.outputs[0].type, second.outputs[0].shape
        return Replacement([new], {second.outputs[0]: new.outputs[0]}, [first, second], first, into=node_name(second))


def _pointwise(conv: ir.Node) -> bool:
    """Whether the convolution has one tap, which reads no padding."""
    if not is_parameter(conv.inputs[1]):
        return False
    try:
        return all(axis.size == 1 and axis.begin == axis.end == 0 for axis in _taps(conv).axes)
    except Refusal:
        return False


def _plain(conv: ir.Node) -> bool:
    taps = _taps(conv)
    return taps.group == 1 and all(step == 1 for step in taps.strides)


def _taps(conv: ir.Node) -> Taps:
    value = conv.inputs[1]
    shape = None if value is None else value.shape
    if shape is None or len(shape) < 3 or not all(isinstance(size, int) for size in shape):
        raise Refusal(f"the shape of the weight of Conv {node_name(conv)} is not known")
    return taps_of(conv, [int(size) for size in shape if isinstance(size, int)])


def _whole(one: Taps, two: Taps) -> Taps:
    strides = tuple(a * b for a, b in zip(one.strides, two.strides, strict=True))
    return Taps(one.axes, strides, int(np.gcd(one.group, two.group)), one.inputs, two.outputs)


def _bias(conv: ir.Node, channels: int) -> FloatArray:
    value = conv.inputs[2] if len(conv.inputs) > 2 else None
    return np.zeros(channels) if value is None else constant_array(value, "Conv's bias").astype(np.float64)
