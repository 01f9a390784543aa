"""What the modules with running statistics share: parameters, buffers, momentum, checks and the eval form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxnorm.nn.operators import computing_dtype
from onnxnorm.nn.training import require_values


def momentum_share(momentum: float | None, num_batches_tracked: Tensor) -> Tensor:
    """The share of this batch in the running statistics, one element; None is the cumulative average.

    It is computed as a tensor, so that an exported graph counts on.
    """
    if momentum is None:
        return num_batches_tracked.to(torch.float64).reciprocal().view(1)
    return torch.full((1,), momentum, dtype=torch.float64, device=num_batches_tracked.device)


class RunningNorm(nn.Module):
    """Base of the batch norms over (N, C, *): parameters weight and bias, one running statistic per buffer name.

    Args:
        num_features: channel count C.
        momentum: in PyTorch's sense, the share of the new batch in the running statistics; None is the cumulative
            average.
        parameters: name -> whether it is there.
        statistics: name of a buffer -> its start; empty without running statistics.
        device, dtype: of parameters and buffers.

    """

    ranks: ClassVar[tuple[int, ...]] = ()
    #: How many running statistics the operator takes, whether or not they are kept.
    state_size: ClassVar[int] = 2
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        num_features: int,
        momentum: float | None,
        parameters: Mapping[str, bool],
        statistics: Mapping[str, float],
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.momentum = momentum
        self._starts = dict(statistics)
        for name, present in parameters.items():
            value = torch.empty(num_features, device=device, dtype=dtype) if present else None
            self.register_parameter(name, None if value is None else nn.Parameter(value))
        for name in statistics:
            self.register_buffer(name, torch.empty(num_features, device=device, dtype=dtype))
        if statistics:
            self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long, device=device))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Running statistics as at the start, and no batch counted."""
        for name, start in self._starts.items():
            nn.init.constant_(self.get_buffer(name), start)
        if self._starts:
            nn.init.zeros_(self.get_buffer("num_batches_tracked"))

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and the running statistics as at the start."""
        self.reset_running_stats()
        for name, parameter in self.named_parameters(recurse=False):
            nn.init.constant_(parameter, 1.0 if name == "weight" else 0.0)

    @property
    def track_running_stats(self) -> bool:
        """Whether there are running statistics; without them eval uses the batch's own, as in torch.nn."""
        return bool(self._starts)

    def _check_input(self, x: Tensor) -> None:
        """ValueError for a rank or a channel count that is not the module's, and for one value to take a mean of."""
        name = type(self).__name__
        if x.dim() not in self.ranks:
            wanted = " or ".join(f"{rank}-dimensional" for rank in self.ranks)
            raise ValueError(f"{name} needs {wanted} input, got shape {list(x.shape)}")
        if x.shape[1] != self.num_features:
            raise ValueError(f"{name}({self.num_features}) got {x.shape[1]} channels")
        if self._by_batch():
            require_values(x)

    def _by_batch(self) -> bool:
        """Whether this call uses the batch's own statistics."""
        return self.training or not self._starts

    def _state(self, like: Tensor) -> list[Tensor]:
        """The running statistics; zeros in their place where none are kept."""
        if self._starts:
            return [self.get_buffer(name) for name in self._starts]
        return [torch.zeros(self.num_features, dtype=like.dtype, device=like.device)] * self.state_size

    def _next_momentum(self, like: Tensor) -> Tensor:
        """Counts this batch, and its share in the running statistics."""
        if not self._starts:
            return torch.zeros(1, dtype=torch.float64, device=like.device)
        tracked = self.get_buffer("num_batches_tracked")
        tracked.add_(1)
        return momentum_share(self.momentum, tracked)

    def _keep(self, following: tuple[Tensor, ...]) -> None:
        """Makes the next state the state. The operators detach it."""
        for name, value in zip(self._starts, following, strict=False):
            self.get_buffer(name).copy_(value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes checkpoints that count no batches."""
        if self._starts:
            state_dict.setdefault(prefix + "num_batches_tracked", self.get_buffer("num_batches_tracked").clone())
        super()._load_from_state_dict(state_dict, prefix, *args)


def affine_eval(
    x: Tensor, mean: Tensor, deviation: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """(x - mean) / deviation * weight + bias per channel, as a batch norm of variance 1 and epsilon 0.

    A batch norm is what an exporter and its optimizers know to fold. The deviation is divided into the weight: its
    square could overflow a half type.
    """
    if deviation is not None:
        wide = computing_dtype(mean)
        share = (torch.ones_like(mean) if weight is None else weight).to(wide) / deviation.to(wide)
        weight = share.to(mean.dtype)
    return F.batch_norm(x, mean, torch.ones_like(mean), weight, bias, training=False, momentum=0.0, eps=0.0)
