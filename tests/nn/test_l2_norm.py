"""L2Norm1d/2d/3d over the channels against torch.nn.functional.normalize, and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onnxnorm.nn import L2Norm1d, L2Norm2d, L2Norm3d

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
    "1d (N, C)": (L2Norm1d, (5, 6)),
    "1d (N, C, L)": (L2Norm1d, (3, 6, 7)),
    "2d": (L2Norm2d, (2, 6, 5, 4)),
    "3d": (L2Norm3d, (2, 6, 3, 4, 2)),
}
every_shape = pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=list(SHAPES))


def by_hand(norm: Any, x: torch.Tensor) -> torch.Tensor:
    y = F.normalize(x, dim=1, eps=norm.eps)
    return y if norm.weight is None else y * norm.weight.view(-1, *[1] * (x.dim() - 2))


@pytest.mark.parametrize("options", [{}, {"elementwise_affine": False}, {"eps": 5.0}], ids=str)
@every_shape
def test_values_and_gradients(kind: type[nn.Module], shape: tuple[int, ...], options: dict[str, Any]) -> None:
    norm = filled(kind(6, **options))
    assert_same_values_and_gradients(norm, lambda x: by_hand(norm, x), data(shape), list(norm.parameters()))


@every_shape
def test_half_types(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    assert_half_types_compute_in_float32(filled(kind(6)), shape)


def test_zeros_stay_zeros() -> None:
    assert not L2Norm2d(6)(torch.zeros(2, 6, 3, 3)).any()


def test_the_start_and_the_state() -> None:
    assert L2Norm2d(2, scale=20).state_dict()["weight"].tolist() == [20.0, 20.0]
    assert set(L2Norm1d(6).state_dict()) == {"weight"}
    assert not L2Norm3d(6, elementwise_affine=False).state_dict()
    assert L2Norm2d(6, dtype=torch.float16, device="cpu").weight.dtype == torch.float16
    assert repr(L2Norm2d(6)) == "L2Norm2d(6, eps=1e-12, elementwise_affine=True, scale=1)"


def test_input_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"L2Norm2d needs 4-dimensional.*\[2, 6, 3\]"):
        L2Norm2d(6)(torch.zeros(2, 6, 3))
    with pytest.raises(ValueError, match=r"L2Norm1d\(6\) got 5 channels"):
        L2Norm1d(6)(torch.zeros(2, 5))


@every_shape
def test_torch_export_keeps_one_operator(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    assert_one_operator(filled(kind(6)), data(shape), "channel_l2_norm")


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
        assert list(attributes_of(model)["axes"]) == [1]


def test_an_activation_is_fused(tmp_path: Path) -> None:
    module = nn.Sequential(filled(L2Norm2d(6)), nn.GELU()).float().eval()
    model = assert_export_equals(tmp_path, module, [(2, 6, 5, 4)], torch.float32)
    assert attributes_of(model)["activation"] == b"gelu"
