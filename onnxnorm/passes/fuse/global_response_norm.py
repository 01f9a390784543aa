"""fuse/global-response-norm: a global response norm in primitive operators becomes onnxnorm GlobalResponseNorm.

    x + w * x * g / (mean(g over channels) + epsilon) + b  =  GlobalResponseNorm(x, scale = w, bias = b)

where g is the Euclidean length of each channel of x over its positions (ReduceL2, Sqrt of ReduceSumSquare or ReduceSum
of squares, a mean of squares times their number), x is (N, C, *) or (N, *, C), factors and addends come in any order
and grouping, w and b may be missing, and x may be taken out: x * (1 + w * g / (mean(g over channels) + epsilon)). An
activation in front of it is taken in by fuse/input-activation, one behind it by fuse/activation, a shift behind it by
fuse/channel-affine.

Refused:
    1. A value in between has other readers, is a graph output, or stands in an outer graph.
    2. The length is not over all positions, or its mean not over the channels alone, with the axes kept.
    3. The length has an epsilon or a clamp of its own, or comes from a mean of a number of squares that is not known.
    4. w or b is no constant with one value per channel: it is computed at run time, a caller may override it, or it
       varies along another axis, too; or it differs from x in element type.
    5. The number of channels is not known, or 0.
    6. epsilon is negative, or not a number that the op's attribute, a float32, can say.
    7. The length is kept in a type that is narrower than x, or wider than the op computes in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.factors import addends_of, factors_of
from onnxnorm.passes.fuse.product import (
    attribute_of_epsilon,
    check_graph,
    check_private_nodes,
    check_types,
    check_weight_types,
    put,
)
from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES, Power, read_power, reduced_axes, without_casts
from onnxnorm.passes.fuse.sizes import channel_count, channel_vector, position_axes
from onnxnorm.passes.graph import attribute, constant_tensor, is_op, node_name, scalar_of, sole_consumer, tensor_of
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN


@dataclass(frozen=True)
class _Response:
    """``length / (mean(length) + epsilon)``.

    Attributes:
        power: the length.
        axes: the axes of its mean; None where these are not kept or not known.
        epsilon: what is added to the mean.
        nodes: what computes the mean and the sum.

    """

    power: Power
    axes: tuple[int, ...] | None
    epsilon: float
    nodes: tuple[ir.Node, ...]


class FuseGlobalResponseNorm(Rule):
    """See the module."""

    recognizes: ClassVar[bool] = True
    id: ClassVar[str] = "fuse/global-response-norm"
    operators: ClassVar[frozenset[str]] = frozenset({"Add", "Mul"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """The sum of a tensor and its product with its response, or the product with 1 and the response."""
        if node.outputs[0].dtype not in FLOAT_TYPES or context.in_function:
            return None
        if is_op(node, "Mul"):
            return _product_with_one(node, context.opset)
        if not is_op(node, "Add"):
            return None
        addends, adds = addends_of(node)
        for product in addends:
            root = product.producer()
            if root is None or not (is_op(root, "Mul") or is_op(root, "Div")):
                continue
            for x in addends:
                shifts = [item for item in addends if item is not product and item is not x]
                found = None if x is product else _product(root, x, context.opset)
                if found is None or len(shifts) != len(addends) - 2:
                    continue
                if any(value in shifts for value in node.inputs):
                    return None  # the other operand is the whole sum, and was asked; fuse/channel-affine shifts it
                response, weights, muls = found
                inner = [*response.power.nodes, *response.nodes, *muls, *(item for item in adds if item is not node)]
                nodes = {str(index): item for index, item in enumerate(dict.fromkeys([*inner, node]))}
                return Match(nodes, {"response": response, "x": x, "weights": weights, "shifts": shifts})
        return None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3, 5 and 7 of the module."""
        response: _Response = match.facts["response"]
        power, x = response.power, match.facts["x"]
        check_graph(match.nodes.values(), context)
        check_private_nodes(match.nodes.values(), self.subject(match), power.shared)
        if power.problem is not None:
            raise Refusal(power.problem)
        if power.epsilon or power.floor:
            raise Refusal("the length has an epsilon or a clamp of its own", epsilon=power.epsilon, floor=power.floor)
        channel_count(x, _layout(match))
        check_types(power, x, power.source.dtype)
        if not power.total and power.count is None:
            raise Refusal("the length comes from a mean of a number of squares that is not known", x=str(x.shape))
        check_weight_types([*match.facts["weights"], *match.facts["shifts"]], x)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op."""
        response: _Response = match.facts["response"]
        x, root, last = match.facts["x"], self.subject(match), _layout(match)
        scale, bias = np.ones(channel_count(x, last)), np.zeros(channel_count(x, last))
        for weight in match.facts["weights"]:
            scale = scale * channel_vector(weight, x, last, "weight")
        for shift in match.facts["shifts"]:
            bias = bias + channel_vector(shift, x, last, "bias")
        factor = response.power.factor  # of the length, which cancels but for epsilon
        factor = factor if response.power.total else factor / math.sqrt(response.power.count or 1)
        name = node_name(root)
        inputs = [
            x,
            context.constant(f"{name}_scale", scale, x.dtype),
            context.constant(f"{name}_bias", bias, x.dtype),
        ]
        attributes: dict[str, Any] = {
            "epsilon": attribute_of_epsilon(_exact(response.epsilon / factor, response.epsilon), x.dtype),
            "input_activation": "none",
            "activation": "none",
            "channels_last": int(last),
        }
        new = ir.node("GlobalResponseNorm", inputs, attributes, domain=DOMAIN, name=root.name)
        new.outputs[0].dtype, new.outputs[0].shape = x.dtype, x.shape
        return put([new], match.nodes.values(), response.power.shared, root)


def _exact(epsilon: float, written: float) -> float:
    """Epsilon without the rounding of a factor that is 1."""
    return written if math.isclose(epsilon, written, rel_tol=1e-12) else epsilon


def _layout(match: Match) -> bool:
    """Whether the channels come last; Refusal (reason 2) when neither layout fits."""
    response: _Response = match.facts["response"]
    x: ir.Value = match.facts["x"]
    rank, axes = len(x.shape or ()), response.power.axes
    for last in (False, True):
        if rank > 2 and axes == position_axes(rank, last) and response.axes == (rank - 1 if last else 1,):
            return last
    if response.axes is None:
        raise Refusal("the axes of the mean of the lengths are not kept, or not known")
    raise Refusal(
        "the length is not over the positions or its mean not over the channels", length=axes, mean=response.axes
    )


def _product_with_one(node: ir.Node, opset: int) -> Match | None:
    """``x * (1 + response * weights)``."""
    for x, sum_ in (tuple(node.inputs), tuple(reversed(node.inputs))):
        add = sum_.producer() if sum_ is not None else None
        if x is None or add is None or not is_op(add, "Add") or sole_consumer(add.outputs[0]) is None:
            continue
        for one, product in (tuple(add.inputs), tuple(reversed(add.inputs))):
            root = product.producer() if product is not None else None
            if root is None or scalar_of(one, len(x.shape or ())) != 1.0 or sole_consumer(root.outputs[0]) is None:
                continue
            found = _product(root, x, opset, False) if is_op(root, "Mul") or is_op(root, "Div") else None
            if found is not None:
                response, weights, muls = found
                inner = [*response.power.nodes, *response.nodes, *muls, add]
                nodes = {str(index): item for index, item in enumerate(dict.fromkeys([*inner, node]))}
                return Match(nodes, {"response": response, "x": x, "weights": weights, "shifts": []})
    return None


def _product(
    root: ir.Node, x: ir.Value, opset: int, with_x: bool = True
) -> tuple[_Response, list[ir.Value], list[ir.Node]] | None:
    """The response of x, the other factors and the nodes of ``x * response * weights``, or of that without x."""
    factors = factors_of(root)
    if (with_x and x not in factors.above) or len(factors.below) != 1:
        return None
    rest = list(factors.above)
    if with_x:
        rest.remove(x)
    for length in rest:
        response = _response(length, factors.below[0], x, opset)
        if response is not None:
            weights = [value for value in rest if value is not length]
            return (response, weights, factors.nodes) if len(weights) == len(rest) - 1 else None
    return None


def _response(length: ir.Value, divisor: ir.Value, x: ir.Value, opset: int) -> _Response | None:
    """The response where the divisor is the length's mean with an epsilon, and the length that of x."""
    add = divisor.producer()
    if add is None or not is_op(add, "Add") or constant_tensor(x) is not None:
        return None
    for mean, other in (tuple(add.inputs), tuple(reversed(add.inputs))):
        epsilon = scalar_of(other, len(length.shape or ()))
        reduced = _mean(mean, opset)
        if epsilon is None or reduced is None or reduced[0] is not length:
            continue
        power = read_power(length, opset, private=False)
        if power is None or power.exponent != 0.5 or power.dropped or power.weights:
            return None
        if power.source is not without_casts(x):
            return None
        return _Response(power, reduced[1], epsilon, (*reduced[2], add))
    return None


def _mean(value: ir.Value | None, opset: int) -> tuple[ir.Value, tuple[int, ...] | None, Sequence[ir.Node]] | None:
    """What a ReduceMean averages, its axes where they are kept, and the nodes; None where it is none."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    restored = node if is_op(node, "Unsqueeze") and node.inputs[0] is not None else None
    if restored is not None:
        inner = restored.inputs[0]
        node = inner.producer() if inner is not None else None
    if node is None or not is_op(node, "ReduceMean") or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    rank = len(node.inputs[0].shape)
    axes = reduced_axes(node, opset, rank)
    keeps = bool(attribute(node, "keepdims", 1))
    if restored is None:
        return node.inputs[0], axes if keeps else None, [node]
    given = attribute(restored, "axes", None) if opset < 13 else tensor_of(restored.inputs[1])
    back = None if given is None else tuple(sorted(int(axis) % rank for axis in np.asarray(given).reshape(-1)))
    return node.inputs[0], axes if not keeps and back == axes else None, [node, restored]
