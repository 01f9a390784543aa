"""EvoNorm-S0 (Liu et al. 2020, arXiv:2004.02967) as PyTorch modules and operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from onnxnorm.nn.channel_norm import ChannelNorm
from onnxnorm.nn.operators import composite, computing_dtype
from onnxnorm.nn.training import affine, channels_view, mean_over


@composite(
    "evo_norm_s0(Tensor input, int num_groups, Tensor? weight, Tensor? bias, Tensor v, float eps=1e-05) -> Tensor"
)
def evo_norm_s0(
    input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, v: Tensor, eps: float = 1e-5
) -> Tensor:
    """``onnxnorm::evo_norm_s0``; half types compute in float32 as torch.nn does.

    Args:
        input: (N, C) or (N, C, *).
        num_groups: groups of channels; divides C.
        weight, bias: (C,) or None.
        v: (C,), the factor within the sigmoid.
        eps: added to the biased variance of a group.

    """
    x = input.to(computing_dtype(input))
    groups = (num_groups, x.shape[1] // num_groups)
    centred: Tensor = x.unflatten(1, groups)  # type: ignore[no-untyped-call]  # (N, G, C / G, *)
    axes = list(range(2, centred.dim()))
    for _ in range(2):  # the second time takes away what rounding of a large mean left
        centred = centred - mean_over(centred, axes)
    deviation = (mean_over(centred.square(), axes) + eps).sqrt().expand_as(centred).flatten(1, 2)
    return affine(x * (x * channels_view(v, x)).sigmoid() / deviation, weight, bias).to(input.dtype)


class _EvoNormS0(ChannelNorm):
    """What the three classes share."""

    v: Tensor

    def __init__(
        self, num_features: int, num_groups: int = 32, eps: float = 1e-5, device: Any = None, dtype: Any = None
    ) -> None:
        if num_groups < 1 or num_features % num_groups:
            raise ValueError(f"num_groups is {num_groups}; it must divide the {num_features} channels")
        super().__init__(num_features, True, True, device, dtype)
        self.num_groups = num_groups
        self.eps = eps
        self.register_parameter("v", nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)))

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, v 1: SiLU in front of the division, to begin with."""
        super().reset_parameters()
        if "v" in self._parameters:
            nn.init.ones_(self.v)

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        return f"{self.num_channels}, num_groups={self.num_groups}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) -> the same shape."""
        self._check_input(x)
        result: Tensor = torch.ops.onnxnorm.evo_norm_s0(x, self.num_groups, self.weight, self.bias, self.v, self.eps)
        return result


class EvoNorm1dS0(_EvoNormS0):
    """EvoNorm-S0 of (N, C) or (N, C, L): normalization and activation in one.

    Args:
        num_features: channel count C.
        num_groups: groups of channels whose variance is taken together; divides C.
        eps: added to the variance.
        device, dtype: of the parameters.

    """

    ranks = (2, 3)


class EvoNorm2dS0(_EvoNormS0):
    """EvoNorm-S0 of (N, C, H, W), as timm's ``EvoNorm2dS0``; arguments as in EvoNorm1dS0."""

    ranks = (4,)


class EvoNorm3dS0(_EvoNormS0):
    """EvoNorm-S0 of (N, C, D, H, W); arguments as in EvoNorm1dS0."""

    ranks = (5,)
