"""Defines onnxnorm's PyTorch operators (``torch.ops.onnxnorm.*``).

They are composite: autograd, torch.compile and every device see the PyTorch code, and ``torch.export`` keeps the call
as one node, which the exporter turns into the ONNX op of the same norm.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_LIBRARY = torch.library.Library("onnxnorm", "DEF")  # type: ignore[no-untyped-call]


def composite(signature: str) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Defines ``onnxnorm::<signature>`` with the decorated function as its implementation on every device."""

    def define(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        name: str = _LIBRARY.define(signature)  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name.rpartition("::")[2], function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
        return function

    return define
