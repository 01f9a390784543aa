"""fold/affine-behind-quantized-layer: s * layer(x, W, b) + t, where DequantizeLinear makes W, goes into W's scales.

As fold/affine-behind-layer, for weights that are stored as whole numbers: s goes into the scales of DequantizeLinear,
where it is negative the whole numbers change their sign about the zero point, and the bias, which may be dequantized as
well, is a plain one afterwards: b' = s * b + t is no multiple of the scale that it had. Nothing is quantized anew. See
``onnxnorm.passes.fold.quantized_weight``.

Refused, besides what ends a chain there:
    1. A scale, a zero point or the bias is not constant, or a graph input that a caller may override.
    2. The scales cannot take s: there is one for all before opset 13, they belong to another axis than the layer's
       output channels, or to blocks along these.
    3. A whole number's negative has no place in its type, as that of -128 in int8.
    4. A scale or the bias would overflow, underflow or not be finite.
    5. What BatchNormalization reads is rounded to whole numbers behind the layer: QuantizeLinear, QLinearConv,
       ConvInteger with a scale and the like. It would be rounded at other places.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fold.affine import OLDEST_OPSET, subject_of
from onnxnorm.passes.fold.affine_behind import Behind, follow
from onnxnorm.passes.fold.affine_into_layer import forget
from onnxnorm.passes.fold.affine_layout import again, carries, shape_nodes
from onnxnorm.passes.fold.batch_norm import tolerance_of
from onnxnorm.passes.fold.layer_output import OPERATORS, Output, mapped, output_of, weight_input
from onnxnorm.passes.fold.quantized_weight import (
    QuantizedWeight,
    dequantized,
    quantized_behind,
    quantized_weight,
    scaled_weight,
)
from onnxnorm.passes.graph import is_op, node_name, op_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule


class FoldAffineBehindQuantizedLayer(Rule):
    """See the module."""

    id: ClassVar[str] = "fold/affine-behind-quantized-layer"
    operators: ClassVar[frozenset[str]] = OPERATORS | {"BatchNormalization"}
    action: ClassVar[Action] = Action.FOLDED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A layer with a quantized weight and what follows, or BatchNormalization behind QuantizeLinear."""
        if is_op(node, "BatchNormalization"):
            source = quantized_behind(node)
            if source is not None:
                return Match({"rounds": source, "norm": node})
            layer = _layer_in_front(node)  # again, so that of all refusals the one from here is the last
            return None if layer is None else self._match_layer(layer, context)
        return self._match_layer(node, context)

    def _match_layer(self, node: ir.Node, context: Context) -> Match | None:
        found = _weight_of(node, context)
        if found is None or context.opset < OLDEST_OPSET:
            return None
        output = _output(node, *found)
        behind = None if output is None else follow(node, output, context)
        if behind is None or (behind.single and behind.stay):
            return None
        nodes = behind.nodes
        if not nodes:
            if behind.stopped_by is None:
                return None
            nodes = [*behind.way, behind.stopped_by]
        if behind.nodes and is_op(node, "MatMul") and all(is_op(item, "Add") for item in behind.maps):
            return None  # that is its bias
        roles = {f"map {index}": item for index, item in enumerate(nodes)}
        return Match({"layer": node, **roles}, {"behind": behind, "output": output, "side": found[0]})

    def subject(self, match: Match) -> ir.Node:
        """BatchNormalization if there is one, else the first map."""
        behind: Behind | None = match.facts.get("behind")
        if behind is None:
            return match["norm"]
        return subject_of(behind.maps) if behind.nodes else list(match.nodes.values())[-1]

    def check(self, match: Match, context: Context) -> None:
        """Reason 5 and what ends the chain."""
        if "rounds" in match.nodes:
            node = match["rounds"]
            raise Refusal(f"{op_name(node)} {node_name(node)} rounds in front of it", rounded_by=node_name(node))
        behind: Behind = match.facts["behind"]
        if not behind.nodes:
            assert behind.refusal is not None
            raise behind.refusal
        if not (np.isfinite(behind.scale).all() and np.isfinite(behind.shift).all()):
            raise Refusal("the map is not finite: it divides by zero or overflows")

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """DequantizeLinear with new scales, the layer with that and its new bias, and what moves elements behind it."""
        layer, side = match["layer"], match.facts["side"]
        behind: Behind = match.facts["behind"]
        value = layer.inputs[side]
        weight = quantized_weight(value, context)
        assert weight is not None
        plain = _with_ones(layer, side, weight, context)
        made: list[ir.Node] = []
        try:
            nodes = mapped(plain, match.facts["output"], behind.scale, behind.shift, context)
            made += nodes
            ones = nodes[0].inputs[side]
            assert ones is not None
            front = scaled_weight(weight, np.asarray(ones.meta["exact"]), context)
            made += front
            nodes[0].replace_input_with(side, front[-1].outputs[0])
            for old in behind.stay:
                nodes.append(again(old, nodes[-1].outputs[0], context))
                nodes[-1].outputs[0].type, nodes[-1].outputs[0].shape = layer.outputs[0].type, old.outputs[0].shape
                made.append(nodes[-1])
        except Refusal:
            forget(made)
            raise
        finally:
            forget([plain])
        shapes = [item for node in behind.nodes if is_op(node, "Reshape") for item in shape_nodes(node, context)]
        norms = [node for node in behind.maps if is_op(node, "BatchNormalization")]
        return Replacement(
            [*front, *nodes],
            {behind.nodes[-1].outputs[0]: nodes[-1].outputs[0]},
            [layer, *behind.nodes],
            self.subject(match),
            into=node_name(layer),
            tolerance=max([1e-9, *map(tolerance_of, norms)]),
            before=[*dict.fromkeys([*shapes, *weight.nodes, *_bias_nodes(layer, context)]), layer, *behind.nodes],
        )


