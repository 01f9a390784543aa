"""What ONNX Runtime's own operators compute, in float64 NumPy, written from their documented schemas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def _standardized(x: Any, axes: tuple[int, ...], epsilon: float) -> Any:
    centred = x - x.mean(axis=axes, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon)


def group_norm(
    x: Any, gamma: Any, beta: Any, *, groups: int, activation: int = 0, channels_last: int = 1, epsilon: float = 1e-5
) -> Any:
    """Y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, then SiLU for activation 1."""
    x = np.moveaxis(x, -1, 1) if channels_last else x
    shape = x.shape
    y = _standardized(x.reshape(shape[0], groups, -1), (2,), epsilon).reshape(shape)
    y = y * gamma.reshape(-1, 1, 1) + beta.reshape(-1, 1, 1)
    y = y / (1 + np.exp(-y)) if activation else y
    return np.moveaxis(y, 1, -1) if channels_last else y


def skip_group_norm(x: Any, gamma: Any, beta: Any, skip: Any, bias: Any = None, **attributes: Any) -> tuple[Any, Any]:
    """S = x + skip + bias, with skip (N, H, W, C), (N, 1, 1, C) or (N, C); then group norm of it."""
    last = attributes.get("channels_last", 1)
    if skip.ndim == 2:
        skip = skip[:, None, None, :] if last else skip[:, :, None, None]
    bias = np.zeros(gamma.size) if bias is None else bias
    total = x + skip + (bias if last else bias[:, None, None])
    return group_norm(total, gamma, beta, **attributes), total


def skip_layer_norm(
    x: Any, skip: Any, gamma: Any, beta: Any = None, bias: Any = None, *, epsilon: float = 1e-12
) -> tuple[Any, ...]:
    """Output, mean, inv_std_var and the sum."""
    total = x + skip + (0 if bias is None else bias)
    mean = total.mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt(np.square(total - mean).mean(axis=-1, keepdims=True) + epsilon)
    return (total - mean) * inverse * gamma + (0 if beta is None else beta), mean, inverse, total


def skip_rms_norm(x: Any, skip: Any, gamma: Any, bias: Any = None, *, epsilon: float = 1e-12) -> tuple[Any, Any]:
    """Output and the sum."""
    total = x + skip + (0 if bias is None else bias)
    return total / np.sqrt(np.square(total).mean(axis=-1, keepdims=True) + epsilon) * gamma, total


def nhwc_conv(
    x: Any,
    w: Any,
    b: Any = None,
    *,
    pads: tuple[int, ...] = (0, 0, 0, 0),
    strides: tuple[int, int] = (1, 1),
    dilations: tuple[int, int] = (1, 1),
    group: int = 1,
) -> Any:
    """X (N, H, W, C), W (M, kH, kW, C / group): the sum over the kernel's positions, one of them after the other."""
    x = np.pad(x, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)))
    m, height, width, per_group = w.shape
    rows = (x.shape[1] - dilations[0] * (height - 1) - 1) // strides[0] + 1
    columns = (x.shape[2] - dilations[1] * (width - 1) - 1) // strides[1] + 1
    y = np.zeros((x.shape[0], rows, columns, m))
    for g in range(group):
        of_group = slice(g * m // group, (g + 1) * m // group)
        for i in range(height):
            for j in range(width):
                top, left = i * dilations[0], j * dilations[1]
                part = x[:, top : top + strides[0] * rows : strides[0], left : left + strides[1] * columns : strides[1]]
                part = part[:, :rows, :columns, g * per_group : (g + 1) * per_group]
                y[..., of_group] += part @ w[of_group, i, j].T
    return y if b is None else y + b


def gelu(x: Any) -> Any:
    """Exact."""
    return 0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)))


def bias_split_gelu(x: Any, bias: Any) -> Any:
    """The left half times the gelu of the right one."""
    left, right = np.split(x + bias, 2, axis=-1)
    return left * gelu(right)


def fast_gelu(x: Any, bias: Any = 0.0) -> Any:
    """0.5 x (1 + tanh(0.797885 x + 0.035677 x^3))."""
    x = x + bias
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(q: Any, k: Any, v: Any, heads: int) -> Any:
    """softmax(q k^T / sqrt(size of a head)) v, for each head; (N, S, D)."""
    split = lambda x: x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)  # noqa: E731
    q, k, v = split(q), split(k), split(v)
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    y = weights / weights.sum(axis=-1, keepdims=True) @ v
    return y.transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1)
