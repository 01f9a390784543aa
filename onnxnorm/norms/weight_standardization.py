"""Weight standardization (Qiao et al. 2019, arXiv:1903.10520; timm's ``StdConv2d``; scaled, Brock et al. 2021).

Each output channel of a convolution's weight is brought to mean 0 and variance 1 over all that feeds it:

    w[o] = (v[o] - mean(v[o])) / sqrt(var(v[o]) + epsilon)

with the biased variance. The scaled form of NF-ResNets (arXiv:2102.06171) multiplies by gain[o] * gamma / sqrt(fan_in).
It is constant in evaluation and folded into a plain weight, so it is no operator.
"""

from __future__ import annotations

import numpy as np

from onnxnorm.spec.record import FloatArray


def reference(v: FloatArray, epsilon: float = 1e-6, scale: FloatArray | float = 1.0) -> FloatArray:
    """Float64 truth: v (O, I, *), scale of one value or (O, 1, ...) -> the weight."""
    axes = tuple(range(1, v.ndim))
    centred = v - v.mean(axis=axes, keepdims=True)
    centred = centred - centred.mean(axis=axes, keepdims=True)  # what rounding of a large mean left
    with np.errstate(all="ignore"):
        return np.asarray(scale * centred / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon))
