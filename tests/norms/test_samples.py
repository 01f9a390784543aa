"""Every sample of every norm in every form that it takes, against the norm's float64 reference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxnorm.spec.record import NormSpec, Sample

from .conftest import (
    NATIVE,
    NATIVE_IDS,
    NUMPY,
    OPSETS,
    SAMPLE_IDS,
    SAMPLES,
    SPECS,
    assert_all_near,
    cast,
    in_evaluator,
    in_session,
    model_bytes,
    standard_bytes,
    wanted,
)

DTYPES = tuple(NUMPY)
every_sample = pytest.mark.parametrize(("spec", "sample"), SAMPLES, ids=SAMPLE_IDS)


def opsets_for(dtype: str) -> tuple[int, ...]:
    """All of them in float32; one in each other type, whose bodies differ from that by casts only."""
    return OPSETS if dtype == "float32" else OPSETS[:1] if dtype == "float16" else OPSETS[-1:]


def test_every_norm_has_samples_and_error_samples() -> None:
    for spec in SPECS:
        labels = [sample.label for sample in spec.samples()]
        assert len(labels) == len(set(labels)) > 3, spec.name
        assert any(0 in sample.inputs[0].shape for sample in spec.samples()), f"{spec.name} has no empty sample"
        assert list(spec.error_samples()), spec.name


@pytest.mark.parametrize("dtype", DTYPES)
@every_sample
def test_function_body_in_onnxruntime(spec: NormSpec, sample: Sample, dtype: str) -> None:
    expected = wanted(spec, sample, dtype)
    for opset in opsets_for(dtype):
        for dynamic in (False, True) if (dtype, opset) == ("float32", OPSETS[0]) else (True,):
            content = model_bytes(spec, sample, dtype, opset, dynamic=dynamic)
            outputs = in_session(content, spec, cast(sample, dtype), library=False)
            assert {output.dtype for output in outputs} == {np.dtype(NUMPY[dtype])}
            assert_all_near(outputs, expected, f"opset {opset}, dynamic {dynamic}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_sample
def test_function_body_in_the_reference_evaluator(spec: NormSpec, sample: Sample, dtype: str) -> None:
    """The oldest opset in one type, the newest in another: the test before this one runs all."""
    expected = wanted(spec, sample, dtype)
    opset = OPSETS[0] if dtype == "float32" else OPSETS[-1]
    outputs = in_evaluator(model_bytes(spec, sample, dtype, opset), spec, cast(sample, dtype))
    assert {output.dtype for output in outputs} == {np.dtype(NUMPY[dtype])}
    assert_all_near(outputs, expected, f"opset {opset}")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@every_sample
def test_primitive_operators_in_place(spec: NormSpec, sample: Sample, dtype: str) -> None:
    expected = wanted(spec, sample, dtype)
    for opset in sorted({opsets_for(dtype)[0], opsets_for(dtype)[-1]}):  # the activation is known: no string Equal
        content = standard_bytes(spec, sample, dtype, opset)
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        assert not model.functions
        assert {entry.domain for entry in model.opset_import} == {""}
        assert {node.domain for node in model.graph.node} <= {""}
        assert not any("Norm" in node.op_type for node in model.graph.node)
        assert_all_near(in_session(content, spec, cast(sample, dtype), library=False), expected, f"opset {opset}")


@pytest.mark.parametrize(("spec", "sample"), NATIVE, ids=NATIVE_IDS)
def test_native_kernel(spec: NormSpec, sample: Sample) -> None:
    """With the body beside it; tests/ops runs the kernels in all types and on all levels."""
    dtype = "float32"
    expected = wanted(spec, sample, dtype, eps=4.0)
    content = model_bytes(spec, sample, dtype, 20)
    outputs = in_session(content, spec, cast(sample, dtype), library=True)
    assert {output.dtype for output in outputs} == {np.dtype(NUMPY[dtype])}
    assert_all_near(outputs, expected, "native kernel")


@every_sample
def test_the_model_passes_the_full_check(spec: NormSpec, sample: Sample) -> None:
    for opset in OPSETS:
        for options in ({}, {"dynamic": True}, {"body": False}) if opset == OPSETS[0] else ({},):
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
        assert list(function.output) == [item.name for item in spec.outputs]
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
    expected = wanted(spec, sample, "float32", eps=4.0)
    arrays = cast(sample, "float32")
    content = model_bytes(spec, sample, "float32", 18)
    assert_all_near(in_session(content, spec, arrays, library=True), expected, "kernel")
    assert_all_near(in_session(content, spec, arrays, library=False), expected, "body")
    assert_all_near(in_evaluator(content, spec, arrays), expected, "body in the reference evaluator")
    assert_all_near(in_session(standard_bytes(spec, sample, "float32", 18), spec, arrays, False), expected, "standard")


LARGE = {
    "GroupNorm": {"num_groups": 3, "epsilon": 1e-5, "activation": "none", "channels_last": 0},
    "SwitchableNorm": {"epsilon": 1e-5, "activation": "none", "channels_last": 0},
    "BatchInstanceNorm": {"epsilon": 1e-5, "activation": "none", "channels_last": 0},
    "FilterResponseNorm": {"epsilon": 1e-6, "activation": "none", "channels_last": 0},
    "EvoNormS0": {"num_groups": 1, "epsilon": 1e-5, "channels_last": 0},
    "GlobalResponseNorm": {"epsilon": 1e-6, "input_activation": "none", "activation": "none", "channels_last": 0},
    "L2Norm": {"axes": [-1], "epsilon": 1e-12, "activation": "none"},
    "RMSNorm": {"axes": [-1], "epsilon": 1e-6, "activation": "none"},
    "LayerNorm": {"axes": [-1], "epsilon": 1e-6, "activation": "none"},
}


@pytest.mark.parametrize("op", list(LARGE))
def test_a_body_adds_up_many_values(op: str) -> None:
    """ONNX Runtime's ReduceMean adds a long axis in one chain; 1024 x 1024 positions were off by 90 ulps."""
    spec = next(spec for spec in SPECS if spec.name == op)
    rng = np.random.default_rng(1)
    if op in ("RMSNorm", "LayerNorm", "L2Norm"):
        inputs = (rng.standard_normal((1, 3 * 2**20)) + 1, np.ones(3 * 2**20), np.zeros(3 * 2**20))
        inputs = inputs[: len(spec.inputs)]
    else:
        inputs = (rng.standard_normal((1, 3, 1024, 1024)), np.ones(3), np.zeros(3))
    if op == "SwitchableNorm":
        inputs = (*inputs, np.full(3, 1 / 3), np.full(3, 1 / 3), np.zeros(3), np.ones(3))
    if op in ("FilterResponseNorm", "EvoNormS0"):
        inputs = (*inputs, np.ones(3))
    if op == "GlobalResponseNorm":
        inputs = (inputs[0] * np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1), *inputs[1:])
    if op == "BatchInstanceNorm":
        inputs = (*inputs, np.full(3, 0.5), np.zeros(3), np.ones(3))
    sample = Sample("large", inputs, LARGE[op])
    expected = wanted(spec, sample, "float32")
    content = model_bytes(spec, sample, "float32", 18)
    assert_all_near(in_session(content, spec, cast(sample, "float32"), library=True), expected, "kernel")
    assert_all_near(in_session(content, spec, cast(sample, "float32"), library=False), expected, "body")


