"""What ONNX Runtime's own operators compute, for running graphs in float64 when a rewrite is verified."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import _conv_implementation

from onnxnorm.passes.permutation import to_first, to_last
from onnxnorm.spec.record import activate


class _Contrib(OpRun):
    op_domain = "com.microsoft"

    def _given(self, *results: Any) -> tuple[Any, ...]:
        """As many results as the node has outputs."""
        return results[: len(self.onnx_node.output)]


def _standardized(x: Any, axes: tuple[int, ...], epsilon: float) -> tuple[Any, Any, Any]:
    mean = x.mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(np.square(x - mean).mean(axis=axes, keepdims=True) + epsilon)
    return (x - mean) * inverse, mean, inverse


def _group_norm(x: Any, gamma: Any, beta: Any, attributes: dict[str, Any]) -> Any:
    last = attributes.get("channels_last", 1)
    flat = x.transpose(to_first(x.ndim)) if last else x
    groups = flat.reshape(flat.shape[0], attributes["groups"], -1)
    y = _standardized(groups, (2,), attributes.get("epsilon", 1e-5))[0].reshape(flat.shape)
    spread = (-1, *(1,) * (x.ndim - 2))
    y = activate(y * gamma.reshape(spread) + beta.reshape(spread), "silu" if attributes["activation"] else "none")
    return y.transpose(to_last(x.ndim)) if last else y


class GroupNorm(_Contrib):
    """Over groups of channels."""

    def _run(self, x: Any, gamma: Any, beta: Any, **attributes: Any) -> tuple[Any, ...]:
        return (_group_norm(x, gamma, beta, attributes),)


class SkipGroupNorm(_Contrib):
    """Of X + skip + bias."""

    def _run(self, x: Any, gamma: Any, beta: Any, skip: Any, bias: Any = None, **attributes: Any) -> tuple[Any, ...]:
        last = attributes.get("channels_last", 1)
        if skip.ndim == 2:
            skip = skip[:, None, None] if last else skip[:, :, None, None]
        total = x + skip
        if bias is not None:
            total = total + (bias if last else bias[:, None, None])
        return self._given(_group_norm(total, gamma, beta, attributes), total)


class SkipLayerNormalization(_Contrib):
    """Of input + skip + bias, over the last axis."""

    def _run(
        self, x: Any, skip: Any, gamma: Any, beta: Any = None, bias: Any = None, *, epsilon: float = 1e-12
    ) -> tuple[Any, ...]:
        total = x + skip if bias is None else x + skip + bias
        y, mean, inverse = _standardized(total, (-1,), epsilon)
        y = y * gamma if beta is None else y * gamma + beta
        return self._given(y, mean, inverse, total)


class SkipSimplifiedLayerNormalization(_Contrib):
    """Of input + skip + bias, over the last axis."""

    def _run(self, x: Any, skip: Any, gamma: Any, bias: Any = None, *, epsilon: float = 1e-12) -> tuple[Any, ...]:
        total = x + skip if bias is None else x + skip + bias
        inverse = 1 / np.sqrt(np.square(total).mean(axis=-1, keepdims=True) + epsilon)
        return self._given(total * inverse * gamma, np.zeros_like(inverse), inverse, total)


class SimplifiedLayerNormalization(OpRun):
    """ONNX Runtime's addition to ai.onnx."""

    op_domain = ""

    def _run(
        self, x: Any, scale: Any, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
    ) -> tuple[Any, ...]:
        over = tuple(range(axis % x.ndim, x.ndim))
        inverse = 1 / np.sqrt(np.square(x).mean(axis=over, keepdims=True) + epsilon)
        return (x * inverse * scale, inverse)[: len(self.onnx_node.output)]


class NhwcConv(_Contrib):
    """Channels last, the weight's too."""

    def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> tuple[Any, ...]:
        names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
        given = {name: attributes.get(name) for name in names}
        given["auto_pad"], given["group"] = given["auto_pad"] or "NOTSET", given["group"] or 1
        order = to_first(x.ndim)
        y = _conv_implementation(x.transpose(order), w.transpose(order), b, **given)  # type: ignore[no-untyped-call]
        return (y.transpose(to_last(x.ndim)),)


class BiasAdd(_Contrib):
    """X + bias + skip."""

    def _run(self, x: Any, bias: Any, skip: Any) -> tuple[Any, ...]:
        return (x + bias + skip,)


class BiasSplitGelu(_Contrib):
    """Left half times the gelu of the right one."""

    def _run(self, x: Any, bias: Any) -> tuple[Any, ...]:
        left, right = np.split(x + bias, 2, axis=-1)
        return (left * activate(right, "gelu"),)


class MultiHeadAttention(_Contrib):
    """Of query, key and value, or of packed ones, without a mask, a past or a bias."""

    def _run(self, query: Any, key: Any = None, value: Any = None, *rest: Any, **attributes: Any) -> tuple[Any, ...]:
        if any(item is not None for item in rest) or attributes.keys() - {"num_heads", "scale"}:
            raise NotImplementedError("attention with a mask, a past or a bias")
        heads = attributes["num_heads"]
        if query.ndim == 5:
            query, key, value = (part.reshape(*part.shape[:2], -1) for part in np.moveaxis(query, 3, 0))
        elif key.ndim == 5:
            key, value = (part.reshape(*part.shape[:2], -1) for part in np.moveaxis(key, 3, 0))
        q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in (query, key, value))
        scores = q @ k.transpose(0, 1, 3, 2) * (attributes.get("scale") or 1 / math.sqrt(q.shape[-1]))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y = weights / weights.sum(axis=-1, keepdims=True) @ v
        return (y.transpose(0, 2, 1, 3).reshape(*query.shape[:2], -1),)


class Gelu(_Contrib):
    """Exact."""

    def _run(self, x: Any) -> tuple[Any, ...]:
        return (activate(x, "gelu"),)


class BiasGelu(_Contrib):
    """Exact, of the sum."""

    def _run(self, x: Any, bias: Any) -> tuple[Any, ...]:
        return (activate(x + bias, "gelu"),)


class FastGelu(_Contrib):
    """The form with tanh."""

    def _run(self, x: Any, bias: Any = None) -> tuple[Any, ...]:
        x = x if bias is None else x + bias
        return (0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),)


class QuickGelu(_Contrib):
    """X * sigmoid(alpha * X)."""

    def _run(self, x: Any, *, alpha: float = 1.702) -> tuple[Any, ...]:
        return (x / (1.0 + np.exp(-alpha * x)),)


CONTRIB_OPS = [
    BiasAdd,
    BiasGelu,
    BiasSplitGelu,
    FastGelu,
    Gelu,
    GroupNorm,
    MultiHeadAttention,
    NhwcConv,
    QuickGelu,
    SimplifiedLayerNormalization,
    SkipGroupNorm,
    SkipLayerNormalization,
    SkipSimplifiedLayerNormalization,
]
