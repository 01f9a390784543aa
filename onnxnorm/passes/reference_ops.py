"""Operators that the ONNX reference evaluator gets wrong, for running graphs in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv_transpose import ConvTranspose as _ConvTranspose

from onnxnorm.passes.contrib_reference import CONTRIB_OPS
from onnxnorm.spec.record import activate


class ConvTranspose(_ConvTranspose):
    """ConvTranspose with groups: the evaluator's own cuts the weight along the wrong axis, so each group runs alone."""

    op_domain = ""

    def _run(  # type: ignore[override]
        self, x: Any, w: Any, b: Any = None, *, group: int | None = None, **attributes: Any
    ) -> tuple[Any]:
        groups = group or 1
        per_group = w.shape[1]
        parts = []
        for index, (x_part, w_part) in enumerate(
            zip(np.split(x, groups, axis=1), np.split(w, groups, axis=0), strict=True)
        ):
            bias = None if b is None else b[index * per_group : (index + 1) * per_group]
            result = super()._run(x_part, w_part, bias, group=1, **attributes)  # type: ignore[no-untyped-call]
            parts.append(result[0])
        return (np.concatenate(parts, axis=1),)


class Gelu(OpRun):
    """The exact form in float64: the evaluator's own takes sqrt(2) in float32."""

    op_domain = ""

    def _run(self, x: Any, approximate: str | None = None) -> tuple[Any]:
        if approximate == "tanh":
            return (0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),)
        return (activate(x, "gelu"),)


class BatchNormalization(OpRun):
    """Inference, and training where training_mode or (before opset 14) further outputs ask for it.

    The evaluator's own updates the statistics also in inference before opset 14.
    """

    op_domain = ""

    def _run(
        self,
        x: Any,
        scale: Any,
        bias: Any,
        mean: Any,
        var: Any,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        training_mode: int = 0,
        spatial: int = 1,
    ) -> tuple[Any, ...]:
        count = len(self.onnx_node.output)
        if not training_mode and count == 1:
            return (self._normalized(x, scale, bias, mean, var, epsilon),)
        if not spatial:
            raise NotImplementedError("training with one scale per position")
        axes = (0, *range(2, x.ndim))
        batch_mean, batch_var = x.mean(axis=axes), x.var(axis=axes)
        y = self._normalized(x, scale, bias, batch_mean, batch_var, epsilon)
        running = [momentum * old + (1 - momentum) * new for old, new in ((mean, batch_mean), (var, batch_var))]
        return (y, *running, batch_mean, batch_var)[:count]

    @staticmethod
    def _normalized(x: Any, scale: Any, bias: Any, mean: Any, var: Any, epsilon: float) -> Any:
        spread = [part.reshape(part.shape + (1,) * (x.ndim - 1 - part.ndim)) for part in (scale, bias, mean, var)]
        y = spread[0] * (x - spread[2]) / np.sqrt(spread[3] + epsilon) + spread[1]
        return y.astype(x.dtype)


class Erf(OpRun):
    """In float64: the evaluator's own is an approximation to seven digits."""

    op_domain = ""

    def _run(self, x: Any) -> tuple[Any]:
        return (np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype) if x.size else x,)


class LayerNormalization(OpRun):
    """In the type of its input: the evaluator's own takes no stash_type but float32."""

    op_domain = ""

    def _run(
        self, x: Any, scale: Any, bias: Any = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
    ) -> tuple[Any, ...]:
        over = tuple(range(axis % x.ndim, x.ndim))
        mean = x.mean(axis=over, keepdims=True)
        inverse = 1 / np.sqrt(np.square(x - mean).mean(axis=over, keepdims=True) + epsilon)
        y = (x - mean) * inverse * scale
        y = y if bias is None else y + bias
        return (y.astype(x.dtype), mean, inverse)[: len(self.onnx_node.output)]


class GroupNormalization(OpRun):
    """In the type of its input: the operator's expansion computes the statistics in float32."""

    op_domain = ""

    def _run(
        self, x: Any, scale: Any, bias: Any, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
    ) -> tuple[Any]:
        groups = x.reshape(x.shape[0], num_groups, -1)
        centred = groups - groups.mean(axis=2, keepdims=True)
        y = centred / np.sqrt(np.square(centred).mean(axis=2, keepdims=True) + epsilon)
        scale, bias = (part.repeat(x.shape[1] // part.size) for part in (scale, bias))  # one per group before opset 21
        spread = (-1, *(1,) * (x.ndim - 2))
        return ((y.reshape(x.shape) * scale.reshape(spread) + bias.reshape(spread)).astype(x.dtype),)


class RMSNormalization(OpRun):
    """In the type of its input: the evaluator's own takes no stash_type but float32."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> tuple[Any]:
        over = tuple(range(axis % x.ndim, x.ndim))
        return ((x / np.sqrt(np.square(x).mean(axis=over, keepdims=True) + epsilon) * scale).astype(x.dtype),)


class DequantizeLinear(OpRun):
    """In the scale's type, which is float64 here, at every opset: the evaluator has it from opset 19 on."""

    op_domain = ""

    def _run(
        self, x: Any, scale: Any, zero: Any = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0
    ) -> tuple[Any]:
        spread = _spread(x, axis, block_size)
        shifted = x.astype(np.float64) - (0.0 if zero is None else spread(zero.astype(np.float64)))
        return ((shifted * spread(scale.astype(np.float64))).astype(scale.dtype),)


class QuantizeLinear(OpRun):
    """Rounded as in float32, which is what decides ties, at every opset; to whole numbers of 8 or 16 bits only."""

    op_domain = ""

    def _run(
        self,
        x: Any,
        scale: Any,
        zero: Any = None,
        *,
        axis: int = 1,
        block_size: int = 0,
        output_dtype: int = 0,
        precision: int = 0,
        saturate: int = 1,
    ) -> tuple[Any]:
        spread = _spread(x, axis, block_size)
        dtype = np.dtype(np.uint8) if zero is None else zero.dtype
        if dtype.kind not in "iu" or (zero is None and output_dtype):
            raise NotImplementedError(f"QuantizeLinear to {dtype}")
        steps = np.rint(x.astype(np.float32) / spread(scale.astype(np.float32))).astype(np.float64)
        steps += 0.0 if zero is None else spread(zero.astype(np.float64))
        return (np.clip(steps, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype),)


def _spread(x: Any, axis: int, block_size: int) -> Callable[[Any], Any]:
    """How a scale or zero point broadcasts over x: one for all, for each index of an axis, or for blocks along it."""
    axis = axis % max(x.ndim, 1)

    def spread(part: Any) -> Any:
        if part.size == 1:
            return part.reshape(())
        if block_size:
            return np.repeat(part, block_size, axis)[(slice(None),) * axis + (slice(x.shape[axis]),)]
        return part.reshape([-1 if index == axis else 1 for index in range(x.ndim)])

    return spread


REFERENCE_OPS = [
    BatchNormalization,
    ConvTranspose,
    DequantizeLinear,
    Erf,
    Gelu,
    GroupNormalization,
    LayerNormalization,
    QuantizeLinear,
    RMSNormalization,
    *CONTRIB_OPS,
]
