"""What a data set is like, gathered batch by batch in float64: extremes, moments, covariance.

Batches are merged by the formulas of Chan, Golub and LeVeque (1979), whose terms are centred: no E[x^2] - E[x]^2, so
that data far from 0 lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Data = Tensor | Iterable[Any]


def batches(data: Data) -> Iterator[Tensor]:
    """The tensors of ``data``: itself, or the items of an iterable; of an (x, y) item the first.

    Raises:
        TypeError: an item is no tensor.

    """
    if isinstance(data, Tensor | np.ndarray):
        yield torch.as_tensor(data)
        return
    if isinstance(data, Mapping | str) or not isinstance(data, Iterable):
        raise TypeError(f"data is {type(data).__name__}; it must be a tensor or an iterable of tensors or (x, y) pairs")
    for item in data:
        first = item[0] if isinstance(item, tuple | list) and item else item
        if not isinstance(first, Tensor | np.ndarray):
            raise TypeError(f"an item of data is {type(item).__name__}; it must be a tensor or a tuple that starts so")
        yield torch.as_tensor(first)


def rows(data: Data, axis: int | None) -> Iterator[Tensor]:
    """Each batch in float64 as (values, features): features along ``axis``, one feature for None.

    Raises:
        ValueError: no such axis, another number of features than before, a value that is not finite, or no data.

    """
    features: int | None = None
    for batch in batches(data):
        if batch.is_complex():
            raise ValueError("data are complex numbers; only real ones can be normalized")
        if axis is None:
            flat = batch.reshape(-1, 1)
        else:
            if not -batch.dim() <= axis < batch.dim():
                raise ValueError(f"data of shape {list(batch.shape)} have no axis {axis}")
            flat = batch.movedim(axis, -1)
            flat = flat.reshape(-1, flat.shape[-1]) if flat.numel() else flat.new_zeros(0, flat.shape[-1])
        if features is not None and flat.shape[1] != features:
            raise ValueError(f"a batch of shape {list(batch.shape)} has {flat.shape[1]} features, earlier {features}")
        features = flat.shape[1]
        flat = flat.to(torch.float64)
        if not bool(torch.isfinite(flat).all()):
            raise ValueError("data hold values that are not finite; leave them out or fill them in before fit")
        if flat.shape[0]:
            yield flat


class Extremes:
    """Smallest and largest value of each feature."""

    def __init__(self) -> None:
        self.count = 0
        self.low = self.high = torch.empty(0)

    def add(self, values: Tensor) -> None:
        """Takes in (values, features)."""
        low, high = values.amin(0), values.amax(0)
        self.low = low if not self.count else torch.minimum(self.low, low)
        self.high = high if not self.count else torch.maximum(self.high, high)
        self.count += values.shape[0]


class Moments:
    """Mean and sum of squared deviations of each feature; with ``cross`` of each pair of features."""

    def __init__(self, cross: bool = False) -> None:
        self.cross = cross
        self.count = 0
        self.mean = self.squares = torch.empty(0)

    def add(self, values: Tensor) -> None:
        """Takes in (values, features)."""
        count = values.shape[0]
        mean = values.mean(0)
        centred = values - mean
        mean = mean + centred.mean(0)  # what rounding left of the mean
        centred = values - mean
        squares = centred.T @ centred if self.cross else centred.square().sum(0)
        if not self.count:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        step = mean - self.mean
        between = torch.outer(step, step) if self.cross else step.square()
        self.squares = self.squares + squares + between * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    def variance(self, correction: int = 0) -> Tensor:
        """Variances (features,), or with ``cross`` the covariance; the divisor is the count less ``correction``."""
        return self.squares / (self.count - correction)

    def constant(self) -> Tensor:
        """Which features are constant but for rounding, as scikit-learn judges it."""
        eps = torch.finfo(torch.float64).eps
        variance = self.variance()
        return variance <= self.count * eps * variance + (self.count * self.mean * eps).square()
