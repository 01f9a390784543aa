"""fold/sum-into-conv: Conv(x, W1, b1) + Conv(x, W2, b2) + s * x + t = Conv(x, W1 + W2 + s I, b1 + b2 + t).

Blocks that are trained with parallel branches (RepVGG, MobileOne, the mixers of FastViT, RepViT) add the results of
convolutions of one input, among them its BatchNormalization alone. All branches that are linear become one convolution:
the kernels are added in float64 where their taps lie (``conv_taps``), whatever their sizes, pads and dilations, in the
smallest number of groups that holds them all. A branch without a convolution, s[c] * x + t[c] or x itself, is a kernel
with one tap. The sum may be any tree of Add, Sub and Sum; what is no branch of that input stays in it.

A convolution is no branch, and stays,
    1. whose result has another reader, is a graph output, or stands in another graph;
    2. whose weight or bias is computed at run time;
    3. with another stride, another number of channels, or results of another size than the others.

Refused:
    4. A weight or bias is a graph input that a caller may override.
    5. The padding of a branch depends on the input's size, or an attribute is one of the function that it stands in.
    6. One convolution would take more multiplications than all of them, as of 1 x k and k x 1 alone, or of depthwise
       and dense ones with large kernels.
    7. A merged value would overflow, underflow or not be finite, or the weights differ in type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fold.affine import OLDEST_OPSET
from onnxnorm.passes.fold.affine_layout import FloatArray
from onnxnorm.passes.fold.batch_norm import tolerance_of
from onnxnorm.passes.fold.conv_taps import Taps, embedded, holds_origin, taps_of, union, unit, with_taps
from onnxnorm.passes.fold.layer_output import is_parameter
from onnxnorm.passes.fold.linear_sum import Mapped, Operand, is_root, is_sum, mapped_from, operands_of
from onnxnorm.passes.graph import is_op, node_name, sole_consumer
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, check_underflow, constant_array


@dataclass(frozen=True)
class _Branch:
    """An operand that is scale * base + shift, where ``conv`` makes the base, or the base is the others' input."""

    operand: Operand
    mapped: Mapped
    conv: ir.Node | None

    @property
    def source(self) -> ir.Value:
        value = self.mapped.base if self.conv is None else self.conv.inputs[0]
        assert value is not None
        return value

    @property
    def nodes(self) -> list[ir.Node]:
        return [*([] if self.conv is None else [self.conv]), *self.mapped.maps]


