"""L2 normalization over the channels of (N, C, *), with a learned scale (Liu et al. 2015, ParseNet, arXiv:1506.04579;
SSD), as PyTorch modules and operator. ``UnitLength`` is the form without a scale, over any axes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from onnxnorm.nn.channel_norm import ChannelNorm
from onnxnorm.nn.operators import composite, computing_dtype
from onnxnorm.nn.training import affine


@composite("channel_l2_norm(Tensor input, Tensor? weight=None, float eps=1e-12) -> Tensor")
def channel_l2_norm(input: Tensor, weight: Tensor | None = None, eps: float = 1e-12) -> Tensor:
    """``onnxnorm::channel_l2_norm``: (N, C, *) over the Euclidean length of C; half types compute in float32.

    Args:
        input: (N, C) or (N, C, *).
        weight: (C,) or None.
        eps: the least that is divided by, as in ``torch.nn.functional.normalize``.

    """
    x = input.to(computing_dtype(input))
    length = torch.linalg.vector_norm(x, 2, 1, keepdim=True).clamp_min(eps)
    return affine(x / length, weight, None).to(input.dtype)


class _L2Norm(ChannelNorm):
    """What the three classes share."""

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-12,
        elementwise_affine: bool = True,
        scale: float = 1.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self.scale = scale
        super().__init__(num_channels, elementwise_affine, False, device, dtype)
        self.eps = eps
        self.elementwise_affine = elementwise_affine

    def reset_parameters(self) -> None:
        """Weight ``scale``."""
        if self.weight is not None:
            nn.init.constant_(self.weight, self.scale)

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        return (
            f"{self.num_channels}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, scale={self.scale:g}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) -> the same shape."""
        self._check_input(x)
        result: Tensor = torch.ops.onnxnorm.channel_l2_norm(x, self.weight, self.eps)
        return result


class L2Norm1d(_L2Norm):
    """L2 normalization over the channels of (N, C) or (N, C, L).

    Args:
        num_channels: channel count C.
        eps: the least length that is divided by.
        elementwise_affine: have a weight of C values.
        scale: what the weight starts from (SSD takes 20).
        device, dtype: of the weight.

    """

    ranks = (2, 3)


class L2Norm2d(_L2Norm):
    """L2 normalization over the channels of (N, C, H, W); arguments as in L2Norm1d."""

    ranks = (4,)


class L2Norm3d(_L2Norm):
    """L2 normalization over the channels of (N, C, D, H, W); arguments as in L2Norm1d."""

    ranks = (5,)
