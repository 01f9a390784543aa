"""Batch-instance normalization (Nam and Kim 2018, arXiv:1805.07925) as PyTorch modules and operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from onnxnorm.nn.operators import composite, computing_dtype
from onnxnorm.nn.running import RunningNorm
from onnxnorm.nn.training import (
    affine,
    batch_axes,
    bessel,
    channels_view,
    mean_over,
    moved,
    require_positions,
    size_over,
)


def _mixed(x: Tensor, mean: Tensor, var: Tensor, rho: Tensor, eps: float) -> Tensor:
    """(N, C, *) by the batch's mean and variance, which broadcast over it, and by each instance's own."""
    axes = list(range(2, x.dim()))
    centred = x - (mean_over(x, axes) if axes else x)
    instance_var = mean_over(centred.square(), axes) if axes else torch.zeros_like(x)
    x_instance = centred / (instance_var + eps).sqrt()
    x_batch = (x - mean) / (var + eps).sqrt()
    share = channels_view(rho, x)
    return share * x_batch + (1 - share) * x_instance


@composite(
    "batch_instance_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor rho, Tensor running_mean, "
    "Tensor running_var, float eps=1e-05) -> Tensor"
)
def batch_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """``onnxnorm::batch_instance_norm``: evaluation form; half types compute in float32 as torch.nn does.

    Args:
        input: (N, C) or (N, C, *).
        weight, bias: (C,) or None.
        rho: (C,), the share of batch normalization, taken as it is.
        running_mean, running_var: (C,).
        eps: added to the variances.

    """
    x = input.to(computing_dtype(input))
    y = _mixed(x, channels_view(running_mean, x), channels_view(running_var, x), rho, eps)
    return affine(y, weight, bias).to(input.dtype)


@composite(
    "batch_instance_norm_training(Tensor input, Tensor? weight, Tensor? bias, Tensor rho, Tensor running_mean, "
    "Tensor running_var, Tensor momentum, float eps=1e-05) -> (Tensor, Tensor, Tensor)"
)
def batch_instance_norm_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: Tensor,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """``onnxnorm::batch_instance_norm_training``: training form as a function of the state.

    The batch's biased variance normalizes and its unbiased one is tracked, as in ``torch.nn.BatchNorm2d``.

    Args:
        input: (N, C, *).
        weight, bias: (C,) or None.
        rho: (C,), the share of batch normalization, taken as it is.
        running_mean, running_var: (C,).
        momentum: one element, the share of this batch in the next running statistics.
        eps: added to the variances.

    Returns:
        The result, the next running mean and the next running variance.

    Raises:
        ValueError: one value per instance.

    """
    require_positions(input)
    x = input.to(computing_dtype(input))
    axes = batch_axes(x)
    mean = mean_over(x, axes)
    var = mean_over((x - mean).square(), axes)
    y = affine(_mixed(x, mean, var, rho, eps), weight, bias).to(input.dtype)
    count = size_over(x, axes)
    next_var = moved(running_var, var * bessel(count), momentum, count)
    return y, moved(running_mean, mean, momentum, count), next_var


class _BatchInstanceNorm(RunningNorm):
    """What the three classes share; the formulas are in ``onnxnorm.norms.batch_instance_norm``."""

    rho: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        parameters = {"weight": affine, "bias": affine, "rho": True}
        statistics = {"running_mean": 0.0, "running_var": 1.0}
        super().__init__(num_features, momentum, parameters, statistics, device, dtype)
        self.eps = eps
        self.affine = affine

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, rho 1 (batch normalization alone, as the authors start), mean 0 and variance 1."""
        super().reset_parameters()
        nn.init.ones_(self.rho)

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) -> the same shape. In training the batch's own statistics serve and the running ones move."""
        self._check_input(x)
        mean, var = self._state(x)
        rho = self._clipped_rho()
        if self.training:
            momentum = self._next_momentum(x)
            y, *following = torch.ops.onnxnorm.batch_instance_norm_training(
                x, self.weight, self.bias, rho, mean, var, momentum, self.eps
            )
            self._keep(tuple(following))
        else:
            y = torch.ops.onnxnorm.batch_instance_norm(x, self.weight, self.bias, rho, mean, var, self.eps)
        result: Tensor = y
        return result

    def _clipped_rho(self) -> Tensor:
        """Rho within [0, 1].

        Its gradient passes through where rho is outside, so that an optimizer's step over the bound can be taken back;
        the authors' optimizer clips the parameter after each step, to the same effect.
        """
        clipped = self.rho.clamp(0.0, 1.0)
        if not (torch.is_grad_enabled() and self.rho.requires_grad):
            return clipped
        return clipped.detach() + (self.rho - self.rho.detach())

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if self.training:
            require_positions(x)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes the authors' checkpoints too, which call rho the gate."""
        if prefix + "gate" in state_dict and prefix + "rho" not in state_dict:
            state_dict[prefix + "rho"] = state_dict.pop(prefix + "gate")
        super()._load_from_state_dict(state_dict, prefix, *args)


class BatchInstanceNorm1d(_BatchInstanceNorm):
    """Batch-instance normalization of (N, C, L): a mix of both, by rho of each channel, which is learned.

    Args:
        num_features: channel count C.
        eps: added to the variances.
        momentum: in PyTorch's sense, the share of the new batch in the running statistics; None is the cumulative
            average.
        affine: have a weight and a bias of C values.
        device, dtype: of parameters and running statistics.

    """

    ranks = (3,)


class BatchInstanceNorm2d(_BatchInstanceNorm):
    """Batch-instance normalization of (N, C, H, W); arguments as in BatchInstanceNorm1d."""

    ranks = (4,)


class BatchInstanceNorm3d(_BatchInstanceNorm):
    """Batch-instance normalization of (N, C, D, H, W); arguments as in BatchInstanceNorm1d."""

    ranks = (5,)
