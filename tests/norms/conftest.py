"""What the tests of the norms share: every sample of every spec, ways to run one, and what is near enough."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from onnxnorm import InferenceSession, optimize
from onnxnorm.model_file import serialized
from onnxnorm.norms import all_specs
from onnxnorm.passes.pipeline import rule_ids
from onnxnorm.runtime.arrays import Array, float_info, from_ort, to_ort
from onnxnorm.runtime.environment import newest_opset
from onnxnorm.spec.record import NormSpec, Sample
from onnxnorm.spec.sample_model import sample_model

Doubles: TypeAlias = npt.NDArray[np.float64]

SPECS = tuple(all_specs().values())
SAMPLES = [(spec, sample) for spec in SPECS for sample in spec.samples()]
SAMPLE_IDS = [f"{spec.name}-{sample.label}" for spec, sample in SAMPLES]
NATIVE = [(spec, sample) for spec, sample in SAMPLES if spec.native]
NATIVE_IDS = [f"{spec.name}-{sample.label}" for spec, sample in NATIVE]
ERRORS = [(spec, sample) for spec in SPECS for sample in spec.error_samples()]
ERROR_IDS = [f"{spec.name}-{sample.label}" for spec, sample in ERRORS]
#: A body branches on the opset at 19 (string Equal).
OPSETS = tuple(sorted({18, 19, newest_opset()}))
NUMPY = {"float32": np.float32, "float16": np.float16, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}


def cast(sample: Sample, dtype: str) -> list[Array]:
    """The sample's inputs in a type."""
    return [np.asarray(array).astype(NUMPY[dtype]) for array in sample.inputs]


@dataclass(frozen=True)
class Wanted:
    """What one output must be, and how far from it each element may be."""

    truth: Doubles
    bound: Doubles


def wanted(spec: NormSpec, sample: Sample, dtype: str, eps: float = 8.0) -> list[Wanted]:
    """For each output the reference on the inputs as cast, and how far from it an element may be.

    The bound is 8 eps of the type, relative to the output's scale. In float64 the reference is computed in the type
    that it judges, so that it has a rounding error of its own: four times what moving every input by one rounding does
    to it is allowed on top. With data of mean 1e4 and standard deviation 1 that is 1e4 eps and not 8.
    """
    exact = [value.astype(np.float64) for value in cast(sample, dtype)]
    truths = spec.reference(exact, sample.attributes)
    again = truths
    if dtype == "float64":
        rng = np.random.default_rng(0)
        again = spec.reference(
            [value * (1.0 + rng.choice([-1.0, 1.0], value.shape) * 2.0**-53) for value in exact], sample.attributes
        )
    unit = float(float_info(np.dtype(NUMPY[dtype])).eps)
    result = []
    for truth, other in zip(truths, again, strict=True):
        scale = float(np.abs(truth[np.isfinite(truth)]).max(initial=0.0))
        with np.errstate(invalid="ignore"):
            shifted = np.abs(other - truth)
        allowed = eps * unit * max(scale, 1e-30) + 4.0 * float(shifted[np.isfinite(shifted)].max(initial=0.0))
        result.append(Wanted(truth, np.full(truth.shape, allowed)))
    return result


def assert_all_near(outputs: Sequence[Array], wanted: Sequence[Wanted], way: str) -> None:
    """``assert_near`` for every output."""
    for index, (output, one) in enumerate(zip(outputs, wanted, strict=True)):
        assert_near(output, one.truth, one.bound, f"{way}, output {index}")


def assert_near(output: Array, truth: Doubles, bound: Doubles, way: str) -> None:
    """Shape, kind and place of what is not finite, and distance."""
    assert output.shape == truth.shape, way
    have = output.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(have), np.isnan(truth), err_msg=way)
    finite = np.isfinite(truth)
    np.testing.assert_array_equal(have[np.isinf(truth)], truth[np.isinf(truth)], err_msg=way)
    over = np.abs(have[finite] - truth[finite]) / bound[finite]
    assert over.max(initial=0.0) <= 1.0, f"{way}: {over.max():.3g} times as far from the truth as allowed"


@functools.cache
def quiet() -> ort.SessionOptions:
    """Without ONNX Runtime's log; the same object would take the library once, so it is for sessions without it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


def in_session(content: bytes, spec: NormSpec, arrays: Sequence[Array], library: bool) -> list[Array]:
    """One run in ONNX Runtime, through OrtValues since NumPy has no bfloat16."""
    if library:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = InferenceSession(content, options, providers=["CPUExecutionProvider"], library=True)
    else:
        session = ort.InferenceSession(content, quiet(), providers=["CPUExecutionProvider"])
    feeds = {item.name: to_ort(array) for item, array in zip(spec.inputs, arrays, strict=True)}
    return [from_ort(value) for value in session.run_with_ort_values(None, feeds)]


def in_evaluator(content: bytes, spec: NormSpec, arrays: Sequence[Array]) -> list[Array]:
    """One run in the ONNX reference evaluator."""
    feeds = {item.name: array for item, array in zip(spec.inputs, arrays, strict=True)}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # NumPy's, of means over nothing
        return [np.asarray(result) for result in ReferenceEvaluator(onnx.load_from_string(content)).run(None, feeds)]


def model_bytes(spec: NormSpec, sample: Sample, dtype: str, opset: int, **options: Any) -> bytes:
    return serialized(sample_model(spec, sample, dtype, opset, **options))


def standard_bytes(spec: NormSpec, sample: Sample, dtype: str, opset: int) -> bytes:
    """The sample's model in primitive standard operators only."""
    single = [rule for rule in rule_ids() if rule.startswith("lower/") and rule != "lower/body-to-standard"]
    source = sample_model(spec, sample, dtype, opset, body=False)
    return serialized(optimize(source, target="standard", disable=single).model)