def test_batch_statistics_of_many_values() -> None:
    """N * H * W of a batch may be 1e8 in one axis; a chain of float32 sums loses all digits of the running variance."""
    spec = next(spec for spec in SPECS if spec.name == "BatchNormTraining")
    rng = np.random.default_rng(1)
    state = (np.zeros(3), np.ones(3), np.array([0.25]))
    sample = Sample(
        "large", (rng.standard_normal((1, 3, 4_000_000)), np.ones(3), np.zeros(3), *state), {"epsilon": 1e-5}
    )
    expected = wanted(spec, sample, "float32")
    content = model_bytes(spec, sample, "float32", 18)
    assert_all_near(in_session(content, spec, cast(sample, "float32"), library=False), expected, "body")


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.has_state], ids=lambda spec: spec.name)
def test_a_state_after_what_is_not_finite(spec: NormSpec, value: float) -> None:
    """Kind, sign and place, of the result and of the next state."""
    sample = next(iter(spec.samples()))
    x = sample.inputs[0].copy()
    x[1, 2, 1] = value
    sample = Sample("not-finite", (x, *sample.inputs[1:]), sample.attributes)
    for dtype in DTYPES:
        expected = wanted(spec, sample, dtype)
        assert not np.isfinite(expected[1].truth[2])
        assert np.isfinite(np.delete(expected[1].truth, 2)).all()
        content = model_bytes(spec, sample, dtype, 18)
        assert_all_near(in_session(content, spec, cast(sample, dtype), library=False), expected, dtype)
