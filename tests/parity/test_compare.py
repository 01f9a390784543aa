"""Distances and verdicts of one output."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxnorm.parity import compare
from onnxnorm.parity.compare import OutputComparison, agreement_of, compare_output, measure, scale_of, spacing
from onnxnorm.parity.outputs import Expected, NamedArray, compare_outputs, pair

RNG = np.random.default_rng(0)
TRUTH = RNG.standard_normal((7, 11)) * 3
SINGLE = TRUTH.astype(np.float32)
EPS = float(np.finfo(np.float32).eps)


def judge(onnx: Any, pytorch: Any = SINGLE, truth: Any = TRUTH, **options: Any) -> OutputComparison:
    return compare_output("y", onnx, pytorch, truth, **{"factor": 4.0, **options})


def changed(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


def test_every_figure_of_a_measurement() -> None:
    truth = np.array([[1.0, -4.0], [0.0, 2.0]])
    got = measure(np.array([[1.0, -4.5], [0.25, 2.0]], np.float32), truth, np.dtype(np.float32), 4.0)
    assert (got.maximum, got.rms) == (0.125, math.sqrt((0.5**2 + 0.25**2) / 4) / 4)
    assert got.worst is not None
    assert (got.worst.index, got.worst.value, got.worst.truth) == ((0, 1), -4.5, -4.0)
    assert got.ulps == 0.5 / (4 * EPS)
    assert got.cosine == pytest.approx((1 + 18 + 4) / math.sqrt((1 + 20.25 + 0.0625 + 4) * 21))
    assert (got.atol, got.rtol, got.off_at_zero) == (0.5, 0.125, 1)


def test_the_smallest_tolerances_are_those_of_allclose() -> None:
    other = SINGLE + RNG.standard_normal(SINGLE.shape).astype(np.float32) * 1e-3
    got = judge(other).onnx
    assert got is not None
    assert got.atol is not None
    assert got.rtol is not None
    wide = other.astype(np.float64)
    for name, smallest in (("atol", got.atol), ("rtol", got.rtol)):
        zero = {"atol": 0.0, "rtol": 0.0}
        assert np.allclose(wide, TRUTH, **{**zero, name: smallest * (1 + 1e-12)})
        assert not np.allclose(wide, TRUTH, **{**zero, name: smallest * (1 - 1e-9)})


@pytest.mark.parametrize("chunk", [1, 5, 77, 1000])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    other = changed(changed(SINGLE * np.float32(1.001), (3, 4), np.nan), (6, 10), -np.inf)
    truth = changed(TRUTH, (6, 10), -np.inf)
    whole = compare_output("y", other, SINGLE, truth, factor=4.0)
    monkeypatch.setattr(compare, "CHUNK", chunk)
    parts = compare_output("y", other, SINGLE, truth, factor=4.0)
    assert parts.onnx is not None
    assert whole.onnx is not None
    for name in ("maximum", "worst", "atol", "rtol", "expected_nonfinite", "unexpected_nonfinite"):
        assert getattr(parts.onnx, name) == getattr(whole.onnx, name), name
    assert parts.onnx.first_unexpected is not None
    assert parts.onnx.first_unexpected.index == (3, 4)
    assert parts.onnx.rms == pytest.approx(whole.onnx.rms, rel=1e-12)
    assert parts.agreement == whole.agreement


def test_the_verdict_is_a_multiple_of_pytorchs_own_distance() -> None:
    scale = np.abs(TRUTH).max()
    pytorch = changed(SINGLE, (0, 0), TRUTH[0, 0] + 1e-4 * scale)
    assert judge(changed(SINGLE, (1, 1), TRUTH[1, 1] + 3.9e-4 * scale), pytorch).passed
    failed = judge(changed(SINGLE, (1, 1), TRUTH[1, 1] + 4.1e-4 * scale), pytorch)
    assert not failed.passed
    assert "distance 0.00041 is over the allowed 0.0004" in failed.reason
    assert judge(changed(SINGLE, (1, 1), TRUTH[1, 1] + 4.1e-4 * scale), pytorch, factor=5.0).passed


def test_the_floor_is_8_eps_of_the_scale() -> None:
    scale = np.abs(TRUTH).max()
    assert judge(changed(SINGLE, (1, 1), TRUTH[1, 1] + 7.5 * EPS * scale)).passed
    assert not judge(changed(SINGLE, (1, 1), TRUTH[1, 1] + 8.6 * EPS * scale)).passed


def test_a_subnormal_scale_does_not_fail_for_rounding() -> None:
    truth = np.array([3e-45, 1e-42])
    assert judge(np.array([2.8e-45, 1e-42], np.float32), truth.astype(np.float32), truth).passed
    assert not judge(np.array([2.8e-45, 2e-42], np.float32), truth.astype(np.float32), truth).passed


def test_the_largest_distance_of_pytorchs_runs_counts() -> None:
    scale = np.abs(TRUTH).max()
    lucky = TRUTH.copy()  # bit for bit the truth, as in float64: its distance says nothing
    off = changed(TRUTH, (2, 2), TRUTH[2, 2] + 1e-13 * scale)
    assert not judge(off, lucky).passed
    verdict = judge(off, lucky, redrawn=[TRUTH + 1e-15 * scale, TRUTH - 3e-14 * scale, TRUTH[:3]])
    assert verdict.passed
    assert verdict.pytorch_distance == pytest.approx(3e-14, rel=1e-2)
    assert verdict.allowed == pytest.approx(1.2e-13, rel=1e-2)
    worse = changed(off, (2, 2), TRUTH[2, 2] + 1.3e-13 * scale)
    assert not judge(worse, lucky, redrawn=[TRUTH - 3e-14 * scale]).passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_where_the_truth_is_finite_fails(value: float) -> None:
    got = judge(changed(SINGLE, (4, 5), value))
    assert not got.passed
    assert "[4, 5]" in got.reason
    also = judge(changed(SINGLE, (4, 5), value), changed(SINGLE, (4, 5), value))
    assert not also.passed
    assert "PyTorch at the deployed dtype has such values too" in also.reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_as_in_the_truth_passes_and_is_counted(value: float) -> None:
    both = changed(SINGLE, (4, 5), value)
    got = judge(both, both, changed(TRUTH, (4, 5), value))
    assert got.passed
    assert got.onnx is not None
    assert got.onnx.expected_nonfinite == 1
    for other in {0.0, np.nan, np.inf, -np.inf} - {value}:
        if not (np.isnan(other) and np.isnan(value)):
            assert not judge(changed(SINGLE, (4, 5), other), both, changed(TRUTH, (4, 5), value)).passed


def test_float16_overflow_is_compared_with_the_rounded_truth() -> None:
    truth = np.array([1e5, 60000.0, -1e6, 1.0])
    half = truth.astype(np.float32)
    with np.errstate(over="ignore"):
        half = half.astype(np.float16)
    assert np.isinf(half).sum() == 2
    assert judge(half, half, truth).passed
    assert scale_of(truth, np.dtype(np.float16)) == 65504.0
    assert not judge(changed(half, 1, np.inf), half, truth).passed  # 60000 fits
    assert not judge(changed(half, 0, -np.inf), half, truth).passed
    assert not judge(changed(half, 0, 65504), half, truth).passed  # saturated, and a third off
    edge = np.array([65530.0, 1.0])
    assert judge(np.array([65504, 1], np.float16), np.array([np.inf, 1], np.float16), edge).passed


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_integers_and_booleans_are_exact(dtype: Any) -> None:
    truth = (np.arange(12).reshape(3, 4) % 2).astype(dtype)
    assert judge(truth, truth, truth).passed
    got = judge(changed(truth, (2, 1), not truth[2, 1]), truth, truth)
    assert not got.passed
    assert got.exact is not None
    assert (got.exact.wrong, got.exact.first.index if got.exact.first else None) == (1, (2, 1))
    assert "1 of 12 values differ: [2, 1]" in got.reason


def test_large_integers_keep_every_digit() -> None:
    truth = np.array([2**62 + 1])
    got = judge(truth - 1, truth, truth)
    assert not got.passed
    assert str(2**62 + 1) in got.reason


def test_a_near_tie_that_pytorch_itself_decides_otherwise() -> None:
    truth, pytorch = np.array([1, 2, 3]), np.array([1, 5, 3])
    like_pytorch = judge(pytorch, pytorch, truth)
    assert like_pytorch.passed
    assert like_pytorch.exact is not None
    assert like_pytorch.exact.undecided == 1
    assert judge(truth, pytorch, truth).passed
    assert not judge(np.array([1, 4, 3]), pytorch, truth).passed
    assert judge(np.array([1, 4, 3]), pytorch, truth, redrawn=[np.array([1, 4, 3])]).passed
    assert not judge(np.array([1, 5, 4]), pytorch, truth).passed


def test_shape_and_type_must_be_pytorchs() -> None:
    assert judge(SINGLE.T).reason == "shape [11, 7], must be [7, 11]"
    assert judge(TRUTH).reason == "type float64, must be float32"
    assert judge(SINGLE[:0], SINGLE[:0], TRUTH[:0]).passed
    assert judge(np.float32(0.5).reshape(()), np.float32(0.5).reshape(()), np.float64(0.5).reshape(())).passed


def test_bfloat16() -> None:
    rounded = TRUTH.astype(ml_dtypes.bfloat16)
    assert judge(rounded, rounded).passed
    assert judge(rounded, rounded).allowed == 8 * 2.0**-7
    off = changed(rounded, (0, 0), TRUTH[0, 0] + 0.1 * np.abs(TRUTH).max())
    assert not judge(off, rounded).passed


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [1.0, 1.5, -3.99, 4.0, 0.0, 1e-30, 6e4])
def test_spacing_is_numpys(dtype: Any, value: float) -> None:
    assert spacing(float(dtype(value)), np.dtype(dtype)) == abs(np.spacing(dtype(value)))


def test_top_1_and_top_5() -> None:
    truth = np.tile(np.arange(8.0), (4, 1))
    scores = truth.astype(np.float32)
    scores[0, 2] = 100  # wins instead: top-5 still holds it
    scores[1, :5] = 50  # five others win
    got = agreement_of(scores, truth)
    assert got is not None
    assert (got.top1, got.top5) == (0.5, 0.75)
    assert agreement_of(scores[:, :1], truth[:, :1]) is None
    assert agreement_of(scores[None], truth[None]) is None
    tie = agreement_of(np.array([[1.0, 2.0]], np.float32), np.array([[3.0, 3.0]]))
    assert tie is not None
    assert tie.top1 == 1.0


def named(**arrays: np.ndarray) -> tuple[NamedArray, ...]:
    return tuple(NamedArray(name, array) for name, array in arrays.items())


def test_outputs_find_their_partners() -> None:
    a, b, c = np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), np.zeros(5, np.int64)
    wanted = named(a=a, b=b, c=c)
    assert pair(named(x=a, y=b, z=c), wanted) == [0, 1, 2]
    assert pair(named(c=c, a=a, b=b), wanted) == [1, 2, 0]
    assert pair(named(c=c, a=a), wanted) == [1, None, 0]
    assert pair(named(x=a, z=c), wanted) == [0, None, 1]
    assert pair(named(x=a, y=b, w=b, z=c), wanted)[2] == 3


def test_missing_and_extra_outputs_fail_by_name_and_shape() -> None:
    a, b, c = np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), np.zeros(5, np.int64)
    wanted = named(a=a, b=b, c=c)
    expected = Expected(wanted, wanted)
    got = compare_outputs(named(x=a, z=c), expected, 4.0)
    assert [item.passed for item in got] == [True, False, True]
    assert (got[1].name, got[1].reason) == ("b", "missing from the ONNX file (float32[2, 4])")
    got = compare_outputs(named(x=a, y=b, w=b + 1, z=c), expected, 4.0)
    assert [item.passed for item in got][:3] == [True, True, True] or not got[1].passed
    assert "not an output of the PyTorch module (float32[2, 4])" in got[3].reason
