"""fold/affine-behind-layer: s * layer(x, W, b) + t = layer(x, s * W, s * b + t), s and t constants of a channel.

A normalization that is written out (frozen batch norm, batch renormalization, a mean-only or an L1 batch norm in
evaluation, a layer scale) is a chain of Mul, Div, Add, Sub, Neg by constants of one value per channel, possibly with
BatchNormalization among them, behind Conv, ConvTranspose, Gemm or MatMul with a constant right factor. The chain is
y = s[c] * x + t[c] in float64, rounded once into the weight and the bias. MatMul keeps one Add behind it where t is not
zero. BatchNormalization alone is left to the rules of its own; the first Add behind MatMul is its bias and no map.

The chain ends, at the latest, before a node
    1. whose constant is a graph input that a caller may override, or is computed at run time;
    2. whose constant differs along another axis than the channels, or has more axes than the layer's output;
    3. whose input has another reader, is a graph output, or stands in another graph.

Refused:
    4. The layer's weight or bias is not constant, or is a graph input that a caller may override.
    5. The weight has another reader, and would be stored twice.
    6. The map is not finite, as a division by zero makes it.
    7. A folded weight or bias would overflow, underflow or not be finite in the layer's type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fold.affine import OLDEST_OPSET, constant_map, subject_of
from onnxnorm.passes.fold.affine_layout import full_rank
from onnxnorm.passes.fold.batch_norm import (
    FloatArray,
    FoldBatchNormIntoLayer,
    affine_of,
    along,
    check_private,
    tolerance_of,
)
from onnxnorm.passes.fold.batch_norm_into_conv import FoldBatchNormIntoConv
from onnxnorm.passes.fold.batch_norm_into_conv_transpose import FoldBatchNormIntoConvTranspose
from onnxnorm.passes.fold.batch_norm_into_gemm import FoldBatchNormIntoGemm
from onnxnorm.passes.graph import attribute, is_op, node_name, rank_of, sole_consumer
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, check_underflow, constant_array

#: How a scale of the output goes into the weight, by operator; MatMul is here.
_LAYERS: dict[str, FoldBatchNormIntoLayer] = {
    rule.layer: rule for rule in (FoldBatchNormIntoConv(), FoldBatchNormIntoConvTranspose(), FoldBatchNormIntoGemm())
}


@dataclass(frozen=True)
class _Output:
    """A layer's output: its rank, the axis of its channels, and how many there are."""

    rank: int
    axis: int
    channels: int


class FoldAffineBehindLayer(Rule):
    """See the module."""

    id: ClassVar[str] = "fold/affine-behind-layer"
    operators: ClassVar[frozenset[str]] = frozenset({*_LAYERS, "MatMul"})
    action: ClassVar[Action] = Action.FOLDED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A layer and the chain that reads it, where there is more to do than rules for single nodes do."""
        if not any(is_op(node, name) for name in self.operators) or context.opset < OLDEST_OPSET:
            return None
        output = _output(node)
        if output is None:
            return None
        maps = _maps(node, output, context)
        if all(is_op(item, "BatchNormalization") for item in _behind_bias(node, maps)):
            return None
        return Match({"layer": node, **{f"map {index}": item for index, item in enumerate(maps)}})

    def subject(self, match: Match) -> ir.Node:
        """What a Decision is about: BatchNormalization if there is one, else the first map that is no bias."""
        layer, *maps = match.nodes.values()
        return subject_of(_behind_bias(layer, maps))

    def check(self, match: Match, context: Context) -> None:
        """Reasons 4 and 5."""
        layer = match["layer"]
        weight = layer.inputs[1]
        assert weight is not None
        constant_array(weight, f"{layer.op_type}'s weight")
        if len(weight.uses()) > 1:
            raise Refusal(f"{layer.op_type}'s weight has another reader and would be stored twice", weight=weight.name)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The layer with new weight and bias in place of all."""
        layer, *maps = match.nodes.values()
        output = _output(layer)
        assert output is not None
        scale, shift = np.ones(output.channels), np.zeros(output.channels)
        for node in maps:
            by, plus = _per_channel(node, output, context)
            with np.errstate(all="ignore"):  # what is not finite is refused below
                scale, shift = scale * by, shift * by + plus
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise Refusal("the map is not finite: it divides by zero or overflows")
        make = _matmul if is_op(layer, "MatMul") else _layer
        nodes = make(layer, scale, shift, context)
        norms = [node for node in maps if is_op(node, "BatchNormalization")]
        return Replacement(
            nodes,
            {maps[-1].outputs[0]: nodes[-1].outputs[0]},
            [layer, *maps],
            self.subject(match),
            into=node_name(layer),
            tolerance=max([1e-9, *map(tolerance_of, norms)]),
        )


