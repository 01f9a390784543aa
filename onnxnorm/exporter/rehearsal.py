"""Forwards in training mode before the trace: PyTorch's own errors, and state that is not in buffers.

A graph can hold the state of a module where it is in buffers. Parameters that a forward changes count as state too.
Whatever else it keeps (a Python counter, a tensor that was never registered, a list or a dict, a global variable) shows
when it runs again with buffers, parameters and random numbers as before: equal outputs and buffers mean that none of
that matters. A run with other random numbers shows noise that reaches the outputs or the state.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from onnxnorm.errors import ExportError
from onnxnorm.exporter.calls import NoNoise
from onnxnorm.exporter.snapshot import same

#: Runs with the same tensors: one for what the run before left, one for what counts runs.
_AGAIN = 2


@dataclass(frozen=True)
class Rehearsal:
    """What the runs showed.

    Attributes:
        parameters: keys of the parameters that the forward changes.
        dropped: functions that would have dropped values at random.
        noisy: whether outputs or state depend on random numbers.
        numbers: whether the forward makes Python numbers of tensors.

    """

    parameters: frozenset[str]
    dropped: tuple[str, ...]
    noisy: bool
    numbers: bool


def rehearse(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Rehearsal:
    """Runs the module several times; it is left changed.

    Raises:
        ExportError: the forward fails, or depends on something outside of buffers and parameters that it changes.

    """
    tensors, attributes = _Tensors(module), _attributes(module)
    before = {name: tensor.detach().clone() for name, tensor in module.named_parameters(remove_duplicate=False)}
    outputs, calls = _run(module, args, kwargs)
    changed = [name for name, value in _attributes(module).items() if not _unchanged(attributes.get(name), value)]
    now = dict(module.named_parameters(remove_duplicate=False))
    parameters = frozenset(name for name, old in before.items() if name in now and not same(now[name].detach(), old))
    left = tensors.values()
    for _ in range(_AGAIN):
        tensors.put_back()
        if not _equal(_again(module, args, kwargs, 0), outputs) or not _equal(tensors.values(), left):
            raise ExportError(_outside(module, changed))
    tensors.put_back()
    noisy = not _equal(_again(module, args, kwargs, 1), outputs) or not _equal(tensors.values(), left)
    return Rehearsal(parameters, tuple(calls.dropped), noisy, calls.numbers)


def _outside(module: torch.nn.Module, changed: list[str]) -> str:
    named = ", ".join(map(repr, changed)) or "something outside of its buffers (a closure, a global or an object's)"
    return (
        f"the forward of {type(module).__name__} changes {named} and depends on it; a graph holds such a state only "
        "in buffers: make it a tensor and register it with register_buffer"
    )


class _Tensors:
    """The buffers and parameters of a module: their values now, and back to those at the start."""

    def __init__(self, module: torch.nn.Module) -> None:
        tables: list[tuple[torch.nn.Module, dict[str, Any]]] = [
            (part, table) for part in module.modules() for table in (part._buffers, part._parameters)
        ]
        self._places = [
            (part, table, name, tensor)
            for part, table in tables
            for name, tensor in table.items()
            if tensor is not None
        ]
        self._start = {id(tensor): tensor.detach().clone() for *_, tensor in self._places}

    def values(self) -> list[Any]:
        """Copies; what was assigned as a plain attribute counts, too."""
        found = [table.get(name, getattr(part, name, None)) for part, table, name, _ in self._places]
        return [value.detach().clone() if isinstance(value, torch.Tensor) else value for value in found]

    def put_back(self) -> None:
        """The first tensors, with their first values, in their places."""
        for part, table, name, tensor in self._places:
            part.__dict__.pop(name, None)
            table[name] = tensor
            tensor.data = self._start[id(tensor)].clone()


def _run(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int = 0
) -> tuple[list[Any], NoNoise]:
    """Copies of the outputs, and what was called. Inputs are cloned, since a forward may write to them."""
    clone = _cloned((args, dict(kwargs)))
    eager = torch.compiler.set_stance("force_eager")
    try:
        with torch.no_grad(), _random_numbers(seed), eager, NoNoise() as calls:
            outputs = torch.utils._pytree.tree_leaves(module(*clone[0], **clone[1]))
            return _cloned(outputs), calls
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        raise ExportError(
            f"{type(module).__name__} fails in training mode on the example inputs: {type(error).__name__}: {text}"
        ) from error


def _again(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int) -> list[Any] | None:
    """The outputs of another run; None where it fails."""
    try:
        return _run(module, args, kwargs, seed)[0]
    except ExportError:
        return None


@contextlib.contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """The same random numbers each time, of PyTorch, NumPy and Python; the caller's are left as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _cloned(tree: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, tree)


def _equal(one: list[Any] | None, other: list[Any]) -> bool:
    """Whether all tensors are equal; other outputs (numbers, strings, objects) are constants of a graph."""
    if one is None or len(one) != len(other):
        return False
    return all(same(*pair) for pair in zip(one, other, strict=True) if isinstance(pair[1], torch.Tensor))


_OWN = frozenset(torch.nn.Module().__dict__)


def _attributes(module: torch.nn.Module) -> dict[str, list[Any]]:
    """Plain attributes by path: the numbers, strings and tensors in each, those of lists and dicts included."""
    return {
        f"{name}.{attribute}" if name else attribute: _cloned(torch.utils._pytree.tree_leaves(value))
        for name, part in module.named_modules()
        for attribute, value in part.__dict__.items()
        if attribute not in _OWN
    }


def _unchanged(one: list[Any] | None, other: list[Any]) -> bool:
    if one is None or len(one) != len(other):
        return False
    watched = (torch.Tensor, bool, int, float, str, type(None))
    return all(same(*pair) for pair in zip(one, other, strict=True) if isinstance(pair[1], watched))
