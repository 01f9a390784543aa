"""Copies of a module that share nothing with it, every tensor in them converted on the way.

``copy.deepcopy`` alone refuses tensors that are the result of a computation (weights of the old hook-based
weight_norm); ``module.double()`` leaves plain tensor attributes and complex64 as they are. Here every tensor that
deepcopy meets goes through one function, and tied tensors stay tied.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import TorchFunctionMode

from onnxnorm.errors import UsageError

Convert: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

_NO_VALUE = (UninitializedParameter, UninitializedBuffer)

#: What each narrower floating type becomes in the float64 run.
WIDER: dict[torch.dtype, torch.dtype] = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float8_e4m3fn: torch.float64,
    torch.float8_e4m3fnuz: torch.float64,
    torch.float8_e5m2: torch.float64,
    torch.float8_e5m2fnuz: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
#: What each floating type becomes in a float32 run.
SINGLE: dict[torch.dtype, torch.dtype] = {
    **{dtype: torch.float32 for dtype in WIDER if not dtype.is_complex},
    torch.float64: torch.float32,
    torch.complex32: torch.complex64,
    torch.complex128: torch.complex64,
}


def as_deployed(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, same dtype."""
    return tensor.detach().to("cpu", copy=True)


def as_double(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, floating types as float64, complex ones as complex128."""
    return tensor.detach().to("cpu", WIDER.get(tensor.dtype, tensor.dtype), copy=True)


def as_single(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, floating types as float32, complex ones as complex64."""
    return tensor.detach().to("cpu", SINGLE.get(tensor.dtype, tensor.dtype), copy=True)


class _ConvertingCopy(TorchFunctionMode):
    """Makes ``copy.deepcopy`` convert the plain tensors it meets (Parameters and buffers are in its memo already)."""

    def __init__(self, convert: Convert) -> None:
        super().__init__()
        self.convert = convert

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__ and type(args[0]) is torch.Tensor:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self.convert(tensor)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def as_is(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the tensor's own device, same dtype."""
    return tensor.detach().clone()


def copy_module(module: torch.nn.Module, convert: Convert) -> torch.nn.Module:
    """A deep copy, training flags included, whose parameters, buffers and plain tensors went through ``convert``.

    Tied parameters and buffers stay tied. The module itself is only read. Tensor subclasses other than Parameter
    (quantized weights, for one) are copied by their own rules, without conversion.

    Raises:
        UsageError: a lazy module that was never run, weights on the meta device, or a module that cannot be copied.

    """
    memo: dict[int, Any] = {}
    named = itertools.chain(
        module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    )
    for name, tensor in named:
        if isinstance(tensor, _NO_VALUE):
            raise UsageError(f"{name!r} of the module has no value yet; run the lazy module once before")
        if tensor.is_meta:
            raise UsageError(f"{name!r} of the module is on the meta device; load its weights before")
        if id(tensor) not in memo and type(tensor) in (torch.nn.Parameter, torch.Tensor):
            memo[id(tensor)] = _converted(tensor, convert)
    try:
        with torch.no_grad(), _ConvertingCopy(convert):
            duplicate: torch.nn.Module = copy.deepcopy(module, memo)
    except Exception as error:
        text = " ".join(str(error).split())
        raise UsageError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {text}); onnxnorm runs copies "
            "only, so that your module stays as it is: keep locks, files and generators out of the module's attributes"
        ) from error
    return duplicate


def _converted(tensor: torch.Tensor, convert: Convert) -> torch.Tensor:
    """A Parameter stays one, with the attributes that users hang on it; gradients are not wanted."""
    value = convert(tensor)
    if isinstance(tensor, torch.nn.Parameter):
        value = torch.nn.Parameter(value, requires_grad=False)
    value.__dict__.update(tensor.__dict__)
    return value


def deployed_dtype(module: torch.nn.Module, inputs: list[torch.Tensor]) -> torch.dtype:
    """The floating dtype of most parameter elements; without parameters that of buffers, inputs, or the default."""
    for tensors in (list(module.parameters()), list(module.buffers()), inputs):
        counts: dict[torch.dtype, int] = {}
        for tensor in tensors:
            if tensor.is_floating_point() and not isinstance(tensor, _NO_VALUE):
                counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
        if counts:
            return max(counts, key=lambda dtype: counts[dtype])
    return torch.get_default_dtype()
