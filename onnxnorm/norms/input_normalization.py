"""Normalization of inputs by statistics of a data set (``onnxnorm.nn.MinMaxScaling`` and its kind).

All but unit length are affine maps with constant coefficients, folded into the layer behind them; none is an operator.
Data are (samples, features); each function fits on ``data`` and maps ``x``.
"""

from __future__ import annotations

import numpy as np

from onnxnorm.spec.record import FloatArray


def min_max(data: FloatArray, x: FloatArray, low: float = 0.0, high: float = 1.0) -> FloatArray:
    """Each feature's range to [low, high]."""
    return np.asarray(low + (x - data.min(axis=0)) / _spread(data) * (high - low))


def mean_normalization(data: FloatArray, x: FloatArray) -> FloatArray:
    """The mean to 0, and the range to length 1: (x - mean) / (max - min)."""
    return np.asarray((x - data.mean(axis=0)) / _spread(data))


def centering(data: FloatArray, x: FloatArray) -> FloatArray:
    """The mean to 0: x - mean."""
    return np.asarray(x - data.mean(axis=0))


def standardization(data: FloatArray, x: FloatArray) -> FloatArray:
    """(x - mean) / standard deviation (biased)."""
    deviation: FloatArray = data.std(axis=0)
    return np.asarray((x - data.mean(axis=0)) / np.where(deviation == 0, 1.0, deviation))


def unit_length(x: FloatArray, p: float = 2.0, eps: float = 1e-12) -> FloatArray:
    """Each sample divided by max(its p-norm, eps)."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, ord=p, axis=-1, keepdims=True), eps))


def decorrelation(data: FloatArray, x: FloatArray) -> FloatArray:
    """The principal components of x, largest variance first; the sign of each is free."""
    return np.asarray((x - data.mean(axis=0)) @ _components(data)[1].T)


def pca_whitening(data: FloatArray, x: FloatArray) -> FloatArray:
    """The principal components of x, each with (unbiased) variance 1; the sign of each is free."""
    variances, components = _components(data)
    return np.asarray((x - data.mean(axis=0)) @ components.T / np.sqrt(variances))


def zca_whitening(data: FloatArray, x: FloatArray) -> FloatArray:
    """Whitened, and turned back to the features' own axes."""
    variances, components = _components(data)
    return np.asarray((x - data.mean(axis=0)) @ components.T / np.sqrt(variances) @ components)


def _spread(data: FloatArray) -> FloatArray:
    spread = data.max(axis=0) - data.min(axis=0)
    return np.where(spread == 0, 1.0, spread)


def _components(data: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(variances, components as rows), largest first."""
    values, vectors = np.linalg.eigh(np.cov(data, rowvar=False))
    return values[::-1], vectors[:, ::-1].T
