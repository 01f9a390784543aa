"""Every sample of every norm in every form that it takes, against the norm's float64 reference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxnorm.spec.record import NormSpec, Sample

from .conftest import (
    NUMPY,
    OPSETS,
    SAMPLE_IDS,
    SAMPLES,
    SPECS,
    assert_near,
    cast,
    in_evaluator,
    in_session,
    model_bytes,
    standard_bytes,
    truth_and_bound,
)

DTYPES = tuple(NUMPY)
every_sample = pytest.mark.parametrize(("spec", "sample"), SAMPLES, ids=SAMPLE_IDS)


def opsets_for(dtype: str) -> tuple[int, ...]:
    """All of them in float32; the ends in the other types, whose bodies differ by casts only."""
    return OPSETS if dtype == "float32" else (OPSETS[0], OPSETS[-1])


def test_every_norm_has_samples_and_error_samples() -> None:
    for spec in SPECS:
        labels = [sample.label for sample in spec.samples()]
        assert len(labels) == len(set(labels)) > 3, spec.name
        assert any(0 in sample.inputs[0].shape for sample in spec.samples()), f"{spec.name} has no empty sample"
        assert list(spec.error_samples()), spec.name


@pytest.mark.parametrize("dtype", DTYPES)
@every_sample
def test_function_body_in_onnxruntime(spec: NormSpec, sample: Sample, dtype: str) -> None:
    truth, bound = truth_and_bound(spec, sample, dtype)
    for opset in opsets_for(dtype):
        for dynamic in (False, True) if opset == OPSETS[0] else (True,):
            content = model_bytes(spec, sample, dtype, opset, dynamic=dynamic)
            output = in_session(content, spec, cast(sample, dtype), library=False)
            assert output.dtype == NUMPY[dtype]
            assert_near(output, truth, bound, f"opset {opset}, dynamic {dynamic}")


@pytest.mark.parametrize("dtype", DTYPES)
@every_sample
def test_function_body_in_the_reference_evaluator(spec: NormSpec, sample: Sample, dtype: str) -> None:
    truth, bound = truth_and_bound(spec, sample, dtype)
    for opset in opsets_for(dtype):
        output = in_evaluator(model_bytes(spec, sample, dtype, opset), spec, cast(sample, dtype))
        assert output.dtype == NUMPY[dtype]
        assert_near(output, truth, bound, f"opset {opset}")


@pytest.mark.parametrize("dtype", DTYPES)
@every_sample
def test_primitive_operators_in_place(spec: NormSpec, sample: Sample, dtype: str) -> None:
    truth, bound = truth_and_bound(spec, sample, dtype)
    for opset in opsets_for(dtype):
        content = standard_bytes(spec, sample, dtype, opset)
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        assert not model.functions
        assert {entry.domain for entry in model.opset_import} == {""}
        assert {node.domain for node in model.graph.node} <= {""}
        assert not any("Norm" in node.op_type for node in model.graph.node)
        assert_near(in_session(content, spec, cast(sample, dtype), library=False), truth, bound, f"opset {opset}")


@pytest.mark.parametrize("dtype", DTYPES)
@every_sample
def test_native_kernel(spec: NormSpec, sample: Sample, dtype: str) -> None:
    truth, bound = truth_and_bound(spec, sample, dtype, eps=4.0)
    content = model_bytes(spec, sample, dtype, 20)
    output = in_session(content, spec, cast(sample, dtype), library=True)
    assert output.dtype == NUMPY[dtype]
    assert_near(output, truth, bound, "native kernel")


@every_sample
def test_the_model_passes_the_full_check(spec: NormSpec, sample: Sample) -> None:
    for opset in OPSETS:
        for options in ({}, {"dynamic": True}, {"body": False}):
            model = onnx.load_from_string(model_bytes(spec, sample, "float32", opset, **options))
            onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_body_names_only_standard_operators_and_its_own_attributes(spec: NormSpec) -> None:
    sample = next(iter(spec.samples()))
    for opset in OPSETS:
        model = onnx.load_from_string(model_bytes(spec, sample, "float16", opset))
        (function,) = model.functions
        assert (function.domain, function.name) == ("onnxnorm", spec.name)
        assert list(function.input) == [item.name for item in spec.inputs]
        assert list(function.output) == list(spec.outputs)
        assert list(function.attribute) == [item.name for item in spec.attributes]
        assert {(entry.domain, entry.version) for entry in function.opset_import} == {("", opset)}


OFFSET = [(1, 64, 40, 40, 1), (2, 32, 33, 7, 8), (1, 8, 100, 103, 1), (1, 3, 71, 71, 3), (2, 6, 7, 9, 2)]


@pytest.mark.parametrize(("n", "c", "h", "w", "groups"), OFFSET)
@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_group_norm_of_offset_data_within_4_ulps(n: int, c: int, h: int, w: int, groups: int, offset: float) -> None:
    """Mean 1e4 and standard deviation 1: PyTorch's own float32 is off by hundreds of ulps there."""
    rng = np.random.default_rng(7)
    inputs = (rng.standard_normal((n, c, h, w)) + offset, rng.uniform(0.5, 1.5, c), rng.standard_normal(c))
    attributes = {"num_groups": groups, "epsilon": 1e-5, "activation": "none", "channels_last": 0}
    sample = Sample("offset", inputs, attributes)
    spec = next(spec for spec in SPECS if spec.name == "GroupNorm")
    truth, bound = truth_and_bound(spec, sample, "float32", eps=4.0)
    arrays = cast(sample, "float32")
    content = model_bytes(spec, sample, "float32", 18)
    assert_near(in_session(content, spec, arrays, library=True), truth, bound, "kernel")
    assert_near(in_session(content, spec, arrays, library=False), truth, bound, "body")
    assert_near(in_evaluator(content, spec, arrays), truth, bound, "body in the reference evaluator")
    assert_near(in_session(standard_bytes(spec, sample, "float32", 18), spec, arrays, False), truth, bound, "standard")


LARGE = {
    "GroupNorm": {"num_groups": 3, "epsilon": 1e-5, "activation": "none", "channels_last": 0},
    "SwitchableNorm": {"epsilon": 1e-5, "activation": "none", "channels_last": 0},
    "RMSNorm": {"axes": [-1], "epsilon": 1e-6, "activation": "none"},
}


@pytest.mark.parametrize("op", list(LARGE))
def test_a_body_adds_up_many_values(op: str) -> None:
    """ONNX Runtime's ReduceMean adds a long axis in one chain; 1024 x 1024 positions were off by 90 ulps."""
    spec = next(spec for spec in SPECS if spec.name == op)
    rng = np.random.default_rng(1)
    if op == "RMSNorm":
        inputs = (rng.standard_normal((1, 3 * 2**20)) + 1, np.ones(3 * 2**20))
    else:
        inputs = (rng.standard_normal((1, 3, 1024, 1024)), np.ones(3), np.zeros(3))
    if op == "SwitchableNorm":
        inputs = (*inputs, np.full(3, 1 / 3), np.full(3, 1 / 3), np.zeros(3), np.ones(3))
    sample = Sample("large", inputs, LARGE[op])
    truth, bound = truth_and_bound(spec, sample, "float32")
    content = model_bytes(spec, sample, "float32", 18)
    assert_near(in_session(content, spec, cast(sample, "float32"), library=True), truth, bound, "kernel")
    assert_near(in_session(content, spec, cast(sample, "float32"), library=False), truth, bound, "body")
