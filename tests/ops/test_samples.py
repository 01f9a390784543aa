"""Every sample of every spec, in every type, on every SIMD level."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from onnxnorm.spec.record import ErrorSample, Sample

from .conftest import SPECS, TYPES, Runner, assert_close, model, run, session

SAMPLES = [(op, sample) for op, spec in sorted(SPECS.items()) for sample in spec.samples()]
DERIVED = [(op, sample) for op, sample in SAMPLES if op.startswith(("Skip", "Blocked"))]
PLAIN = [(op, sample) for op, sample in SAMPLES if not op.startswith(("Skip", "Blocked"))]
ERRORS = [(op, sample) for op, spec in sorted(SPECS.items()) for sample in spec.error_samples()]


def ids(pairs: list) -> list[str]:
    return [f"{op}-{sample.label}" for op, sample in pairs]


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize(("op", "sample"), PLAIN, ids=ids(PLAIN))
def test_sample_equals_its_reference(op: str, sample: Sample, dtype: str, level: str, runner: Runner) -> None:
    output, truth = runner(op, sample.inputs, dict(sample.attributes), dtype)
    assert_close(output, truth, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("op", "sample"), DERIVED, ids=ids(DERIVED))
def test_sample_of_a_derived_form(op: str, sample: Sample, dtype: str, level: str, runner: Runner) -> None:
    """Skip and blocked forms run the kernels of their plain ops, which the test before this one runs in every type."""
    output, truth = runner(op, sample.inputs, dict(sample.attributes), dtype)
    assert_close(output, truth, dtype)


def as_float32(sample: ErrorSample) -> list[np.ndarray]:
    return [np.asarray(value, np.float32) for value in sample.inputs]


def assert_one_line(message: str, op: str, sample: ErrorSample) -> None:
    line = next(line for line in message.splitlines() if "onnxnorm." in line)
    assert re.search(sample.message, line), line
    assert f"onnxnorm.{op} node 'the_norm'" in line


@pytest.mark.parametrize(("op", "sample"), ERRORS, ids=ids(ERRORS))
def test_error_with_static_shapes_is_found_when_the_session_is_made(
    op: str, sample: ErrorSample, library: Path
) -> None:
    shapes = [value.shape for value in as_float32(sample)]
    with pytest.raises(Exception, match=r"onnxnorm\.") as error:
        session(library, model(op, "float32", shapes, dict(sample.attributes)))
    assert_one_line(str(error.value), op, sample)


@pytest.mark.parametrize(("op", "sample"), ERRORS, ids=ids(ERRORS))
def test_error_with_unknown_shapes_is_found_at_the_latest_when_it_runs(
    op: str, sample: ErrorSample, library: Path
) -> None:
    values = as_float32(sample)
    shapes = [None] * len(values)
    with pytest.raises(Exception, match=r"onnxnorm\.") as error:
        run(session(library, model(op, "float32", shapes, dict(sample.attributes))), values, "float32")
    assert_one_line(str(error.value), op, sample)


@pytest.mark.parametrize("op", sorted(SPECS))
def test_a_missing_attribute_is_named(op: str, library: Path) -> None:
    sample = next(iter(SPECS[op].samples()))
    for name in sample.attributes:
        attributes = {key: value for key, value in sample.attributes.items() if key != name}
        with pytest.raises(Exception, match=f"attribute {name} is missing"):
            session(library, model(op, "float32", [value.shape for value in sample.inputs], attributes))


@pytest.mark.parametrize("op", sorted(SPECS))
def test_unknown_and_named_dimensions_pass(op: str, library: Path) -> None:
    sample = next(iter(SPECS[op].samples()))
    values = [np.asarray(value, np.float32) for value in sample.inputs]
    truth, *_ = SPECS[op].reference([value.astype(np.float64) for value in values], sample.attributes)
    ranks = [value.ndim for value in values]
    named = [[f"d{i}_{axis}" for axis in range(rank)] for i, rank in enumerate(ranks)]
    for shapes in ([None] * len(ranks), [[None] * rank for rank in ranks], named):
        output = run(session(library, model(op, "float32", shapes, dict(sample.attributes))), values, "float32")
        assert_close(output, truth, "float32")
