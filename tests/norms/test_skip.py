"""The skip forms: the sum is rounded to its type, and then all is as in the plain norm."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxnorm import optimize
from onnxnorm.model_file import serialized
from onnxnorm.norms import all_specs
from onnxnorm.runtime.arrays import Array, float_info
from onnxnorm.spec.record import NormSpec, Sample
from onnxnorm.spec.sample_model import sample_model
from onnxnorm.spec.skip import SKIP, SUM

from .conftest import (
    NUMPY,
    Wanted,
    assert_all_near,
    cast,
    in_evaluator,
    in_session,
    model_bytes,
    quiet,
    standard_bytes,
    wanted,
)

PLAIN = tuple(spec for name, spec in all_specs().items() if f"Skip{name}" in all_specs())
every_form = pytest.mark.parametrize("plain", PLAIN, ids=lambda spec: f"Skip{spec.name}")


def skip_of(plain: NormSpec) -> NormSpec:
    return all_specs()[f"Skip{plain.name}"]


def test_which_norms_have_one() -> None:
    assert {spec.name for spec in PLAIN} == {
        "BatchInstanceNorm",
        "GroupNorm",
        "LayerNorm",
        "RMSNorm",
        "SwitchableNorm",
    }


@every_form
def test_the_record(plain: NormSpec) -> None:
    spec = skip_of(plain)
    assert spec.inputs == (plain.inputs[0], SKIP, *plain.inputs[1:])
    assert spec.outputs == (*plain.outputs, SUM)
    assert spec.attributes == plain.attributes
    assert not spec.has_state
    labels = [sample.label for sample in spec.samples()]
    assert {"offset", next(iter(plain.samples())).label} < set(labels)
    assert set(labels) <= {sample.label for sample in plain.samples()}
    assert any(sample.attributes["activation"] != "none" for sample in spec.samples())


@every_form
def test_a_sample_adds_up_to_the_plain_one_in_every_type(plain: NormSpec) -> None:
    """Without rounding, as the float64 reference has none; float16 has gaps of 2^-24 next to 0."""
    plain_samples = {sample.label: sample for sample in plain.samples()}
    for sample in skip_of(plain).samples():
        other = plain_samples[sample.label]
        for dtype in NUMPY:
            x, skip = cast(sample, dtype)[:2]
            total = (x + skip).astype(np.float64)
            np.testing.assert_array_equal(total, x.astype(np.float64) + skip.astype(np.float64), err_msg=dtype)
            np.testing.assert_allclose(total, cast(other, dtype)[0].astype(np.float64), rtol=0, atol=2.0**-24)
        assert sample.inputs[0].size < 4 or not np.array_equal(*sample.inputs[:2]) or not other.inputs[0].any()


def one_and_a_bit(plain: NormSpec, dtype: str) -> Sample:
    """X is 1, skip too small to change it by itself: a norm of the sum before it is rounded sees noise."""
    x, *rest = next(iter(plain.samples())).inputs
    attributes = dict(next(iter(plain.samples())).attributes) | {"epsilon": 1e-20}
    noise = np.random.default_rng(3).uniform(-0.2, 0.2, x.shape) * float(float_info(np.dtype(NUMPY[dtype])).eps)
    if plain.name == "SwitchableNorm":
        rest[2] = rest[3] = np.array([1.0, 0.0, 0.0])
    if plain.name == "BatchInstanceNorm":
        rest[2] = np.zeros_like(rest[2])
    return Sample("one-and-a-bit", (np.ones_like(x), noise, *rest), attributes)


@pytest.mark.parametrize("dtype", NUMPY)
@every_form
def test_the_sum_is_rounded_before_it_is_normalized(plain: NormSpec, dtype: str) -> None:
    spec, sample = skip_of(plain), one_and_a_bit(plain, dtype)
    arrays = cast(sample, dtype)
    total = arrays[0] + arrays[1]
    assert (total == 1).all()
    assert arrays[1].any()
    rounded = Sample("rounded", (total.astype(np.float64), *sample.inputs[2:]), sample.attributes)
    exact = Wanted(rounded.inputs[0], np.full(total.shape, 1e-300))
    expected = [*wanted(plain, rounded, dtype), exact]
    content = model_bytes(spec, sample, dtype, 20)
    ways: dict[str, list[Array]] = {
        "kernel": in_session(content, spec, arrays, library=True),
        "body": in_session(content, spec, arrays, library=False),
        "body in the reference evaluator": in_evaluator(content, spec, arrays),
        "standard": in_session(standard_bytes(spec, sample, dtype, 20), spec, arrays, library=False),
    }
    for way, outputs in ways.items():
        assert_all_near(outputs, expected, way)


@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
@every_form
def test_a_sum_that_nobody_reads(plain: NormSpec, target: str) -> None:
    """Left out by onnx_ir, written as '' by others."""
    spec = skip_of(plain)
    sample = next(iter(spec.samples()))
    arrays, expected = cast(sample, "float32"), wanted(spec, sample, "float32")[:1]
    content = serialized(sample_model(spec, sample, unused=True))
    assert_all_near(in_session(content, spec, arrays, library=True), expected, "kernel")
    assert_all_near(in_session(content, spec, arrays, library=False), expected, "body")
    empty = onnx.load_from_string(serialized(sample_model(spec, sample)))
    empty.graph.node[0].output[1] = ""
    del empty.graph.output[1]
    onnx.checker.check_model(empty, full_check=True)
    given = empty.SerializeToString()
    assert_all_near(in_session(given, spec, arrays, library=True), expected, "kernel, ''")
    assert_all_near(in_session(given, spec, arrays, library=False), expected, "body, ''")
    made = serialized(optimize(empty, target=target).model)
    assert_all_near(in_session(made, spec, arrays, library=False), expected, "optimized")
    if target == "onnxnorm":
        assert [len(node.output) for node in onnx.load_from_string(made).graph.node] == [1]


@every_form
def test_shape_inference_tells_the_sum(plain: NormSpec) -> None:
    spec = skip_of(plain)
    sample = next(iter(spec.samples()))
    model = onnx.load_from_string(serialized(sample_model(spec, sample, body=False)))
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    for output in onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output:
        assert [size.dim_value for size in output.type.tensor_type.shape.dim] == list(sample.inputs[0].shape)


def test_a_size_that_only_the_skip_tells() -> None:
    spec = all_specs()["SkipGroupNorm"]
    attributes = {"num_groups": 4, "epsilon": 1e-5, "activation": "none", "channels_last": 0}
    spec.validate([None, [2, 8, 3], [8], [8]], attributes)
    with pytest.raises(ValueError, match=r"num_groups is 4.*6 channels"):
        spec.validate([[2, None, 3], [None, 6, 3], None, None], attributes)
    with pytest.raises(ValueError, match=r"skip has shape \[2, 8, 4\]; it must be \[2, 8, 3\], the shape of X"):
        spec.validate([[2, 8, 3], [2, 8, 4], [8], [8]], attributes)


def test_onnxruntime_needs_as_many_outputs_as_the_body_has() -> None:
    """Why nodes of one op agree on them: should a newer ONNX Runtime be content, this says so."""
    spec = all_specs()["SkipRMSNorm"]
    sample = next(iter(spec.samples()))
    model = onnx.load_from_string(serialized(sample_model(spec, sample)))
    del model.graph.node[0].output[1], model.graph.output[1]
    with pytest.raises(Exception, match="output index 1 is out of range"):
        ort.InferenceSession(model.SerializeToString(), quiet(), providers=["CPUExecutionProvider"])