def _output(layer: ir.Node) -> _Output | None:
    """What is known of the layer's output, None where the rule has no say."""
    shape = None if len(layer.inputs) < 2 or layer.inputs[1] is None else layer.inputs[1].shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    sizes = [int(size) for size in shape if isinstance(size, int)]
    if is_op(layer, "MatMul"):
        rank = rank_of(layer.outputs[0])
        return _Output(rank, rank - 1, sizes[1]) if len(sizes) == 2 and rank is not None and rank >= 2 else None
    if is_op(layer, "Gemm"):
        transposed = attribute(layer, "transB", 0)
        return _Output(2, 1, sizes[0 if transposed else 1]) if len(sizes) == 2 and transposed is not None else None
    if len(sizes) < 3:
        return None
    if is_op(layer, "Conv"):
        return _Output(len(sizes), 1, sizes[0])
    group = attribute(layer, "group", 1)
    return None if group is None else _Output(len(sizes), 1, group * sizes[1])


def _maps(layer: ir.Node, output: _Output, context: Context) -> list[ir.Node]:
    """The longest chain of maps that reads the layer; a legal one."""
    found: list[ir.Node] = []
    last = layer
    while (node := sole_consumer(last.outputs[0])) is not None:
        try:
            check_private(last.outputs[0], node, context)
            if node.graph is not context.graph:
                break
            _per_channel(node, output, context)
        except Refusal:
            break
        found.append(node)
        last = node
    return found


def _behind_bias(layer: ir.Node, maps: list[ir.Node]) -> list[ir.Node]:
    """The maps without the Add that is MatMul's bias."""
    return maps[1:] if is_op(layer, "MatMul") and maps and is_op(maps[0], "Add") else maps


def _per_channel(node: ir.Node, output: _Output, context: Context) -> tuple[FloatArray, FloatArray]:
    """(scale, shift) of one node, each of one value per channel or of one value; Refusal where it is no such map."""
    if is_op(node, "BatchNormalization"):
        affine = affine_of(node, context)
        if output.axis != 1 or affine.scale.size != output.channels:
            raise Refusal("its channels are not the layer's", channels=affine.scale.size)
        return affine.scale, affine.shift
    parts = constant_map(node, context)
    if parts is None:
        raise Refusal("it is no map by a constant")
    scale, shift = (_along_channels(part, output) for part in parts)
    return scale, shift


def _along_channels(values: FloatArray, output: _Output) -> FloatArray:
    """The values as (channels,) or (1,); Refusal (reason 2)."""
    if values.ndim > output.rank:
        raise Refusal("its constant has more axes than its input", constant=values.shape)
    sizes = full_rank(values, output.rank).shape
    if any(size != 1 for axis, size in enumerate(sizes) if axis != output.axis):
        raise Refusal("its constant differs along other axes than the channels", constant=values.shape)
    if sizes[output.axis] not in (1, output.channels):
        raise Refusal("its constant has not one value per channel", constant=values.shape, channels=output.channels)
    return values.reshape(-1)


def _layer(layer: ir.Node, scale: FloatArray, shift: FloatArray, context: Context) -> list[ir.Node]:
    """The layer with scaled weight and a bias that is never missing."""
    how = _LAYERS[layer.op_type]
    given = layer.inputs[1]
    assert given is not None
    weight = constant_array(given, "weight")
    dtype = ir.DataType.from_numpy(weight.dtype)
    scaled, axis = how.scale_weight(layer, weight.astype(np.float64), scale)
    check_underflow(scaled, dtype, axis)
    bias = how.bias(layer, scale.size, context) * scale + shift
    inputs = [
        layer.inputs[0],
        context.constant(f"{given.name}_folded", scaled, dtype),
        context.constant(f"{given.name}_folded_bias", bias, dtype),
    ]
    return [ir.node(layer.op_type, inputs, how.attributes(layer), name=layer.name)]


def _matmul(layer: ir.Node, scale: FloatArray, shift: FloatArray, context: Context) -> list[ir.Node]:
    """MatMul with scaled columns, and Add where there is something to add."""
    given = layer.inputs[1]
    assert given is not None
    weight = constant_array(given, "weight")
    dtype = ir.DataType.from_numpy(weight.dtype)
    scaled = weight.astype(np.float64) * along(1, scale, 2)
    check_underflow(scaled, dtype, 1)
    factor = context.constant(f"{given.name}_folded", scaled, dtype)
    product = ir.node("MatMul", [layer.inputs[0], factor], name=layer.name)
    product.outputs[0].type, product.outputs[0].shape = layer.outputs[0].type, layer.outputs[0].shape
    if not shift.any():
        return [product]
    bias = context.constant(f"{given.name}_folded_bias", shift, dtype)
    return [product, ir.node("Add", [product.outputs[0], bias], name=context.fresh_name(f"{node_name(layer)}_bias"))]
