"""GlobalResponseNorm in both layouts against the paper's formula and timm's module, and exported."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onnxnorm.nn import GlobalResponseNorm

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

SHAPES = {"(N, C)": (5, 6), "1d": (3, 6, 7), "2d": (2, 6, 5, 4), "3d": (2, 6, 3, 4, 2)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
layouts = pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])


def laid_out(shape: tuple[int, ...], last: bool) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1]) if last else shape


def by_hand(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """The formula, over (N, C, S)."""
    first = x.movedim(-1, 1) if norm.channels_last else x
    flat = first.reshape(*first.shape[:2], -1)
    norms = flat.square().sum(2, keepdim=True).sqrt()
    response = norms / (norms.mean(1, keepdim=True) + norm.eps)
    y = (flat + norm.weight[:, None] * flat * response + norm.bias[:, None]).reshape(first.shape)
    return y.movedim(1, -1) if norm.channels_last else y


@layouts
@every_shape
def test_values_and_gradients(shape: tuple[int, ...], last: bool) -> None:
    norm, x = filled(GlobalResponseNorm(6, eps=1e-3, channels_last=last)), data(laid_out(shape, last))
    assert_same_values_and_gradients(norm, lambda x: by_hand(norm, x), x, list(norm.parameters()))


@pytest.mark.usefixtures("zoo")
@layouts
def test_timms_module(last: bool) -> None:
    other = filled(importlib.import_module("timm.layers.grn").GlobalResponseNorm(6, channels_last=last))
    norm = GlobalResponseNorm(6, channels_last=last).double()
    norm.load_state_dict(other.state_dict())
    x = data(laid_out(SHAPES["2d"], last))
    assert norm.eps == other.eps
    assert_same_values_and_gradients(norm, other, x, list(other.parameters()))


def test_a_channel_of_zeros_has_a_gradient() -> None:
    x = data((2, 6, 4, 4))
    x[:, 1] = 0.0
    (gradient,) = torch.autograd.grad(filled(GlobalResponseNorm(6))(x.requires_grad_()).sum(), [x])
    assert gradient.isfinite().all()


@layouts
def test_half_types(last: bool) -> None:
    norm = filled(GlobalResponseNorm(6, channels_last=last))
    assert_half_types_compute_in_float32(norm, laid_out(SHAPES["2d"], last))


def test_the_start_and_the_state() -> None:
    start = {name: value.tolist() for name, value in GlobalResponseNorm(2).state_dict().items()}
    assert start == {"weight": [0.0, 0.0], "bias": [0.0, 0.0]}
    assert GlobalResponseNorm(6, dtype=torch.float16, device="cpu").weight.dtype == torch.float16
    assert repr(GlobalResponseNorm(6)) == "GlobalResponseNorm(6, eps=1e-06, channels_last=False)"


def test_input_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"2 axes or more, got shape \[6\]"):
        GlobalResponseNorm(6)(torch.zeros(6))
    with pytest.raises(ValueError, match=r"GlobalResponseNorm\(6\) got 3 channels"):
        GlobalResponseNorm(6)(torch.zeros(2, 3, 3, 6))
    with pytest.raises(ValueError, match=r"GlobalResponseNorm\(6\) got 3 channels"):
        GlobalResponseNorm(6, channels_last=True)(torch.zeros(2, 6, 3, 3))


@layouts
@every_shape
def test_torch_export_keeps_one_operator(shape: tuple[int, ...], last: bool) -> None:
    norm = filled(GlobalResponseNorm(6, channels_last=last))
    assert_one_operator(norm, data(laid_out(shape, last)), "global_response_norm")


EXPORTS = [
    pytest.param(shape, last, dtype, target, id=f"{name}-{'last' if last else 'first'}-{dtype}-{target}")
    for name, shape in SHAPES.items()
    for last in (False, True)
    for dtype in ALL
    for target in ("onnxnorm", "standard")
    if (name == "2d" and (target == "onnxnorm" or dtype == torch.bfloat16)) or (dtype, target) == (ALL[0], "onnxnorm")
    if not last or name == "2d"
]


@pytest.mark.parametrize(("shape", "last", "dtype", "target"), EXPORTS)
def test_export(tmp_path: Path, shape: tuple[int, ...], last: bool, dtype: torch.dtype, target: str) -> None:
    norm = filled(GlobalResponseNorm(6, channels_last=last)).to(dtype).eval()
    shapes = [laid_out(each, last) for each in (shape, (1, 6, *(3 for _ in shape[2:])))]
    static = (len(shape) - 1,) if last else (1,)
    model = assert_export_equals(tmp_path, norm, shapes, dtype, static=static, target=target)
    if target == "standard":
        assert {node.domain for node in model.graph.node} == {""}
    else:
        assert attributes_of(model)["channels_last"] == int(last)


def test_an_activation_is_fused(tmp_path: Path) -> None:
    module = nn.Sequential(filled(GlobalResponseNorm(6)), nn.SiLU()).float().eval()
    model = assert_export_equals(tmp_path, module, [(2, 6, 5, 4)], torch.float32)
    assert attributes_of(model)["activation"] == b"silu"
