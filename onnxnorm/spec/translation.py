"""How a PyTorch operator becomes an onnxnorm node: the small vocabulary in which a norm's file says it.

The class is abstract so that a norm's file needs neither torch nor onnxscript; the exporter supplies the one
implementation (``onnxnorm.exporter.translation``).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


class Translator(abc.ABC):
    """What a translation may do. Values are opaque: they come from PyTorch's operator and go into ``norm``."""

    @abc.abstractmethod
    def norm(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        """Adds the onnxnorm node ``name``; returns its output, or a tuple of them where it has several."""

    @abc.abstractmethod
    def standard(self, op_type: str, *inputs: Any, **attributes: Any) -> Any:
        """Adds a node of the standard domain, opset 18, and returns its first output."""

    @abc.abstractmethod
    def batch_norm(self, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, eps: float) -> Any:
        """BatchNormalization of evaluation, by running statistics."""

    @abc.abstractmethod
    def parameter(self, value: Any, like: Any, shape: Sequence[int], fill: float) -> Any:
        """``value`` in the element type of ``like``, or a constant of that shape filled with ``fill`` when None."""

    @abc.abstractmethod
    def channel_parameter(self, value: Any, like: Any, fill: float) -> Any:
        """As ``parameter``, with the shape [C] of axis 1 of ``like``."""

    @abc.abstractmethod
    def scalar_parameter(self, value: Any, like: Any) -> Any:
        """A Python number or a tensor of one element, as a tensor of shape [1] in the element type of ``like``."""

    @abc.abstractmethod
    def machine_epsilon(self, like: Any) -> float:
        """Machine epsilon of the type that PyTorch computes in for ``like``: float32's for half types."""


@dataclass(frozen=True)
class TorchOp:
    """A PyTorch operator (``namespace::name`` or ``namespace::name.overload``) and how its arguments are translated."""

    name: str
    translate: Callable[..., Any]
