"""Norms that users write by hand, inside whole models, in every element type: they load and agree with float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import onnxnorm
from onnxnorm.nn import SwitchableNorm2d

from .conftest import assert_equals_module, export_to, lively, randn

#: Without the reference evaluator: its float16 and bfloat16 arithmetic is not that of a runtime.
WAYS = ("plain onnxruntime", "native library")
HALVES = [torch.float16, torch.bfloat16]


class Affine(nn.Module):
    """The parameters of a norm over C channels, and an epsilon."""

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def affine(self, x: torch.Tensor) -> torch.Tensor:
        spread = (1, -1, *(1,) * (x.ndim - 2))
        return x * self.weight.view(spread) + self.bias.view(spread)


class InstanceNorm(Affine):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((2, 3), keepdim=True)
        var = ((x - mean) ** 2).mean((2, 3), keepdim=True)
        return self.affine((x - mean) / torch.sqrt(var + self.eps))


class InstanceNormVar(Affine):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        var, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, unbiased=False)
        return self.affine((x - mean) * torch.rsqrt(var + self.eps))


class LayerNorm(Affine):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True, unbiased=False)
        return self.affine((x - mean) / (std + self.eps))


class GroupNorm(Affine):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        y = x.reshape(n, 2, -1)
        y = (y - y.mean(-1, keepdim=True)) / torch.sqrt(y.var(-1, keepdim=True, unbiased=False) + self.eps)
        return self.affine(y.reshape(n, c, h, w))


class RMSNorm(Affine):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.affine(x * (x.pow(2).mean(1, keepdim=True) + self.eps).pow(-0.5))


class UnitLength(Affine):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.affine(F.normalize(x, dim=1) * x.shape[1] ** 0.5)


class Length(Affine):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.norm(x, dim=1, keepdim=True) / x.shape[1] ** 0.5
        return self.affine(x / length.clamp(min=self.eps))


class BatchNorm(Affine):
    """With running statistics, by hand."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("mean", torch.linspace(-0.5, 0.5, channels))
        self.register_buffer("var", torch.linspace(0.5, 1.5, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spread = (1, -1, 1, 1)
        return self.affine((x - self.mean.view(spread)) / (self.var.view(spread) + self.eps).sqrt())


class BatchInstanceNorm(BatchNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.rho = nn.Parameter(torch.rand(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spread = (1, -1, 1, 1)
        batch = (x - self.mean.view(spread)) * torch.rsqrt(self.var.view(spread) + self.eps)
        var, mean = torch.var_mean(x, dim=(2, 3), keepdim=True)
        instance = (x - mean) * torch.rsqrt(var + self.eps)
        rho = self.rho.clamp(0, 1).view(spread)
        return self.affine(rho * batch + (1 - rho) * instance)


class SwitchableNorm(BatchNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.mean_weight, self.var_weight = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean_in, var_in = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True)
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = (var_in + mean_in**2).mean(1, keepdim=True) - mean_ln**2
        a, b = torch.softmax(self.mean_weight, 0), torch.softmax(self.var_weight, 0)
        mean = a[0] * mean_in + a[1] * mean_ln + a[2] * self.mean.view(1, -1, 1, 1)
        var = b[0] * var_in + b[1] * var_ln + b[2] * self.var.view(1, -1, 1, 1)
        return self.affine((x - mean) / (var + self.eps).sqrt())


NORMS: dict[str, Callable[[int], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(InstanceNorm, InstanceNormVar, LayerNorm, GroupNorm, RMSNorm, UnitLength, Length),
        *(BatchNorm, BatchInstanceNorm, SwitchableNorm),
    )
}
NORMS |= {
    "torch-batch": nn.BatchNorm2d,
    "torch-group": lambda c: nn.GroupNorm(2, c),
    "torch-instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "our-switchable": SwitchableNorm2d,
}


class StandardizedConv(nn.Conv2d):
    """Weight standardization."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, padding=1)


class Net(nn.Module):
    """Convolution, norm, standardized convolution, norm, pooling, linear."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), norm(8)
        self.second, self.norm2 = StandardizedConv(8, 8, 3), norm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.norm1(self.first(x)))
        x = F.gelu(self.norm2(self.second(x)) + x)
        result: torch.Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return result


def in_half(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return module.to(dtype)


#: Each in bfloat16, for which operators change; in float16, for which they do not, every second.
IN_HALF = [*((name, torch.bfloat16) for name in NORMS), *((name, torch.float16) for name in list(NORMS)[::2])]


@pytest.mark.parametrize(("name", "dtype"), IN_HALF)
def test_models_in_half(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    module = in_half(lively(Net(NORMS[name])), dtype)
    x = randn(2, 3, 6, 6).to(dtype)
    path, _, _ = export_to(tmp_path, module, (x,), dynamic_shapes=({0: "batch"},))
    for batch in (2, 3):
        assert_equals_module(path, module, (randn(batch, 3, 6, 6, seed=batch).to(dtype),), ways=WAYS)


@pytest.mark.parametrize(
    ("name", "opset"), [("LayerNorm", 18), ("torch-group", 18), ("torch-group", 23), ("torch-instance", 26)]
)
def test_standard_form_in_bfloat16(name: str, opset: int, tmp_path: Path) -> None:
    module = in_half(lively(Net(NORMS[name])), torch.bfloat16)
    x = randn(2, 3, 6, 6).bfloat16()
    path, _, _ = export_to(tmp_path, module, (x,), target="standard", opset=opset, dynamic_shapes=({0: "batch"},))
    assert_equals_module(path, module, (x,), ways=("plain onnxruntime",))


class Alone(nn.Module):
    """A norm between pointwise operators: ONNX Runtime's CPU provider has no float64 convolution."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm, self.head = norm(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.elu(self.norm(0.3 * x)) + F.gelu(x, approximate="tanh") * 0.1
        result: torch.Tensor = self.head(F.adaptive_avg_pool2d(F.softplus(F.hardswish(x)), 1).flatten(1))
        return result


#: The target makes a difference where there is an op of onnxnorm.
IN_FLOAT64 = [
    *((name, "onnxnorm") for name in NORMS if name != "LayerNorm"),
    *((name, "standard") for name in ("RMSNorm", "torch-batch", "torch-group", "torch-instance", "our-switchable")),
]


@pytest.mark.parametrize(("name", "target"), IN_FLOAT64)
def test_norms_in_float64(name: str, target: str, tmp_path: Path) -> None:
    module = lively(Alone(NORMS[name])).double()
    x = randn(2, 8, 6, 6).double()
    path, _, _ = export_to(tmp_path, module, (x,), target=target, dynamic_shapes=({0: "batch"},))
    ways = WAYS if target == "onnxnorm" else WAYS[:1]
    assert_equals_module(path, module, (randn(3, 8, 6, 6).double(),), ways=ways, factor=64.0)


def test_convolution_in_float64_is_told(tmp_path: Path) -> None:
    module = lively(Net(NORMS["torch-batch"])).double()
    _, _, result = export_to(tmp_path, module, (randn(2, 3, 6, 6).double(),))
    told = [str(item) for item in result.decisions if item.rule == "lower/unsupported-type"]
    assert len(told) == 2
    assert all("ONNX Runtime's CPU provider has no float64 Conv" in line for line in told)


def test_numbers_keep_their_digits_in_float64(tmp_path: Path) -> None:
    class Scale(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 0.1 + 1 / 3) / 0.7

    x = randn(4).double()
    path, _, _ = export_to(tmp_path, Scale(), (x,))
    assert_equals_module(path, Scale(), (x,))


# --- group norm of rank 2 -----------------------------------------------------------------------------------------


class Rows(nn.Module):
    """Group norm of (N, C): the module, and the function with and without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.gn, self.w = nn.GroupNorm(2, 8), nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.gn(x), F.group_norm(x, 4), F.silu(F.group_norm(x, 1, self.w))


@pytest.mark.parametrize(("opset", "target"), [(18, "onnxnorm"), (23, "standard")])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES, torch.float64], ids=lambda dtype: str(dtype)[6:])
def test_group_norm_of_rank_2(dtype: torch.dtype, opset: int, target: str, tmp_path: Path) -> None:
    module = lively(Rows()).to(dtype)
    options: dict[str, Any] = {"target": target, "opset": opset, "dynamic_shapes": ({0: "batch"},)}
    path, _, _ = export_to(tmp_path, module, (randn(3, 8).to(dtype),), **options)
    ways = WAYS if target == "onnxnorm" else WAYS[:1]
    for batch in (1, 5):
        assert_equals_module(path, module, (randn(batch, 8, seed=batch).to(dtype),), ways=ways, factor=16.0)


def test_provider_cuda_leaves_bfloat16_alone() -> None:
    module = lively(Rows()).bfloat16()
    result = onnxnorm.export(module, randn(3, 8).bfloat16(), provider="cuda")
    assert all(node.op_type != "Cast" for node in result.model.graph)
