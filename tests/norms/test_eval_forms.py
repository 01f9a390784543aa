"""What takes the place of a training op once its state is fixed: its eval form, against the formula in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxnorm.model_file import serialized
from onnxnorm.norms import all_specs
from onnxnorm.passes.lower.function_bodies import attach_function_bodies
from onnxnorm.spec.body import BodyBuilder
from onnxnorm.spec.record import DOMAIN, VERSION, NormSpec, Sample
from onnxnorm.spec.sample_model import ELEMENT_TYPES

from .conftest import NUMPY, SAMPLES, Doubles, Wanted, assert_near, cast, in_evaluator, in_session

TRAINING = [(spec, sample) for spec, sample in SAMPLES if spec.has_state]
#: What the eval ops have and the training ops have not.
EVAL_ATTRIBUTES = {"activation": "none", "channels_last": 0}


def by_variance(inputs: Sequence[Doubles], epsilon: float) -> Doubles:
    """ONNX's BatchNormalization; in float64 with the epsilon that was written down, not its float32 rounding."""
    x, scale, bias, mean, var = channels(inputs[:5])
    return np.asarray((x - mean) / np.sqrt(var + epsilon) * scale + bias)


def by_deviation(inputs: Sequence[Doubles], epsilon: float) -> Doubles:
    x, scale, bias, mean, deviation = channels(inputs[:5])
    return np.asarray((x - mean) / (deviation + epsilon) * scale + bias)


def channels(inputs: Sequence[Doubles]) -> list[Doubles]:
    """X, and vectors that broadcast against it."""
    view = (1, -1, *[1] * (inputs[0].ndim - 2))
    return [inputs[0], *(vector.reshape(view) for vector in inputs[1:])]


def mean_only(inputs: Sequence[Doubles], epsilon: float) -> Doubles:
    x, bias, mean = channels(inputs[:3])
    return x - mean + bias


def eval_op(name: str, count: int) -> Callable[[Sequence[Doubles], float], Doubles]:
    """The reference of the norm's own eval op, which takes the first inputs."""
    spec = all_specs()[name]
    return lambda inputs, epsilon: spec.reference(inputs[:count], {"epsilon": epsilon, **EVAL_ATTRIBUTES})[0]


FORMULAS: dict[str, Callable[[Sequence[Doubles], float], Doubles]] = {
    "BatchInstanceNormTraining": eval_op("BatchInstanceNorm", 6),
    "BatchNormTraining": by_variance,
    "BatchRenormTraining": lambda inputs, epsilon: by_deviation(inputs, 0.0),
    "InstanceNormTraining": by_variance,
    "L1BatchNormTraining": by_deviation,
    "MeanOnlyBatchNormTraining": mean_only,
    "SwitchableNormTraining": eval_op("SwitchableNorm", 7),
}


def eval_model(spec: NormSpec, sample: Sample, dtype: str, opset: int) -> bytes:
    """The eval form alone, with the training op's inputs as inputs of the graph."""
    element = ELEMENT_TYPES[dtype]
    inputs = [
        ir.Value(name=item.name, type=ir.TensorType(element), shape=ir.Shape(array.shape))
        for item, array in zip(spec.inputs, sample.inputs, strict=True)
    ]
    builder = BodyBuilder(opset, [element], sample.attributes)
    assert spec.eval_form is not None
    y = spec.eval_form(builder, inputs)
    y.type, y.shape = ir.TensorType(element), inputs[0].shape
    opsets = {"": opset, DOMAIN: VERSION}
    graph = ir.Graph(inputs, [y], nodes=builder.nodes, opset_imports=opsets, name="eval")
    model = ir.Model(graph, ir_version=10)
    attach_function_bodies(model)
    return serialized(model)


def expected(spec: NormSpec, sample: Sample, dtype: str) -> Wanted:
    """The formula on the inputs as cast. The bound is 8 eps of Y's scale and of X's, which a mean is taken off."""
    exact = [value.astype(np.float64) for value in cast(sample, dtype)]
    epsilon = sample.attributes.get("epsilon", 0.0)
    with np.errstate(all="ignore"):
        truth = FORMULAS[spec.name](exact, epsilon)
    scale = float(np.abs(truth[np.isfinite(truth)]).max(initial=1e-30)) + float(np.abs(exact[0]).max(initial=0.0))
    eps = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[dtype]
    return Wanted(truth, np.full(truth.shape, 8 * eps * scale))


def test_every_training_op_has_an_eval_form() -> None:
    assert {spec.name for spec, _ in TRAINING} == set(FORMULAS)


def run(spec: NormSpec, sample: Sample, dtype: str, opset: int, way: Callable[..., Any]) -> Any:
    return way(eval_model(spec, sample, dtype, opset), spec, cast(sample, dtype))[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("spec", "sample"), TRAINING, ids=[f"{spec.name}-{sample.label}" for spec, sample in TRAINING])
def test_in_onnxruntime(spec: NormSpec, sample: Sample, dtype: str) -> None:
    one = expected(spec, sample, dtype)
    for opset in (18, 22):
        output = run(spec, sample, dtype, opset, lambda *args: in_session(*args, library=False))
        assert output.dtype == NUMPY[dtype]
        assert_near(output, one.truth, one.bound, f"opset {opset}")


@pytest.mark.parametrize("dtype", ["float16"])
@pytest.mark.parametrize(("spec", "sample"), TRAINING, ids=[f"{spec.name}-{sample.label}" for spec, sample in TRAINING])
def test_half_in_the_reference_evaluator(spec: NormSpec, sample: Sample, dtype: str) -> None:
    """ONNX Runtime has no half-type BatchNormalization on the CPU."""
    one = expected(spec, sample, dtype)
    output = run(spec, sample, dtype, 22, in_evaluator)
    assert output.dtype == NUMPY[dtype]
    assert_near(output, one.truth, one.bound, "evaluator")


@pytest.mark.parametrize("name", ["BatchRenormTraining", "L1BatchNormTraining"])
def test_a_deviation_whose_square_overflows_float16(name: str) -> None:
    spec = all_specs()[name]
    sample = next(iter(spec.samples()))
    inputs = (sample.inputs[0] * 300.0, *sample.inputs[1:4], np.full_like(sample.inputs[4], 300.0), *sample.inputs[5:])
    sample = Sample("wide", inputs, sample.attributes)
    output = run(spec, sample, "float16", 22, in_evaluator)
    exact = [value.astype(np.float64) for value in cast(sample, "float16")]
    truth = FORMULAS[name](exact, sample.attributes["epsilon"])
    assert np.abs(output.astype(np.float64) - truth).max() <= 8 * 2.0**-10 * np.abs(truth).max()
