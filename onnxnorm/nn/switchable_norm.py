"""Switchable normalization (Luo et al. 2018, arXiv:1806.10779) as PyTorch modules and operator."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from onnxnorm.nn.operators import composite, computing_dtype
from onnxnorm.nn.running import momentum_share
from onnxnorm.nn.training import (
    batch_axes,
    bessel,
    mean_over,
    moved,
    require_positions,
    require_values,
    size_over,
)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(mean_in, var_in, mean_ln, var_ln), broadcastable to (N, C, S) or to (N, C) for rank-2 input.

    The instance variance is unbiased, as in the authors' code; the layer variance is their
    ``mean(var_in + mean_in^2) - mean_ln^2``, written without that cancellation.
    """
    if x.dim() == 2:
        return x, torch.zeros_like(x), x.mean(1, keepdim=True), x.var(1, keepdim=True)
    mean_in = x.mean(2, keepdim=True)
    var_in = x.var(2, keepdim=True)
    mean_ln = mean_in.mean(1, keepdim=True)
    var_ln = var_in.mean(1, keepdim=True) + (mean_in - mean_ln).square().mean(1, keepdim=True)
    return mean_in, var_in, mean_ln, var_ln


def _blend(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    batch: tuple[Tensor, Tensor],
    eps: float,
) -> Tensor:
    """Normalizes (N, C, S) or (N, C) by the weighted statistics; the half types compute in float32 as torch.nn does."""
    flat = x.flatten(2) if x.dim() > 2 else x
    dtype = computing_dtype(x)
    flat = flat.to(dtype)
    per_channel = (1, -1) if x.dim() == 2 else (1, -1, 1)
    mean_bn, var_bn = (value.to(dtype).view(per_channel) for value in batch)
    mean_in, var_in, mean_ln, var_ln = _statistics(flat)
    mw, vw = mean_weight.to(dtype), var_weight.to(dtype)
    mean = mw[0] * mean_in + mw[1] * mean_ln + mw[2] * mean_bn
    var = vw[0] * var_in + vw[1] * var_ln + vw[2] * var_bn
    y = (flat - mean) / (var + eps).sqrt()
    y = y * weight.to(dtype).view(per_channel) + bias.to(dtype).view(per_channel)
    return y.to(x.dtype).view(x.shape)


@composite(
    "switchable_norm(Tensor input, Tensor weight, Tensor bias, Tensor mean_weight, Tensor var_weight, "
    "Tensor running_mean, Tensor running_var, float eps=1e-05) -> Tensor"
)
def switchable_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """``onnxnorm::switchable_norm``: evaluation form on (N, C, *).

    Args:
        input: (N, C) or (N, C, *).
        weight, bias, running_mean, running_var: (C,).
        mean_weight, var_weight: (3,), after the softmax, in the order instance, layer, batch.
        eps: added to the variance.

    """
    return _blend(input, weight, bias, mean_weight, var_weight, (running_mean, running_var), eps)


