"""One output against the truth: distances, and the verdict.

Distances are relative to the output's scale, the largest finite truth: a distance of 1e-6 is an error of 1e-6 of the
largest value. The verdict asks that ONNX Runtime be no farther from the truth than ``factor`` times PyTorch at the same
dtype, or than the floor:

    max|onnx - truth| / scale  <=  max(factor * max|pytorch - truth| / scale,  8 eps(dtype))

The floor never sinks below 8 times the type's smallest subnormal number. PyTorch's distance is the largest of several
runs, the first as it is, the others with inputs and weights moved by one unit in the last place (``Oracle.redrawn``):
one run can be close by luck, and a run that rounds just as the truth does (a module deployed in float64, a truth with
float32 parts) is close for no merit.

Non-finite values must match, in kind and sign and place, those of the truth rounded to the output's dtype: a finite
truth beyond float16's range is inf there, and a finite result in that place is measured like any other. Integers and
booleans compare exactly; where one of PyTorch's runs differs from the truth (a near tie of argmax), either is right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxnorm.runtime.arrays import Array, float_info, is_float

#: Multiples of machine epsilon below which a distance counts as rounding.
FLOOR_EPS = 8
#: Elements that are held in float64 at a time: a few arrays of 4 MiB.
CHUNK = 1 << 19


@dataclass(frozen=True)
class Element:
    """One element: where it is, what it is and what it should be."""

    index: tuple[int, ...]
    value: float
    truth: float


@dataclass(frozen=True)
class Measurement:
    """How far one float array is from the truth.

    Attributes:
        maximum, rms: relative to the scale, over elements that are finite on both sides.
        worst: the element with the largest error; None in an empty array.
        ulps: its error in units of the output dtype's spacing at the truth.
        cosine: of the angle between array and truth; None when either is all zero.
        atol: smallest ``atol`` with which ``numpy.allclose(array, truth, rtol=0)`` holds; None when none does.
        rtol: the same for ``rtol`` with ``atol=0`` over the elements whose truth is not zero.
        off_at_zero: elements whose truth is zero and that are not: no rtol covers them.
        expected_nonfinite: elements that are inf or NaN, as in the truth.
        unexpected_nonfinite: elements that are inf or NaN, or finite, where the truth is not so.
        first_unexpected: the first of these.

    """

    maximum: float
    rms: float
    worst: Element | None
    ulps: float
    cosine: float | None
    atol: float | None
    rtol: float | None
    off_at_zero: int
    expected_nonfinite: int
    unexpected_nonfinite: int
    first_unexpected: Element | None


@dataclass(frozen=True)
class Exact:
    """Elements of an integer or boolean output that differ from the truth.

    Attributes:
        wrong: elements that equal neither the truth nor any of PyTorch's runs.
        undecided: elements that equal a run of PyTorch, but not the truth: PyTorch itself is off there.
        first: the first wrong element.
        largest: the largest difference among the wrong ones.

    """

    wrong: int
    undecided: int
    first: Element | None
    largest: float


@dataclass(frozen=True)
class Agreement:
    """Rows of a (rows, classes) output: share whose winner is the truth's, and whose five best hold it."""

    top1: float
    top5: float


@dataclass(frozen=True)
class OutputComparison:
    """The verdict on one output of one run.

    Attributes:
        reason: why it failed, "" when it passed.
        allowed: the largest distance that passes.
        pytorch: PyTorch's run as it is.
        pytorch_distance: the largest distance of all of PyTorch's runs, from which ``allowed`` comes.

    """

    name: str
    passed: bool
    reason: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    allowed: float | None = None
    onnx: Measurement | None = None
    pytorch: Measurement | None = None
    pytorch_distance: float | None = None
    exact: Exact | None = None
    agreement: Agreement | None = None


def compare_output(
    name: str, onnx: Array, pytorch: Array, truth: Array, *, factor: float, redrawn: Sequence[Array] = ()
) -> OutputComparison:
    """Judges one output.

    Args:
        name: as the report calls it.
        onnx: what ONNX Runtime gave.
        pytorch: what PyTorch gave at the deployed dtype, which ``onnx`` must have too.
        truth: the float64 run; for integers and booleans the same type as PyTorch's.
        factor: how many times PyTorch's distance is allowed.
        redrawn: further runs of PyTorch (``Oracle.redrawn``).

    Returns:
        the comparison; a shape or type that differs fails with both in the reason.

    """
    dtype = _name(pytorch.dtype)
    if onnx.shape != pytorch.shape or truth.shape != pytorch.shape:
        have, want = list(onnx.shape), list(pytorch.shape)
        reason = f"shape {have}, must be {want}"
        if pytorch.shape != truth.shape:
            reason = f"PyTorch's shape depends on precision: {want} as deployed, {list(truth.shape)} in float64"
        return OutputComparison(name, False, reason, dtype, onnx.shape)
    if onnx.dtype != pytorch.dtype:
        return OutputComparison(name, False, f"type {_name(onnx.dtype)}, must be {dtype}", dtype, onnx.shape)
    if not is_float(pytorch.dtype):
        return _compare_exact(name, onnx, (pytorch, *redrawn), truth)
    return _compare_float(name, onnx, pytorch, truth.astype(np.float64, copy=False), factor=factor, redrawn=redrawn)


