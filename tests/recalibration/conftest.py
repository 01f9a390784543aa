"""Shared by the tests of recalibration: what PyTorch's update_bn makes of a module and data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import onnxnorm

Truth = Callable[..., np.ndarray[Any, Any]]


@pytest.fixture(scope="session")
def truth() -> Truth:
    """``truth(module, batches, x)``: update_bn over the batches, without dropout, then eval, in float64."""

    def run(module: nn.Module, batches: Sequence[torch.Tensor], x: torch.Tensor) -> np.ndarray[Any, Any]:
        double = copy.deepcopy(module).double()
        for part in double.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        update_bn([batch.double() for batch in batches], double)
        with torch.no_grad():
            found: torch.Tensor = double.eval()(x.double())
        return found.numpy()

    return run


@pytest.fixture(scope="session")
def outputs() -> Callable[..., np.ndarray[Any, Any]]:
    """``outputs(model, x)``: the first output of the model on ONNX Runtime, as float64."""

    def run(model: Any, x: torch.Tensor) -> np.ndarray[Any, Any]:
        session = onnxnorm.InferenceSession(model)
        (first,) = session.get_inputs()
        return np.asarray(session.run(None, {first.name: x.numpy()})[0], np.float64)

    return run
