"""Filter response normalization (Singh and Krishnan 2019, arXiv:1911.09737) as PyTorch modules and operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from onnxnorm.nn.channel_norm import ChannelNorm
from onnxnorm.nn.operators import composite, computing_dtype
from onnxnorm.nn.training import affine, channels_view, mean_over


@composite(
    "filter_response_norm(Tensor input, Tensor? weight=None, Tensor? bias=None, Tensor? tau=None, float eps=1e-06) "
    "-> Tensor"
)
def filter_response_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    tau: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """``onnxnorm::filter_response_norm``; half types compute in float32 as torch.nn does.

    Args:
        input: (N, C) or (N, C, *).
        weight, bias: (C,) or None.
        tau: (C,), the least value of each channel, or None for no threshold.
        eps: added to the mean square.

    """
    x = input.to(computing_dtype(input))
    squares, axes = x.square(), list(range(2, x.dim()))
    mean_square = mean_over(squares, axes) if axes else squares
    y = affine(x / (mean_square + eps).sqrt(), weight, bias)
    y = y if tau is None else torch.maximum(y, channels_view(tau, y))
    return y.to(input.dtype)


class _FilterResponseNorm(ChannelNorm):
    """What the three classes share."""

    tau: Tensor | None

    def __init__(
        self, num_features: int, eps: float = 1e-6, tlu: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(num_features, True, True, device, dtype)
        self.eps = eps
        self.tlu = tlu
        tau = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype)) if tlu else None
        self.register_parameter("tau", tau)

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, threshold 0: a ReLU to begin with."""
        super().reset_parameters()
        if getattr(self, "tau", None) is not None:
            nn.init.zeros_(self.tau)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        return f"{self.num_channels}, eps={self.eps}, tlu={self.tlu}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) -> the same shape."""
        self._check_input(x)
        result: Tensor = torch.ops.onnxnorm.filter_response_norm(x, self.weight, self.bias, self.tau, self.eps)
        return result


class FilterResponseNorm1d(_FilterResponseNorm):
    """Filter response normalization of (N, C) or (N, C, L): no mean is taken off, no other item is looked at.

    Args:
        num_features: channel count C.
        eps: added to the mean square over the positions.
        tlu: have the thresholded linear unit behind it, max(y, tau) with a learned tau of each channel, which takes
            the place of an activation. Without it the norm has none.
        device, dtype: of the parameters.

    """

    ranks = (2, 3)


class FilterResponseNorm2d(_FilterResponseNorm):
    """Filter response normalization of (N, C, H, W); arguments as in FilterResponseNorm1d."""

    ranks = (4,)


class FilterResponseNorm3d(_FilterResponseNorm):
    """Filter response normalization of (N, C, D, H, W); arguments as in FilterResponseNorm1d."""

    ranks = (5,)
