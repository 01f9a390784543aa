"""Normalizations of constants in float64 NumPy, by operator name: how weights are standardized.

None where the form is not known: BatchNormalization with one scale per position, or before opset 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.passes.graph import attribute

Array: TypeAlias = npt.NDArray[Any]


def _epsilon(node: ir.Node, double: bool) -> float:
    """ONNX stores float32; a float64 model means the decimal that was written down."""
    epsilon = np.float32(attribute(node, "epsilon", 1e-5))
    return float(f"{epsilon:.6e}") if double else float(epsilon)


def _given(inputs: Sequence[Array | None], index: int) -> Array | None:
    return inputs[index] if len(inputs) > index else None


def _along_channels(vector: Array, rank: int) -> Array:
    return vector.reshape(-1, *(1,) * (rank - 2))


def _standardized(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centred = x - x.mean(axis=axes, keepdims=True)
    return np.asarray(centred / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon))


def _batch(node: ir.Node, inputs: Sequence[Array | None], opset: int, double: bool) -> Array | None:
    """In training form the statistics are the constant's own."""
    x, scale, bias, mean, var = inputs
    if x is None or scale is None or bias is None or mean is None or var is None:
        return None
    if opset < 7 or attribute(node, "spatial", 1) != 1:
        return None
    training = attribute(node, "training_mode", 0) or (opset < 14 and any(value.name for value in node.outputs[1:]))
    if training:
        axes = (0, *range(2, x.ndim))
        mean, var = x.mean(axis=axes), x.var(axis=axes)
    spread = np.sqrt(_along_channels(var, x.ndim) + _epsilon(node, double))
    centred = x - _along_channels(mean, x.ndim)
    return np.asarray(_along_channels(scale, x.ndim) * centred / spread + _along_channels(bias, x.ndim))


def _instance(node: ir.Node, inputs: Sequence[Array | None], opset: int, double: bool) -> Array | None:
    x, scale, bias = inputs
    if x is None or scale is None or bias is None:
        return None
    y = _standardized(x, tuple(range(2, x.ndim)), _epsilon(node, double))
    return np.asarray(y * _along_channels(scale, x.ndim) + _along_channels(bias, x.ndim))


def _group(node: ir.Node, inputs: Sequence[Array | None], opset: int, double: bool) -> Array | None:
    """Before opset 21 with one scale per group."""
    x, scale, bias = inputs
    if x is None or scale is None or bias is None:
        return None
    groups = attribute(node, "num_groups", 0)
    y = _standardized(x.reshape(x.shape[0], groups, -1), (2,), _epsilon(node, double)).reshape(x.shape)
    repeats = x.shape[1] // groups if opset < 21 else 1
    scale, bias = (_along_channels(part.repeat(repeats), x.ndim) for part in (scale, bias))
    return np.asarray(y * scale + bias)


def _layer(node: ir.Node, inputs: Sequence[Array | None], opset: int, double: bool) -> Array | None:
    x, scale, bias = inputs[0], _given(inputs, 1), _given(inputs, 2)
    if x is None or scale is None:
        return None
    axes = tuple(range(attribute(node, "axis", -1) % x.ndim, x.ndim))
    y = _standardized(x, axes, _epsilon(node, double)) * scale
    return np.asarray(y if bias is None else y + bias)


def _root_mean_square(node: ir.Node, inputs: Sequence[Array | None], opset: int, double: bool) -> Array | None:
    x, scale = inputs
    if x is None or scale is None:
        return None
    axes = tuple(range(attribute(node, "axis", -1) % x.ndim, x.ndim))
    return np.asarray(x / np.sqrt(np.square(x).mean(axis=axes, keepdims=True) + _epsilon(node, double)) * scale)


def _unit_length(node: ir.Node, inputs: Sequence[Array | None], opset: int, double: bool) -> Array | None:
    x = inputs[0]
    if x is None:
        return None
    axis, p = attribute(node, "axis", -1), attribute(node, "p", 2)
    length = np.abs(x).sum(axis=axis, keepdims=True) if p == 1 else np.sqrt(np.square(x).sum(axis=axis, keepdims=True))
    return np.asarray(x / length)


#: operator -> f(node, inputs, opset, whether the model computes in float64).
OPERATORS: dict[str, Callable[[ir.Node, Sequence[Array | None], int, bool], Array | None]] = {
    "BatchNormalization": _batch,
    "GroupNormalization": _group,
    "InstanceNormalization": _instance,
    "LayerNormalization": _layer,
    "LpNormalization": _unit_length,
    "RMSNormalization": _root_mean_square,
}