def _compare_float(
    name: str, onnx: Array, pytorch: Array, truth: Array, *, factor: float, redrawn: Sequence[Array]
) -> OutputComparison:
    dtype = pytorch.dtype
    scale = scale_of(truth, dtype)
    ours, theirs = measure(onnx, truth, dtype, scale), measure(pytorch, truth, dtype, scale)
    others = [measure(run, truth, dtype, scale).maximum for run in redrawn if run.shape == truth.shape]
    distance = max(theirs.maximum, *others) if others else theirs.maximum
    allowed = max(factor * distance, floor_of(dtype, scale))
    return OutputComparison(
        name=name,
        passed=not ours.unexpected_nonfinite and ours.maximum <= allowed,
        reason=_reason(ours, theirs, distance, allowed),
        dtype=_name(dtype),
        shape=onnx.shape,
        scale=scale,
        allowed=allowed,
        onnx=ours,
        pytorch=theirs,
        pytorch_distance=distance,
        agreement=agreement_of(onnx, truth),
    )


def _reason(ours: Measurement, theirs: Measurement, distance: float, allowed: float) -> str:
    if ours.unexpected_nonfinite:
        element = ours.first_unexpected
        assert element is not None
        same = " (PyTorch at the deployed dtype has such values too)" if theirs.unexpected_nonfinite else ""
        return (
            f"{ours.unexpected_nonfinite} values are not finite where the truth is, or the reverse: "
            f"{list(element.index)} is {element.value:.6g}, truth {element.truth:.6g}{same}"
        )
    if ours.maximum <= allowed:
        return ""
    return f"distance {ours.maximum:.3g} is over the allowed {allowed:.3g} (PyTorch's own: {distance:.3g})"


def scale_of(truth: Array, dtype: np.dtype[Any]) -> float:
    """The largest finite |truth|, no larger than ``dtype`` can hold; 1 when there is none or all are zero."""
    largest = 0.0
    for start, stop in _chunks(truth.size):
        part = np.abs(truth.reshape(-1)[start:stop])
        largest = max(largest, float(part[np.isfinite(part)].max(initial=0.0)))
    return min(largest, float(float_info(dtype).max)) or 1.0


def floor_of(dtype: np.dtype[Any], scale: float) -> float:
    """The distance that counts as rounding: 8 eps, more where the scale itself is subnormal."""
    info = float_info(dtype)
    return FLOOR_EPS * float(info.eps) * max(1.0, float(info.smallest_normal) / scale)


def blunt(output: OutputComparison) -> bool:
    """Whether PyTorch itself is so far from the truth (over sqrt(eps)) that a pass says little."""
    if output.pytorch_distance is None:
        return False
    return output.pytorch_distance > math.sqrt(float(float_info(np.dtype(output.dtype)).eps))


def measure(array: Array, truth: Array, dtype: np.dtype[Any], scale: float) -> Measurement:
    """Distances of ``array`` from the float64 ``truth``, at the precision of ``dtype``, a chunk at a time."""
    flat, exact = array.reshape(-1), truth.reshape(-1)
    sums = _Sums(dtype, scale)
    for start, stop in _chunks(flat.size):
        sums.add(start, flat[start:stop], exact[start:stop])
    return sums.result(flat, exact, array.shape)


