"""Models that normalize their inputs: exported, nothing is left of it where that is exact, and the result agrees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onnxnorm.nn import (
    Centering,
    MeanNormalization,
    MinMaxScaling,
    PCADecorrelation,
    PCAWhitening,
    Standardization,
    UnitLength,
    ZCAWhitening,
    prepend,
)

from .conftest import assert_equals_module, export_to, lively, randn

MODULES: dict[str, Callable[[int], nn.Module]] = {
    "min-max": lambda axis: MinMaxScaling(axis=axis),
    "min-max [-1, 1]": lambda axis: MinMaxScaling((-1, 1), axis),
    "mean": MeanNormalization,
    "standard": Standardization,
    "centre": Centering,
    "PCA": PCADecorrelation,
    "PCA whitening": PCAWhitening,
    "ZCA": ZCAWhitening,
}
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=list(MODULES))
WAYS = ("plain onnxruntime", "reference evaluator")


class Side(nn.Module):
    """Several normalizations of one input, each an output."""

    def __init__(self, kinds: Any, axis: int, data: torch.Tensor) -> None:
        super().__init__()
        self.norms = nn.ModuleList([make(axis).fit(data) for make in kinds])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [norm(x) for norm in self.norms]


def features(*shape: int, seed: int = 1) -> torch.Tensor:
    """Means within a few standard deviations, and some correlation."""
    mix = torch.eye(shape[-1]) + 0.3 * randn(shape[-1], shape[-1], seed=7)
    return randn(*shape, seed=seed) @ mix + 2.0 * randn(shape[-1], seed=8)


def images(count: int, seed: int = 1) -> torch.Tensor:
    """Like photographs in [0, 1]."""
    return torch.sigmoid(randn(count, 3, 9, 8, seed=seed) + randn(1, 3, 1, 1, seed=8))


def exported(folder: Path, module: nn.Module, x: torch.Tensor, other: torch.Tensor, **options: Any) -> list[str]:
    """Exports with a dynamic batch, runs on another batch size, and returns the operators."""
    batch = torch.export.Dim("batch")
    path, model, result = export_to(folder, module, (x,), dynamic_shapes=({0: batch},), verify=True, **options)
    assert not any(item.action.value == "reverted" for item in result.decisions), result.explain()
    assert_equals_module(path, module, (other,), ways=WAYS)
    return [node.op_type for node in model.graph.node]


@every_module
def test_linear(tmp_path: Path, make: Any) -> None:
    norm = make(-1).fit(features(200, 5))
    both = prepend(norm, lively(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))))
    assert exported(tmp_path, both, features(2, 5), features(3, 5)) == ["Gemm", "Relu", "Gemm"]


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_opsets(tmp_path: Path, opset: int) -> None:
    both = prepend(Standardization(1).fit(images(50)), lively(nn.Conv2d(3, 6, 3, padding=1)))
    assert exported(tmp_path, both, images(2), images(3), opset=opset) == ["Add", "Conv"]


@pytest.mark.parametrize("make", [Centering, PCAWhitening])
def test_linear_without_bias(tmp_path: Path, make: Any) -> None:
    both = prepend(make(-1).fit(features(200, 5)), lively(nn.Linear(5, 8, bias=False)))
    assert exported(tmp_path, both, features(2, 5), features(3, 5)) == ["Gemm"]


@pytest.mark.parametrize("make", [Standardization, ZCAWhitening])
def test_sequences(tmp_path: Path, make: Any) -> None:
    both = prepend(make(-1).fit(features(40, 6, 5)), lively(nn.Linear(5, 8)))
    assert exported(tmp_path, both, features(2, 6, 5), features(3, 6, 5)) == ["MatMul", "Add"]


@pytest.mark.parametrize("name", ["min-max", "standard", "centre", "PCA", "ZCA"])
def test_convolution(tmp_path: Path, name: str) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    both = prepend(MODULES[name](1).fit(images(50)), lively(layers))  # type: ignore[operator]
    assert exported(tmp_path, both, images(2), images(3)) == ["Conv", "Relu"]


@pytest.mark.parametrize("name", ["min-max [-1, 1]", "mean", "centre", "PCA whitening", "ZCA"])
def test_padded_convolution(tmp_path: Path, name: str) -> None:
    """One operation on the input stays at most: the shift."""
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    operators = exported(tmp_path, prepend(MODULES[name](1).fit(images(50)), lively(layers)), images(2), images(3))  # type: ignore[operator]
    assert operators[1:] == ["Conv", "Relu"]
    assert operators[0] in ("Add", "Sub")


@pytest.mark.parametrize("p", [1, 2, 3, float("inf")])
def test_unit_length(tmp_path: Path, p: float) -> None:
    x = features(3, 5)
    x[1] = 0.0
    exported(tmp_path, prepend(UnitLength(p), lively(nn.Linear(5, 4))), features(2, 5), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_norms_alone_in_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    """One module of all of them, on features and on channels."""
    kinds = (*MODULES.values(), lambda axis: UnitLength(2, axis))
    for axis, data in ((-1, features(60, 5)), (1, images(30))):
        folder = tmp_path / str(axis)
        folder.mkdir()
        exported(folder, Side(kinds, axis, data).to(dtype), data[:2].to(dtype), data[2:5].to(dtype))


def test_norms_alone_in_bfloat16(tmp_path: Path) -> None:
    """ONNX Runtime's CPU has no arithmetic for bfloat16: the modules compute in float32."""
    data = features(60, 5)
    module = Side((*MODULES.values(), lambda axis: UnitLength(2, axis)), -1, data).bfloat16()
    exported(tmp_path, module, data[:2].bfloat16(), data[2:5].bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_linear_in_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    norm = Standardization().fit(features(200, 5))
    both = prepend(norm, lively(nn.Linear(5, 8))).to(dtype)
    operators = exported(tmp_path, both, features(2, 5).to(dtype), features(3, 5).to(dtype))
    assert [name for name in operators if name != "Cast"] == ["Gemm"]


# --- what users write themselves ----------------------------------------------------------------------------------


class Standardize(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(shape))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


class TorchvisionStyle(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = torch.as_tensor([0.485, 0.456, 0.406], dtype=x.dtype).view(-1, 1, 1)
        std = torch.as_tensor([0.229, 0.224, 0.225], dtype=x.dtype).view(-1, 1, 1)
        return x.sub(mean).div(std)


class Pixels(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 255 / 127.5 - 1


class Reciprocal(Standardize):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(-self.mean / self.std, x, 1.0 / self.std)


USERS: dict[str, Callable[[], nn.Module]] = {
    "buffers (1, 3, 1, 1)": lambda: Standardize((1, 3, 1, 1)),
    "buffers (3, 1, 1)": lambda: Standardize((3, 1, 1)),
    "view(-1, 1, 1)": TorchvisionStyle,
    "pixels": Pixels,
    "addcmul": lambda: Reciprocal((1, 3, 1, 1)),
    "batch norm": lambda: nn.BatchNorm2d(3),
    "batch norm without weights": lambda: nn.BatchNorm2d(3, affine=False),
}


@pytest.mark.parametrize(
    ("name", "padding"), [*((name, 1) for name in USERS), *((name, 0) for name in ("addcmul", "pixels", "batch norm"))]
)
def test_users_own(tmp_path: Path, name: str, padding: int) -> None:
    model = lively(nn.Sequential(USERS[name](), nn.Conv2d(3, 6, 3, padding=padding), nn.BatchNorm2d(6), nn.ReLU()))
    operators = exported(tmp_path, model, images(2), images(3))
    assert operators == (["Add"] if padding else []) + ["Conv", "Relu"]


def test_flattened(tmp_path: Path) -> None:
    model = lively(nn.Sequential(Standardize((3, 1, 1)), nn.Flatten(), nn.Linear(216, 4)))
    assert exported(tmp_path, model, images(2), images(3)) == ["Reshape", "Gemm"]


def test_whitening_by_hand(tmp_path: Path) -> None:
    class Whiten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.matrix = nn.Parameter(randn(5)), nn.Parameter(randn(5, 5, seed=2))
            self.head = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.head((x - self.mean) @ self.matrix.T))

    assert exported(tmp_path, Whiten(), features(2, 5), features(3, 5)) == ["Gemm", "Relu"]


def test_one_channel_that_broadcasts_to_three(tmp_path: Path) -> None:
    """A grey image minus three means is three channels: nothing may be folded."""
    model = lively(nn.Sequential(Standardize((3, 1, 1)), nn.Conv2d(3, 6, 3)))
    assert exported(tmp_path, model, images(2)[:, :1], images(3)[:, :1])[-1] == "Conv"


def test_a_mean_far_from_zero(tmp_path: Path) -> None:
    """The subtraction stays in front; in the bias it would cost four digits."""
    data = features(200, 5) + 1e4
    both = prepend(Standardization().fit(data), lively(nn.Linear(5, 8)))
    assert exported(tmp_path, both, data[:2], data[2:5]) == ["Add", "Gemm"]


def test_disabled(tmp_path: Path) -> None:
    model = lively(nn.Sequential(Standardize((3, 1, 1)), nn.Conv2d(3, 6, 3)))
    operators = exported(tmp_path, model, images(2), images(3), disable=["fold/affine-into-conv"])
    assert operators == ["BatchNormalization", "Conv"]  # one node in place of two


def test_the_standard_target(tmp_path: Path) -> None:
    model = lively(nn.Sequential(Standardize((3, 1, 1)), nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)))
    exported(tmp_path, model, images(2), images(3), target="standard")
    loaded = onnx.load(tmp_path / "model.onnx")
    assert loaded.graph.node[0].op_type == "Conv"
