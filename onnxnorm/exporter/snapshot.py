"""What a module holds at one moment, to see whether it changed and to put it back.

A copy of a module is not always a world of its own: a hook or a closure may hold the module that was copied, and write
to that one's buffers. So training export takes a snapshot of the caller's module first.
"""

from __future__ import annotations

from typing import Any

import torch


def same(one: Any, other: Any) -> bool:
    """Whether two plain values or tensors are equal; NaN equals NaN. On devices other than the CPU: nearly equal."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if one.device.type == "cpu" or not one.is_floating_point():
            return bool(torch.equal(*map(_comparable, (one, other))))
        return bool(torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True))
    return type(one) is type(other) and bool(one == other)


def _comparable(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(tensor, nan=1.25e-3) if tensor.is_floating_point() else tensor


class Snapshot:
    """Attributes of all submodules, and values of their tensors. Lazy and sparse tensors are not looked at."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._parts = [(part, dict(part.__dict__)) for part in module.modules()]
        containers = {
            id(value): value for _, held in self._parts for value in held.values() if type(value) in (list, set, dict)
        }
        self._containers = [(value, value.copy()) for value in containers.values()]
        tensors: dict[int, torch.Tensor] = {}
        for part, held in self._parts:
            tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers, held)
            for table in tables:
                tensors |= {id(value): value for value in table.values() if _plain(value)}
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]

    def touched(self) -> bool:
        """Whether a parameter, a buffer or a tensor attribute is another one, or has another value."""
        values_differ = any(not same(tensor.detach(), value) for tensor, value in self._tensors)
        return (
            values_differ
            or any(
                now is not before
                for part, held in self._parts
                for name, now in part.__dict__.items()
                if isinstance(now, torch.Tensor) and (before := held.get(name, now)) is not now
            )
            or self._reassigned()
        )

    def _reassigned(self) -> bool:
        tables = {id(part.__dict__[name]) for part, _ in self._parts for name in ("_buffers", "_parameters")}
        return any(
            value.get(name) is not tensor
            for value, copied in self._containers
            if id(value) in tables
            for name, tensor in copied.items()
        )

    def restore(self) -> None:
        """Puts everything back that differs."""
        for part, held in self._parts:
            part.__dict__.clear()
            part.__dict__.update(held)
        for value, copied in self._containers:
            value.clear()
            if isinstance(value, list):
                value.extend(copied)
            else:
                value.update(copied)
        with torch.no_grad():
            for tensor, value in self._tensors:
                if tensor.shape != value.shape or tensor.dtype != value.dtype:
                    tensor.data = value.clone()
                elif not same(tensor.detach(), value):
                    tensor.copy_(value)


def _plain(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and not torch.nn.parameter.is_lazy(value)
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_meta
    )
