"""Infinities and NaN in the data come out in the kind, sign and place that the reference says."""

from __future__ import annotations

import numpy as np
import pytest

from onnxnorm.spec.record import NormSpec, Sample

from .conftest import (
    SPECS,
    assert_all_near,
    cast,
    in_evaluator,
    in_session,
    model_bytes,
    standard_bytes,
    wanted,
)


def has_channels_last(spec: NormSpec) -> bool:
    return any(item.name == "channels_last" and 1 in item.choices for item in spec.attributes)


#: Norms with state have a test of their own.
CASES = [
    (spec, channels_last)
    for spec in SPECS
    for channels_last in (False, True)
    if not spec.has_state and (not channels_last or has_channels_last(spec))
]


def with_value(spec: NormSpec, value: float, channels_last: bool) -> Sample:
    """The first sample of that layout with one element replaced, in the first item."""
    sample = next(item for item in spec.samples() if bool(item.attributes.get("channels_last", 0)) == channels_last)
    x = sample.inputs[0].copy()
    x.reshape(-1)[1] = value
    return Sample(sample.label, (x, *sample.inputs[1:]), sample.attributes)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(
    ("spec", "channels_last"),
    CASES,
    ids=[f"{spec.name}-{('first', 'last')[last]}" for spec, last in CASES],
)
def test_one_value_that_is_not_finite(spec: NormSpec, channels_last: bool, value: float) -> None:
    sample = with_value(spec, value, channels_last)
    expected, arrays = wanted(spec, sample, "float32"), cast(sample, "float32")
    content = model_bytes(spec, sample, "float32", 20)
    standard = standard_bytes(spec, sample, "float32", 20)
    assert_all_near(in_session(content, spec, arrays, library=False), expected, "body")
    assert_all_near(in_evaluator(content, spec, arrays), expected, "body in the reference evaluator")
    assert_all_near(in_session(standard, spec, arrays, library=False), expected, "standard")
    assert_all_near(in_session(content, spec, arrays, library=True), expected, "kernel")
