"""Defines onnxnorm's PyTorch operators (``torch.ops.onnxnorm.*``).

They are composite: autograd, torch.compile and every device see the PyTorch code, and ``torch.export`` keeps the call
as one node, which the exporter turns into the ONNX op of the same norm.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_LIBRARY = torch.library.Library("onnxnorm", "DEF")


def composite(signature: str) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Defines ``onnxnorm::<signature>`` with the decorated function as its implementation on every device."""

    def define(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        name = _LIBRARY.define(signature)
        _LIBRARY.impl(name.split("::")[-1], function, "CompositeImplicitAutograd")
        return function

    return define
