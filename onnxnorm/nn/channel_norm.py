"""What the norms over the channels of (N, C, *) share: parameters, checks, and the way to PyTorch's own operators."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


def channels_to_end(x: Tensor) -> Tensor:
    """(N, C, *) -> (N, *, C), a view."""
    return x.movedim(1, -1)


def channels_back(y: Tensor, like: Tensor) -> Tensor:
    """(N, *, C) -> (N, C, *) in the dtype of ``like``; under autocast PyTorch's operators may have another one."""
    return y.movedim(-1, 1).to(like.dtype)


class ChannelNorm(nn.Module):
    """Base of LayerNorm1d/2d/3d and RMSNorm1d/2d/3d: no state, so training and evaluation are the same.

    Args:
        num_channels: channel count C.
        with_weight, with_bias: which parameters there are.
        device, dtype: of the parameters.

    """

    ranks: ClassVar[tuple[int, ...]] = ()

    def __init__(self, num_channels: int, with_weight: bool, with_bias: bool, device: Any, dtype: Any) -> None:
        super().__init__()
        self.num_channels = num_channels
        options = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(num_channels, **options)) if with_weight else None
        self.bias = nn.Parameter(torch.empty(num_channels, **options)) if with_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _check_input(self, x: Tensor) -> None:
        """ValueError for a rank or a channel count that is not the module's."""
        if x.dim() not in self.ranks:
            wanted = " or ".join(f"{rank}-dimensional" for rank in self.ranks)
            raise ValueError(f"{type(self).__name__} needs {wanted} input, got shape {list(x.shape)}")
        if x.shape[1] != self.num_channels:
            raise ValueError(f"{type(self).__name__}({self.num_channels}) got {x.shape[1]} channels")
