"""EvoNorm1dS0, 2dS0 and 3dS0 against the paper's formula and timm's module, and exported."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxnorm
from onnxnorm.nn import EvoNorm1dS0, EvoNorm2dS0, EvoNorm3dS0

from .exports import assert_export_equals
from .stateless import (
    ALL,
    assert_half_types_compute_in_float32,
    assert_one_operator,
    assert_same_values_and_gradients,
    attributes_of,
    data,
    filled,
)

SHAPES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "1d (N, C)": (EvoNorm1dS0, (5, 6)),
    "1d (N, C, L)": (EvoNorm1dS0, (3, 6, 7)),
    "2d": (EvoNorm2dS0, (2, 6, 5, 4)),
    "3d": (EvoNorm3dS0, (2, 6, 3, 4, 2)),
}
every_shape = pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=list(SHAPES))


def by_hand(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """The formula, over (N, C, S)."""
    flat = x.reshape(*x.shape[:2], -1)
    grouped = flat.reshape(x.shape[0], norm.num_groups, -1)
    deviation = (grouped.var(2, unbiased=False, keepdim=True) + norm.eps).sqrt()
    gated = flat * torch.sigmoid(norm.v[:, None] * flat)
    y = (gated.reshape(grouped.shape) / deviation).reshape(flat.shape)
    return (y * norm.weight[:, None] + norm.bias[:, None]).reshape(x.shape)


@pytest.mark.parametrize("groups", [1, 2])
@every_shape
def test_values_and_gradients(kind: type[nn.Module], shape: tuple[int, ...], groups: int) -> None:
    norm = filled(kind(6, num_groups=groups, eps=1e-3))
    assert_same_values_and_gradients(norm, lambda x: by_hand(norm, x), data(shape), list(norm.parameters()))


@pytest.mark.usefixtures("zoo")
def test_timms_module() -> None:
    """Float32, as timm's statistics always are."""
    layers = importlib.import_module("timm.layers")
    other = layers.EvoNorm2dS0(64)
    norm = EvoNorm2dS0(64)
    assert (norm.num_groups, norm.eps) == (other.groups, other.eps)
    norm.load_state_dict(filled(other).float().state_dict())
    x = data((2, 64, 5, 4)).float()
    torch.testing.assert_close(norm(x), other(x))


@every_shape
def test_half_types(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    assert_half_types_compute_in_float32(filled(kind(6, num_groups=2)), shape)


def test_the_start_and_the_state() -> None:
    start = {name: value.tolist() for name, value in EvoNorm2dS0(2, 1).state_dict().items()}
    assert start == {"weight": [1.0, 1.0], "bias": [0.0, 0.0], "v": [1.0, 1.0]}
    assert EvoNorm3dS0(6, 2, dtype=torch.float16, device="cpu").v.dtype == torch.float16
    assert repr(EvoNorm1dS0(6, 3)) == "EvoNorm1dS0(6, num_groups=3, eps=1e-05)"
    norm = filled(EvoNorm2dS0(2, 1))
    norm.reset_parameters()
    assert {name: value.tolist() for name, value in norm.state_dict().items()} == start


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"num_groups is 32; it must divide the 6 channels"):
        EvoNorm2dS0(6)
    with pytest.raises(ValueError, match=r"num_groups is 0; it must divide"):
        EvoNorm2dS0(6, 0)
    with pytest.raises(ValueError, match=r"EvoNorm2dS0 needs 4-dimensional.*\[2, 6, 3\]"):
        EvoNorm2dS0(6, 2)(torch.zeros(2, 6, 3))
    with pytest.raises(ValueError, match=r"EvoNorm1dS0\(6\) got 5 channels"):
        EvoNorm1dS0(6, 2)(torch.zeros(2, 5))


@every_shape
def test_torch_export_keeps_one_operator(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    assert_one_operator(filled(kind(6, num_groups=2)), data(shape), "evo_norm_s0")


EXPORTS = [
    pytest.param(kind, shape, dtype, target, id=f"{name}-{dtype}-{target}")
    for name, (kind, shape) in SHAPES.items()
    for dtype in ALL
    for target in ("onnxnorm", "standard")
    if (name == "2d" and (target == "onnxnorm" or dtype == torch.bfloat16)) or (dtype, target) == (ALL[0], "onnxnorm")
]


@pytest.mark.parametrize(("kind", "shape", "dtype", "target"), EXPORTS)
def test_export(tmp_path: Path, kind: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype, target: str) -> None:
    norm = filled(kind(6, num_groups=3)).to(dtype).eval()
    model = assert_export_equals(tmp_path, norm, [shape, (1, 6, *(3 for _ in shape[2:]))], dtype, target=target)
    if target == "standard":
        assert {node.domain for node in model.graph.node} == {""}
    else:
        assert attributes_of(model)["num_groups"] == 3


def test_large_mean() -> None:
    """Mean 1e4 and standard deviation 2, in PyTorch and exported."""
    norm = filled(EvoNorm2dS0(6, 2)).float().eval()
    x = (data((2, 6, 16, 16)) + 1e4).float()
    truth = copy.deepcopy(norm).double()(x.double()).detach().numpy()
    session = onnxnorm.InferenceSession(
        onnxnorm.export(norm, (x,)).model, providers=["CPUExecutionProvider"], library=True
    )
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for output in (y, norm(x).detach().numpy()):
        assert np.abs(output - truth).max() <= 8 * 2.0**-23 * np.abs(truth).max()