def _layer_in_front(norm: ir.Node) -> ir.Node | None:
    """The layer that BatchNormalization reads, behind operators that move elements and its bias."""
    value = norm.inputs[0] if norm.inputs else None
    node = None if value is None else value.producer()
    while node is not None and (carries(node) or is_op(node, "Add")):
        node = next((item.producer() for item in node.inputs if item is not None and item.producer()), None)
    return node


def _weight_of(layer: ir.Node, context: Context) -> tuple[int, QuantizedWeight] | None:
    """(input, what is known of it) of the layer's quantized weight."""
    if not any(is_op(layer, name) for name in OPERATORS) or len(layer.inputs) < 2:
        return None
    sides = (1, 0) if is_op(layer, "MatMul") or is_op(layer, "Gemm") else (1,)
    return next(
        ((side, found) for side in sides if (found := quantized_weight(layer.inputs[side], context)) is not None), None
    )


def _output(layer: ir.Node, side: int, weight: QuantizedWeight) -> Output | None:
    """The layer's output channels: those of a layer with a plain weight of that shape."""
    plain = _plain(layer, side, weight)
    try:
        return output_of(plain) if weight_input(plain) == side else None
    finally:
        forget([plain])


def _plain(layer: ir.Node, side: int, weight: QuantizedWeight) -> ir.Node:
    """The layer with a weight of ones; it is never put into the graph."""
    value = layer.inputs[side]
    assert value is not None
    ones = ir.tensor(np.ones(weight.shape, weight.dtype.numpy()), dtype=weight.dtype)
    constant = ir.Value(
        name=value.name, type=ir.TensorType(weight.dtype), shape=ir.Shape(weight.shape), const_value=ones
    )
    inputs = [constant if index == side else item for index, item in enumerate(layer.inputs)]
    plain = ir.node(layer.op_type, inputs, dict(layer.attributes), name=layer.name)
    plain.outputs[0].name = layer.outputs[0].name
    plain.outputs[0].type, plain.outputs[0].shape = layer.outputs[0].type, layer.outputs[0].shape
    return plain


def _with_ones(layer: ir.Node, side: int, weight: QuantizedWeight, context: Context) -> ir.Node:
    """The same, with the bias as numbers."""
    plain = _plain(layer, side, weight)
    bias = plain.inputs[2] if len(plain.inputs) > 2 else None
    numbers = None if bias is None else dequantized(bias, context)
    if bias is not None and numbers is not None:
        try:
            plain.replace_input_with(2, context.constant(bias.name or "bias", numbers, ir.DataType.DOUBLE))
        except Refusal:
            forget([plain])
            raise
    return plain


def _bias_nodes(layer: ir.Node, context: Context) -> list[ir.Node]:
    bias = quantized_weight(layer.inputs[2], context) if len(layer.inputs) > 2 else None
    return [] if bias is None else bias.nodes
