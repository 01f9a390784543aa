"""fuse/evo-norm-s0: EvoNorm-S0 in primitive operators becomes onnxnorm EvoNormS0.

    x * sigmoid(v * x) * w / sqrt(var(x over group and positions) + epsilon)  =  EvoNormS0(x, v, scale = w, bias = 0)

for x of (N, C, *) or (N, *, C), factors in any order and grouping, v missing (1), the variance in every spelling that
``variance`` reads, over groups that a Reshape cuts out, casts to float32 around it; x * sigmoid(v * x) may be divided
in the shape of the groups, too. Scale and shift behind it are taken in by fuse/channel-affine. A variance with a scalar
factor, as the unbiased one over a known number of values, goes into scale and epsilon:

    (f * var + epsilon)^(-1/2) = f^(-1/2) * (var + epsilon / f)^(-1/2)

Refused:
    1. A value in between has other readers, is a graph output, or stands in an outer graph.
    2. The power is not the inverse square root, or epsilon is added outside the root, or the variance is clamped.
    3. The variance is not over groups of channels with all positions, or the Reshapes are not known to cut out groups
       and to give the shape of x again.
    4. The variance is multiplied by a number that is computed at run time: the unbiased one over any number of values.
    5. v or w is no constant with one value per channel: it is computed at run time, a caller may override it, or it
       varies along another axis, too; or it differs from x in element type.
    6. The number of channels is not known, or 0, or no multiple of that of groups.
    7. epsilon is negative, or not a number that the op's attribute, a float32, can say.
    8. The deviation is kept in a type that is narrower than x, or wider than the op computes in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.deviation import Deviation, read_deviation, read_group_deviation
from onnxnorm.passes.fuse.factors import factors_of
from onnxnorm.passes.fuse.product import (
    attribute_of_epsilon,
    check_graph,
    check_private_nodes,
    check_types,
    check_weight_types,
    put,
)
from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES
from onnxnorm.passes.fuse.sizes import FloatArray, channel_count, channel_vector, shape_nodes
from onnxnorm.passes.graph import is_op, node_name, sole_consumer
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN


@dataclass(frozen=True)
class _Gate:
    """``sigmoid(v * x)``.

    Attributes:
        v: the factor, None for 1.
        nodes: the Sigmoid and the Mul.

    """

    v: ir.Value | None
    nodes: tuple[ir.Node, ...]


class FuseEvoNormS0(Rule):
    """See the module."""

    recognizes: ClassVar[bool] = True
    id: ClassVar[str] = "fuse/evo-norm-s0"
    operators: ClassVar[frozenset[str]] = frozenset({"Mul", "Div", "Reshape"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """The product of a tensor, its gate and the inverse of its deviation."""
        if context.in_function or node.outputs[0].dtype not in FLOAT_TYPES:
            return None
        if is_op(node, "Reshape"):
            return _between_reshapes(node, context.opset)
        if not (is_op(node, "Mul") or is_op(node, "Div")):
            return None
        factors = factors_of(node)
        for gated in filter(_is_sigmoid, factors.above):
            for x in factors.above:
                gate = _gate(gated, x)
                if gate is None or x is gated:
                    continue
                found = _deviation(factors.above, factors.below, x, context.opset)
                if found is None:
                    continue
                deviation, side = found
                weights = [value for value in factors.above if value not in (x, gated, side)]
                if len(weights) != len(factors.above) - 2 - (side in factors.above):
                    continue
                if any(value in weights for value in node.inputs):
                    return None  # the other operand is the whole product, and was asked
                power = deviation.power if side in factors.above else deviation.power.power(-1.0)
                inner = [*gate.nodes, *power.nodes, *deviation.nodes, *factors.nodes[1:]]
                nodes = {str(index): item for index, item in enumerate(dict.fromkeys([*inner, node]))}
                facts = {"x": x, "gate": gate, "deviation": deviation, "power": power, "weights": weights}
                return Match(nodes, facts)
        return None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 4, 6 and 8 of the module."""
        deviation: Deviation = match.facts["deviation"]
        power, x = match.facts["power"], match.facts["x"]
        check_graph(match.nodes.values(), context)
        check_private_nodes(match.nodes.values(), self.subject(match), [*power.shared, *deviation.shared])
        problem = power.problem or deviation.problem
        if problem is not None:
            raise Refusal(problem)
        if power.exponent != -0.5:
            raise Refusal("its power is not the inverse square root", exponent=power.exponent)
        if power.floor:
            raise Refusal("the variance is clamped, which is no epsilon in the root", floor=power.floor)
        channels = channel_count(x, deviation.channels_last)
        if channels % (deviation.num_groups or channels):
            raise Refusal("the groups do not divide the channels", groups=deviation.num_groups, channels=channels)
        check_types(power, x, deviation.x.dtype)
        check_weight_types([*match.facts["weights"], *([match.facts["gate"].v] if match.facts["gate"].v else [])], x)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op."""
        deviation: Deviation = match.facts["deviation"]
        power, x, last = match.facts["power"], match.facts["x"], deviation.channels_last
        root = self.subject(match)
        channels = channel_count(x, last)
        scale: FloatArray = np.full(channels, power.factor, np.float64)
        for weight in match.facts["weights"]:
            scale = scale * channel_vector(weight, x, last, "weight")
        gate: _Gate = match.facts["gate"]
        v = np.ones(channels) if gate.v is None else channel_vector(gate.v, x, last, "v")
        name = node_name(root)
        inputs = [
            x,
            context.constant(f"{name}_scale", scale, x.dtype),
            context.constant(f"{name}_bias", np.zeros(channels), x.dtype),
            context.constant(f"{name}_v", v, x.dtype),
        ]
        attributes: dict[str, Any] = {
            "num_groups": deviation.num_groups or channels,
            "epsilon": attribute_of_epsilon(power.epsilon, x.dtype),
            "channels_last": int(last),
        }
        new = ir.node("EvoNormS0", inputs, attributes, domain=DOMAIN, name=root.name)
        new.outputs[0].dtype, new.outputs[0].shape = x.dtype, x.shape
        return put([new], match.nodes.values(), [*power.shared, *deviation.shared], root)


def _between_reshapes(node: ir.Node, opset: int) -> Match | None:
    """``Reshape(Reshape(x * gate) / deviation)``: the quotient is taken in the shape of the groups."""
    product = _product_behind(node.inputs[0])
    outer = None if product is None else factors_of(product)
    if outer is None or len(outer.above) + len(outer.below) != 2:
        return None
    for whole in outer.above:
        cut = whole.producer()
        top = _product_behind(cut.inputs[0]) if cut is not None and is_op(cut, "Reshape") else None
        if cut is None or top is None or sole_consumer(whole) is None:
            continue
        inner = factors_of(top)
        (side,) = [value for value in (*outer.above, *outer.below) if value is not whole] or [whole]
        deviation = None if side is whole or inner.below else read_group_deviation(side, whole, node, opset)
        gated = next(filter(_is_sigmoid, inner.above), None)
        gate = None if gated is None or deviation is None else _gate(gated, deviation.x)
        if gate is None or deviation is None or deviation.x not in inner.above:
            continue
        weights = [value for value in inner.above if value not in (deviation.x, gated)]
        power = deviation.power if side in outer.above else deviation.power.power(-1.0)
        steps = [*gate.nodes, *power.nodes, *deviation.nodes, *inner.nodes, cut, *outer.nodes, node]
        nodes = {str(index): item for index, item in enumerate(dict.fromkeys(steps))}
        deviation = replace(deviation, shared=(*deviation.shared, *shape_nodes(cut)))
        facts = {"x": deviation.x, "gate": gate, "deviation": deviation, "power": power, "weights": weights}
        return Match(nodes, facts) if len(weights) == len(inner.above) - 2 else None
    return None


def _product_behind(value: ir.Value | None) -> ir.Node | None:
    """The Mul or Div that makes the value for its one reader."""
    node = value.producer() if value is not None and sole_consumer(value) is not None else None
    return node if node is not None and (is_op(node, "Mul") or is_op(node, "Div")) else None


def _is_sigmoid(value: ir.Value) -> bool:
    return is_op(value.producer(), "Sigmoid")


def _gate(value: ir.Value, x: ir.Value) -> _Gate | None:
    """The gate of x that the value is."""
    sigmoid = value.producer()
    inside = sigmoid.inputs[0] if sigmoid is not None else None
    if sigmoid is None or inside is None:
        return None
    if inside is x:
        return _Gate(None, (sigmoid,))
    mul = inside.producer()
    if mul is None or not is_op(mul, "Mul"):
        return None
    for first, second in (tuple(mul.inputs), tuple(reversed(mul.inputs))):
        if first is x and second is not None:
            return _Gate(second, (sigmoid, mul))
    return None


def _deviation(
    above: list[ir.Value], below: list[ir.Value], x: ir.Value, opset: int
) -> tuple[Deviation, ir.Value] | None:
    """The one factor that is a power of the variance of x, with the value; all of those below must be it."""
    if len(below) > 1:
        return None
    for value in below or above:
        deviation = None if value is x else read_deviation(value, opset)
        if deviation is not None and deviation.x is x:
            return deviation, value
    return None
