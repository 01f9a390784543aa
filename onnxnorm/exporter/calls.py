"""How calls into PyTorch are read while a training graph is traced.

``torch.export`` sees operators; what a call means in training is clear only one level above:

- ``F.batch_norm(training=True)`` and ``F.instance_norm`` write to their running statistics, which the operators'
  schemas do not say: they become onnxnorm's functional operators, and the result is copied into the buffers.
- ``F.dropout`` and its kind do nothing: a training graph is noise-free.
- ``tensor.data``, common in code from before ``detach()``, cannot be traced; it reads and writes as ``detach()`` does,
  and ``tensor.data = value`` is ``copy_``.
- ``torch._foreach_lerp_`` and its kind, which update averages of weights, are one call for each tensor.
- ``float(tensor)`` and ``tensor.item()`` make Python numbers of the state, as in BatchNorm's cumulative average; where
  asked, they give the tensor itself.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import onnxnorm.nn  # noqa: F401  (defines torch.ops.onnxnorm)
from onnxnorm.errors import ExportError

#: Functions that return their input but for what they drop, and whether they do by default.
_DROPOUTS: dict[Any, bool] = {
    F.dropout: True,
    F.dropout1d: True,
    F.dropout2d: True,
    F.dropout3d: True,
    F.alpha_dropout: False,
    F.feature_alpha_dropout: False,
    torch.dropout: False,
    torch.dropout_: False,
    torch.alpha_dropout: False,
    torch.feature_dropout: False,
    torch.feature_alpha_dropout: False,
}
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
_FOREACH = "_foreach_"
_NUMBERS: set[Any] = {Tensor.item, Tensor.__float__}
_DIVISIONS: set[Any] = {Tensor.__truediv__, Tensor.__rtruediv__, Tensor.__rdiv__, Tensor.div, torch.div}

#: Functions that take tensors of one type only.
_SAME_TYPE: set[Any] = {torch.lerp, Tensor.lerp, Tensor.lerp_}


def _drops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call ``(input, p, training)`` would drop something."""
    share = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", _DROPOUTS[func]))
    return bool(training) and share > 0


def _attention_share(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """The share that ``F.scaled_dot_product_attention`` drops, its fifth argument."""
    return float(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))


class NoNoise(TorchFunctionMode):
    """Functional dropout is the identity.

    Attributes:
        dropped: names of the functions that would have dropped something.
        numbers: whether a Python number was made of a tensor.

    """

    def __init__(self) -> None:
        super().__init__()
        self.dropped: dict[str, None] = {}
        self.numbers = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.numbers = self.numbers or func in _NUMBERS
        if func in _DROPOUTS:
            if _drops(func, args, kwargs):
                self.dropped[func.__name__] = None
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention and _attention_share(args, kwargs) > 0:
            self.dropped[func.__name__] = None
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs = {name: value for name, value in kwargs.items() if name != "dropout_p"}
        return self.call(func, args, kwargs)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Every other function."""
        return func(*args, **kwargs)


class TrainingCalls(NoNoise):
    """See the module. ``floats``: ``item()`` gives the tensor."""

    def __init__(self, floats: bool) -> None:
        super().__init__()
        self._floats = floats

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Norms with state, ``.data`` and numbers of tensors."""
        if func in _NORMS:
            with torch._C.DisableTorchFunctionSubclass():
                bound = _NORMS[func](*args, **kwargs)
            if bound is not None:
                return bound
        if func == _DATA:
            return args[0].detach()
        if func == _SET_DATA:
            return _set_data(*args)
        if getattr(func, "__name__", "").startswith(_FOREACH):
            return _one_by_one(func.__name__.removeprefix(_FOREACH), args, kwargs)
        if self._floats:
            return _number(args[0].reshape(())) if func in _NUMBERS else _with_numbers(func, args, kwargs)
        return func(*args, **kwargs)


