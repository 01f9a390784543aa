"""Operators that ONNX Runtime's CPU provider lacks in float64, from operators that it has.

Means and statistics run axis by axis, and instance norm centres twice, as onnxnorm's own bodies do. Erf is
2 Phi(sqrt(2) x) - 1, see ``onnxnorm.spec.erf``. Functions that have an exponential keep its argument below 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.graph import attribute, has_references
from onnxnorm.spec.body import BodyBuilder
from onnxnorm.spec.erf import normal_distribution


def composed(node: ir.Node, opset: int) -> tuple[list[ir.Node], ir.Value] | None:
    """(nodes, result) that compute what the node computes; None when this module does not know how."""
    make = _COMPOSITIONS.get(node.op_type)
    x = node.inputs[0] if node.inputs else None
    if make is None or x is None or has_references(node):
        return None
    builder = BodyBuilder(opset, [ir.DataType.DOUBLE], {})
    result = make(builder, x, node)
    return None if result is None else (builder.nodes, result)


def _number(node: ir.Node, name: str, default: float) -> float:
    """A float attribute as the decimal of 7 digits that was meant: ONNX stores it in float32."""
    return float(f"{float(attribute(node, name, default)):.6e}")


def _pool(op_type: str) -> Callable[[BodyBuilder, ir.Value, ir.Node], ir.Value | None]:
    """A reduction over all positions, which keeps the axes."""

    def make(b: BodyBuilder, x: ir.Value, node: ir.Node) -> ir.Value | None:
        if x.shape is None or len(x.shape) < 3:
            return None
        axes = range(len(x.shape) - 1, 1, -1)
        if op_type == "ReduceMean":
            return b.mean(x, axes)
        if b.opset >= 18:
            return b.op(op_type, x, b.ints(*axes), keepdims=1)
        return b.op(op_type, x, axes=list(axes), keepdims=1)

    return make


def _instance_norm(b: BodyBuilder, x: ir.Value, node: ir.Node) -> ir.Value | None:
    scale, bias = node.inputs[1:3]
    if x.shape is None or len(x.shape) < 3 or scale is None or bias is None:
        return None
    axes = list(range(len(x.shape) - 1, 1, -1))
    spread = b.ints(-1, *[1] * len(axes))
    centred = b.centre(x, axes)
    variance = b.exact_mean(b.op("Mul", centred, centred), axes)
    epsilon = b.scalar(_number(node, "epsilon", 1e-5))
    y = b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, epsilon)))
    return b.op("Add", b.op("Mul", y, b.op("Reshape", scale, spread)), b.op("Reshape", bias, spread))


def _erf(b: BodyBuilder, x: ir.Value, node: ir.Node) -> ir.Value:
    phi = normal_distribution(b, b.op("Mul", x, b.scalar(math.sqrt(2.0))))
    return b.op("Sub", b.op("Mul", phi, b.scalar(2.0)), b.scalar(1.0))


def _gelu(b: BodyBuilder, x: ir.Value, node: ir.Node) -> ir.Value:
    if attribute(node, "approximate", "none") == "none":
        return b.op("Mul", x, normal_distribution(b, x))
    cube = b.op("Mul", b.op("Mul", x, b.op("Mul", x, x)), b.scalar(0.044715))
    inner = b.op("Mul", b.op("Add", x, cube), b.scalar(math.sqrt(2.0 / math.pi)))
    return b.op("Mul", b.op("Mul", x, b.scalar(0.5)), b.op("Add", b.op("Tanh", inner), b.scalar(1.0)))


def _hard_sigmoid(b: BodyBuilder, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    line = b.op("Add", b.op("Mul", x, b.scalar(alpha)), b.scalar(beta))
    return b.op("Min", b.op("Max", line, b.scalar(0.0)), b.scalar(1.0))


def _exponential_below(b: BodyBuilder, x: ir.Value, scale: float = 1.0) -> ir.Value:
    """exp(min(x, 0) / scale) - 1, by tanh where the difference would lose digits: 2 t / (1 - t), t = tanh(x / 2)."""
    below = b.op("Min", x, b.scalar(0.0))
    t = b.op("Tanh", b.op("Mul", below, b.scalar(0.5 / scale)))
    return b.op("Div", b.op("Mul", t, b.scalar(2.0)), b.op("Sub", b.scalar(1.0), t))


def _elu(b: BodyBuilder, x: ir.Value, alpha: float, gamma: float = 1.0, scale: float = 1.0) -> ir.Value:
    y = b.op("Add", b.op("Max", x, b.scalar(0.0)), b.op("Mul", _exponential_below(b, x, scale), b.scalar(alpha)))
    return y if gamma == 1.0 else b.op("Mul", y, b.scalar(gamma))


def _celu(b: BodyBuilder, x: ir.Value, node: ir.Node) -> ir.Value | None:
    alpha = _number(node, "alpha", 1.0)
    return _elu(b, x, alpha, scale=alpha) if alpha > 0 else None


def _softplus(b: BodyBuilder, x: ir.Value) -> ir.Value:
    tail = b.op("Exp", b.op("Neg", b.op("Abs", x)))
    return b.op("Add", b.op("Max", x, b.scalar(0.0)), b.op("Log", b.op("Add", tail, b.scalar(1.0))))


def _mean(b: BodyBuilder, x: ir.Value, node: ir.Node) -> ir.Value:
    given = [value for value in node.inputs if value is not None]
    return b.op("Div", b.op("Sum", *given), b.scalar(float(len(given))))


def _above(b: BodyBuilder, x: ir.Value, node: ir.Node) -> ir.Value:
    keep = b.op("Greater", x, b.scalar(_number(node, "alpha", 1.0)))
    return b.op("Where", keep, x, b.constant(np.array(0.0)))


_COMPOSITIONS: dict[str, Callable[[BodyBuilder, ir.Value, ir.Node], ir.Value | None]] = {
    "Celu": _celu,
    "Elu": lambda b, x, node: _elu(b, x, _number(node, "alpha", 1.0)),
    "Erf": _erf,
    "Gelu": _gelu,
    "GlobalAveragePool": _pool("ReduceMean"),
    "GlobalMaxPool": _pool("ReduceMax"),
    "HardSigmoid": lambda b, x, node: _hard_sigmoid(b, x, _number(node, "alpha", 0.2), _number(node, "beta", 0.5)),
    "HardSwish": lambda b, x, node: b.op("Mul", x, _hard_sigmoid(b, x, 1.0 / 6.0, 0.5)),
    "InstanceNormalization": _instance_norm,
    "Mean": _mean,
    "Mish": lambda b, x, node: b.op("Mul", x, b.op("Tanh", _softplus(b, x))),
    "Selu": lambda b, x, node: _elu(
        b,
        x,
        float(attribute(node, "alpha", 1.6732632423543772848170429916717)),
        float(attribute(node, "gamma", 1.0507009873554804934193349852946)),
    ),
    "Softplus": lambda b, x, node: _softplus(b, x),
    "Softsign": lambda b, x, node: b.op("Div", x, b.op("Add", b.op("Abs", x), b.scalar(1.0))),
    "ThresholdedRelu": _above,
}
