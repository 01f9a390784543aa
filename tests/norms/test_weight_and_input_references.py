"""The definitions of norms that are no operators, against PyTorch's, timm's and onnxnorm's modules in float64."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import onnxnorm.nn as own
from onnxnorm.norms import input_normalization, spectral_norm, weight_norm, weight_standardization


def array(tensor: Tensor) -> Any:
    return tensor.detach().numpy()


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_weight_norm(dim: int) -> None:
    conv = parametrizations.weight_norm(seeded(lambda: nn.Conv1d(3, 4, 5)), dim=dim)
    length, direction = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
    wanted = weight_norm.reference(array(direction), array(length), None if dim == -1 else dim)
    np.testing.assert_allclose(array(conv.weight), wanted, rtol=1e-13)


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(3, 4), lambda: nn.ConvTranspose2d(3, 4, 2)], ids=["Linear", "ConvTranspose2d"]
)
def test_spectral_norm(make: Callable[[], nn.Module]) -> None:
    """ConvTranspose has its output channels on axis 1; three steps of power iteration, then evaluation."""
    layer = parametrizations.spectral_norm(seeded(make))
    dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    state = layer.parametrizations.weight[0]
    weight = array(layer.parametrizations.weight.original)
    u, v = array(state._u).copy(), array(state._v).copy()
    for _ in range(3):
        u, v = spectral_norm.power_iteration(weight, u, v, dim, u_first=True)
        stepped = array(layer.weight)
        np.testing.assert_allclose(stepped, spectral_norm.reference(weight, u, v, dim), rtol=1e-12)
    np.testing.assert_allclose(array(state._u), u, rtol=1e-12)
    np.testing.assert_allclose(array(layer.eval().weight), spectral_norm.reference(weight, u, v, dim), rtol=1e-12)


def test_spectral_norm_by_hooks() -> None:
    layer = nn.utils.spectral_norm(seeded(lambda: nn.Conv1d(3, 4, 2)))
    weight, u, v = (array(getattr(layer, name)).copy() for name in ("weight_orig", "weight_u", "weight_v"))
    for _ in range(2):
        layer(torch.zeros(1, 3, 4, dtype=torch.float64))
        u, v = spectral_norm.power_iteration(weight, u, v)
        np.testing.assert_allclose(array(layer.weight), spectral_norm.reference(weight, u, v), rtol=1e-12)


@pytest.mark.usefixtures("zoo")
def test_weight_standardization() -> None:
    layers = importlib.import_module("timm.layers")
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    plain = seeded(lambda: layers.StdConv2d(3, 4, 3))
    weight = weight_standardization.reference(array(plain.weight), plain.eps)
    wanted = nn.functional.conv2d(x, torch.from_numpy(weight), plain.bias, padding=plain.padding)
    np.testing.assert_allclose(array(plain(x)), array(wanted), rtol=1e-11, atol=1e-12)
    scaled = seeded(lambda: layers.ScaledStdConv2d(3, 4, 3))
    scale = array(scaled.gain) * scaled.scale
    weight = weight_standardization.reference(array(scaled.weight), scaled.eps, scale)
    wanted = nn.functional.conv2d(x, torch.from_numpy(weight), scaled.bias, padding=scaled.padding)
    np.testing.assert_allclose(array(scaled(x)), array(wanted), rtol=1e-11, atol=1e-12)


def data(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return torch.randn(40, 4, generator=generator, dtype=torch.float64) @ mix * 3 + 2


AFFINE = {
    "min-max": (own.MinMaxScaling, input_normalization.min_max),
    "mean": (own.MeanNormalization, input_normalization.mean_normalization),
    "centering": (own.Centering, input_normalization.centering),
    "standardization": (own.Standardization, input_normalization.standardization),
    "zca": (own.ZCAWhitening, input_normalization.zca_whitening),
}
TURNED = {
    "pca": (own.PCADecorrelation, input_normalization.decorrelation),
    "pca-whitening": (own.PCAWhitening, input_normalization.pca_whitening),
}


@pytest.mark.parametrize("name", list(AFFINE))
def test_input_normalization(name: str) -> None:
    kind, reference = AFFINE[name]
    norm = kind(dtype=torch.float64).fit(data(0))
    np.testing.assert_allclose(array(norm(data(1))), reference(array(data(0)), array(data(1))), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", list(TURNED))
def test_principal_components(name: str) -> None:
    """The sign of a component is free."""
    kind, reference = TURNED[name]
    norm = kind(dtype=torch.float64).fit(data(0))
    wanted = np.abs(reference(array(data(0)), array(data(1))))
    np.testing.assert_allclose(np.abs(array(norm(data(1)))), wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, float("inf")])
def test_unit_length(p: float) -> None:
    wanted = input_normalization.unit_length(array(data(1)), p)
    np.testing.assert_allclose(array(own.UnitLength(p)(data(1))), wanted, rtol=1e-13)
