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

from .conftest import SAMPLES, SPECS, assert_all_near, wanted

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


def layer_norm(inputs: Sequence[torch.Tensor], attributes: Any) -> torch.Tensor:
    """As rms_norm."""
    x, scale, bias = inputs
    axes = sorted(axis % x.dim() for axis in attributes["axes"])
    end = tuple(range(x.dim() - len(axes), x.dim()))
    moved = x.movedim(tuple(axes), end)
    y = F.layer_norm(moved, list(scale.shape), scale, bias, attributes["epsilon"])
    return y.movedim(end, tuple(axes))


def over_channels(name: str) -> Callable[[Sequence[torch.Tensor], Any], torch.Tensor]:
    """onnxnorm's operators over the channels of (N, C, *): any axes, made to be these."""

    def run(inputs: Sequence[torch.Tensor], attributes: Any) -> torch.Tensor:
        x, *parameters = inputs
        axes = sorted(axis % x.dim() for axis in attributes["axes"])
        front = tuple(range(len(axes)))
        moved = x.movedim(tuple(axes), front)
        flat = moved.reshape(1, parameters[0].numel(), -1 if x.numel() else 0)
        operator = getattr(torch.ops.onnxnorm, name)
        y: torch.Tensor = operator(flat, *(value.flatten() for value in parameters), attributes["epsilon"])
        return y.reshape(moved.shape).movedim(front, tuple(axes))

    return run


def batch_instance_norm(inputs: Sequence[torch.Tensor], attributes: Any) -> torch.Tensor:
    result: torch.Tensor = torch.ops.onnxnorm.batch_instance_norm(*inputs, attributes["epsilon"])
    return result


def switchable_norm(inputs: Sequence[torch.Tensor], attributes: Any) -> torch.Tensor:
    result: torch.Tensor = torch.ops.onnxnorm.switchable_norm(*inputs, attributes["epsilon"])
    return result


def filter_response_norm(inputs: Sequence[torch.Tensor], attributes: Any) -> torch.Tensor | None:
    """The threshold comes after the activation, which the operator has not: None where both do something."""
    if attributes["activation"] != "none" and not torch.isneginf(inputs[3]).all():
        return None
    result: torch.Tensor = torch.ops.onnxnorm.filter_response_norm(*inputs, attributes["epsilon"])
    return result


def evo_norm_s0(inputs: Sequence[torch.Tensor], attributes: Any) -> torch.Tensor:
    x, *parameters = inputs
    result: torch.Tensor = torch.ops.onnxnorm.evo_norm_s0(
        x, attributes["num_groups"], *parameters, attributes["epsilon"]
    )
    return result


def global_response_norm(inputs: Sequence[torch.Tensor], attributes: Any) -> torch.Tensor:
    x, *parameters = inputs
    x = ACTIVATIONS[attributes["input_activation"]](x)
    result: torch.Tensor = torch.ops.onnxnorm.global_response_norm(x, *parameters, attributes["epsilon"])
    return result


def with_state(name: str) -> Callable[[Sequence[torch.Tensor], Any], Any]:
    """An operator of onnxnorm's own that takes the op's inputs and then its attributes in order."""
    return lambda inputs, attributes: getattr(torch.ops.onnxnorm, name)(*inputs, *attributes.values())


def instance_norm(inputs: Sequence[torch.Tensor], attributes: Any) -> torch.Tensor | None:
    """GroupNorm with one group per channel; PyTorch refuses one position."""
    x, scale, bias = inputs
    if attributes["num_groups"] != x.shape[1] or x.dim() < 3 or x[0, 0].numel() == 1:
        return None
    return torch.instance_norm(x, scale, bias, None, None, True, 0.1, attributes["epsilon"], False)


def native_batch_norm(inputs: Sequence[torch.Tensor], attributes: Any) -> Any:
    """What ``torch.export`` makes of ``F.batch_norm(training=True)``; Y and the next state of its five results."""
    *tensors, momentum = inputs
    if attributes["epsilon"] == 0.0 or tensors[0].numel() == 0:
        return None  # F.batch_norm refuses the one in training, and the kernel the other
    results = torch.ops.aten._native_batch_norm_legit_functional(*tensors, True, float(momentum), attributes["epsilon"])
    return results[0], *results[3:]


