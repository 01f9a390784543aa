"""Layer normalization over the channels of (N, C, *) as PyTorch modules and operator.

ConvNeXt's LayerNorm2d (Liu et al. 2022, arXiv:2201.03545): each position of each item is normalized over its C
channels. ``torch.nn.LayerNorm`` takes trailing axes only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxnorm.nn.channel_norm import ChannelNorm, channels_back, channels_to_end
from onnxnorm.nn.operators import composite


@composite("channel_layer_norm(Tensor input, Tensor? weight=None, Tensor? bias=None, float eps=1e-05) -> Tensor")
def channel_layer_norm(
    input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """``onnxnorm::channel_layer_norm``: (N, C, *) normalized over C; half types compute in float32 as in torch.nn.

    Args:
        input: (N, C) or (N, C, *).
        weight, bias: (C,) or None.
        eps: added to the biased variance.

    """
    return channels_back(F.layer_norm(channels_to_end(input), (input.shape[1],), weight, bias, eps), input)


class _LayerNorm(ChannelNorm):
    """What the three classes share."""

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_channels, elementwise_affine, elementwise_affine and bias, device, dtype)
        self.eps = eps
        self.elementwise_affine = elementwise_affine

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        return (
            f"{self.num_channels}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) -> the same shape."""
        self._check_input(x)
        result: Tensor = torch.ops.onnxnorm.channel_layer_norm(x, self.weight, self.bias, self.eps)
        return result


class LayerNorm1d(_LayerNorm):
    """Layer normalization over the channels of (N, C) or (N, C, L).

    Args:
        num_channels: channel count C.
        eps: added to the variance (``torch.nn.LayerNorm``'s 1e-5; ConvNeXt uses 1e-6).
        elementwise_affine: have a weight of C values, and a bias.
        bias: False leaves the bias out.
        device, dtype: of the parameters.

    """

    ranks = (2, 3)


class LayerNorm2d(_LayerNorm):
    """Layer normalization over the channels of (N, C, H, W); arguments as in LayerNorm1d."""

    ranks = (4,)


class LayerNorm3d(_LayerNorm):
    """Layer normalization over the channels of (N, C, D, H, W); arguments as in LayerNorm1d."""

    ranks = (5,)