def _one_by_one(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
    """A method of the tensors in the first list, each with its own of the other lists; nothing for one in place."""
    rows = [
        [value[index] if isinstance(value, tuple | list) else value for value in args] for index in range(len(args[0]))
    ]
    results = [getattr(first, name)(*rest, **kwargs) for first, *rest in rows]
    return None if name.endswith("_") else results


def _set_data(target: Tensor, value: Tensor) -> None:
    """``target.data = value``."""
    if target.shape != value.shape:
        raise ExportError(
            f"the forward gives a tensor of shape {tuple(target.shape)} the data of another one of shape "
            f"{tuple(value.shape)}; a graph's state keeps its shape"
        )
    with torch.no_grad():
        target.copy_(value)


def _number(tensor: Tensor) -> Tensor:
    """Marks a tensor that stands for a Python number."""
    tensor._onnxnorm_number = True  # type: ignore[attr-defined]
    return tensor


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and getattr(value, "_onnxnorm_number", False)


def _with_numbers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call where tensors stand for Python numbers.

    A quotient of whole numbers has the 53 bits of Python's float, where tensors give a float32. Beside other tensors
    of rank 0 a number takes their type, where a float64 tensor would give its own to the result.
    """
    if _is_number(kwargs.get("alpha")):
        args, kwargs = (args[0], args[1] * kwargs["alpha"], *args[2:]), {**kwargs, "alpha": 1}
    if not any(map(_is_number, args)):
        return func(*args, **kwargs)
    if func in _DIVISIONS or any(isinstance(value, builtins.float) for value in args):
        args = tuple(value.double() if _is_number(value) and not value.is_floating_point() else value for value in args)
    others = [value for value in args if isinstance(value, Tensor) and not _is_number(value)]
    if others and (func in _SAME_TYPE or not any(value.dim() and value.is_floating_point() for value in others)):
        dtype = next((value.dtype for value in others if value.is_floating_point()), torch.get_default_dtype())
        args = tuple(value.to(dtype) if _is_number(value) and value.is_floating_point() else value for value in args)
    result = func(*args, **kwargs)
    return _number(result) if not others and isinstance(result, Tensor) else result


# --- norms with state ------------------------------------------------------------------------------------------------


def _momentum(momentum: Any, like: Tensor) -> Tensor:
    if isinstance(momentum, Tensor):
        return momentum.reshape(())
    return torch.tensor(0.0 if momentum is None else float(momentum), dtype=torch.float64, device=like.device)


def _with_state(
    operator: Callable[..., tuple[Tensor, Tensor, Tensor]],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: Any,
    eps: float,
) -> Tensor:
    """Runs the functional operator in the type of its parameters, and writes the next state to the buffers."""
    state = next((tensor for tensor in (running_mean, weight) if tensor is not None), input)
    x = input.to(state.dtype)
    channels = input.shape[1]
    mean = x.new_zeros(channels) if running_mean is None else running_mean
    var = x.new_ones(channels) if running_var is None else running_var
    y, next_mean, next_var = operator(x, weight, bias, mean, var, _momentum(momentum, x), eps)
    if running_mean is not None and running_var is not None:
        running_mean.copy_(next_mean)
        running_var.copy_(next_var)
    return y.to(input.dtype)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """``F.batch_norm``; None where it only applies the running statistics."""
    if not training:
        return None
    operator = torch.ops.onnxnorm.batch_norm_training
    return _with_state(operator, input, running_mean, running_var, weight, bias, momentum, eps)


def _raw_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: Any,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor | None:
    """``torch.batch_norm``."""
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """``F.instance_norm``; None where it has no state to move."""
    if not use_input_stats or running_mean is None:
        return None
    operator = torch.ops.onnxnorm.instance_norm_training
    return _with_state(operator, input, running_mean, running_var, weight, bias, momentum, eps)


def _raw_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: Any,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor | None:
    """``torch.instance_norm``."""
    return _instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


_NORMS: dict[Any, Callable[..., Tensor | None]] = {
    F.batch_norm: _batch_norm,
    torch.batch_norm: _raw_batch_norm,
    F.instance_norm: _instance_norm,
    torch.instance_norm: _raw_instance_norm,
}


# --- numbers of tensors ----------------------------------------------------------------------------------------------


class _Meta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, builtins.float)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, builtins.float)


class _TraceableFloat(metaclass=_Meta):
    """Stands for the name ``float`` in a module's code: of a tensor it makes a float64 tensor of rank 0."""

    fromhex = builtins.float.fromhex

    def __new__(cls, value: Any = 0.0) -> Any:
        return _number(value.reshape(()).double()) if isinstance(value, Tensor) else builtins.float(value)


@contextlib.contextmanager
def traceable_floats(module: torch.nn.Module, *, everywhere: bool) -> Iterator[None]:
    """Lets ``float(tensor)`` be traced in the code of PyTorch's norms or, ``everywhere``, of all classes in a module.

    Python's own ``float`` must return a number, which a traced tensor has not. In the files that define the classes the
    name ``float`` gets another meaning for the time of the trace.
    """
    classes = {kind for part in module.modules() for kind in type(part).__mro__} if everywhere else set()
    names = {"torch.nn.modules.batchnorm"} | {kind.__module__ for kind in classes if kind.__module__ != "builtins"}
    files = [sys.modules[name].__dict__ for name in sorted(names) if inspect.ismodule(sys.modules.get(name))]
    added = [space for space in files if "float" not in space]
    for space in added:
        space["float"] = _TraceableFloat
    try:
        yield
    finally:
        for space in added:
            space.pop("float", None)
