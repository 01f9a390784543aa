"""PyTorch's own operators in float64 compute what the norms' references say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import onnxnorm.nn  # noqa: F401  defines torch.ops.onnxnorm
from onnxnorm.spec.record import NormSpec, Sample

from .conftest import SAMPLE_IDS, SAMPLES, SPECS, assert_near, truth_and_bound

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}


def group_norm(inputs: Sequence[torch.Tensor], attributes: Any) -> torch.Tensor:
    x, scale, bias = inputs
    return F.group_norm(x, attributes["num_groups"], scale, bias, attributes["epsilon"])


def rms_norm(inputs: Sequence[torch.Tensor], attributes: Any) -> torch.Tensor:
    """F.rms_norm takes trailing axes: the axes go to the end, and back. scale has their sizes in X's order."""
    x, scale = inputs
    axes = sorted(axis % x.dim() for axis in attributes["axes"])
    end = tuple(range(x.dim() - len(axes), x.dim()))
    moved = x.movedim(tuple(axes), end)
    return F.rms_norm(moved, list(scale.shape), scale, attributes["epsilon"]).movedim(end, tuple(axes))


def switchable_norm(inputs: Sequence[torch.Tensor], attributes: Any) -> torch.Tensor:
    result: torch.Tensor = torch.ops.onnxnorm.switchable_norm(*inputs, attributes["epsilon"])
    return result


OPERATORS = {
    "aten::group_norm": group_norm,
    "aten::rms_norm": rms_norm,
    "onnxnorm::switchable_norm": switchable_norm,
}


def test_every_operator_that_is_translated_is_compared() -> None:
    assert {operator.name for spec in SPECS for operator in spec.torch_ops} == set(OPERATORS)


@pytest.mark.filterwarnings("ignore:var\\(\\). degrees of freedom:UserWarning")
@pytest.mark.filterwarnings("ignore:std and var only work:UserWarning")
@pytest.mark.parametrize(("spec", "sample"), SAMPLES, ids=SAMPLE_IDS)
def test_reference_equals_pytorch(spec: NormSpec, sample: Sample) -> None:
    inputs = [torch.from_numpy(np.array(array, np.float64)) for array in sample.inputs]
    last = bool(sample.attributes.get("channels_last", 0))
    if last:
        inputs[0] = inputs[0].movedim(-1, 1).contiguous()
    for operator in spec.torch_ops:
        try:
            y = OPERATORS[operator.name](inputs, sample.attributes)
        except RuntimeError as error:
            if inputs[0].numel() == 0:  # PyTorch refuses some empty tensors, ONNX has a result for them
                pytest.skip(f"PyTorch takes no such empty tensor: {error}")
            raise
        y = ACTIVATIONS[sample.attributes["activation"]](y)
        # F.group_norm multiplies before it subtracts: with one value per group that is 100 eps where a norm has none.
        truth, bound = truth_and_bound(spec, sample, "float64", eps=128.0)
        assert_near((y.movedim(1, -1) if last else y).contiguous().numpy(), truth, bound, operator.name)
