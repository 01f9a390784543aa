"""What a norm refuses: its error samples, in every place that sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxnorm import InferenceSession, ModelError, optimize
from onnxnorm.model_file import serialized
from onnxnorm.runtime.arrays import to_ort
from onnxnorm.spec.record import ErrorSample, NormSpec, NormValueError, Sample
from onnxnorm.spec.sample_model import sample_model
from onnxnorm.spec.schema import register_schemas

from .conftest import ERROR_IDS, ERRORS, SPECS, cast

NATIVE = [(spec, error) for spec, error in ERRORS if spec.native]
every_error = pytest.mark.parametrize(("spec", "error"), ERRORS, ids=ERROR_IDS)


@pytest.fixture(autouse=True, scope="module")
def _schemas() -> None:
    register_schemas()


def as_sample(error: ErrorSample) -> Sample:
    """As an ordinary sample; a list is written as ints, also when it is empty."""
    attributes = {
        name: ir.AttrInt64s(name, value) if isinstance(value, list) else value
        for name, value in error.attributes.items()
    }
    return Sample(error.label, tuple(error.inputs), attributes)


def model_of(spec: NormSpec, error: ErrorSample, *, unknown: bool = False) -> ir.Model:
    """One node; ``unknown`` leaves the ranks open too, so that only a run can see what is wrong."""
    model = sample_model(spec, as_sample(error), body=False)
    for value in (*model.graph.inputs, *model.graph.outputs) if unknown else ():
        value.shape = None
    return model


def session(content: bytes) -> InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return InferenceSession(content, options, providers=["CPUExecutionProvider"], library=True)


@every_error
def test_validate_says_what_is_wrong(spec: NormSpec, error: ErrorSample) -> None:
    shapes: Sequence[list[int | None]] = [list(array.shape) for array in error.inputs]
    with pytest.raises(NormValueError, match=error.message) as raised:
        spec.validate(shapes, error.attributes)
    assert "\n" not in str(raised.value)


@every_error
def test_shape_inference_says_it(spec: NormSpec, error: ErrorSample) -> None:
    proto = onnx.load_from_string(serialized(model_of(spec, error)))
    with pytest.raises(Exception, match=error.message) as raised:
        onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    assert f"onnxnorm.{spec.name}" in str(raised.value)


@every_error
def test_the_checker_says_it(spec: NormSpec, error: ErrorSample) -> None:
    proto = onnx.load_from_string(serialized(model_of(spec, error)))
    with pytest.raises(Exception, match=error.message):
        onnx.checker.check_model(proto, full_check=True)


@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
@every_error
def test_optimize_says_it(spec: NormSpec, error: ErrorSample, target: str) -> None:
    with pytest.raises(ModelError, match=error.message) as raised:
        optimize(model_of(spec, error), target=target)
    assert "'norm'" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("unknown", [False, True], ids=["static", "unknown"])
@pytest.mark.parametrize(("spec", "error"), NATIVE, ids=[f"{spec.name}-{error.label}" for spec, error in NATIVE])
def test_the_native_kernel_says_it(spec: NormSpec, error: ErrorSample, unknown: bool) -> None:
    content = serialized(model_of(spec, error, unknown=unknown))
    arrays = cast(Sample(error.label, tuple(error.inputs), {}), "float32")
    with pytest.raises(Exception, match=error.message) as raised:
        session(content).run_with_ort_values(
            None, {item.name: to_ort(array) for item, array in zip(spec.inputs, arrays, strict=True)}
        )
    assert f"onnxnorm.{spec.name} node 'norm'" in str(raised.value)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_each_attribute_is_required(spec: NormSpec) -> None:
    sample = next(iter(spec.samples()))
    shapes = [list(array.shape) for array in sample.inputs]
    for name in sample.attributes:
        left = {key: value for key, value in sample.attributes.items() if key != name}
        with pytest.raises(NormValueError, match=f"attribute {name} is missing"):
            spec.validate(shapes, left)
        model = sample_model(spec, dataclasses.replace(sample, attributes=left), body=False)
        with pytest.raises(ModelError, match=f"attribute {name} is missing"):
            optimize(model)
        with pytest.raises(onnx.checker.ValidationError, match=name):
            onnx.checker.check_model(onnx.load_from_string(serialized(model)))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_inputs_are_counted(spec: NormSpec) -> None:
    sample = next(iter(spec.samples()))
    shapes = [list(array.shape) for array in sample.inputs]
    for wrong in (shapes[:-1], [*shapes, [3]]):
        with pytest.raises(NormValueError, match=f"{len(wrong)} inputs.*needs {len(shapes)}.*X"):
            spec.validate(wrong, sample.attributes)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_an_integer_input_is_refused(spec: NormSpec) -> None:
    sample = next(iter(spec.samples()))
    model = sample_model(spec, sample, body=False)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = ir.TensorType(ir.DataType.INT32)
    with pytest.raises(ModelError, match=r"'norm'.*X is int32.*float32, float16, float64, bfloat16"):
        optimize(model)
    with pytest.raises(Exception, match=r"norm.*int32"):
        onnx.checker.check_model(onnx.load_from_string(serialized(model)), full_check=True)
    if spec.native:
        with pytest.raises(Exception, match=r"int32"):
            session(serialized(model))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_unknown_shapes_are_not_refused(spec: NormSpec) -> None:
    sample = next(iter(spec.samples()))
    spec.validate([None] * len(spec.inputs), sample.attributes)
    spec.validate([[None] * array.ndim for array in sample.inputs], sample.attributes)
    if spec.name == "GroupNorm":
        with pytest.raises(NormValueError, match=r"num_groups is 3.*8"):
            spec.validate([None, [8], None], {**sample.attributes, "num_groups": 3})


def test_a_reference_keeps_what_is_not_finite() -> None:
    """A NaN or an infinity stays in its own group, row or item; in batch statistics, in its own channel."""
    for spec in SPECS:
        sample = next(iter(spec.samples()))
        for value in (np.nan, np.inf):
            x = sample.inputs[0].copy()
            x.reshape(-1)[0] = value
            result = spec.reference([x, *sample.inputs[1:]], sample.attributes)[0]
            assert np.isnan(result.reshape(-1)[0]), spec.name
            rest = result[:, -1] if spec.has_state else result[-1]
            if spec.name == "SwitchableNormTraining":  # its layer and its batch statistics meet in no value of these
                rest = result[1:, 1:]
            assert np.isfinite(rest).all(), spec.name
