"""MeanOnlyBatchNorm1d, 2d and 3d against section 3 of the paper, written out here in plain PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from onnxnorm.nn import MeanOnlyBatchNorm1d, MeanOnlyBatchNorm2d, MeanOnlyBatchNorm3d

from .exports import assert_export_equals
from .stateful import assert_training_export_equals, axes_and_view, data, filled

SHAPES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "1d (N, C)": (MeanOnlyBatchNorm1d, (5, 6)),
    "1d (N, C, L)": (MeanOnlyBatchNorm1d, (3, 6, 7)),
    "2d": (MeanOnlyBatchNorm2d, (2, 6, 5, 4)),
    "3d": (MeanOnlyBatchNorm3d, (2, 6, 3, 4, 2)),
}
every_shape = pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=list(SHAPES))


@every_shape
def test_training_is_the_papers(kind: Any, shape: tuple[int, ...]) -> None:
    """t = t~ - mu[t~] + b, and a running average of mu for the test time."""
    norm = filled(kind(6, momentum=0.2))
    running = norm.running_mean.clone()
    for step in range(4):
        x = data(shape, step)
        axes, view = axes_and_view(x)
        want = x - x.mean(axes, keepdim=True) + norm.bias.view(view)
        torch.testing.assert_close(norm(x), want, rtol=1e-11, atol=1e-12)
        running = 0.8 * running + 0.2 * x.mean(axes)
        torch.testing.assert_close(norm.running_mean, running, rtol=1e-12, atol=1e-13)
        assert int(norm.num_batches_tracked) == step + 1
    x = data(shape, 9)
    _, view = axes_and_view(x)
    torch.testing.assert_close(norm.eval()(x), x - running.view(view) + norm.bias.view(view), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_shape
def test_gradients(kind: Any, shape: tuple[int, ...], training: bool) -> None:
    norm = filled(kind(6)).train(training)

    def run(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.func.functional_call(copy.deepcopy(norm), {"bias": bias}, (x,))
        return result

    x = data((3, *shape[1:2], *(2 for _ in shape[2:]))).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, norm.bias.detach().clone().requires_grad_()))


# --- exports ------------------------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "1d": (nn.Conv1d(3, 6, 3, bias=False), MeanOnlyBatchNorm1d(6), (2, 3, 9)),
    "2d": (nn.Conv2d(3, 6, 3, padding=1, bias=False), MeanOnlyBatchNorm2d(6), (2, 3, 6, 5)),
    "3d": (nn.Conv3d(3, 6, 2), MeanOnlyBatchNorm3d(6), (2, 3, 4, 5, 4)),
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
    module = filled(MeanOnlyBatchNorm2d(6)).to(dtype).eval()
    assert_export_equals(tmp_path, module, [(2, 6, 4, 5), (3, 6, 2, 2)], dtype)


def test_evaluation_without_a_running_mean(tmp_path: Path) -> None:
    """The batch's own mean serves: the training op stays in the eval graph."""
    norm = filled(MeanOnlyBatchNorm2d(6, track_running_stats=False)).float().eval()
    model = assert_export_equals(tmp_path, norm, [(2, 6, 4, 5), (3, 6, 2, 2)], torch.float32)
    assert "MeanOnlyBatchNormTraining" in [node.op_type for node in model.graph.node]


@every_shape
def test_the_training_graph(tmp_path: Path, kind: Any, shape: tuple[int, ...]) -> None:
    shapes = [shape, (4, *shape[1:]), shape]
    model = assert_training_export_equals(tmp_path, filled(kind(6)), shapes)
    assert [node.op_type for node in model.graph.node].count("MeanOnlyBatchNormTraining") == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_training_graph_in_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    assert_training_export_equals(tmp_path, filled(MeanOnlyBatchNorm2d(6)), [(2, 6, 4, 5)] * 3, dtype)


def test_with_weight_norm_in_training_and_in_evaluation(tmp_path: Path) -> None:
    """As the paper uses it: behind a layer with weight normalization."""
    module = nn.Sequential(weight_norm(nn.Conv2d(3, 6, 3, bias=False)), filled(MeanOnlyBatchNorm2d(6)).float())
    assert_training_export_equals(tmp_path, module, [(2, 3, 5, 6), (3, 3, 5, 6), (2, 3, 5, 6)])
    assert_export_equals(tmp_path, module.eval(), [(2, 3, 5, 6)], torch.float32)


def test_the_training_graph_counts_its_own_steps(tmp_path: Path) -> None:
    assert_training_export_equals(tmp_path, filled(MeanOnlyBatchNorm2d(6, momentum=None)), [(2, 6, 4, 5)] * 4)