class _Sums:
    """What is kept between chunks."""

    def __init__(self, dtype: np.dtype[Any], scale: float) -> None:
        self.dtype, self.scale = dtype, scale
        self.squares = self.dot = self.own = self.true = 0.0
        self.finite = self.off_at_zero = self.expected = self.unexpected = 0
        self.worst = self.first_unexpected = -1
        self.largest = -1.0
        self.relative = 0.0

    def add(self, start: int, array: Array, truth: Array) -> None:
        with np.errstate(all="ignore"):
            values = array.astype(np.float64)
            rounded = truth.astype(self.dtype).astype(np.float64)
            finite = np.isfinite(values) & np.isfinite(truth)
            same = (np.isnan(values) & np.isnan(rounded)) | (values == rounded)
            self._nonfinite(start, finite, same)
            values, truth = np.where(finite, values, 0.0), np.where(finite, truth, 0.0)
            errors = np.abs(values - truth)
            self._errors(start, errors, finite)
            self.squares += float(np.square(errors / self.scale).sum())
            size = np.abs(truth)
            known = size > 0
            self.relative = max(self.relative, float((errors[known] / size[known]).max(initial=0.0)))
            self.off_at_zero += int(np.count_nonzero(~known & (errors > 0)))
            values, truth = values / self.scale, truth / self.scale
            self.dot += float(values @ truth)
            self.own += float(values @ values)
            self.true += float(truth @ truth)

    def _nonfinite(self, start: int, finite: Array, same: Array) -> None:
        self.finite += int(np.count_nonzero(finite))
        self.expected += int(np.count_nonzero(~finite & same))
        wrong = ~finite & ~same
        count = int(np.count_nonzero(wrong))
        if count and self.first_unexpected < 0:
            self.first_unexpected = start + int(np.argmax(wrong))
        self.unexpected += count

    def _errors(self, start: int, errors: Array, finite: Array) -> None:
        position = int(np.argmax(np.where(finite, errors, -1.0)))
        if finite[position] and errors[position] > self.largest:
            self.largest, self.worst = float(errors[position]), start + position

    def result(self, flat: Array, truth: Array, shape: tuple[int, ...]) -> Measurement:
        def element(position: int) -> Element | None:
            if position < 0:
                return None
            index = tuple(int(each) for each in np.unravel_index(position, shape))
            return Element(index, float(flat[position]), float(truth[position]))

        worst, largest = element(self.worst), max(self.largest, 0.0)
        norms = math.sqrt(self.own) * math.sqrt(self.true)
        return Measurement(
            maximum=largest / self.scale,
            rms=math.sqrt(self.squares / self.finite) if self.finite else 0.0,
            worst=worst,
            ulps=largest / spacing(worst.truth, self.dtype) if worst is not None else 0.0,
            cosine=self.dot / norms if norms else None,
            atol=None if self.unexpected else largest,
            rtol=None if self.unexpected else self.relative,
            off_at_zero=self.off_at_zero,
            expected_nonfinite=self.expected,
            unexpected_nonfinite=self.unexpected,
            first_unexpected=element(self.first_unexpected),
        )


def spacing(value: float, dtype: np.dtype[Any]) -> float:
    """The distance between neighbours of ``dtype`` at ``value`` (finite), never below the smallest subnormal."""
    info = float_info(dtype)
    size = min(max(abs(value), float(info.smallest_normal)), float(info.max))
    return math.ldexp(float(info.eps), math.frexp(size)[1] - 1)


def agreement_of(onnx: Array, truth: Array) -> Agreement | None:
    """Top-1 and top-5 agreement of a (rows, classes) output with at least 2 classes; None for anything else."""
    if onnx.ndim != 2 or onnx.shape[0] == 0 or onnx.shape[1] < 2:
        return None
    rows, first, five = onnx.shape[0], 0, 0
    best = min(5, onnx.shape[1])
    step = max(1, CHUNK // onnx.shape[1])
    for start in range(0, rows, step):
        scores = onnx[start : start + step].astype(np.float64)
        exact = truth[start : start + step]
        top = np.take_along_axis(exact, np.argmax(exact, axis=1)[:, None], axis=1)
        five_best = np.argpartition(-scores, best - 1, axis=1)[:, :best]
        winner = np.argmax(scores, axis=1)[:, None]
        first += int(np.count_nonzero(np.take_along_axis(exact, winner, axis=1) == top))
        five += int(np.count_nonzero((np.take_along_axis(exact, five_best, axis=1) == top).any(axis=1)))
    return Agreement(first / rows, five / rows)


def _compare_exact(name: str, onnx: Array, pytorch: Sequence[Array], truth: Array) -> OutputComparison:
    wrong = undecided = 0
    first: Element | None = None
    largest = 0.0
    ours, exact = onnx.reshape(-1), truth.reshape(-1)
    runs = [run.reshape(-1) for run in pytorch if run.shape == truth.shape]
    for start, stop in _chunks(ours.size):
        off = ours[start:stop] != exact[start:stop]
        like_pytorch = np.zeros(stop - start, np.bool_)
        for theirs in runs:
            like_pytorch |= ours[start:stop] == theirs[start:stop]
        undecided += int(np.count_nonzero(off & like_pytorch))
        positions = np.flatnonzero(off & ~like_pytorch)
        wrong += len(positions)
        if len(positions) and first is None:
            position = start + int(positions[0])
            index = tuple(int(each) for each in np.unravel_index(position, onnx.shape))
            first = Element(index, int(ours[position]), int(exact[position]))  # exact at any size
        wide = ours[start:stop][positions].astype(np.float64) - exact[start:stop][positions].astype(np.float64)
        largest = max(largest, float(np.abs(wide).max(initial=0.0)))
    reason = ""
    if first is not None:
        reason = f"{wrong} of {ours.size} values differ: {list(first.index)} is {first.value}, must be {first.truth}"
    measured = Exact(wrong, undecided, first, largest)
    return OutputComparison(name, not wrong, reason, _name(onnx.dtype), onnx.shape, exact=measured)


def _name(dtype: np.dtype[Any]) -> str:
    return str(dtype.name)


def _chunks(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, CHUNK):
        yield start, min(start + CHUNK, size)
