"""What the tests of the modules share: an export, run in every way, against the float64 module."""

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
from onnxnorm.runtime.arrays import from_ort, from_torch, to_ort


def assert_export_equals(
    folder: Path,
    module: nn.Module,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    static: Sequence[int] = (1,),
    **options: Any,
) -> onnx.ModelProto:
    """Exports with every axis dynamic but the ``static`` ones, the channels. With and without the native library, each
    shape is within 8 eps of the float64 module's scale, or 4 times as far as PyTorch in that dtype. Returns the model.
    """
    generator = torch.Generator().manual_seed(11)
    inputs = [(torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 0.5).to(dtype) for shape in shapes]
    free = {axis: torch.export.Dim.DYNAMIC for axis in range(len(shapes[0])) if axis not in static}
    path = folder / "model.onnx"
    onnxnorm.export(module, (inputs[0],), dynamic_shapes=(free,), **options).save(path)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 4
    sessions = {
        "plain": ort.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"]),
        "library": InferenceSession(path, providers=["CPUExecutionProvider"], library=True),
    }
    double = copy.deepcopy(module).double()
    for x in inputs:
        with torch.no_grad():
            truth, own = double(x.double()).numpy(), module(x)
        scale = float(np.abs(truth).max(initial=1e-30))
        allowed = max(
            4 * float((own.double() - torch.from_numpy(truth)).abs().max()), 8 * torch.finfo(dtype).eps * scale
        )
        for way, session in sessions.items():
            feeds = {session.get_inputs()[0].name: to_ort(from_torch(x))}
            output = from_ort(session.run_with_ort_values(None, feeds)[0])
            assert output.dtype == from_torch(own).dtype, way
            distance = np.abs(output.astype(np.float64) - truth).max(initial=0.0)
            assert distance <= allowed, f"{way}, {list(x.shape)}: {distance / scale:.3g} of the scale"
    return model
