"""Scaling of each vector to length 1."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from onnxnorm.nn.input_norm.statistics import Data


class UnitLength(nn.Module):
    """y = x / max(|x|_p, eps), as torch.nn.functional.normalize; scikit-learn's Normalizer with p 1, 2 or inf.

    A vector of zeros stays one. The half types compute in float32. There is nothing to fit, and no inverse: the
    length is lost.

    Args:
        p: order of the norm, greater than 0; inf is the largest absolute value.
        axis: the axis, or axes together, along which a vector runs.
        eps: the smallest length that is divided by.

    """

    def __init__(self, p: float = 2.0, axis: int | tuple[int, ...] = -1, eps: float = 1e-12) -> None:
        super().__init__()
        self.p = float(p)
        self.axis = axis
        self.eps = eps
        if not self.p > 0:
            raise ValueError(f"p is {p!r}; it must be greater than 0")
        if not eps >= 0:
            raise ValueError(f"eps is {eps!r}; it must be 0 or more")

    def fit(self, data: Data) -> Self:
        """Nothing to learn; for use in the place of the other normalizations."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape and type; whole numbers become PyTorch's default type."""
        result = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        x = x.to(torch.float32 if result in (torch.float16, torch.bfloat16) else result)
        if math.isinf(self.p):
            length = x.abs().amax(self.axis, keepdim=True)
        elif self.p == 1.0:
            length = x.abs().sum(self.axis, keepdim=True)
        else:
            length = torch.linalg.vector_norm(x, self.p, self.axis, keepdim=True)
        return (x / length.clamp_min(self.eps)).to(result)

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        return f"p={self.p:g}, axis={self.axis}, eps={self.eps:g}"
