"""Measures cases: every candidate is verified first, then all are timed in turns."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxnorm.bench.candidate import Candidate, Ready, SameAs, Unavailable, Workbench
from onnxnorm.bench.candidates import COPY, OURS, candidates
from onnxnorm.bench.case import Case, Data, check_case, make_data
from onnxnorm.bench.machine import machine
from onnxnorm.bench.memory import kept_memory
from onnxnorm.bench.sessions import check_provider
from onnxnorm.bench.statistics import Timing
from onnxnorm.bench.timing import Protocol, measure
from onnxnorm.errors import OnnxnormError, UsageError, error_line, one_line
from onnxnorm.runtime.arrays import Array, float_info
from onnxnorm.spec.record import FloatArray

SCHEMA = "onnxnorm-bench-ops/1"
#: Distance from the truth, in machine epsilons of the output's scale, up to which a result counts as right. It is what
#: onnxnorm's own candidates must keep; others are merely "inaccurate" beyond it, and wrong beyond the root of epsilon.
ALLOWED_EPS = 8


@dataclass(frozen=True)
class Row:
    """One candidate's result in one case.

    Attributes:
        key, label: the candidate's.
        status: "ok", "inaccurate" or "wrong" (timed all the same), "same" (as candidate ``reason``), "not available".
        reason: why it is not ok.
        note: what ran.
        ours: whether it is onnxnorm's own.
        distance: largest deviation from the float64 truth, over the output's scale (the largest value of the truth).
        timing: None when it did not run.

    """

    key: str
    label: str
    status: str
    reason: str = ""
    note: str = ""
    ours: bool = False
    distance: float | None = None
    timing: Timing | None = None


@dataclass(frozen=True)
class CaseResult:
    """All candidates of one case, and the largest distance that counts as right."""

    case: Case
    allowed: float
    rows: tuple[Row, ...]

    def row(self, key: str) -> Row | None:
        """The row of a candidate; of the one that it is the same as, where it is."""
        for row in self.rows:
            if row.key == key:
                return self.row(row.reason) if row.status == "same" else row
        return None

    def ratio(self, row: Row, base: str) -> float | None:
        """How many times as long as candidate ``base``; None when either has no time."""
        other, row_timing = self.row(base), self.timing(row)
        if other is None or other.timing is None or row_timing is None:
            return None
        return row_timing.median / other.timing.median

    def timing(self, row: Row) -> Timing | None:
        """The row's timing, or that of the row that it is the same as."""
        found = self.row(row.key)
        return None if found is None else found.timing

    @property
    def fastest(self) -> Row | None:
        """The fastest candidate that computes the norm and is not wrong."""
        timed = [row for row in self.rows if row.timing is not None and row.status != "wrong" and row.key != COPY]
        return min(timed, key=lambda row: row.timing.median if row.timing else 0.0, default=None)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        case = self.case
        return {
            "label": case.label,
            "op": case.op,
            "shape": list(case.shape),
            "dtype": case.dtype,
            "attributes": case.attributes,
            "elements": case.elements,
            "bytes": case.bytes,
            "allowed_distance": self.allowed,
            "fastest": self.fastest.key if self.fastest else None,
            "candidates": [self._row_json(row) for row in self.rows],
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        return {
            "key": row.key,
            "label": row.label,
            "status": row.status,
            "reason": row.reason,
            "note": row.note,
            "ours": row.ours,
            "distance": row.distance if row.distance is None or np.isfinite(row.distance) else str(row.distance),
            "milliseconds": None if row.timing is None else row.timing.to_json(),
            "ratio_to_copy": self.ratio(row, COPY),
            "ratio_to_onnxnorm": self.ratio(row, OURS),
        }


@dataclass(frozen=True)
class OpsReport:
    """Results of all cases, with the machine and the protocol."""

    machine: dict[str, Any]
    protocol: Protocol
    cases: tuple[CaseResult, ...]

    @property
    def passed(self) -> bool:
        """Whether none of onnxnorm's own candidates was wrong."""
        return not any(row.ours and row.status == "wrong" for case in self.cases for row in case.rows)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values, as ``onnxnorm/bench/schema.json`` describes."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "machine": self.machine,
            "protocol": self.protocol.to_json(),
            "cases": [case.to_json() for case in self.cases],
        }


@dataclass
class _Prepared:
    row: Row
    ready: Ready | None = field(default=None)


