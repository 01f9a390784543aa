"""L1BatchNorm1d, 2d and 3d against the paper's formula, written out here in plain PyTorch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onnxnorm.nn import L1BatchNorm1d, L1BatchNorm2d, L1BatchNorm3d

from .exports import assert_export_equals
from .stateful import assert_training_export_equals, axes_and_view, data, filled

SHAPES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "1d (N, C)": (L1BatchNorm1d, (5, 6)),
    "1d (N, C, L)": (L1BatchNorm1d, (3, 6, 7)),
    "2d": (L1BatchNorm2d, (2, 6, 5, 4)),
    "3d": (L1BatchNorm3d, (2, 6, 3, 4, 2)),
}
every_shape = pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=list(SHAPES))


def paper(norm: Any, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None) -> tuple[torch.Tensor, ...]:
    """(y, mean, sigma): equation 10 with the authors' epsilon; ``state`` None takes the batch's own statistics."""
    axes, view = axes_and_view(x)
    mean, sigma = x.mean(axes), (x - x.mean(axes, keepdim=True)).abs().mean(axes) * math.sqrt(math.pi / 2)
    by_mean, by_sigma = (mean, sigma) if state is None else state
    y = (x - by_mean.view(view)) / (by_sigma + norm.eps).view(view)
    return y * norm.weight.view(view) + norm.bias.view(view), mean.detach(), sigma.detach()


@every_shape
def test_training_is_the_papers(kind: Any, shape: tuple[int, ...]) -> None:
    norm = filled(kind(6, momentum=0.2, eps=1e-3))
    running_mean, running_scale = norm.running_mean.clone(), norm.running_scale.clone()
    for step in range(4):
        x = data(shape, step)
        want, mean, sigma = paper(norm, x, None)
        torch.testing.assert_close(norm(x), want, rtol=1e-11, atol=1e-12)
        running_mean = 0.8 * running_mean + 0.2 * mean
        running_scale = 0.8 * running_scale + 0.2 * sigma
        torch.testing.assert_close(norm.running_mean, running_mean, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(norm.running_scale, running_scale, rtol=1e-12, atol=1e-13)
        assert int(norm.num_batches_tracked) == step + 1
    x = data(shape, 9)
    want, _, _ = paper(norm, x, (running_mean, running_scale))
    torch.testing.assert_close(norm.eval()(x), want, rtol=1e-12, atol=1e-12)


@every_shape
def test_gradients_are_the_papers(kind: Any, shape: tuple[int, ...]) -> None:
    norm, x = filled(kind(6)), data(shape).requires_grad_()
    other, z = copy.deepcopy(norm), data(shape).requires_grad_()
    weights = data(shape, 5)
    (norm(x) * weights).sum().backward()
    (paper(other, z, None)[0] * weights).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-10, atol=1e-11)
    for have, want in zip(norm.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(have.grad, want.grad, rtol=1e-10, atol=1e-11)


def test_the_factor_is_the_gaussians() -> None:
    """On normal data it divides by the standard deviation: section 4's reason for the factor."""
    norm = L1BatchNorm1d(2).double()
    y = norm(torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1)
    torch.testing.assert_close(y.std(0), torch.ones(2, dtype=torch.float64), rtol=5e-3, atol=0)


# --- exports ------------------------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "1d": (nn.Conv1d(3, 6, 3), L1BatchNorm1d(6), (2, 3, 9)),
    "2d": (nn.Conv2d(3, 6, 3, padding=1), L1BatchNorm2d(6), (2, 3, 6, 5)),
    "3d": (nn.Conv3d(3, 6, 2), L1BatchNorm3d(6), (2, 3, 4, 5, 4)),
}


@pytest.mark.parametrize(("name", "target"), [*((name, "onnxnorm") for name in LAYERS), ("2d", "standard")])
def test_evaluation_folds_into_the_layer(tmp_path: Path, name: str, target: str) -> None:
    layer, norm, shape = LAYERS[name]
    module = nn.Sequential(copy.deepcopy(layer), filled(copy.deepcopy(norm)).float()).eval()
    bigger = (5, *shape[1:-1], shape[-1] + 3)
    model = assert_export_equals(tmp_path, module, [shape, bigger], torch.float32, target=target)
    assert [node.op_type for node in model.graph.node] == ["Conv"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_evaluation_of_the_norm_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    assert_export_equals(tmp_path, filled(L1BatchNorm2d(6)).to(dtype).eval(), [(2, 6, 4, 5), (3, 6, 2, 2)], dtype)


def test_a_scale_whose_square_overflows_float16(tmp_path: Path) -> None:
    """Raw pixels have deviations of 300, whose square float16 does not hold."""
    norm = filled(L1BatchNorm2d(6))
    norm.running_scale.fill_(300.0)
    assert torch.isfinite(copy.deepcopy(norm).half().eval()(data((2, 6, 4, 5)).half())).all()
    assert_export_equals(tmp_path, norm.half().eval(), [(2, 6, 4, 5)], torch.float16)


def test_evaluation_without_running_statistics(tmp_path: Path) -> None:
    """The batch's own statistics serve: the training op stays in the eval graph."""
    norm = filled(L1BatchNorm2d(6, track_running_stats=False)).float().eval()
    model = assert_export_equals(tmp_path, norm, [(2, 6, 4, 5), (3, 6, 2, 2)], torch.float32)
    assert "L1BatchNormTraining" in [node.op_type for node in model.graph.node]


@every_shape
def test_the_training_graph(tmp_path: Path, kind: Any, shape: tuple[int, ...]) -> None:
    shapes = [shape, (4, *shape[1:]), shape]
    model = assert_training_export_equals(tmp_path, filled(kind(6)), shapes)
    assert [node.op_type for node in model.graph.node].count("L1BatchNormTraining") == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_training_graph_in_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    assert_training_export_equals(tmp_path, filled(L1BatchNorm2d(6)), [(2, 6, 4, 5)] * 3, dtype)


def test_the_training_graph_counts_its_own_steps(tmp_path: Path) -> None:
    assert_training_export_equals(tmp_path, filled(L1BatchNorm2d(6, momentum=None)), [(2, 6, 4, 5)] * 4)
