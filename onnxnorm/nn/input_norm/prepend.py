"""A normalization of the inputs and a model as one module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Prepended(nn.Module):
    """model(norm(x), ...): the model takes raw inputs.

    Args:
        norm: applied to the first argument.
        model: gets the result, and all other arguments as they are.

    """

    def __init__(self, norm: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.model = model

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        return self.model(self.norm(x), *args, **kwargs)


def prepend(norm: nn.Module, model: nn.Module) -> Prepended:
    """One module of a (fitted) normalization and the model that was trained behind it; an export folds what it can."""
    return Prepended(norm, model)
