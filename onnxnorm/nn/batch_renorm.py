"""Batch renormalization (Ioffe 2017, arXiv:1702.03275) as PyTorch modules and operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxnorm.nn.operators import composite
from onnxnorm.nn.running import RunningNorm, affine_eval
from onnxnorm.nn.training import affine, batch_axes, centred_by_batch, channels_view, mean_over, moved


@composite(
    "batch_renorm_training(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_std, "
    "Tensor momentum, Tensor r_max, Tensor d_max, float eps=1e-05) -> (Tensor, Tensor, Tensor)"
)
def batch_renorm_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_std: Tensor,
    momentum: Tensor,
    r_max: Tensor,
    d_max: Tensor,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """``onnxnorm::batch_renorm_training``: training form; the formulas are in ``onnxnorm.norms.batch_renorm_training``.

    Args:
        input: (N, C) or (N, C, *).
        weight, bias: (C,) or None.
        running_mean, running_std: (C,), from before this batch.
        momentum: one element, the share of this batch in the next running statistics.
        r_max, d_max: one element each, the limits of the two corrections, which carry no gradient.
        eps: added to the variance.

    Returns:
        The result, the next running mean and the next running standard deviation.

    Raises:
        ValueError: one value per channel.

    """
    centred, mean, count = centred_by_batch(input)
    sigma = (mean_over(centred.square(), batch_axes(centred)) + eps).sqrt()
    running = channels_view(running_std, centred)
    r_max, d_max = r_max.to(centred.dtype), d_max.to(centred.dtype)
    r = (sigma.detach() / running).clamp(min=1.0 / r_max, max=r_max)
    d = ((mean.detach() - channels_view(running_mean, centred)) / running).clamp(min=-d_max, max=d_max)
    y = affine(centred / sigma * r + d, weight, bias).to(input.dtype)
    return y, moved(running_mean, mean, momentum, count), moved(running_std, sigma, momentum, count)


class _BatchRenorm(RunningNorm):
    """What the three classes share."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup_steps: int = 0,
        r_max_steps: int = 0,
        d_max_steps: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if not r_max >= 1.0 or not d_max >= 0.0:
            raise ValueError(f"r_max is {r_max} and d_max is {d_max}; they must be at least 1 and at least 0")
        if min(warmup_steps, r_max_steps, d_max_steps) < 0:
            steps = f"{warmup_steps}, {r_max_steps}, {d_max_steps}"
            raise ValueError(f"warmup_steps, r_max_steps and d_max_steps are {steps}; none may be negative")
        parameters, statistics = {"weight": affine, "bias": affine}, {"running_mean": 0.0, "running_std": 1.0}
        super().__init__(num_features, momentum, parameters, statistics, device, dtype)
        self.eps = eps
        self.affine = affine
        self.r_max = r_max
        self.d_max = d_max
        self.warmup_steps = warmup_steps
        self.r_max_steps = r_max_steps
        self.d_max_steps = d_max_steps

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"r_max={self.r_max}, d_max={self.d_max}"
        )

    def limits(self) -> tuple[Tensor, Tensor]:
        """r_max and d_max for the next batch, one element each: computed from the batches counted so far."""
        r_max = 1.0 + (self.r_max - 1.0) * self._progress(self.r_max_steps)
        return r_max, self.d_max * self._progress(self.d_max_steps)

    def _progress(self, end: int) -> Tensor:
        """How far a limit has been loosened: 0 in the warm-up, then rising to 1 at step ``end``."""
        tracked = self.get_buffer("num_batches_tracked")
        if self.warmup_steps == end == 0:
            return torch.ones(1, dtype=torch.float64, device=tracked.device)
        if end <= self.warmup_steps:
            return (tracked >= self.warmup_steps).to(torch.float64).view(1)
        share = (tracked - self.warmup_steps).to(torch.float64) / (end - self.warmup_steps)
        return share.clamp(0.0, 1.0).view(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) -> the same shape. In training the batch's own statistics serve and the running ones move."""
        self._check_input(x)
        mean, std = self._state(x)
        if not self.training:
            return affine_eval(x, mean, std, self.weight, self.bias)
        limits = self.limits()
        y, *following = torch.ops.onnxnorm.batch_renorm_training(
            x, self.weight, self.bias, mean, std, self._next_momentum(x), *limits, self.eps
        )
        self._keep(tuple(following))
        result: Tensor = y
        return result


class BatchRenorm1d(_BatchRenorm):
    """Batch renormalization of (N, C) or (N, C, L).

    Batch normalization whose training output is corrected, within limits, to what the running statistics give; eval is
    the plain affine map by them. The buffers are the paper's running mean and running standard deviation (of
    ``sqrt(var + eps)``), not a variance.

    The paper loosens the limits while it trains: r_max 1 and d_max 0, which is batch normalization, for 5000 steps,
    then up to 3 at step 40000 and to 5 at step 25000, which is ``warmup_steps=5000, r_max_steps=40000,
    d_max_steps=25000``. The steps are the batches counted in ``num_batches_tracked``.

    Args:
        num_features: channel count C.
        eps: added to the variance.
        momentum: in PyTorch's sense, the share of the new batch in the running statistics; None is the cumulative
            average.
        affine: have a weight and a bias of C values.
        r_max: limit of the correction of the scale, at least 1.
        d_max: limit of the correction of the shift, at least 0.
        warmup_steps: batches with r_max 1 and d_max 0.
        r_max_steps, d_max_steps: the step at which a limit, which rises linearly after the warm-up, is reached; at
            once after the warm-up when that is not later.
        device, dtype: of parameters and running statistics.

    """

    ranks = (2, 3)


class BatchRenorm2d(_BatchRenorm):
    """Batch renormalization of (N, C, H, W); arguments as in BatchRenorm1d."""

    ranks = (4,)


class BatchRenorm3d(_BatchRenorm):
    """Batch renormalization of (N, C, D, H, W); arguments as in BatchRenorm1d."""

    ranks = (5,)