def run_cases(
    cases: Sequence[Case],
    *,
    threads: int | None = None,
    provider: str = "cpu",
    protocol: Protocol | None = None,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    compile_seconds: float = 60.0,
    started: Callable[[dict[str, Any]], None] = lambda machine: None,
    progress: Callable[[CaseResult], None] = lambda result: None,
) -> OpsReport:
    """Verifies and times every candidate of every case.

    Args:
        cases: what to measure; ``default_cases`` makes a list.
        threads: within one operator, for all candidates but the copy, which has one; by default 2, or 1 on one core.
        provider: cpu or cuda.
        protocol: how long to measure.
        only, without: keys of the candidates to keep or to leave out; the copy always stays.
        compile_seconds: what torch.compile may take for a case.
        started: called with the machine once the arguments are found to be right.
        progress: called with each case's result as soon as it is there.

    Raises:
        UsageError: a case, provider or candidate that there is not.

    """
    for case in cases:
        check_case(case)
    check_provider(provider)
    chosen = _chosen(provider, only, without)
    threads = default_threads() if threads is None else threads
    protocol = protocol or Protocol()
    where = machine(threads, provider)
    started(where)
    results = []
    with _torch_threads(threads), kept_memory():
        for case in cases:
            bench = Workbench(case, make_data(case), threads, provider, compile_seconds)
            result = _run_case(bench, chosen, protocol)
            progress(result)
            results.append(result)
    return OpsReport(where, protocol, tuple(results))


def default_threads() -> int:
    """2, or 1 on a machine with one core."""
    return max(1, min(2, os.cpu_count() or 1))


def _chosen(provider: str, only: Sequence[str], without: Sequence[str]) -> list[Candidate]:
    known = candidates(provider)
    keys = [item.key for item in known]
    for key in (*only, *without):
        if key not in keys:
            raise UsageError(f"there is no candidate {key!r}; there are {', '.join(keys)}")
    return [item for item in known if item.key == COPY or ((not only or item.key in only) and item.key not in without)]


def _run_case(bench: Workbench, chosen: Sequence[Candidate], protocol: Protocol) -> CaseResult:
    allowed = ALLOWED_EPS * float(float_info(bench.data.inputs[0].dtype).eps)
    prepared = [_prepare(item, bench, allowed) for item in chosen]
    runs = {item.row.key: item.ready.run for item in prepared if item.ready is not None}
    timings = measure(runs, protocol)
    rows = [replace(item.row, timing=timings.get(item.row.key)) for item in prepared]
    return CaseResult(bench.case, allowed, tuple(rows))


def _prepare(item: Candidate, bench: Workbench, allowed: float) -> _Prepared:
    """Gets a candidate ready, runs it once and compares it with the truth."""
    row = Row(item.key, item.label, "ok", ours=item.ours)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ready = item.prepare(bench)
            ready.run()
            outputs = [] if item.key == COPY else list(ready.outputs())
    except SameAs as same:
        return _Prepared(replace(row, status="same", reason=str(same)))
    except (Unavailable, OnnxnormError) as error:
        return _Prepared(replace(row, status="not available", reason=one_line(error, 300)))
    except Exception as error:  # whatever a third party raises is its row's text, not the end of the measurement
        return _Prepared(replace(row, status="not available", reason=error_line(error)))
    if item.key == COPY:
        return _Prepared(row, ready)
    far = distance(outputs, bench.data)
    row = replace(row, note=ready.note, distance=far)
    if not far <= allowed:
        status = "inaccurate" if far <= math.sqrt(allowed / ALLOWED_EPS) and not item.ours else "wrong"
        row = replace(row, status=status, reason=f"distance {far:.2g} from float64, allowed is {allowed:.2g}")
    return _Prepared(row, ready)


def distance(outputs: Sequence[Array], data: Data) -> float:
    """The largest deviation of any output from the truth, over that output's scale; inf for a shape that differs or a
    value that is not finite where the truth is.
    """
    if len(outputs) < len(data.truth):
        return float("inf")
    return max(_distance(array, truth) for array, truth in zip(outputs, data.truth, strict=False))


def _distance(array: Array, truth: FloatArray) -> float:
    if array.shape != truth.shape:
        return float("inf")
    scale = float(np.abs(truth).max(initial=0.0)) or 1.0
    worst = 0.0
    flat, exact = array.reshape(-1), truth.reshape(-1)
    for start in range(0, flat.size, 1 << 20):
        part = np.abs(flat[start : start + (1 << 20)].astype(np.float64) - exact[start : start + (1 << 20)])
        worst = max(worst, float("inf") if np.isnan(part).any() else float(part.max(initial=0.0)))
    return worst / scale


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """PyTorch's number of threads, put back afterwards."""
    try:
        import torch
    except ModuleNotFoundError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