class FoldSumIntoConv(Rule):
    """See the module."""

    id: ClassVar[str] = "fold/sum-into-conv"
    operators: ClassVar[frozenset[str]] = frozenset({"Add", "Sub", "Sum"})
    action: ClassVar[Action] = Action.FOLDED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A whole sum, two or more operands of which are branches of one input."""
        if context.opset < OLDEST_OPSET or not is_sum(node) or not is_root(node):
            return None
        sums, operands = operands_of(node)
        branches = _branches(operands, context)
        if not branches:
            return None
        nodes = [*(item for branch in branches for item in branch.nodes), *reversed(sums)]
        facts = {"sums": sums, "operands": operands, "branches": branches}
        return Match({str(index): item for index, item in enumerate(nodes)}, facts)

    def subject(self, match: Match) -> ir.Node:
        """BatchNormalization if there is one, else the first convolution."""
        branches: list[_Branch] = match.facts["branches"]
        nodes = [node for branch in branches for node in branch.nodes]
        norms = [node for node in nodes if is_op(node, "BatchNormalization")]
        return (norms or nodes)[0]

    def check(self, match: Match, context: Context) -> None:
        """Reasons 4 to 6."""
        branches: list[_Branch] = match.facts["branches"]
        convs = [branch.conv for branch in branches if branch.conv is not None]
        taps = [taps_of(conv, constant_array(conv.inputs[1], "Conv's weight").shape) for conv in convs]
        kinds = {constant_array(conv.inputs[1], "Conv's weight").dtype for conv in convs}
        if len(kinds) > 1:
            raise Refusal("the branches' weights differ in type", types=", ".join(sorted(map(str, kinds))))
        for conv in convs:
            _bias(conv)
        whole, before = union(taps), sum(item.products for item in taps)
        if whole.products > before:
            raise Refusal("one convolution would take more multiplications than all", all=before, one=whole.products)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """One Conv, and the sum of it and what is no branch."""
        branches: list[_Branch] = match.facts["branches"]
        sums: list[ir.Node] = match.facts["sums"]
        convs = [branch.conv for branch in branches if branch.conv is not None]
        shapes = {conv: constant_array(conv.inputs[1], "Conv's weight").shape for conv in convs}
        taps = {conv: taps_of(conv, shape) for conv, shape in shapes.items()}
        weight, bias = _merged(branches, taps)
        new = [_conv(convs[0], weight, bias, union(list(taps.values())), context)]
        new[0].outputs[0].type, new[0].outputs[0].shape = convs[0].outputs[0].type, convs[0].outputs[0].shape
        merged = [branch.operand for branch in branches]
        for operand in match.facts["operands"]:
            if not any(operand is item for item in merged):
                new.append(_plus(new[-1].outputs[0], operand, sums[0], context))
        removed = [*dict.fromkeys(node for branch in branches for node in branch.nodes), *reversed(sums)]
        norms = [node for node in removed if is_op(node, "BatchNormalization")]
        return Replacement(
            new,
            {sums[0].outputs[0]: new[-1].outputs[0]},
            removed,
            self.subject(match),
            into=node_name(convs[0]),
            values={"branches": len(branches)},
            tolerance=max([1e-9, *map(tolerance_of, norms)]),
        )


def _branches(operands: list[Operand], context: Context) -> list[_Branch]:
    """Those of the first input that two operands or more come from, one of them by a convolution."""
    convs = [branch for operand in operands if (branch := _of_conv(operand, context)) is not None]
    others = [operand for operand in operands if not any(operand is item.operand for item in convs)]
    for first in convs:
        taps = _taps(first)
        if taps is None:
            continue
        group = _cheapest([item for item in convs if item.source is first.source and _fit(first, item)])
        kernel = union([known for item in group if (known := _taps(item)) is not None])
        if taps.keeps_size and holds_origin(kernel):
            mapped = [(operand, mapped_from(operand, taps.outputs, context)) for operand in others]
            group += [_Branch(operand, item, None) for operand, item in mapped if item.base is first.source]
        if len(group) > 1:
            return group
    return []


def _cheapest(group: list[_Branch]) -> list[_Branch]:
    """Those that one convolution makes with no more multiplications than they take; all where there are no two."""
    known = [(taps, item) for item in group if (taps := _taps(item)) is not None]
    if len(known) < len(group):
        return group
    taken: list[Taps] = []
    chosen: list[_Branch] = []
    for taps, item in sorted(known, key=lambda pair: -pair[0].products):
        if not taken or union([*taken, taps]).products <= taps.products + sum(other.products for other in taken):
            taken.append(taps)
            chosen.append(item)
    return [item for item in group if any(item is other for other in chosen)] if len(chosen) > 1 else group


def _of_conv(operand: Operand, context: Context) -> _Branch | None:
    """A branch with a convolution that only this sum reads."""
    value, reader = operand.value, operand.reader
    conv = value.producer()
    if conv is None or conv.graph is not context.graph or sole_consumer(value) is not reader:
        return None
    if not is_op(conv, "Conv") or not is_parameter(conv.inputs[1]):
        return None
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    shape = None if conv.inputs[1] is None else conv.inputs[1].shape
    if (
        (bias is not None and not is_parameter(bias))
        or shape is None
        or not all(isinstance(size, int) for size in shape)
    ):
        return None
    channels = int(shape[0])  # type: ignore[arg-type]
    return _Branch(operand, Mapped(value, np.ones(channels), np.zeros(channels), ()), conv)


def _taps(branch: _Branch) -> Taps | None:
    """None where they are not known, which is refused where it matters."""
    assert branch.conv is not None
    weight = branch.conv.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    try:
        return taps_of(branch.conv, [int(size) for size in weight.shape])  # type: ignore[arg-type]
    except Refusal:
        return None


def _fit(one: _Branch, other: _Branch) -> bool:
    """Whether one convolution can make the sum of both, or it is not known."""
    first, second = _taps(one), _taps(other)
    return first is None or second is None or first.fits_with == second.fits_with


def _merged(branches: list[_Branch], taps: dict[ir.Node, Taps]) -> tuple[FloatArray, FloatArray]:
    """(weight, bias) of all branches together."""
    whole = union(list(taps.values()))
    weight = np.zeros((whole.outputs, whole.inputs // whole.group, *(axis.size for axis in whole.axes)))
    bias = np.zeros(whole.outputs)
    for branch in branches:
        sign = branch.operand.sign
        if branch.conv is None:
            weight += unit(sign * branch.mapped.scale, whole)
            bias += sign * branch.mapped.shift
        else:
            own = constant_array(branch.conv.inputs[1], "Conv's weight").astype(np.float64)
            weight += sign * embedded(own, taps[branch.conv], whole)
            bias += sign * _bias(branch.conv)
    return weight, bias


def _bias(conv: ir.Node) -> FloatArray:
    value = conv.inputs[2] if len(conv.inputs) > 2 else None
    return np.zeros(1) if value is None else constant_array(value, "Conv's bias").astype(np.float64)


def _conv(like: ir.Node, weight: FloatArray, bias: FloatArray, whole: Taps, context: Context) -> ir.Node:
    value = like.inputs[1]
    assert value is not None
    dtype = ir.DataType.from_numpy(constant_array(value, "Conv's weight").dtype)
    check_underflow(weight, dtype, 0)
    inputs = [like.inputs[0], context.constant(f"{value.name}_merged", weight, dtype)]
    if bias.any():
        inputs.append(context.constant(f"{node_name(like)}_bias_merged", bias, dtype))
    return ir.node("Conv", inputs, with_taps(whole), name=like.name)


def _plus(value: ir.Value, operand: Operand, like: ir.Node, context: Context) -> ir.Node:
    """The sum so far with one more operand."""
    name = context.fresh_name(f"{node_name(like)}_rest")
    node = ir.node("Sub" if operand.sign < 0 else "Add", [value, operand.value], name=name)
    node.outputs[0].type = like.outputs[0].type
    return node
