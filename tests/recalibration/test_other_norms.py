"""Norms beside batch norm: their statistics are the mean of what each batch by itself gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxnorm
from onnxnorm import nn as norms

NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "instance-norm": (lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (3, 5, 4)),
    "instance-norm-1d": (lambda: nn.InstanceNorm1d(3, track_running_stats=True), (3, 6)),
    "switchable-norm": (lambda: norms.SwitchableNorm2d(3), (3, 5, 4)),
    "switchable-norm-1d": (lambda: norms.SwitchableNorm1d(3), (3,)),
    "batch-instance-norm": (lambda: norms.BatchInstanceNorm2d(3), (3, 5, 4)),
    "batch-renorm": (lambda: norms.BatchRenorm2d(3), (3, 5, 4)),
    "l1-batch-norm": (lambda: norms.L1BatchNorm2d(3), (3, 5, 4)),
    "mean-only-batch-norm": (lambda: norms.MeanOnlyBatchNorm2d(3), (3, 5, 4)),
}


def lively(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module


def mean_of_batches(module: nn.Module, batches: list[torch.Tensor], x: torch.Tensor) -> np.ndarray[Any, Any]:
    """The module in evaluation after momentum 1 over each batch by itself, its statistics averaged; float64."""
    double = copy.deepcopy(module).double().train()
    for part in double.modules():
        if hasattr(part, "momentum"):
            part.momentum = 1.0
    found: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for batch in batches:
            alone = copy.deepcopy(double)
            alone(batch.double())
            for key, buffer in alone.named_buffers():
                found.setdefault(key, []).append(buffer.double())
        for key, buffer in double.named_buffers():
            buffer.copy_(torch.stack(found[key]).mean(0))
        result: torch.Tensor = double.eval()(x.double())
    return result.numpy()


@pytest.mark.parametrize("norm", NORMS)
def test_the_mean_of_the_batches(norm: str, outputs: Any) -> None:
    make, shape = NORMS[norm]
    module = lively(make()).train().double()
    data = (torch.randn(21, *shape, generator=torch.Generator().manual_seed(1)) * 2 + 1).double()
    graph = onnxnorm.export(module, (data[:5],), mode="train", dynamic_shapes=({0: torch.export.Dim("n")},))
    result = onnxnorm.recalibrate(graph, data.numpy())
    wanted = mean_of_batches(module, list(data.split(5)[: 4 if norm == "switchable-norm-1d" else 5]), data[:4])
    got = outputs(result.model, data[:4])
    assert np.abs(got - wanted).max() <= 1e-12 * np.abs(wanted).max()
    assert not result.state
    assert not any(node.op_type.endswith("Training") for node in result.model.graph)


def test_batch_renorm_in_a_net(outputs: Any) -> None:
    """The second norm's statistics depend on the first one's running statistics: the mean so far."""
    module = lively(nn.Sequential(norms.BatchRenorm1d(3), nn.Tanh(), norms.BatchRenorm1d(3))).train()
    data = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)) * 2 + 1
    graph = onnxnorm.export(module, (data[:5],), mode="train", dynamic_shapes=({0: torch.export.Dim("n")},))
    result = onnxnorm.recalibrate(graph, data.numpy())
    double = copy.deepcopy(module).double()
    with torch.no_grad():
        for part in double.modules():
            if isinstance(part, norms.BatchRenorm1d):
                part.reset_running_stats()
                part.momentum = None
        for batch in data.double().split(5):
            double(batch)
        wanted = double.eval()(data.double()).numpy()
    assert np.abs(outputs(result.model, data) - wanted).max() <= 2e-6 * np.abs(wanted).max()
