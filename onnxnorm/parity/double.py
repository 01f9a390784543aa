"""Running PyTorch code as if it had been written in float64.

A module upcast to float64 still narrows inside: ``x.float()``, ``x.to(torch.float32)``, ``softmax(dtype=...)``, factory
functions, the default dtype, NumPy constants. Within ``float64_everywhere`` these become float64, while constants
that depend on the dtype (machine epsilon in ``rms_norm(eps=None)``, ``torch.finfo``) stay those of the deployed dtype.

Three layers do it, because each sees what the others do not:
- a TorchFunctionMode sees Python calls with their Python arguments: ``torch.tensor(0.1, dtype=torch.float32)`` must
  keep 0.1 to float64's last digit, and ``rms_norm(eps=None)`` is a plain number one level below;
- a TorchDispatchMode sees every operator, also out of TorchScript and C++, and widens what is still narrow;
- ``torch.finfo`` and the default dtype are globals, put in place for the run.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from onnxnorm.exporter.copying import WIDER

_aten = torch.ops.aten
_REAL_FINFO = torch.finfo
#: The default dtype and torch.finfo belong to the process: one run at a time.
_LOCK = threading.RLock()

_RMS_NORMS: set[Any] = {F.rms_norm, torch.rms_norm, _aten.rms_norm.default, _aten._fused_rms_norm.default}


class NotInFloat64(RuntimeError):
    """The code reads the bits of its numbers: float64 has others, so it cannot run widened."""


class _Switch:
    """Lets a part of the model that cannot run in float64 step out of it."""

    def __init__(self, deployed: torch.dtype) -> None:
        self.deployed = deployed
        self.on = True


def machine_epsilon(deployed: torch.dtype) -> float:
    """The epsilon of ``rms_norm(eps=None)``: of the type PyTorch computes in, float32 for half types."""
    return float(_REAL_FINFO(torch.float64 if deployed == torch.float64 else torch.float32).eps)


@contextlib.contextmanager
def float64_everywhere(deployed: torch.dtype) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Runs the block in float64; yields a function that makes a context which is back at PyTorch's own rules.

    Args:
        deployed: the floating dtype of the model as deployed, whose machine constants stay.

    """
    switch = _Switch(deployed)
    with _LOCK, _globals(switch), _Functions(switch), _Operators(switch):
        yield lambda: _stepped_out(switch)


@contextlib.contextmanager
def _globals(switch: _Switch) -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.finfo = _finfo_as_deployed(switch)  # type: ignore[misc]
    try:
        yield
    finally:
        torch.finfo = _REAL_FINFO  # type: ignore[misc]
        torch.set_default_dtype(default)


@contextlib.contextmanager
def _stepped_out(switch: _Switch) -> Iterator[None]:
    before = torch.get_default_dtype()
    switch.on = False
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        switch.on = True


def _finfo_as_deployed(switch: _Switch) -> Any:
    """A stand-in for ``torch.finfo`` that answers for the deployed dtype where the run's dtype, float64, is asked for.

    A class, since user code may well write ``isinstance(info, torch.finfo)``.
    """

    class Meta(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, _REAL_FINFO)

    class finfo(metaclass=Meta):
        def __new__(cls, type: torch.dtype | None = None) -> Any:
            asked = torch.get_default_dtype() if type is None else type
            return _REAL_FINFO(switch.deployed if switch.on and asked == torch.float64 else asked)

    return finfo


def _with_epsilon(args: tuple[Any, ...], kwargs: dict[str, Any], deployed: torch.dtype) -> tuple[Any, Any]:
    """``(input, normalized_shape, weight=None, eps=None)`` with eps filled in when it is None."""
    if len(args) > 3:
        return (*args[:3], machine_epsilon(deployed) if args[3] is None else args[3], *args[4:]), kwargs
    if kwargs.get("eps") is None:
        kwargs = {**kwargs, "eps": machine_epsilon(deployed)}
    return args, kwargs


class _Functions(TorchFunctionMode):
    """Python-level calls: the ``dtype=`` they name, and rms_norm's own epsilon."""

    def __init__(self, switch: _Switch) -> None:
        super().__init__()
        self.switch = switch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.switch.on:
            if func in _RMS_NORMS:
                args, kwargs = _with_epsilon(args, kwargs, self.switch.deployed)
            if kwargs.get("dtype") in WIDER:
                kwargs = {**kwargs, "dtype": WIDER[kwargs["dtype"]]}
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operator: narrow tensors and dtypes among its arguments, and what it returns, become float64."""

    supports_higher_order_operators = True

    def __init__(self, switch: _Switch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.switch = switch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.higher_order.cond:
            predicate, if_true, if_false, operands = args
            with self:
                return (if_true if bool(predicate) else if_false)(*operands)
        if not self.switch.on:
            return func(*args, **kwargs)
        if func is _aten.view.dtype:
            _refuse_bits(args[0].dtype, args[1])
        if func in _RMS_NORMS:
            args, kwargs = _with_epsilon(args, kwargs, self.switch.deployed)
        if func._schema.is_mutable:
            _widen_written(func._schema, args, kwargs)
        wide_args = tuple(_widen(each) for each in args)
        result = func(*wide_args, **{name: _widen(each) for name, each in kwargs.items()})
        return _widen(result)


def _refuse_bits(have: torch.dtype, want: torch.dtype) -> None:
    """``x.view(dtype)`` reads bits; between floating types of one width it is no change, anything else is lost."""
    if WIDER.get(have, have) == WIDER.get(want, want) or have.is_complex or want.is_complex:
        return
    if have.is_floating_point or want.is_floating_point:
        raise NotInFloat64(f"it reinterprets bits (view of {have} as {want})")


def _widen_written(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tensors that the operator writes to are widened in place: a widened copy would swallow the result."""
    for position, argument in enumerate(schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        for tensor in value if isinstance(value, list | tuple) else (value,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype in WIDER:
                tensor.data = tensor.detach().to(WIDER[tensor.dtype])


def _widen(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(WIDER[value.dtype]) if value.dtype in WIDER else value
    if isinstance(value, torch.dtype):
        return WIDER.get(value, value)
    if type(value) in (list, tuple):
        return type(value)(_widen(each) for each in value)
    return value
