"""The catalogue's norms as users write them in PyTorch: no module of onnxnorm, each from its paper's formulas."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def spread(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view(1, -1, *[1] * (x.dim() - 2))


class HandBatchNorm(nn.Module):
    """Batch norm by hand, buffers reassigned, momentum None as a cumulative average."""

    def __init__(self, channels: int, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("steps", torch.tensor(0))
        self.momentum = momentum

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            axes = [0, *range(2, x.dim())]
            mean, var = x.mean(axes), x.var(axes, unbiased=False)
            count = x.numel() / x.size(1)
            with torch.no_grad():
                self.steps += 1
                share = 1.0 / float(self.steps) if self.momentum is None else self.momentum
                self.running_mean = (1 - share) * self.running_mean + share * mean
                self.running_var = (1 - share) * self.running_var + share * var * count / (count - 1)
        else:
            mean, var = self.running_mean, self.running_var
        y = (x - spread(mean, x)) / torch.sqrt(spread(var, x) + 1e-5)
        return y * spread(self.weight, x) + spread(self.bias, x)


class HandLayerNorm(nn.Module):
    """ConvNeXt's channels-first layer norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return spread(self.weight, x) * x + spread(self.bias, x)


class HandInstanceNorm(nn.Module):
    """Instance norm by std_mean, its tracked statistics moved by lerp_."""

    def __init__(self, channels: int, tracked: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))
        self.tracked = tracked
        if tracked:
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        if self.tracked and not self.training:
            var, mean = spread(self.running_var, flat), spread(self.running_mean, flat)
        else:
            var, mean = torch.var_mean(flat, dim=2, unbiased=False, keepdim=True)
            if self.tracked:
                with torch.no_grad():
                    self.running_mean.lerp_(mean.mean(0).squeeze(-1), 0.1)
                    self.running_var.lerp_(flat.var(2).mean(0), 0.1)
        y = (flat - mean) * torch.rsqrt(var + 1e-5)
        return (y * spread(self.weight, flat) + spread(self.bias, flat)).view_as(x)


