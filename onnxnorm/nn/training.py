"""PyTorch operators of training graphs: a norm with state as a function of its state.

Each takes the state and gives its next value back beside the result, so that a graph can hold it; the modules copy it
into their buffers. ``momentum`` is in PyTorch's sense, a tensor of one element. The next state carries no gradient.

No operator branches on a size, so that none is fixed in an exported graph: sums over nothing are divided by 1, and the
state then moves by nothing. What PyTorch refuses, one value per channel, is the one exception.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnxnorm.nn.operators import composite, computing_dtype

_STATE = "Tensor running_mean, Tensor running_var, Tensor momentum, float eps=1e-05"


def channels_view(vector: Tensor, like: Tensor) -> Tensor:
    """A vector of C values, shaped to broadcast over (N, C, *), in the dtype in which ``like`` is computed."""
    return vector.to(computing_dtype(like)).view(1, -1, *[1] * (like.dim() - 2))


def batch_axes(x: Tensor) -> list[int]:
    """All axes but the channels'."""
    return [0, *range(2, x.dim())]


def size_over(x: Tensor, axes: list[int]) -> int:
    """How many values of (N, C, *) the axes hold."""
    return math.prod([x.shape[axis] for axis in axes])


def mean_over(x: Tensor, axes: list[int]) -> Tensor:
    """Mean over the axes, which stay as size 1; 0 over nothing."""
    return x.sum(axes, keepdim=True) / _at_least_one(size_over(x, axes))


def bessel(count: int) -> float:
    """The ratio count / (count - 1), which makes a biased variance unbiased; count is not 1."""
    return count / _at_least_one(count - 1)


def _at_least_one(count: int) -> int:
    """``max(count, 1)`` that decides nothing about a size which is not known yet."""
    result: int = torch.sym_max(count, 1)  # type: ignore[no-untyped-call]
    return result


def require_values(x: Tensor) -> None:
    """ValueError for one value per channel, in PyTorch's words."""
    if size_over(x, batch_axes(x)) == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")


def require_positions(x: Tensor) -> None:
    """ValueError for one value per instance, in PyTorch's words."""
    if size_over(x, list(range(2, x.dim()))) == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {x.size()}")


def moved(running: Tensor, batch: Tensor, momentum: Tensor, count: int = 1) -> Tensor:
    """The running statistic (C,) after a batch of ``count`` values whose statistic is ``batch``, in its own dtype."""
    batch = batch.detach().flatten()
    now = running.to(batch.dtype)
    any_values: int = torch.sym_min(count, 1)  # type: ignore[no-untyped-call]
    share = momentum.to(batch.dtype) * any_values
    return (now + (batch - now) * share).to(running.dtype)


def affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Y (N, C, *) times weight plus bias, each (C,) or None."""
    y = y if weight is None else y * channels_view(weight, y)
    return y if bias is None else y + channels_view(bias, y)


def centred_by_batch(input: Tensor) -> tuple[Tensor, Tensor, int]:
    """Training's first half: (x - mean in the computing dtype, mean (1, C, *1), values per channel)."""
    require_values(input)
    x = input.to(computing_dtype(input))
    axes = batch_axes(x)
    mean = mean_over(x, axes)
    return x - mean, mean, size_over(x, axes)


@composite(f"batch_norm_training(Tensor input, Tensor? weight, Tensor? bias, {_STATE}) -> (Tensor, Tensor, Tensor)")
def batch_norm_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: Tensor,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.nn.functional.batch_norm(training=True)`` as a function.

    Args:
        input: (N, C) or (N, C, *).
        weight, bias: (C,) or None.
        running_mean, running_var: (C,).
        momentum: one element, the share of this batch in the next running statistics.
        eps: added to the variance.

    Returns:
        The result, the next running mean, and the next running variance (which takes in the unbiased one).

    Raises:
        ValueError: one value per channel.

    """
    centred, mean, count = centred_by_batch(input)
    var = mean_over(centred.square(), batch_axes(centred))
    y = affine(centred / (var + eps).sqrt(), weight, bias).to(input.dtype)
    next_var = moved(running_var, var * bessel(count), momentum, count)
    return y, moved(running_mean, mean, momentum, count), next_var


@composite(f"instance_norm_training(Tensor input, Tensor? weight, Tensor? bias, {_STATE}) -> (Tensor, Tensor, Tensor)")
def instance_norm_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: Tensor,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.nn.functional.instance_norm(use_input_stats=True)`` with running statistics, as a function.

    An empty batch leaves the state as it is, where PyTorch makes it NaN.

    Args:
        input: (N, C, *).
        weight, bias: (C,) or None.
        running_mean, running_var: (C,).
        momentum: one element, the share of this batch in the next running statistics.
        eps: added to the variance.

    Returns:
        The result, the next running mean, and the next running variance: they move towards the mean over the batch of
        the instances' means and unbiased variances.

    Raises:
        ValueError: one position.

    """
    require_positions(input)
    x = input.to(computing_dtype(input))
    axes = list(range(2, x.dim()))
    mean = mean_over(x, axes)
    centred = x - mean
    var = mean_over(centred.square(), axes)
    deviation = (var + eps).sqrt()
    deviation = deviation.masked_fill(deviation == 0, 1.0)  # as PyTorch's kernel: nothing is left of equal values
    y = affine(centred / deviation, weight, bias).to(input.dtype)
    count = size_over(x, batch_axes(x))
    next_var = moved(running_var, mean_over(var, [0]) * bessel(size_over(x, axes)), momentum, count)
    return y, moved(running_mean, mean_over(mean, [0]), momentum, count), next_var
