"""The ONNX files of a model: as PyTorch alone writes it, and as onnxnorm does, for inference and for training."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import onnxnorm
from models.record import ReferenceModel


def example_input(model: ReferenceModel) -> torch.Tensor:
    """An input to export with; its values do not matter, and its sizes only where they are fixed."""
    return torch.zeros(model.input_shape)


def dynamic_shapes(model: ReferenceModel) -> tuple[dict[int, str], ...]:
    """The open axes as ``torch.onnx.export`` takes them."""
    return (dict(model.dynamic_axes),)


def export_plain(module: nn.Module, model: ReferenceModel, path: Path) -> None:
    """The baseline: what a user gets from ``torch.onnx.export`` without onnxnorm, its own optimizations included."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch's own parts, about each other
            program = torch.onnx.export(
                module, (example_input(model),), dynamo=True, dynamic_shapes=dynamic_shapes(model), verbose=False
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    unfinished = path.with_name(f".{path.name}.part")
    try:
        program.save(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def export_onnxnorm(module: nn.Module, model: ReferenceModel, path: Path) -> tuple[Any, ...]:
    """Exports with onnxnorm and saves; returns the optimizer's decisions."""
    result = onnxnorm.export(module, (example_input(model),), dynamic_shapes=dynamic_shapes(model))
    result.save(path)
    return tuple(result.decisions)


def export_training(module: nn.Module, model: ReferenceModel, batch: torch.Tensor, path: Path) -> Mapping[str, str]:
    """Exports the training graph and saves it; returns its state, input -> output with the next value.

    Args:
        module: the network, in evaluation when this returns.
        model: its record.
        batch: an example batch; a training forward needs several values of each channel.
        path: where to save.

    """
    module.train()
    try:
        result = onnxnorm.export(module, (batch,), mode="train", dynamic_shapes=dynamic_shapes(model))
    finally:
        module.eval()
    result.save(path)
    return result.state
