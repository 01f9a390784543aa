"""FilterResponseNorm1d/2d/3d against the paper's formula and timm's modules, and exported."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onnxnorm.nn import FilterResponseNorm1d, FilterResponseNorm2d, FilterResponseNorm3d

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
    "1d (N, C)": (FilterResponseNorm1d, (5, 6)),
    "1d (N, C, L)": (FilterResponseNorm1d, (3, 6, 7)),
    "2d": (FilterResponseNorm2d, (2, 6, 5, 4)),
    "3d": (FilterResponseNorm3d, (2, 6, 3, 4, 2)),
}
every_shape = pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=list(SHAPES))


def by_hand(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """The formula, over (N, C, S)."""
    flat = x.reshape(*x.shape[:2], -1)
    y = flat / (flat.square().mean(2, keepdim=True) + norm.eps).sqrt()
    y = y * norm.weight[:, None] + norm.bias[:, None]
    y = y if norm.tau is None else torch.maximum(y, norm.tau[:, None])
    return y.reshape(x.shape)


@pytest.mark.parametrize("tlu", [True, False])
@every_shape
def test_values_and_gradients(kind: type[nn.Module], shape: tuple[int, ...], tlu: bool) -> None:
    norm = filled(kind(6, eps=1e-3, tlu=tlu))
    assert_same_values_and_gradients(norm, lambda x: by_hand(norm, x), data(shape), list(norm.parameters()))


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("tlu", [True, False])
def test_timms_modules(tlu: bool) -> None:
    """Float32, as timm's statistics always are."""
    layers = importlib.import_module("timm.layers")
    other = layers.FilterResponseNormTlu2d(6) if tlu else layers.FilterResponseNormAct2d(6, apply_act=False)
    norm = FilterResponseNorm2d(6, eps=other.eps, tlu=tlu)
    norm.load_state_dict(filled(other).float().state_dict())
    x = data((2, 6, 5, 4)).float()
    torch.testing.assert_close(norm(x), other(x))


@every_shape
def test_half_types(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    assert_half_types_compute_in_float32(filled(kind(6)), shape)


def test_the_start_and_the_state() -> None:
    start = {name: value.tolist() for name, value in FilterResponseNorm2d(2).state_dict().items()}
    assert start == {"weight": [1.0, 1.0], "bias": [0.0, 0.0], "tau": [0.0, 0.0]}
    assert set(FilterResponseNorm1d(6, tlu=False).state_dict()) == {"weight", "bias"}
    assert FilterResponseNorm3d(6, dtype=torch.float16, device="cpu").tau.dtype == torch.float16
    assert repr(FilterResponseNorm2d(6)) == "FilterResponseNorm2d(6, eps=1e-06, tlu=True)"
    norm = filled(FilterResponseNorm2d(2))
    norm.reset_parameters()
    assert {name: value.tolist() for name, value in norm.state_dict().items()} == start


def test_input_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"FilterResponseNorm2d needs 4-dimensional.*\[2, 6, 3\]"):
        FilterResponseNorm2d(6)(torch.zeros(2, 6, 3))
    with pytest.raises(ValueError, match=r"FilterResponseNorm1d\(6\) got 5 channels"):
        FilterResponseNorm1d(6)(torch.zeros(2, 5))


@every_shape
def test_torch_export_keeps_one_operator(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    assert_one_operator(filled(kind(6)), data(shape), "filter_response_norm")


EXPORTS = [
    pytest.param(kind, shape, dtype, target, id=f"{name}-{dtype}-{target}")
    for name, (kind, shape) in SHAPES.items()
    for dtype in ALL
    for target in ("onnxnorm", "standard")
    if (name == "2d" and (target == "onnxnorm" or dtype == torch.bfloat16)) or (dtype, target) == (ALL[0], "onnxnorm")
]


@pytest.mark.parametrize(("kind", "shape", "dtype", "target"), EXPORTS)
def test_export(tmp_path: Path, kind: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype, target: str) -> None:
    norm = filled(kind(6)).to(dtype).eval()
    model = assert_export_equals(tmp_path, norm, [shape, (1, 6, *(3 for _ in shape[2:]))], dtype, target=target)
    if target == "standard":
        assert {node.domain for node in model.graph.node} == {""}
    else:
        assert [node.op_type for node in model.graph.node] == ["FilterResponseNorm"]


@pytest.mark.parametrize(
    ("tlu", "activation", "fused"),
    [(False, nn.SiLU(), b"silu"), (False, nn.ReLU(), b"relu"), (True, nn.SiLU(), None), (True, nn.ReLU(), b"relu")],
)
def test_an_activation_is_fused_unless_a_threshold_stands_between(
    tmp_path: Path, tlu: bool, activation: nn.Module, fused: bytes | None
) -> None:
    """ReLU may come before the threshold just as well: max(relu(y), tau) = relu(max(y, tau))."""
    module = nn.Sequential(filled(FilterResponseNorm2d(6, tlu=tlu)), activation).float().eval()
    model = assert_export_equals(tmp_path, module, [(2, 6, 5, 4)], torch.float32)
    if fused is None:
        assert model.graph.node[0].op_type == "FilterResponseNorm"
        assert len(model.graph.node) > 1
    else:
        assert attributes_of(model)["activation"] == fused
