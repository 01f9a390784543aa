"""Spectral normalization (Miyato et al. 2018, arXiv:1802.05957; ``torch.nn.utils.spectral_norm``).

A weight, seen as a matrix W (``dim`` first, the rest flattened), is divided by its largest singular value, which power
iteration estimates with two vectors that are kept as state:

    v = W^T u / max(||W^T u||, eps),   u = W v / max(||W v||, eps),   w = W / (u^T W v)

Evaluation uses u and v as they are, so that the weight is constant and folded; a training step iterates first.
``torch.nn.utils.spectral_norm`` computes v first, as the paper does, ``parametrizations.spectral_norm`` u.
"""

from __future__ import annotations

import math

import numpy as np

from onnxnorm.spec.record import FloatArray


def power_iteration(
    weight: FloatArray,
    u: FloatArray,
    v: FloatArray,
    dim: int = 0,
    steps: int = 1,
    eps: float = 1e-12,
    u_first: bool = False,
) -> tuple[FloatArray, FloatArray]:
    """(u, v) after ``steps`` iterations; u has the size of axis ``dim``, v that of all others."""
    matrix = as_matrix(weight, dim)
    for _ in range(steps):
        if u_first:
            u = _unit(matrix @ v, eps)
        v = _unit(matrix.T @ u, eps)
        if not u_first:
            u = _unit(matrix @ v, eps)
    return u, v


def reference(weight: FloatArray, u: FloatArray, v: FloatArray, dim: int = 0) -> FloatArray:
    """Float64 truth: the weight divided by u^T W v."""
    return np.asarray(weight / (u @ as_matrix(weight, dim) @ v))


def as_matrix(weight: FloatArray, dim: int = 0) -> FloatArray:
    """The weight as (size of ``dim``, all others)."""
    moved = np.moveaxis(weight, dim, 0)
    return moved.reshape(moved.shape[0], math.prod(moved.shape[1:]))


def _unit(vector: FloatArray, eps: float) -> FloatArray:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), eps))
