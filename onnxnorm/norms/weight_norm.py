"""Weight normalization (Salimans and Kingma 2016, arXiv:1602.07868; ``torch.nn.utils.weight_norm``).

A weight is a direction v and a length g: ``w = g * v / ||v||``, with the norm over all axes but ``dim`` (over all axes
for ``dim=None``). It is constant in evaluation and folded into a plain weight, so it is no operator.
"""

from __future__ import annotations

import numpy as np

from onnxnorm.spec.record import FloatArray


def reference(v: FloatArray, g: FloatArray, dim: int | None = 0) -> FloatArray:
    """Float64 truth: v of any shape, g broadcastable to it -> the weight."""
    axes = None if dim is None else tuple(axis for axis in range(v.ndim) if axis != dim % v.ndim)
    with np.errstate(all="ignore"):
        return np.asarray(g * v / np.sqrt(np.square(v).sum(axis=axes, keepdims=True)))