class HandGroupNorm(nn.Module):
    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.reshape(x.shape[0], self.groups, -1)
        mean = grouped.mean(-1, keepdim=True)
        var = grouped.var(-1, keepdim=True, unbiased=False)
        y = ((grouped - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
        return y * spread(self.weight, x) + spread(self.bias, x)


class HandRMSNorm(nn.Module):
    """``order``: where the cast back to the input's type stands; ``shifted``: the weight is 1 + w."""

    def __init__(self, size: int, order: str = "llama", shifted: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size) * 0.3 + (0.0 if shifted else 1.0))
        self.order, self.shifted = order, shifted

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype != torch.float64 else x
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        if self.order == "llama":
            weight = 1 + self.weight if self.shifted else self.weight
            return weight * y.to(x.dtype)
        weight = self.weight.to(y.dtype)
        return (y * (1.0 + weight if self.shifted else weight)).to(x.dtype)


class HandChannelRMSNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5


class HandFilterResponseNorm(nn.Module):
    """In the way of the paper's code, with a learned epsilon: its absolute value is added to the least one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        shape = (1, channels, 1, 1)
        self.gamma, self.beta = nn.Parameter(torch.rand(shape) + 0.5), nn.Parameter(torch.randn(shape))
        self.tau = nn.Parameter(torch.randn(shape) * 0.5)
        self.eps = nn.Parameter(torch.full((1,), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        nu2 = torch.mean(x**2, dim=[2, 3], keepdim=True)
        x = x * torch.rsqrt(nu2 + 1e-6 + torch.abs(self.eps))
        return torch.max(self.gamma * x + self.beta, self.tau)


class HandEvoNormS0(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        shape, self.groups = (1, channels, 1, 1), groups
        self.gamma, self.beta = nn.Parameter(torch.rand(shape) + 0.5), nn.Parameter(torch.randn(shape))
        self.v = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        grouped = torch.reshape(x, (n, self.groups, c // self.groups, h, w))
        var = torch.var(grouped, dim=(2, 3, 4), keepdim=True, unbiased=False).expand_as(grouped)
        deviation = torch.reshape(torch.sqrt(var + 1e-5), (n, c, h, w))
        return x * torch.sigmoid(self.v * x) / deviation * self.gamma + self.beta


class HandGlobalResponseNorm(nn.Module):
    """ConvNeXt V2's own, channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.randn(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        gx = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        nx = gx / (gx.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * nx) + self.beta + x


class AuthorsStyleSwitchableNorm(nn.Module):
    """Written the way of the paper's published code: views, ``.data``, in-place buffers of shape (1, C, 1)."""

    def __init__(
        self,
        channels: int,
        *,
        using_moving_average: bool = True,
        using_bn: bool = True,
        one_dimensional: bool = False,
        last_gamma: bool = False,
    ) -> None:
        super().__init__()
        self.eps, self.momentum = 1e-5, 0.9
        self.moving, self.using_bn, self.flat = using_moving_average, using_bn, one_dimensional
        shape = (1, channels) if one_dimensional else (1, channels, 1)
        self.weight = nn.Parameter(torch.zeros(shape) if last_gamma else torch.rand(shape) + 0.5)
        self.bias = nn.Parameter(torch.randn(shape))
        branches = (2 if one_dimensional else 3) if using_bn else (1 if one_dimensional else 2)
        self.mean_weight, self.var_weight = nn.Parameter(torch.randn(branches)), nn.Parameter(torch.randn(branches))
        if using_bn:
            self.register_buffer("running_mean", torch.zeros(shape))
            self.register_buffer("running_var", torch.zeros(shape))

    def _batch(self, mean_bn: Tensor, var_bn: Tensor) -> None:
        if self.moving:
            self.running_mean.mul_(self.momentum)
            self.running_mean.add_((1 - self.momentum) * mean_bn.data)
            self.running_var.mul_(self.momentum)
            self.running_var.add_((1 - self.momentum) * var_bn.data)
        else:
            self.running_mean.add_(mean_bn.data)
            self.running_var.add_(mean_bn.data**2 + var_bn.data)

    def forward(self, input: Tensor) -> Tensor:
        softmax = nn.Softmax(0)
        mean_weight, var_weight = softmax(self.mean_weight), softmax(self.var_weight)
        if self.flat:
            x = input
            mean_ln, var_ln = x.mean(1, keepdim=True), x.var(1, keepdim=True)
            means, variances = [mean_ln], [var_ln]
        else:
            x = input.view(input.size(0), input.size(1), -1)
            mean_in, var_in = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
            mean_ln = mean_in.mean(1, keepdim=True)
            temp = var_in + mean_in**2
            var_ln = temp.mean(1, keepdim=True) - mean_ln**2
            means, variances = [mean_in, mean_ln], [var_in, var_ln]
        if self.using_bn:
            if self.training:
                if self.flat:
                    mean_bn, var_bn = x.mean(0, keepdim=True), x.var(0, keepdim=True)
                else:
                    mean_bn = mean_in.mean(0, keepdim=True)
                    var_bn = temp.mean(0, keepdim=True) - mean_bn**2
                self._batch(mean_bn, var_bn)
            else:
                mean_bn = torch.autograd.Variable(self.running_mean)
                var_bn = torch.autograd.Variable(self.running_var)
            means.append(mean_bn)
            variances.append(var_bn)
        mean = sum(weight * value for weight, value in zip(mean_weight, means, strict=True))
        var = sum(weight * value for weight, value in zip(var_weight, variances, strict=True))
        x = (x - mean) / (var + self.eps).sqrt()
        return (x * self.weight + self.bias).view(input.shape)


class HandBatchInstanceNorm(nn.modules.batchnorm._BatchNorm):
    """In the way of the paper's published code: a subclass of _BatchNorm with a gate."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(channels, **kwargs)
        self.rho = nn.Parameter(torch.linspace(-0.3, 1.3, channels))

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        rho = self.rho.clamp(0, 1)
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        batch = F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight * rho,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum,
            self.eps,
        )
        b, c = input.size(0), input.size(1)
        weight = (self.weight * (1 - rho)).repeat(b)
        flat = input.reshape(1, b * c, *input.size()[2:])
        instance = F.batch_norm(flat, None, None, weight, None, True, self.momentum or 0.0, self.eps)
        return batch + instance.view(b, c, *input.size()[2:])


class HandBatchRenorm(nn.Module):
    def __init__(self, channels: int, r_max: float = 1.5, d_max: float = 0.5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_std", torch.ones(channels))
        self.r_max, self.d_max = r_max, d_max

    def forward(self, x: Tensor) -> Tensor:
        mean_r, std_r = self.running_mean, self.running_std
        if self.training:
            axes = [0, *range(2, x.dim())]
            mean_b = x.mean(axes)
            std_b = (x.var(axes, unbiased=False) + 1e-5).sqrt()
            r = (std_b.detach() / std_r).clamp(1 / self.r_max, self.r_max)
            d = ((mean_b.detach() - mean_r) / std_r).clamp(-self.d_max, self.d_max)
            x = (x - spread(mean_b, x)) / spread(std_b, x) * spread(r, x) + spread(d, x)
            self.running_mean += 0.1 * (mean_b.detach() - mean_r)
            self.running_std += 0.1 * (std_b.detach() - std_r)
        else:
            x = (x - spread(mean_r, x)) / spread(std_r, x)
        return spread(self.weight, x) * x + spread(self.bias, x)


class HandMeanOnlyBatchNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(channels))
        self.register_buffer("average_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.average_mean
        if self.training:
            mean = x.mean(dim=[0, *range(2, x.dim())])
            self.average_mean.copy_(0.9 * self.average_mean + 0.1 * mean.detach())
        return x - spread(mean, x) + spread(self.bias, x)


class HandL1BatchNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_sigma", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            axes = [0, *range(2, x.dim())]
            mean = x.mean(axes)
            sigma = (x - spread(mean, x)).abs().mean(axes) * math.sqrt(math.pi / 2)
            with torch.no_grad():
                self.running_mean.mul_(0.9).add_(mean, alpha=0.1)
                self.running_sigma.mul_(0.9).add_(sigma, alpha=0.1)
        else:
            mean, sigma = self.running_mean, self.running_sigma
        return (x - spread(mean, x)) / (spread(sigma, x) + 1e-5) * spread(self.weight, x) + spread(self.bias, x)


class HandWeightNormConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.g = nn.Parameter(torch.rand(outputs) + 0.5)
        self.b = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        norm = self.v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return F.conv2d(x, self.g.view(-1, 1, 1, 1) * self.v / norm, self.b)


class HandSpectralLinear(nn.Module):
    """One power iteration a step, u moved by copy_; sigma by u^T W v."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.randn(outputs))
        self.register_buffer("u", F.normalize(torch.randn(outputs), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            v = F.normalize(self.weight.t() @ self.u, dim=0)
            if self.training:
                self.u.copy_(F.normalize(self.weight @ v, dim=0))
        sigma = torch.dot(self.u, self.weight @ v)
        return F.linear(x, self.weight / sigma, self.bias)


class HandStandardizedConv(nn.Conv2d):
    """Weight standardization as in the paper's code."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
        weight = weight - mean
        std = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        weight = weight / std.expand_as(weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class HandStandardization(nn.Module):
    """Input normalization with constants, then a layer."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("mean", torch.randn(shape))
        self.register_buffer("std", torch.rand(shape) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x - self.mean) / self.std)


class HandUnitLength(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(p=self.p, dim=1, keepdim=True).clamp_min(1e-12)


class HandWhitening(nn.Module):
    def __init__(self, size: int, layer: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(size))
        self.register_buffer("matrix", torch.randn(size, size))
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x - self.mean) @ self.matrix.T)
