"""Defines onnxnorm's PyTorch operators (``torch.ops.onnxnorm.*``).

They are composite: autograd, torch.compile and every device see the PyTorch code, and ``torch.export`` keeps the call
as one node, which the exporter turns into the ONNX op of the same norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_LIBRARY = torch.library.Library("onnxnorm", "DEF")  # type: ignore[no-untyped-call]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def composite(signature: str) -> Callable[[_Function], _Function]:
    """Defines ``onnxnorm::<signature>`` with the decorated function as its implementation on every device."""

    def define(function: _Function) -> _Function:
        name: str = _LIBRARY.define(signature)  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name.rpartition("::")[2], function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
        return function

    return define


def computing_dtype(x: torch.Tensor) -> torch.dtype:
    """What a norm computes in: float32 for the half types, as torch.nn does, else the tensor's own dtype."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
