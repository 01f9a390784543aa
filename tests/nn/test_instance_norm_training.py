"""torch.nn.InstanceNorm with tracked statistics in training: the operator, and training graphs of the modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import onnxnorm.nn  # noqa: F401  defines torch.ops.onnxnorm

from .stateful import assert_training_export_equals, data, filled

SHAPES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "1d": (nn.InstanceNorm1d, (3, 6, 7)),
    "2d": (nn.InstanceNorm2d, (2, 6, 5, 4)),
    "3d": (nn.InstanceNorm3d, (2, 6, 3, 4, 2)),
}
every_shape = pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=list(SHAPES))


class Tracked(nn.Module):
    """An InstanceNorm whose only state is what its forward moves; PyTorch's module counts no batches in it."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.norm = kind(6, affine=True, track_running_stats=True, **options)
        del self.norm.num_batches_tracked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(x)
        return result


def operator(x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, **options: Any) -> Any:
    return torch.ops.onnxnorm.instance_norm_training(
        x, options.get("weight"), options.get("bias"), mean, var, torch.tensor(options.get("momentum", 0.1)), 1e-5
    )


@pytest.mark.parametrize("affine", [False, True])
@every_shape
def test_the_operator_is_pytorchs(kind: Any, shape: tuple[int, ...], affine: bool) -> None:
    norm = filled(kind(6, affine=affine, momentum=0.25, track_running_stats=True))
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    for step in range(3):
        x = data(shape, step)
        y, mean, var = operator(x, mean, var, weight=norm.weight, bias=norm.bias, momentum=0.25)
        torch.testing.assert_close(y, norm(x), rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(mean, norm.running_mean, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(var, norm.running_var, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("state", ["half", "float32"])
def test_half_types_compute_in_float32(dtype: torch.dtype, state: str) -> None:
    """PyTorch rounds each instance's statistics to the half type, also for a float32 state: its float32 is compared."""
    kept = dtype if state == "half" else torch.float32
    x = data((4, 6, 9)).to(dtype)
    y, next_mean, next_var = operator(x, torch.zeros(6, dtype=kept), torch.ones(6, dtype=kept))
    assert (y.dtype, next_mean.dtype, next_var.dtype) == (dtype, kept, kept)
    mean, var = torch.zeros(6), torch.ones(6)
    truth = F.instance_norm(x.float(), mean, var, use_input_stats=True, momentum=0.1)
    for have, want in ((y, truth), (next_mean, mean), (next_var, var)):
        unit = 4 * torch.finfo(have.dtype).eps
        torch.testing.assert_close(have.float(), want, rtol=unit, atol=unit)


def test_equal_values_without_epsilon_give_the_bias() -> None:
    x, c = torch.full((2, 6, 4), 3.0), torch.ones(6)
    y, _, _ = torch.ops.onnxnorm.instance_norm_training(x, c, 2 * c, c, c, torch.tensor(0.1), 0.0)
    assert torch.equal(y, F.instance_norm(x, None, None, c, 2 * c, eps=0.0))
    assert torch.equal(y, torch.full_like(x, 2.0))


def test_an_empty_batch_keeps_the_state() -> None:
    for shape in ((0, 6, 4), (2, 6, 0)):
        y, mean, var = operator(torch.zeros(shape), torch.full((6,), 2.0), torch.full((6,), 3.0))
        assert y.shape == shape
        assert torch.equal(mean, torch.full((6,), 2.0))
        assert torch.equal(var, torch.full((6,), 3.0))


@pytest.mark.parametrize("shape", [(2, 6, 1), (2, 6, 1, 1), (3, 6)])
def test_one_position_is_refused_as_by_pytorch(shape: tuple[int, ...]) -> None:
    zeros, ones = torch.zeros(6), torch.ones(6)
    with pytest.raises(ValueError, match="Expected more than 1 spatial element when training") as pytorchs:
        F.instance_norm(torch.zeros(shape), zeros, ones, use_input_stats=True)
    with pytest.raises(ValueError, match="Expected more than 1 spatial element when training") as ours:
        operator(torch.zeros(shape), zeros, ones)
    assert str(ours.value) == str(pytorchs.value)


@every_shape
def test_the_training_graph(tmp_path: Path, kind: Any, shape: tuple[int, ...]) -> None:
    model = assert_training_export_equals(tmp_path, filled(Tracked(kind)), [shape, (4, *shape[1:]), shape])
    assert [node.op_type for node in model.graph.node].count("InstanceNormTraining") == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_training_graph_in_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    assert_training_export_equals(tmp_path, filled(Tracked(nn.InstanceNorm2d)), [(2, 6, 4, 5)] * 3, dtype)
