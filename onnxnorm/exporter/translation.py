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
from onnxnorm.exporter.scalars import scalar_tensor
from onnxnorm.exporter.statistics import STATISTICS
from onnxnorm.norms import all_specs
from onnxnorm.spec.record import DOMAIN, VERSION
from onnxnorm.spec.translation import TorchOp, Translator


class _Recorder(Translator):
    """Records nodes through onnxscript's tracing evaluator, which the exporter puts in place."""

    def norm(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        return getattr(Opset(DOMAIN, VERSION), name)(*inputs, **attributes)

    def standard(self, op_type: str, *inputs: Any, **attributes: Any) -> Any:
        outputs = getattr(opset18, op_type)(*inputs, **attributes)
        return outputs[0] if isinstance(outputs, tuple | list) else outputs

    def batch_norm(self, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, eps: float) -> Any:
        """The parameters keep their own type: BatchNormalization takes float32 ones with half inputs, as PyTorch does.

        In float64 epsilon is added to the variance: the attribute holds it in float32 only.
        """
        scale = self.channel_parameter(weight, running_mean if weight is None else weight, 1.0, of=input)
        shift = self.channel_parameter(bias, running_mean if bias is None else bias, 0.0, of=input)
        if running_var.dtype == ir.DataType.DOUBLE:
            running_var, eps = opset18.Add(running_var, _full([], eps, running_var.dtype)), 0.0
        outputs = opset18.BatchNormalization(input, scale, shift, running_mean, running_var, epsilon=eps)
        return outputs[0] if isinstance(outputs, tuple | list) else outputs

    def parameter(self, value: Any, like: Any, shape: Sequence[int], fill: float) -> Any:
        if value is not None:
            return value if value.dtype == like.dtype else opset18.Cast(value, to=int(like.dtype))
        if all(isinstance(size, int) for size in shape):
            return _full(shape, fill, like.dtype)
        return opset18.Expand(_full([1] * len(shape), fill, like.dtype), opset18.Shape(like, start=-len(shape)))

    def channel_parameter(self, value: Any, like: Any, fill: float, of: Any = None) -> Any:
        if value is not None:
            return self.parameter(value, like, (), fill)
        x = like if of is None else of
        channels = x.shape[1]
        if isinstance(channels, int):
            return self.parameter(None, like, [channels], fill)
        return opset18.Expand(_full([1], fill, like.dtype), opset18.Shape(x, start=1, end=2))

    def scalar_parameter(self, value: Any, like: Any) -> Any:
        if isinstance(value, int | float):
            return _full([1], value, like.dtype)
        one: Any = opset18.Constant(value_ints=[1])
        return opset18.Reshape(self.parameter(value, like, (), 0.0), one)

    def machine_epsilon(self, like: Any) -> float:
        dtype = torch.float64 if like.dtype == ir.DataType.DOUBLE else torch.float32
        return float(torch.finfo(dtype).eps)


def _full(shape: Sequence[int], fill: float, dtype: ir.DataType) -> Any:
    """A constant. The exporter's recorder takes onnx_ir tensors, where onnxscript's signature says TensorProto."""
    value: Any = ir.tensor(np.full(tuple(shape), fill, dtype.numpy()), dtype=dtype)
    return opset18.Constant(value=value)


def translation_table(*, statistics: bool = False) -> dict[Callable[..., Any], Callable[..., Any]]:
    """PyTorch operator -> function that writes its onnxnorm node, for ``custom_translation_table``.

    Args:
        statistics: also means and variances that are right over any number of values, for training graphs.

    """
    table: dict[Callable[..., Any], Callable[..., Any]] = {}
    for spec in all_specs().values():
        for operator in spec.torch_ops:
            namespace, _, name = operator.name.partition("::")
            name, _, overload = name.partition(".")
            packet = getattr(getattr(torch.ops, namespace), name)
            table[getattr(packet, overload or "default")] = _bound(operator)
    table[torch.ops.aten.conv3d.default] = _conv3d
    table[torch.ops.aten._native_batch_norm_legit_no_training.default] = _batch_norm
    table[torch.ops.aten.scalar_tensor.default] = scalar_tensor
    if statistics:
        table.update(STATISTICS)
    return table


def _batch_norm(
    input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float, eps: float
) -> tuple[Any, Any, Any]:
    """Evaluation: (y, saved mean, saved 1/std), the latter two empty as in PyTorch."""
    y = _Recorder().batch_norm(input, weight, bias, running_mean, running_var, eps)
    return y, _full([0], 0.0, input.dtype), _full([0], 0.0, input.dtype)


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
