"""Centering, and standardization to mean 0 and variance 1 (the z-score)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from onnxnorm.nn.input_norm.fitted import FittedNorm, some, squeezed
from onnxnorm.nn.input_norm.statistics import Data, Moments, rows


class Centering(FittedNorm):
    """y = x - mean.

    Args:
        axis, device, dtype: see FittedNorm.

    """

    statistics: ClassVar[tuple[str, ...]] = ("mean",)

    def _statistics(self, data: Data) -> dict[str, Tensor]:
        moments = Moments()
        for values in rows(data, self.axis):
            moments.add(values)
        some(moments.count, "Centering")
        return {"mean": squeezed(moments.mean, self.axis)}

    def _apply_to(self, x: Tensor) -> Tensor:
        return x - self._along("mean", x)

    def _undo(self, y: Tensor) -> Tensor:
        return y + self._along("mean", y)


class Standardization(FittedNorm):
    """y = (x - mean) / std, scikit-learn's StandardScaler.

    A feature that is constant but for rounding has the standard deviation 1, as in scikit-learn.

    Args:
        axis: see FittedNorm.
        correction: what is taken off the number of values in the variance's divisor: 0 (biased, as scikit-learn) or 1.
        device, dtype: see FittedNorm.

    """

    statistics: ClassVar[tuple[str, ...]] = ("mean", "std")

    def __init__(self, axis: int | None = -1, *, correction: int = 0, **options: Any) -> None:
        super().__init__(axis, **options)
        if correction not in (0, 1):
            raise ValueError(f"correction is {correction!r}; it must be 0 or 1")
        self.correction = correction

    def _statistics(self, data: Data) -> dict[str, Tensor]:
        moments = Moments()
        for values in rows(data, self.axis):
            moments.add(values)
        some(moments.count, "Standardization")
        if moments.count <= self.correction:
            raise ValueError("Standardization(correction=1) needs two values of each feature or more")
        std = moments.variance(self.correction).sqrt()
        std = torch.where(moments.constant(), torch.ones_like(std), std)
        return {"mean": squeezed(moments.mean, self.axis), "std": squeezed(std, self.axis)}

    def _apply_to(self, x: Tensor) -> Tensor:
        return (x - self._along("mean", x)) / self._along("std", x)

    def _undo(self, y: Tensor) -> Tensor:
        return y * self._along("std", y) + self._along("mean", y)
