"""What the tests of modules with state share: data, modules as training leaves them, and training graphs in a loop."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

import onnxnorm
from onnxnorm import InferenceSession
from onnxnorm.runtime.arrays import Array, from_ort, from_torch, to_ort


def data(shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.5


def filled(module: Any, seed: int = 0) -> Any:
    """The module in float64, as training leaves it."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for name, buffer in module.named_buffers():
            if name.endswith(("var", "std", "scale")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.5)
            elif buffer.is_floating_point():
                buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
    return module


def axes_and_view(x: torch.Tensor) -> tuple[list[int], tuple[int, ...]]:
    """The axes of a batch statistic, and the shape in which a vector of channels meets x."""
    return [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))


def assert_training_export_equals(
    folder: Path, module: nn.Module, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32
) -> onnx.ModelProto:
    """A training graph with free sizes, its state fed back, one step for each shape: outputs and all state within 16
    eps of the float64 module's after as many training forwards, or 4 times as far as PyTorch in that dtype.
    """
    batches = [data(shape, seed).to(dtype) for seed, shape in enumerate(shapes)]
    double, own = copy.deepcopy(module).double(), copy.deepcopy(module).to(dtype)
    free = {axis: torch.export.Dim.DYNAMIC for axis in range(len(shapes[0])) if axis != 1}
    result = onnxnorm.export(copy.deepcopy(own), (batches[0],), mode="train", dynamic_shapes=(free,))
    path = folder / "train.onnx"
    result.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    assert set(result.state) == {name for name, _ in module.named_buffers()}
    names = [value.name for value in onnx.load(path).graph.output]
    sessions = {
        "plain": ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]),
        "library": InferenceSession(path, providers=["CPUExecutionProvider"], library=True),
    }
    states: dict[str, dict[str, Any]] = {way: {} for way in sessions}
    for step, x in enumerate(batches):
        with torch.no_grad():
            truth, near = double(x.double()), own(x)
        truths = {"": truth} | {result.state[name]: value for name, value in double.named_buffers()}
        nears = {"": near} | {result.state[name]: value for name, value in own.named_buffers()}
        for way, session in sessions.items():
            feeds = {session.get_inputs()[0].name: to_ort(from_torch(x))} | states[way]
            outputs = dict(zip(names, session.run_with_ort_values(None, feeds), strict=True))
            states[way] = {name: outputs[result.state[name]] for name in result.state}
            for name, value in outputs.items():
                key = name if name in truths else ""
                _assert_near(from_ort(value), truths[key], nears[key], dtype, f"{way}, step {step}, {name}")
    return onnx.load(path)


def _assert_near(have: Array, truth: torch.Tensor, own: torch.Tensor, dtype: torch.dtype, where: str) -> None:
    assert have.dtype == from_torch(own).dtype, where
    assert have.shape == tuple(truth.shape), where
    if not truth.is_floating_point():
        np.testing.assert_array_equal(have, truth.numpy(), err_msg=where)
        return
    scale = max(float(truth.abs().max()) if truth.numel() else 0.0, 1e-30)
    missed = float((own.double() - truth).abs().max()) if truth.numel() else 0.0
    allowed = max(4 * missed, 16 * torch.finfo(dtype).eps * scale)
    distance = float(np.abs(have.astype(np.float64) - truth.numpy()).max(initial=0.0))
    assert distance <= allowed, f"{where}: {distance / scale:.3g} of the scale"
