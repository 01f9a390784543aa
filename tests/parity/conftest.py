"""Shared by the parity tests: export through PyTorch alone."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch


@pytest.fixture(scope="session")
def export() -> Callable[..., onnx.ModelProto]:
    """PyTorch's own exporter, quiet: ``export(module, args, **options) -> ModelProto``."""

    def run(module: torch.nn.Module, args: Any, **options: Any) -> onnx.ModelProto:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(module.eval(), args, dynamo=True, verbose=False, **options)
            return program.model_proto

    return run


@pytest.fixture(scope="session")
def lively() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """Gives every norm statistics, scales and offsets as training leaves them, not 0 and 1."""

    def fill(module: torch.nn.Module) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for part in module.modules():
                if isinstance(getattr(part, "running_var", None), torch.Tensor):
                    part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator) * 0.5)
                    part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.3)
                if "Norm" in type(part).__name__:
                    if isinstance(getattr(part, "weight", None), torch.Tensor):
                        part.weight.copy_(torch.rand(part.weight.shape, generator=generator) + 0.5)
                    if isinstance(getattr(part, "bias", None), torch.Tensor):
                        part.bias.copy_(torch.randn(part.bias.shape, generator=generator) * 0.3)
        return module.eval()

    return fill
