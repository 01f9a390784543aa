"""The user's inputs: as arguments of the module's forward, and as feeds of the ONNX file."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.utils import _pytree as pytree

from onnxnorm.errors import UsageError
from onnxnorm.parity.source import GraphInput, Source
from onnxnorm.parity.trees import Leaf, leaves
from onnxnorm.runtime.arrays import Array, from_torch, to_torch


@dataclass(frozen=True)
class Sample:
    """One set of inputs in both forms; ``label`` is what the report calls it."""

    label: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    feeds: dict[str, Array]

    def shapes(self) -> dict[str, list[int]]:
        """Feed name -> shape."""
        return {name: list(array.shape) for name, array in self.feeds.items()}


def user_sample(module: torch.nn.Module, source: Source, inputs: Any) -> Sample:
    """A sample from what the user gave.

    Args:
        module: only its forward's parameter names are read.
        source: the ONNX file, with the signature that the feeds must fit.
        inputs: a tensor or array, a tuple (or list) of forward's positional arguments, or a dict by the names of
            forward's parameters or of the file's inputs. Arguments may be nested. Arrays count as tensors.

    Raises:
        UsageError: the arguments do not fit forward, or number, types or shapes do not fit the file.

    """
    args, kwargs = to_arguments(module, source, inputs)
    return Sample("given", args, kwargs, to_feeds(source, argument_leaves(module, args, kwargs)))


def to_arguments(module: torch.nn.Module, source: Source, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward's args and kwargs, arrays turned to tensors; UsageError when they do not fit forward."""
    inputs = pytree.tree_map(_tensor, inputs)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, torch.Tensor):
        args = (inputs,)
    elif type(inputs) in (tuple, list):
        args = tuple(inputs)
    elif isinstance(inputs, Mapping):
        args, kwargs = _by_name(module, source, {str(name): value for name, value in inputs.items()})
    else:
        raise UsageError(
            f"inputs is a {type(inputs).__name__}; give a tensor, a tuple of forward's arguments, or a dict by name"
        )
    _bind(module, args, kwargs)
    return args, kwargs


def argument_leaves(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Leaf]:
    """Every leaf of the arguments in the order of forward's parameters, named ``parameter_path``."""
    bound = _bind(module, args, kwargs)
    if bound is None:
        named: list[tuple[str, Any]] = [("", args), *kwargs.items()]
    else:
        named = []
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                named.extend(value.items())
            else:
                named.append((name, value))
    return [leaf for name, value in named for leaf in leaves(value, name)]


def to_feeds(source: Source, given: Sequence[Leaf]) -> dict[str, Array]:
    """Feeds by the file's input names: by name where names fit, the rest in order.

    Raises:
        UsageError: number, types or shapes do not fit.

    """
    by_name = {_plain(leaf.name): leaf for leaf in given}
    matched = {item.name: by_name[_plain(item.name)] for item in source.inputs if _plain(item.name) in by_name}
    missing = [item for item in source.inputs if item.name not in matched]
    taken = {id(leaf) for leaf in matched.values()}
    left = [leaf for leaf in given if id(leaf) not in taken]
    tensors = [leaf for leaf in left if isinstance(leaf.value, torch.Tensor)]
    if missing:
        numbers = [leaf for leaf in left if isinstance(leaf.value, torch.Tensor | bool | int | float)]
        ordered = tensors if len(tensors) == len(missing) else numbers
        if len(ordered) != len(missing):
            raise UsageError(_count_message(source, given, missing))
        matched.update(zip((item.name for item in missing), ordered, strict=True))
    feeds = {item.name: _array(matched[item.name].value, item, source) for item in source.inputs}
    check_shapes(source, feeds)
    return feeds


def check_shapes(source: Source, feeds: Mapping[str, Array]) -> None:
    """Raises UsageError unless every feed has the file's rank, its static sizes, and one size per symbol."""
    symbols: dict[str, tuple[int, str]] = {}
    for item in source.inputs:
        have = list(feeds[item.name].shape)
        if item.shape is None:
            continue
        start = f"input {item.name!r} has shape {have}; {source.label} needs {item.described()}"
        if len(have) != len(item.shape):
            raise UsageError(f"{start}, {len(item.shape)} axes and not {len(have)}")
        for axis, (size, wanted) in enumerate(zip(have, item.shape, strict=True)):
            if isinstance(wanted, int) and size != wanted:
                raise UsageError(f"{start}: axis {axis} is {size} and must be {wanted}")
            if isinstance(wanted, str):
                known, where = symbols.setdefault(wanted, (size, item.name))
                if known != size:
                    raise UsageError(f"{start}: axis {axis} ({wanted!r}) is {size}, but {known} in input {where!r}")


def _by_name(module: torch.nn.Module, source: Source, inputs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    parameters = _parameters(module)
    takes_any = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters)
    by_keyword = {
        item.name
        for item in parameters
        if item.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    if takes_any or set(inputs) <= by_keyword:
        return (), inputs
    names = [item.name for item in source.inputs]
    if set(inputs) == set(names):  # named as the file names them: in its order
        return tuple(inputs[name] for name in names), {}
    unknown = sorted(set(inputs) - by_keyword)
    raise UsageError(
        f"inputs names {unknown[0]!r}, which is no argument of {type(module).__name__}.forward "
        f"({', '.join(item.name for item in parameters)}); the inputs of {source.label} are {', '.join(names)}"
    )


def _bind(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments | None:
    """Arguments by forward's parameters; None when forward's signature cannot be read."""
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):
        return None
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        names = ", ".join(signature.parameters)
        raise UsageError(f"the inputs do not fit {type(module).__name__}.forward ({names}): {error}") from None


def _parameters(module: torch.nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _tensor(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray | np.generic):
        return to_torch(np.asarray(leaf))
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().to("cpu", copy=True)
    return leaf


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_")


def _array(value: Any, item: GraphInput, source: Source) -> Array:
    if not isinstance(value, torch.Tensor):
        return np.asarray(value, dtype=item.dtype)
    array = from_torch(value)
    if np.iscomplexobj(array) and not np.issubdtype(item.dtype, np.complexfloating):
        array = np.stack([array.real, array.imag], axis=-1)  # the exporter's form of complex numbers
    if array.dtype != item.dtype:
        raise UsageError(f"input {item.name!r} is {_name(array.dtype)}; {source.label} needs {_name(item.dtype)}")
    return array


def _name(dtype: np.dtype[Any]) -> str:
    return "bfloat16" if dtype == ml_dtypes.bfloat16 else dtype.name


def _count_message(source: Source, given: Sequence[Leaf], missing: Sequence[GraphInput]) -> str:
    have = [leaf.name or "input" for leaf in given if isinstance(leaf.value, torch.Tensor)]
    need = ", ".join(f"{item.name} {_name(item.dtype)}{item.described()}" for item in source.inputs)
    return (
        f"{len(have)} tensors were given ({', '.join(have) or 'none'}), but {source.label} has {len(source.inputs)} "
        f"inputs: {need}; nothing fits {', '.join(item.name for item in missing)}"
    )
