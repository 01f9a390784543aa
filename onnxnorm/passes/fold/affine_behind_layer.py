"""fold/affine-behind-layer: s * layer(x, W, b) + t = layer(x, s * W, s * b + t), s and t constants of a channel.

A normalization that is written out (frozen batch norm, batch renormalization, a mean-only or an L1 batch norm in
evaluation, a layer scale) is a chain of Mul, Div, Add, Sub, Neg by constants of one value per channel, possibly with
BatchNormalization among them, behind Conv, ConvTranspose, Gemm, MatMul with a constant factor or Gather of a table (an
embedding). The chain is y = s[c] * x + t[c] in float64, rounded once into the weight and the bias. MatMul keeps one Add
behind it where t is not zero. BatchNormalization alone right behind the layer is left to the rules of its own; the
first Add behind MatMul is its bias and no map. Operators that move elements or take means may stand in between, as
Transpose stands around the BatchNormalization of a sequence, and a Cast to a wider type whose counterpart follows; they
stay behind the layer, unless they move nothing together.

The chain ends, at the latest, before a node
    1. whose constant is a graph input that a caller may override, or is computed at run time;
    2. whose constant differs between elements of one channel, or may enlarge its input;
    3. whose input has another reader, is a graph output, or stands in another graph.

Refused:
    4. BatchNormalization ends it, for one of these reasons, and nothing comes before.
    5. The layer's weight or bias is not constant, or is a graph input that a caller may override.
    6. The weight has another reader, and would be stored twice for a single map that is no BatchNormalization, or is
       a table.
    7. The map is not finite, as a division by zero makes it.
    8. A folded weight or bias would overflow, underflow or not be finite in the layer's type.

Left alone: a shift alone of what Gather reads; one number behind operators that move elements and in front of a product
of two tensors that are computed, which is how attention scales its queries.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fold.affine import OLDEST_OPSET, subject_of
from onnxnorm.passes.fold.affine_behind import Behind, follow
from onnxnorm.passes.fold.affine_into_layer import forget
from onnxnorm.passes.fold.affine_layout import again, shape_nodes
from onnxnorm.passes.fold.affine_pad import padded
from onnxnorm.passes.fold.batch_norm import tolerance_of
from onnxnorm.passes.fold.layer_output import WITH_TABLES, is_parameter, mapped, output_of, weight_input
from onnxnorm.passes.graph import is_op, node_name, rank_of, sole_consumer
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, constant_array


class FoldAffineBehindLayer(Rule):
    """See the module."""

    id: ClassVar[str] = "fold/affine-behind-layer"
    operators: ClassVar[frozenset[str]] = WITH_TABLES
    action: ClassVar[Action] = Action.FOLDED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A layer and the chain that reads it, where there is more to do than rules for single nodes do."""
        output = output_of(node) if context.opset >= OLDEST_OPSET else None
        if output is None:
            return None
        behind = follow(node, output, context)
        nodes = behind.nodes
        if not nodes and behind.stopped_by is not None and behind.way:
            nodes = [*behind.way, behind.stopped_by]
        elif not _maps(node, behind) or _left_alone(behind):
            return None
        roles = {f"map {index}": item for index, item in enumerate(nodes)}
        return Match({"layer": node, **roles}, {"behind": behind})

    def subject(self, match: Match) -> ir.Node:
        """What a Decision is about: BatchNormalization if there is one, else the first map that is no bias."""
        behind: Behind = match.facts["behind"]
        if not behind.nodes:
            assert behind.stopped_by is not None
            return behind.stopped_by
        return subject_of(_maps(match["layer"], behind))

    def check(self, match: Match, context: Context) -> None:
        """Reasons 4 to 7."""
        layer = match["layer"]
        behind: Behind = match.facts["behind"]
        if not behind.nodes:
            assert behind.refusal is not None
            raise behind.refusal
        weight = layer.inputs[weight_input(layer)]
        assert weight is not None
        constant_array(weight, f"{layer.op_type}'s weight")
        single = len(behind.maps) == 1 and not is_op(behind.maps[0], "BatchNormalization")
        if len(weight.uses()) > 1 and (single or is_op(layer, "Gather")):
            raise Refusal(f"{layer.op_type}'s weight has another reader and would be stored twice", weight=weight.name)
        if not (np.isfinite(behind.scale).all() and np.isfinite(behind.shift).all()):
            raise Refusal("the map is not finite: it divides by zero or overflows")

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The layer with new weight and bias, and what moves elements behind it."""
        layer = match["layer"]
        behind: Behind = match.facts["behind"]
        output = output_of(layer)
        assert output is not None
        nodes = mapped(layer, output, behind.scale, behind.shift, context)
        try:
            for old in behind.stay:
                data = nodes[-1].outputs[0]
                known = behind.pad_values.get(old)
                nodes.append(again(old, data, context) if known is None else padded(old, data, known, context))
                nodes[-1].outputs[0].type, nodes[-1].outputs[0].shape = layer.outputs[0].type, old.outputs[0].shape
        except Refusal:
            forget(nodes)
            raise
        shapes = [item for node in behind.nodes if is_op(node, "Reshape") for item in shape_nodes(node, context)]
        norms = [node for node in behind.maps if is_op(node, "BatchNormalization")]
        return Replacement(
            nodes,
            {behind.nodes[-1].outputs[0]: nodes[-1].outputs[0]},
            [layer, *behind.nodes],
            self.subject(match),
            into=node_name(layer),
            tolerance=max([1e-9, *map(tolerance_of, norms)]),
            before=[*dict.fromkeys(shapes), layer, *behind.nodes],
        )


def _maps(layer: ir.Node, behind: Behind) -> list[ir.Node]:
    """The maps without the Add that is MatMul's bias; none where rules for single nodes do it all."""
    maps = behind.maps
    if is_op(layer, "MatMul") and maps and is_op(maps[0], "Add") and behind.nodes[0] is maps[0]:
        maps = maps[1:]
    weight = layer.inputs[weight_input(layer)]
    if is_op(layer, "Gather"):
        return maps if (behind.scale != 1.0).any() else []
    stack = is_op(layer, "MatMul") and weight is not None and rank_of(weight) != 2
    single = behind.nodes == behind.maps and all(is_op(node, "BatchNormalization") for node in maps)
    return [] if single and not stack else maps


def _left_alone(behind: Behind) -> bool:
    """See the module's end."""
    if not behind.single or behind.nodes == behind.maps:
        return False
    reader = sole_consumer(behind.nodes[-1].outputs[0])
    return is_op(reader, "MatMul") and reader is not None and not any(map(is_parameter, reader.inputs))
