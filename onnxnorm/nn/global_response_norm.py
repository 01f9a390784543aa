"""Global response normalization (Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808) as a PyTorch module and operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from onnxnorm.nn.operators import composite, computing_dtype
from onnxnorm.nn.training import channels_view, mean_over


@composite(
    "global_response_norm(Tensor input, Tensor weight, Tensor bias, float eps=1e-06, bool channels_last=False) "
    "-> Tensor"
)
def global_response_norm(
    input: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6, channels_last: bool = False
) -> Tensor:
    """``onnxnorm::global_response_norm``; half types compute in float32 as torch.nn does.

    Args:
        input: (N, C, *), or (N, *, C) with ``channels_last``.
        weight, bias: (C,).
        eps: added to the mean of the channels' norms.
        channels_last: which of the two layouts.

    """
    x = input.to(computing_dtype(input))
    x = x.movedim(-1, 1) if channels_last else x
    axes = list(range(2, x.dim()))
    norms = torch.linalg.vector_norm(x, 2, axes, keepdim=True) if axes else x.abs()
    response = norms / (mean_over(norms, [1]) + eps)
    y = x + channels_view(weight, x) * (x * response) + channels_view(bias, x)
    return (y.movedim(1, -1) if channels_last else y).to(input.dtype)


class GlobalResponseNorm(nn.Module):
    """Global response normalization of (N, C, *) or (N, *, C), of any number of spatial axes.

    Each channel is weighed by its norm over all positions, relative to the mean norm of the channels, times a weight,
    and added to the input.

    Args:
        num_features: channel count C.
        eps: added to the mean of the channels' norms.
        channels_last: X is (N, *, C), as inside a block of ConvNeXt V2, in place of (N, C, *).
        device, dtype: of the parameters.

    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        channels_last: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.channels_last = channels_last
        self.weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 0, bias 0: the identity, as the authors start."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        return f"{self.num_features}, eps={self.eps}, channels_last={self.channels_last}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) or (N, *, C) -> the same shape.

        Raises:
            ValueError: less than two axes, or another channel count than the module's.

        """
        if x.dim() < 2:
            raise ValueError(f"GlobalResponseNorm needs input of 2 axes or more, got shape {list(x.shape)}")
        channels = x.shape[-1 if self.channels_last else 1]
        if channels != self.num_features:
            raise ValueError(f"GlobalResponseNorm({self.num_features}) got {channels} channels")
        result: Tensor = torch.ops.onnxnorm.global_response_norm(
            x, self.weight, self.bias, self.eps, self.channels_last
        )
        return result
