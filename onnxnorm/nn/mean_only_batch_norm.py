"""Mean-only batch normalization (Salimans and Kingma 2016, arXiv:1602.07868) as PyTorch modules and operator."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from onnxnorm.nn.operators import composite
from onnxnorm.nn.running import RunningNorm, affine_eval
from onnxnorm.nn.training import affine, centred_by_batch, moved


@composite(
    "mean_only_batch_norm_training(Tensor input, Tensor? bias, Tensor running_mean, Tensor momentum) "
    "-> (Tensor, Tensor)"
)
def mean_only_batch_norm_training(
    input: Tensor, bias: Tensor | None, running_mean: Tensor, momentum: Tensor
) -> tuple[Tensor, Tensor]:
    """``onnxnorm::mean_only_batch_norm_training``: training form.

    Args:
        input: (N, C) or (N, C, *).
        bias: (C,) or None.
        running_mean: (C,).
        momentum: one element, the share of this batch in the next running mean.

    Returns:
        The input without its channels' means over the batch, plus the bias; and the next running mean.

    Raises:
        ValueError: one value per channel.

    """
    centred, mean, count = centred_by_batch(input)
    return affine(centred, None, bias).to(input.dtype), moved(running_mean, mean, momentum, count)


class _MeanOnlyBatchNorm(RunningNorm):
    """What the three classes share."""

    state_size: ClassVar[int] = 1

    def __init__(
        self,
        num_features: int,
        momentum: float | None = 0.1,
        bias: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        statistics = {"running_mean": 0.0} if track_running_stats else {}
        super().__init__(num_features, momentum, {"bias": bias}, statistics, device, dtype)

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        return (
            f"{self.num_features}, momentum={self.momentum}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) -> the same shape. In training the batch's own mean serves and the running one moves."""
        self._check_input(x)
        (mean,) = self._state(x)
        if not self._by_batch():
            return affine_eval(x, mean, None, None, self.bias)
        y, following = torch.ops.onnxnorm.mean_only_batch_norm_training(x, self.bias, mean, self._next_momentum(x))
        self._keep((following,))
        result: Tensor = y
        return result


class MeanOnlyBatchNorm1d(_MeanOnlyBatchNorm):
    """Mean-only batch normalization of (N, C) or (N, C, L), for layers with weight normalization.

    The batch's mean of each channel is taken off and a bias is added; nothing is divided, as weight normalization keeps
    the scale. The layer before it needs no bias of its own. In eval the running mean is taken off, which folds into
    that layer.

    Args:
        num_features: channel count C.
        momentum: in PyTorch's sense, the share of the new batch in the running mean; None is the cumulative average.
        bias: have a bias of C values.
        track_running_stats: keep a running mean; without it eval uses the batch's mean too.
        device, dtype: of the bias and the running mean.

    """

    ranks = (2, 3)


class MeanOnlyBatchNorm2d(_MeanOnlyBatchNorm):
    """Mean-only batch normalization of (N, C, H, W); arguments as in MeanOnlyBatchNorm1d."""

    ranks = (4,)


class MeanOnlyBatchNorm3d(_MeanOnlyBatchNorm):
    """Mean-only batch normalization of (N, C, D, H, W); arguments as in MeanOnlyBatchNorm1d."""

    ranks = (5,)
