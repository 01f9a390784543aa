"""The translation table for ``torch.onnx.export``: PyTorch operators that are onnxnorm ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18
from onnxscript.values import Opset

import onnxnorm.nn  # noqa: F401  (defines torch.ops.onnxnorm)
from onnxnorm.norms import all_specs
from onnxnorm.spec.record import DOMAIN, VERSION
from onnxnorm.spec.translation import TorchOp, Translator


class _Recorder(Translator):
    """Records nodes through onnxscript's tracing evaluator, which the exporter puts in place."""

    def norm(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        return getattr(Opset(DOMAIN, VERSION), name)(*inputs, **attributes)

    def parameter(self, value: Any, like: Any, shape: Sequence[int], fill: float) -> Any:
        if value is not None:
            return value if value.dtype == like.dtype else opset18.Cast(value, to=int(like.dtype))
        return _full(shape, fill, like.dtype)

    def channel_parameter(self, value: Any, like: Any, fill: float) -> Any:
        if value is not None:
            return self.parameter(value, like, (), fill)
        channels = like.shape[1]
        if isinstance(channels, int):
            return self.parameter(None, like, [channels], fill)
        return opset18.Expand(_full([1], fill, like.dtype), opset18.Shape(like, start=1, end=2))

    def machine_epsilon(self, like: Any) -> float:
        dtype = torch.float64 if like.dtype == ir.DataType.DOUBLE else torch.float32
        return float(torch.finfo(dtype).eps)


def _full(shape: Sequence[int], fill: float, dtype: ir.DataType) -> Any:
    """A constant. The exporter's recorder takes onnx_ir tensors, where onnxscript's signature says TensorProto."""
    value: Any = ir.tensor(np.full(tuple(shape), fill, dtype.numpy()), dtype=dtype)
    return opset18.Constant(value=value)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """PyTorch operator -> function that writes its onnxnorm node, for ``custom_translation_table``."""
    table: dict[Callable[..., Any], Callable[..., Any]] = {}
    for spec in all_specs().values():
        for operator in spec.torch_ops:
            namespace, name = operator.name.split("::")
            table[getattr(getattr(torch.ops, namespace), name).default] = _bound(operator)
    table[torch.ops.aten.conv3d.default] = _conv3d
    return table


def _conv3d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    dilation: Sequence[int] = (1, 1, 1),
    groups: int = 1,
) -> Any:
    """Onnxscript 0.7.2 gives a conv3d without bias one of shape [C, 2], which no runtime takes."""
    strides, pads, dilations = ([*value] * (3 // len(value)) for value in (stride, padding, dilation))
    return opset18.Conv(input, weight, bias, strides=strides, pads=[*pads, *pads], dilations=dilations, group=groups)


def _bound(operator: TorchOp) -> Callable[..., Any]:
    recorder = _Recorder()

    def translate(*args: Any, **kwargs: Any) -> Any:
        return operator.translate(recorder, *args, **kwargs)

    return translate
