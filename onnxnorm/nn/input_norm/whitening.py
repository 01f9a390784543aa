"""Decorrelation and whitening by the eigenvectors of the covariance (with divisor n - 1, as in scikit-learn's PCA).

With covariance = U diag(L) U^T, eigenvalues falling, and m the mean:
    PCADecorrelation    y = (x - m) U
    PCAWhitening        y = (x - m) U diag(1 / sqrt(L + epsilon))
    ZCAWhitening        y = (x - m) U diag(1 / sqrt(L + epsilon)) U^T        (Bell & Sejnowski 1997)

The sign of each eigenvector makes its largest element positive. Directions without variance cannot be whitened: with
epsilon 0 they are an error (fewer samples than features, or features that depend on each other).
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxnorm.nn.input_norm.fitted import FittedNorm
from onnxnorm.nn.input_norm.statistics import Data, Moments, rows

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class _MatrixNorm(FittedNorm):
    """y = (x - mean) matrix^T along the axis of the features."""

    statistics: ClassVar[tuple[str, ...]] = ("mean", "matrix", "inverse_matrix")

    def __init__(
        self,
        axis: int = -1,
        *,
        n_components: int | None = None,
        epsilon: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(axis, device=device, dtype=dtype)
        if n_components is not None and n_components < 1:
            raise ValueError(f"n_components is {n_components!r}; it must be 1 or more")
        if not epsilon >= 0.0:
            raise ValueError(f"epsilon is {epsilon!r}; it must be 0 or more")
        self.n_components = n_components
        self.epsilon = epsilon

    @abc.abstractmethod
    def _matrices(self, values: Tensor, vectors: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        """(matrix, its inverse) of eigenvalues (k,) and eigenvectors (features, k)."""

    def _statistics(self, data: Data) -> dict[str, Tensor]:
        name = type(self).__name__
        moments = Moments(cross=True)
        for batch in rows(data, self.axis):
            moments.add(batch)
        if moments.count < 2:
            raise ValueError(f"{name} needs two samples or more, got {moments.count}")
        features = moments.mean.numel()
        if self.n_components is not None and self.n_components > features:
            raise ValueError(f"n_components is {self.n_components}; the data have {features} features")
        values, vectors = torch.linalg.eigh(moments.variance(1))
        values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        vectors = vectors * torch.where(largest < 0, -1.0, 1.0)
        kept = slice(self.n_components)
        matrix, inverse = self._matrices(values[kept], vectors[:, kept], moments)
        return {"mean": moments.mean, "matrix": matrix, "inverse_matrix": inverse}

    def _deviations(self, values: Tensor, moments: Moments) -> Tensor:
        """sqrt(L + epsilon); ValueError where a direction has no variance to divide by."""
        features = moments.mean.numel()
        smallest = values.max() * max(features, moments.count) * torch.finfo(values.dtype).eps
        rank = int((values > smallest).sum())
        if not self.epsilon and rank < values.numel():
            fewer = f", or n_components of {rank} or less" if "n_components" in self._arguments and rank else ""
            raise ValueError(
                f"{type(self).__name__}: {moments.count} samples of {features} features vary in {rank} directions "
                f"only; give an epsilon{fewer}"
            )
        return (values + self.epsilon).sqrt()

    _arguments: ClassVar[tuple[str, ...]] = ("n_components", "epsilon")

    def _apply_to(self, x: Tensor) -> Tensor:
        return _along_axis(x - self._along("mean", x), self.get_buffer("matrix").to(x.dtype), self.axis)

    def _undo(self, y: Tensor) -> Tensor:
        x = _along_axis(y, self.get_buffer("inverse_matrix").to(y.dtype), self.axis)
        return x + self._along("mean", x)

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        given = ", ".join(f"{name}={getattr(self, name)}" for name in self._arguments)
        return f"{super().extra_repr()}{', ' if given else ''}{given}"


def _along_axis(x: Tensor, matrix: Tensor, axis: int | None) -> Tensor:
    """The matrix (k, features) times each vector along the axis.

    Channels of (N, C, *) in a type for which ONNX Runtime has convolutions: a convolution with kernel 1, which an
    export merges with the first layer. (It has none for float64.)
    """
    assert axis is not None
    if axis % x.dim() == x.dim() - 1:
        return F.linear(x, matrix)
    if axis % x.dim() == 1 and x.dim() in _CONVOLUTIONS and x.dtype in (torch.float32, torch.float16):
        return _CONVOLUTIONS[x.dim()](x, matrix.view(*matrix.shape, *(1,) * (x.dim() - 2)))
    return F.linear(x.movedim(axis, -1), matrix).movedim(-1, axis)


class PCADecorrelation(_MatrixNorm):
    """The principal components, largest variance first: scikit-learn's PCA.

    Args:
        axis: see FittedNorm.
        n_components: how many components are kept; None is all.
        device, dtype: see FittedNorm.

    """

    _arguments: ClassVar[tuple[str, ...]] = ("n_components",)

    def __init__(self, axis: int = -1, *, n_components: int | None = None, **options: Any) -> None:
        super().__init__(axis, n_components=n_components, **options)

    def _matrices(self, values: Tensor, vectors: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        return vectors.T, vectors


class PCAWhitening(_MatrixNorm):
    """The principal components, each scaled to variance 1: scikit-learn's PCA(whiten=True).

    Args:
        axis: see FittedNorm.
        n_components: how many components are kept; None is all.
        epsilon: added to each variance.
        device, dtype: see FittedNorm.

    """

    def _matrices(self, values: Tensor, vectors: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        deviations = self._deviations(values, moments)
        return vectors.T / deviations[:, None], vectors * deviations


class ZCAWhitening(_MatrixNorm):
    """Whitening that stays as near to the data as can be: the components turned back.

    Args:
        axis: see FittedNorm.
        epsilon: added to each variance.
        device, dtype: see FittedNorm.

    """

    _arguments: ClassVar[tuple[str, ...]] = ("epsilon",)

    def __init__(self, axis: int = -1, *, epsilon: float = 0.0, **options: Any) -> None:
        super().__init__(axis, epsilon=epsilon, **options)

    def _matrices(self, values: Tensor, vectors: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        deviations = self._deviations(values, moments)
        return (vectors / deviations) @ vectors.T, (vectors * deviations) @ vectors.T
