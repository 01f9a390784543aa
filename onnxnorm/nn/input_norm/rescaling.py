"""Rescaling by the range of the data: min-max to [0, 1] or [a, b], and mean normalization."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from onnxnorm.nn.input_norm.fitted import FittedNorm, some, squeezed
from onnxnorm.nn.input_norm.statistics import Data, Extremes, Moments, rows


def _range(extremes: Extremes) -> Tensor:
    """Largest less smallest; 1 for a constant feature, as in scikit-learn."""
    found = extremes.high - extremes.low
    return torch.where(found < 10 * torch.finfo(torch.float64).eps, torch.ones_like(found), found)


class MinMaxScaling(FittedNorm):
    """y = a + (x - min) / (max - min) * (b - a), scikit-learn's MinMaxScaler.

    A constant feature has the range 1 instead of 0, so that it becomes a.

    Args:
        feature_range: (a, b), a < b.
        axis, device, dtype: see FittedNorm.

    """

    statistics: ClassVar[tuple[str, ...]] = ("minimum", "range")

    def __init__(self, feature_range: tuple[float, float] = (0.0, 1.0), axis: int | None = -1, **options: Any) -> None:
        super().__init__(axis, **options)
        low, high = (float(edge) for edge in feature_range)
        if not low < high:
            raise ValueError(f"feature_range is {feature_range}; the first number must be the smaller one")
        self.feature_range = (low, high)

    def _statistics(self, data: Data) -> dict[str, Tensor]:
        extremes = Extremes()
        for values in rows(data, self.axis):
            extremes.add(values)
        some(extremes.count, "MinMaxScaling")
        return {"minimum": squeezed(extremes.low, self.axis), "range": squeezed(_range(extremes), self.axis)}

    def _apply_to(self, x: Tensor) -> Tensor:
        low, high = self.feature_range
        y = (x - self._along("minimum", x)) / self._along("range", x)
        y = y if high - low == 1.0 else y * (high - low)
        return y if low == 0.0 else y + low

    def _undo(self, y: Tensor) -> Tensor:
        low, high = self.feature_range
        return (y - low) / (high - low) * self._along("range", y) + self._along("minimum", y)

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        return f"{self.feature_range}, {super().extra_repr()}"


class MeanNormalization(FittedNorm):
    """y = (x - mean) / (max - min); a constant feature has the range 1 instead of 0.

    Args:
        axis, device, dtype: see FittedNorm.

    """

    statistics: ClassVar[tuple[str, ...]] = ("mean", "range")

    def _statistics(self, data: Data) -> dict[str, Tensor]:
        extremes, moments = Extremes(), Moments()
        for values in rows(data, self.axis):
            extremes.add(values)
            moments.add(values)
        some(moments.count, "MeanNormalization")
        return {"mean": squeezed(moments.mean, self.axis), "range": squeezed(_range(extremes), self.axis)}

    def _apply_to(self, x: Tensor) -> Tensor:
        return (x - self._along("mean", x)) / self._along("range", x)

    def _undo(self, y: Tensor) -> Tensor:
        return y * self._along("range", y) + self._along("mean", y)
