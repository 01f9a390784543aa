"""What the input normalizations share: they are fitted on data once, and then compute the same in train and in eval."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from onnxnorm.nn.input_norm.statistics import Data


class FittedNorm(nn.Module, abc.ABC):
    """Base of the modules that ``fit`` sets; before that, and before a state is loaded, ``forward`` is an error.

    The statistics are buffers, made in float64 and rounded once to the module's type. bfloat16 computes in float32.

    Args:
        axis: the axis of the features (-1 the last one; 1 the channels of images), each of which has statistics of its
            own over all other axes; None takes the whole tensor together.
        device, dtype: of the buffers.

    """

    statistics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, axis: int | None = -1, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.axis = axis
        for name in self.statistics:
            self.register_buffer(name, torch.empty(0, device=device, dtype=dtype))

    @torch.no_grad()
    def fit(self, data: Data) -> Self:
        """Takes the statistics of ``data``: a tensor, or an iterable of batches (tensors or (x, y) pairs), read once.

        Raises:
            TypeError: an item is no tensor.
            ValueError: there are no data, they do not fit together, or they allow no such normalization.

        """
        found = self._statistics(data)
        for name in self.statistics:
            old = self.get_buffer(name)
            value = found[name]
            new = value.to(device=old.device, dtype=old.dtype).clone()
            if not bool(torch.isfinite(new).all()):
                largest = float(value.abs().max())
                raise ValueError(f"{type(self).__name__}: {name} = {largest:.6g} does not fit into {old.dtype}")
            setattr(self, name, new)
        return self

    @property
    def fitted(self) -> bool:
        """Whether there are statistics, by ``fit`` or from a state."""
        return all(self.get_buffer(name).numel() for name in self.statistics)

    @abc.abstractmethod
    def _statistics(self, data: Data) -> dict[str, Tensor]:
        """The buffers by name, in float64."""

    @abc.abstractmethod
    def _apply_to(self, x: Tensor) -> Tensor:
        """The normalization of x in its own type, with the statistics from ``_along``."""

    @abc.abstractmethod
    def _undo(self, y: Tensor) -> Tensor:
        """The inverse of ``_apply_to``."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that has the axis -> the same shape, in x's type (the buffers' for whole numbers)."""
        return self._in_working_type(x, inverse=False)

    def inverse(self, y: Tensor) -> Tensor:
        """What ``forward`` would take to y."""
        return self._in_working_type(y, inverse=True)

    def _in_working_type(self, x: Tensor, *, inverse: bool) -> Tensor:
        self._check_fitted()
        own = self.get_buffer(self.statistics[0]).dtype
        result = x.dtype if x.is_floating_point() else own
        working = torch.promote_types(result, own)
        working = torch.float32 if working == torch.bfloat16 else working
        x = x.to(working)
        return (self._undo(x) if inverse else self._apply_to(x)).to(result)

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise RuntimeError(
                f"{type(self).__name__} has no statistics yet: call fit(data) or load a state_dict first"
            )

    def _along(self, name: str, x: Tensor) -> Tensor:
        """A buffer of one value per feature, shaped to broadcast over x, in x's type."""
        value = self.get_buffer(name).to(x.dtype)
        if self.axis is None:
            return value
        axis = self._axis_of(x, value.shape[0])
        return value if axis == x.dim() - 1 else value.view(-1, *(1,) * (x.dim() - 1 - axis))

    def _axis_of(self, x: Tensor, features: int) -> int:
        """The axis of the features, from 0; ValueError where x has no such axis or another number of features."""
        assert self.axis is not None
        if not -x.dim() <= self.axis < x.dim():
            raise ValueError(f"{type(self).__name__}(axis={self.axis}) got an input of shape {list(x.shape)}")
        axis = self.axis % x.dim()
        if x.shape[axis] != features:
            raise ValueError(f"{type(self).__name__} was fitted on {features} features, got {x.shape[axis]}")
        return axis

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A state of any size replaces what there is."""
        for name in self.statistics:
            given, own = state_dict.get(prefix + name), self.get_buffer(name)
            if isinstance(given, Tensor) and given.shape != own.shape:
                setattr(self, name, torch.empty(given.shape, device=own.device, dtype=own.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The axis, for print(module)."""
        return f"axis={self.axis}" if self.fitted else f"axis={self.axis}, not fitted"


def squeezed(value: Tensor, axis: int | None) -> Tensor:
    """A scalar where the statistics are those of the whole tensor."""
    return value.reshape(()) if axis is None else value


def some(count: int, name: str) -> None:
    """ValueError where there were no values at all."""
    if not count:
        raise ValueError(f"{name}: data hold no values")