def native_batch_norm_without_state(inputs: Sequence[torch.Tensor], attributes: Any) -> Any:
    """The same without running statistics: Y alone."""
    x, scale, bias = inputs[:3]
    if attributes["epsilon"] == 0.0 or x.numel() == 0:
        return None
    return torch.ops.aten._native_batch_norm_legit.no_stats(x, scale, bias, True, 0.1, attributes["epsilon"])[:1]


#: PyTorch's own kernel multiplies before it subtracts the mean, which costs digits at mean 1e4.
ROUNDING = {"aten::_native_batch_norm_legit_functional": 1e4, "aten::_native_batch_norm_legit.no_stats": 1e4}

#: Operator -> its results on a sample's inputs; None where the operator has no such form.
OPERATORS: dict[str, Callable[[Sequence[torch.Tensor], Any], Any]] = {
    "aten::_native_batch_norm_legit.no_stats": native_batch_norm_without_state,
    "aten::_native_batch_norm_legit_functional": native_batch_norm,
    "aten::group_norm": group_norm,
    "aten::instance_norm": instance_norm,
    "aten::layer_norm": layer_norm,
    "aten::rms_norm": rms_norm,
    "onnxnorm::batch_instance_norm": batch_instance_norm,
    "onnxnorm::batch_instance_norm_training": with_state("batch_instance_norm_training"),
    "onnxnorm::batch_norm_training": with_state("batch_norm_training"),
    "onnxnorm::batch_renorm_training": with_state("batch_renorm_training"),
    "onnxnorm::channel_l2_norm": over_channels("channel_l2_norm"),
    "onnxnorm::channel_layer_norm": over_channels("channel_layer_norm"),
    "onnxnorm::channel_rms_norm": over_channels("channel_rms_norm"),
    "onnxnorm::evo_norm_s0": evo_norm_s0,
    "onnxnorm::filter_response_norm": filter_response_norm,
    "onnxnorm::global_response_norm": global_response_norm,
    "onnxnorm::instance_norm_training": with_state("instance_norm_training"),
    "onnxnorm::l1_batch_norm_training": with_state("l1_batch_norm_training"),
    "onnxnorm::mean_only_batch_norm_training": with_state("mean_only_batch_norm_training"),
    "onnxnorm::switchable_norm": switchable_norm,
    "onnxnorm::switchable_norm_training": with_state("switchable_norm_training"),
}

#: PyTorch has no operator for the skip forms.
TRANSLATED = [(spec, sample) for spec, sample in SAMPLES if spec.torch_ops]


def test_every_operator_that_is_translated_is_compared() -> None:
    assert {operator.name for spec in SPECS for operator in spec.torch_ops} == set(OPERATORS)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_operator_has_a_sample(spec: NormSpec) -> None:
    sample = [sample for sample in spec.samples() if not sample.attributes.get("channels_last", 0)]
    for operator in spec.torch_ops:
        results = (
            OPERATORS[operator.name]([torch.from_numpy(np.array(array)) for array in one.inputs], one.attributes)
            for one in sample
        )
        assert any(result is not None for result in results), operator.name


@pytest.mark.filterwarnings("ignore:var\\(\\). degrees of freedom:UserWarning")
@pytest.mark.filterwarnings("ignore:std and var only work:UserWarning")
@pytest.mark.parametrize(("spec", "sample"), TRANSLATED, ids=[f"{spec.name}-{one.label}" for spec, one in TRANSLATED])
def test_reference_equals_pytorch(spec: NormSpec, sample: Sample) -> None:
    inputs = [torch.from_numpy(np.array(array, np.float64)) for array in sample.inputs]
    last = bool(sample.attributes.get("channels_last", 0))
    if last:
        inputs[0] = inputs[0].movedim(-1, 1).contiguous()
    for operator in spec.torch_ops:
        y = OPERATORS[operator.name](inputs, sample.attributes)
        if y is None:
            continue
        outputs = list(y) if isinstance(y, tuple) else [y]
        outputs[0] = ACTIVATIONS[sample.attributes.get("activation", "none")](outputs[0])
        outputs[0] = outputs[0].movedim(1, -1) if last else outputs[0]
        # F.group_norm multiplies before it subtracts: with one value per group that is 100 eps where a norm has none.
        expected = wanted(spec, sample, "float64", eps=ROUNDING.get(operator.name, 128.0))[: len(outputs)]
        assert_all_near([output.contiguous().numpy() for output in outputs], expected, operator.name)
