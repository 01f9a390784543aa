"""L1 batch normalization (Hoffer et al. 2018, arXiv:1803.01814) as PyTorch modules and operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxnorm.nn.operators import composite, computing_dtype
from onnxnorm.nn.running import RunningNorm, affine_eval
from onnxnorm.nn.training import affine, batch_axes, centred_by_batch, mean_over, moved
from onnxnorm.norms.l1_batch_norm_training import GAUSSIAN_FACTOR


@composite(
    "l1_batch_norm_training(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_scale, "
    "Tensor momentum, float eps=1e-05) -> (Tensor, Tensor, Tensor)"
)
def l1_batch_norm_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_scale: Tensor,
    momentum: Tensor,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """``onnxnorm::l1_batch_norm_training``: training form.

    Args:
        input: (N, C) or (N, C, *).
        weight, bias: (C,) or None.
        running_mean, running_scale: (C,).
        momentum: one element, the share of this batch in the next running statistics.
        eps: added to the scale, sqrt(pi / 2) times the mean absolute deviation.

    Returns:
        The result, the next running mean and the next running scale (without eps).

    Raises:
        ValueError: one value per channel.

    """
    centred, mean, count = centred_by_batch(input)
    sigma = mean_over(centred.abs(), batch_axes(centred)) * GAUSSIAN_FACTOR
    y = affine(centred / (sigma + eps), weight, bias).to(input.dtype)
    return y, moved(running_mean, mean, momentum, count), moved(running_scale, sigma, momentum, count)


class _L1BatchNorm(RunningNorm):
    """What the three classes share."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        statistics = {"running_mean": 0.0, "running_scale": 1.0} if track_running_stats else {}
        super().__init__(num_features, momentum, {"weight": affine, "bias": affine}, statistics, device, dtype)
        self.eps = eps
        self.affine = affine

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) -> the same shape. In training the batch's own statistics serve and the running ones move."""
        self._check_input(x)
        mean, scale = self._state(x)
        if not self._by_batch():
            deviation = scale.to(computing_dtype(scale)) + self.eps
            return affine_eval(x, mean, deviation, self.weight, self.bias)
        y, *following = torch.ops.onnxnorm.l1_batch_norm_training(
            x, self.weight, self.bias, mean, scale, self._next_momentum(x), self.eps
        )
        self._keep(tuple(following))
        result: Tensor = y
        return result


class L1BatchNorm1d(_L1BatchNorm):
    """L1 batch normalization of (N, C) or (N, C, L).

    Batch normalization that divides by sqrt(pi / 2) times the mean absolute deviation, which is the standard deviation
    for Gaussian data, and needs neither squares nor roots.

    Args:
        num_features: channel count C.
        eps: added to that scale.
        momentum: in PyTorch's sense, the share of the new batch in the running statistics; None is the cumulative
            average.
        affine: have a weight and a bias of C values.
        track_running_stats: keep running statistics (``running_mean`` and ``running_scale``); without them eval uses
            the batch's too.
        device, dtype: of parameters and running statistics.

    """

    ranks = (2, 3)


class L1BatchNorm2d(_L1BatchNorm):
    """L1 batch normalization of (N, C, H, W); arguments as in L1BatchNorm1d."""

    ranks = (4,)


class L1BatchNorm3d(_L1BatchNorm):
    """L1 batch normalization of (N, C, D, H, W); arguments as in L1BatchNorm1d."""

    ranks = (5,)
