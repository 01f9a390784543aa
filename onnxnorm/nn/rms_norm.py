"""RMS normalization (Zhang and Sennrich 2019, arXiv:1910.07467) over the channels of (N, C, *), as PyTorch modules and
operator; ``torch.nn.RMSNorm`` takes trailing axes only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxnorm.nn.channel_norm import ChannelNorm, channels_back, channels_to_end
from onnxnorm.nn.operators import composite


@composite("channel_rms_norm(Tensor input, Tensor? weight=None, float? eps=None) -> Tensor")
def channel_rms_norm(input: Tensor, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """``onnxnorm::channel_rms_norm``: (N, C, *) over the root mean square of C; half types compute in float32.

    Args:
        input: (N, C) or (N, C, *).
        weight: (C,) or None.
        eps: added to the mean square; None is machine epsilon of the dtype that is computed in, as in torch.nn.

    """
    return channels_back(F.rms_norm(channels_to_end(input), (input.shape[1],), weight, eps), input)


class _RMSNorm(ChannelNorm):
    """What the three classes share."""

    def __init__(
        self,
        num_channels: int,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_channels, elementwise_affine, False, device, dtype)
        self.eps = eps
        self.elementwise_affine = elementwise_affine

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        return f"{self.num_channels}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) -> the same shape."""
        self._check_input(x)
        result: Tensor = torch.ops.onnxnorm.channel_rms_norm(x, self.weight, self.eps)
        return result


class RMSNorm1d(_RMSNorm):
    """RMS normalization over the channels of (N, C) or (N, C, L).

    Args:
        num_channels: channel count C.
        eps: added to the mean square; None is machine epsilon of the dtype that is computed in, as in torch.nn.RMSNorm.
        elementwise_affine: have a weight of C values.
        device, dtype: of the weight.

    """

    ranks = (2, 3)


class RMSNorm2d(_RMSNorm):
    """RMS normalization over the channels of (N, C, H, W); arguments as in RMSNorm1d."""

    ranks = (4,)


class RMSNorm3d(_RMSNorm):
    """RMS normalization over the channels of (N, C, D, H, W); arguments as in RMSNorm1d."""

    ranks = (5,)