@composite(
    "switchable_norm_training(Tensor input, Tensor weight, Tensor bias, Tensor mean_weight, Tensor var_weight, "
    "Tensor running_mean, Tensor running_var, Tensor momentum, float eps=1e-05) -> (Tensor, Tensor, Tensor)"
)
def switchable_norm_training(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: Tensor,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """``onnxnorm::switchable_norm_training``: the batch's own statistics in place of the running ones, which move.

    Args:
        input: (N, C) or (N, C, *).
        weight, bias, running_mean, running_var: (C,).
        mean_weight, var_weight: (3,), after the softmax, in the order instance, layer, batch.
        momentum: one element, the share of this batch in the next running statistics.
        eps: added to the variance.

    Returns:
        The result, the next running mean and the next running variance.

    Raises:
        ValueError: one value per channel, or one position, whose unbiased variance is 0/0.

    """
    require_values(input)
    if input.dim() > 2:
        require_positions(input)
    mean, var = _batch_statistics(input)
    y = _blend(input, weight, bias, mean_weight, var_weight, (mean, var), eps)
    count = size_over(input, batch_axes(input))
    return y, moved(running_mean, mean, momentum, count), moved(running_var, var, momentum, count)


def _batch_statistics(input: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the batch per channel, (C,): the authors' mean over the items of var_in + mean_in^2.

    Where there are no values they are 0, so that the state can stay as it is.
    """
    x = input.to(computing_dtype(input))
    if x.dim() == 2:
        mean = mean_over(x, [0])
        var = mean_over((x - mean).square(), [0]) * bessel(x.shape[0])
        return mean.flatten(), var.flatten()
    flat = x.flatten(2)
    mean_in = mean_over(flat, [2])
    var_in = mean_over((flat - mean_in).square(), [2]) * bessel(flat.shape[2])
    mean = mean_over(mean_in, [0])
    var = mean_over(var_in, [0]) + mean_over((mean_in - mean).square(), [0])
    return mean.flatten(), var.flatten()


class _SwitchableNorm(nn.Module):
    """What the three classes share; the formulas are in ``onnxnorm.norms.switchable_norm``."""

    ranks: ClassVar[tuple[int, ...]] = ()

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        using_in: bool = True,
        using_bn: bool = True,
        last_gamma: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.using_in = using_in
        self.using_bn = using_bn
        self.last_gamma = last_gamma
        branches = int(using_in) + 1 + int(using_bn)
        self.weight = nn.Parameter(torch.empty(num_features, **options))
        self.bias = nn.Parameter(torch.empty(num_features, **options))
        self.mean_weight = nn.Parameter(torch.empty(branches, **options))
        self.var_weight = nn.Parameter(torch.empty(branches, **options))
        if using_bn:
            self.register_buffer("running_mean", torch.zeros(num_features, **options))
            self.register_buffer("running_var", torch.ones(num_features, **options))
            self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1 (0 with ``last_gamma``), bias 0, equal branch weights, running mean 0 and variance 1."""
        nn.init.constant_(self.weight, 0.0 if self.last_gamma else 1.0)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.mean_weight)
        nn.init.ones_(self.var_weight)
        if self.using_bn:
            nn.init.zeros_(self.get_buffer("running_mean"))
            nn.init.ones_(self.get_buffer("running_var"))
            nn.init.zeros_(self.get_buffer("num_batches_tracked"))

    def extra_repr(self) -> str:
        """The arguments, for print(module)."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"using_in={self.using_in}, using_bn={self.using_bn}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) -> the same shape. In training the batch's own statistics serve and the running ones move."""
        self._check_input(x)
        mean_weight, var_weight = self._branch_weights()
        if self.training and self.using_bn:
            return self._train(x, mean_weight, var_weight)
        if self.using_bn:
            running_mean, running_var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        else:
            running_mean, running_var = torch.zeros_like(self.bias), torch.ones_like(self.weight)
        result: Tensor = torch.ops.onnxnorm.switchable_norm(
            x, self.weight, self.bias, mean_weight, var_weight, running_mean, running_var, self.eps
        )
        return result

    def _train(self, x: Tensor, mean_weight: Tensor, var_weight: Tensor) -> Tensor:
        running_mean, running_var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        tracked = self.get_buffer("num_batches_tracked")
        tracked.add_(1)
        momentum = momentum_share(self.momentum, tracked)
        y, next_mean, next_var = torch.ops.onnxnorm.switchable_norm_training(
            x, self.weight, self.bias, mean_weight, var_weight, running_mean, running_var, momentum, self.eps
        )
        running_mean.copy_(next_mean)
        running_var.copy_(next_var)
        result: Tensor = y
        return result

    def _check_input(self, x: Tensor) -> None:
        if x.dim() not in self.ranks:
            wanted = " or ".join(f"{rank}-dimensional" for rank in self.ranks)
            raise ValueError(f"{type(self).__name__} needs {wanted} input, got shape {list(x.shape)}")
        if x.dim() == 2 and self.using_in:
            raise ValueError(f"{type(self).__name__}(using_in=True) needs positions: (N, C, L), got {list(x.shape)}")
        if x.shape[1] != self.num_features:
            raise ValueError(f"{type(self).__name__}({self.num_features}) got {x.shape[1]} channels")
        if self.training and self.using_bn:
            require_values(x)
        if self.training and x.dim() > 2:
            require_positions(x)

    def _branch_weights(self) -> tuple[Tensor, Tensor]:
        """Softmaxed weights of all three branches; a branch that is not used has weight 0."""
        padding = (int(not self.using_in), int(not self.using_bn))
        mean_weight, var_weight = (
            nn.functional.pad(torch.softmax(weight, 0), padding) for weight in (self.mean_weight, self.var_weight)
        )
        return mean_weight, var_weight

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes the authors' checkpoints too, whose parameters have shapes like (1, C, 1, 1)."""
        for name, own in (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)):
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and given.shape != own.shape and given.numel() == own.numel():
                state_dict[prefix + name] = given.reshape(own.shape)
        if self.using_bn:
            state_dict.setdefault(prefix + "num_batches_tracked", self.get_buffer("num_batches_tracked").clone())
        super()._load_from_state_dict(state_dict, prefix, *args)


class SwitchableNorm1d(_SwitchableNorm):
    """Switchable normalization of (N, C) or (N, C, L).

    As the authors' SwitchNorm1d it blends layer and batch statistics only; ``using_in=True`` adds the instance
    statistics for (N, C, L).

    Args:
        num_features: channel count C.
        eps: added to the variance.
        momentum: in PyTorch's sense, the share of the new batch in the running statistics (the authors' 0.9 is 0.1
            here); None is the cumulative average.
        using_in: blend in the instance statistics.
        using_bn: blend in the batch (running) statistics.
        last_gamma: start with weight 0, for the last norm of a residual branch.

    """

    ranks = (2, 3)

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, *, using_in: bool = False, **kw: Any
    ) -> None:
        super().__init__(num_features, eps, momentum, using_in=using_in, **kw)


class SwitchableNorm2d(_SwitchableNorm):
    """Switchable normalization of (N, C, H, W); arguments as in SwitchableNorm1d, all three branches by default."""

    ranks = (4,)


class SwitchableNorm3d(_SwitchableNorm):
    """Switchable normalization of (N, C, D, H, W); arguments as in SwitchableNorm1d, all three branches by default."""

    ranks = (5,)
