"""Measures whole models: outputs are compared first, then all candidates are timed in turns, then profiled.

With one file the candidates are the file as it is, what ``onnxnorm.optimize`` makes of it, with the native library, and
what it makes for runtimes without onnxnorm (``target="standard"``). With several files each is one candidate, as it is.
Timed sessions are not profiled ones: the profile of where the time goes comes from sessions of its own.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxnorm.bench.machine import machine
from onnxnorm.bench.memory import kept_memory
from onnxnorm.bench.model_inputs import load_inputs, random_inputs
from onnxnorm.bench.ops import default_threads
from onnxnorm.bench.profile import Breakdown, read_profile
from onnxnorm.bench.sessions import bound, check_provider, new_session
from onnxnorm.bench.statistics import Timing
from onnxnorm.bench.timing import MODELS, Protocol, measure
from onnxnorm.errors import ModelError, OnnxnormError, UsageError, error_line, one_line
from onnxnorm.runtime.arrays import Array, float_info, from_ort, is_float, to_ort

SCHEMA = "onnxnorm-bench-models/1"
FILE, OPTIMIZED, STANDARD = "file", "onnxnorm", "standard"
#: Profiled runs, after two that warm up.
PROFILED_RUNS, WARM_UP_RUNS = 8, 2


@dataclass(frozen=True)
class ModelRow:
    """One candidate.

    Attributes:
        key, label: what it is called; the key is unique.
        file: the file that it comes from.
        target: what it was optimized for, "" for a file as it is.
        status: "ok", "differs" (timed all the same) or "not available".
        reason: why it is not ok.
        nodes: number of the graph's operators, by the file or model, before ONNX Runtime's own optimization.
        distance: largest deviation from the first candidate's outputs, over each output's scale; None for the first.
        allowed: the distance up to which outputs agree.
        timing: None when it did not run.
        breakdown: where its time goes.

    """

    key: str
    label: str
    file: str
    target: str = ""
    status: str = "ok"
    reason: str = ""
    nodes: int | None = None
    distance: float | None = None
    allowed: float | None = None
    timing: Timing | None = None
    breakdown: Breakdown | None = None


@dataclass(frozen=True)
class ModelsReport:
    """All candidates, with the inputs, the machine and the protocol."""

    machine: dict[str, Any]
    protocol: Protocol
    inputs: tuple[dict[str, Any], ...]
    rows: tuple[ModelRow, ...]

    @property
    def passed(self) -> bool:
        """Whether all outputs agree with the first candidate's."""
        return not any(row.status == "differs" for row in self.rows)

    def ratio(self, row: ModelRow) -> float | None:
        """How many times faster than the first candidate; None when either has no time."""
        first = self.rows[0].timing
        return None if first is None or row.timing is None else first.median / row.timing.median

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values, as ``onnxnorm/bench/schema.json`` describes."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "machine": self.machine,
            "protocol": self.protocol.to_json(),
            "inputs": list(self.inputs),
            "candidates": [self._row_json(row) for row in self.rows],
        }

    def _row_json(self, row: ModelRow) -> dict[str, Any]:
        return {
            "key": row.key,
            "label": row.label,
            "file": row.file,
            "target": row.target,
            "status": row.status,
            "reason": row.reason,
            "nodes": row.nodes,
            "distance": row.distance if row.distance is None or math.isfinite(row.distance) else str(row.distance),
            "allowed_distance": row.allowed,
            "milliseconds": None if row.timing is None else row.timing.to_json(),
            "speedup_over_first": self.ratio(row),
            "breakdown": None if row.breakdown is None else row.breakdown.to_json(),
        }


@dataclass
class _Contestant:
    row: ModelRow
    model: Any = None
    run: Callable[[], object] | None = None
    outputs: Sequence[Array] = ()


def bench_models(
    files: Sequence[str | os.PathLike[str]],
    *,
    inputs: str | os.PathLike[str] | None = None,
    dims: Mapping[str, int] | None = None,
    threads: int | None = None,
    provider: str = "cpu",
    protocol: Protocol | None = None,
    profile: bool = True,
    started: Callable[[dict[str, Any]], None] = lambda machine: None,
) -> ModelsReport:
    """Compares, times and profiles models.

    Args:
        files: one ONNX file, which is measured as it is and optimized; or several, measured as they are.
        inputs: an .npz file with an array for each input of the first file; random ones without it.
        dims: sizes for the dynamic dimensions of random inputs; an unnamed one is called ``input.axis``.
        threads: within one operator; by default 2, or 1 on one core.
        provider: cpu or cuda.
        protocol: how long to measure.
        profile: break the time down by operator type.
        started: called with the machine once the arguments are found to be right.

    Raises:
        UsageError: inputs that are missing or do not fit, a dynamic size without ``dims``.
        ModelError: a file that is not there, or that ONNX Runtime does not load.

    """
    threads = default_threads() if threads is None else threads
    protocol = protocol or MODELS
    paths = [os.fspath(file) for file in files]
    check_provider(provider)
    if not paths:
        raise UsageError("there is no model to measure; give an ONNX file")
    for path in paths:
        if not Path(path).is_file():
            hint = "; --json prints, --save FILE writes" if path.endswith(".json") else ""
            raise ModelError(f"{path}: no such file{hint}")
    if inputs is not None and dims:
        raise UsageError("--dim is for random inputs; the sizes of those from a file are what they are")
    first = _opened(paths[0], threads, provider)
    arrays = load_inputs(first, os.fspath(inputs)) if inputs is not None else random_inputs(first, dims or {}, paths[0])
    where = machine(threads, provider)
    started(where)
    contestants = [_ready(item, arrays, threads, provider) for item in _contestants(paths, provider)]
    _compare(contestants)
    with kept_memory():
        timings = measure({item.row.key: item.run for item in contestants if item.run is not None}, protocol)
    rows = [replace(item.row, timing=timings.get(item.row.key)) for item in contestants]
    if profile:
        rows = [
            row if item.run is None else replace(row, breakdown=_profiled(item.model, arrays, threads, provider))
            for row, item in zip(rows, contestants, strict=True)
        ]
    source = "random" if inputs is None else os.fspath(inputs)
    return ModelsReport(where, protocol, tuple(_described(arrays, source)), tuple(rows))


def _opened(path: str, threads: int, provider: str) -> Any:
    try:
        return new_session(path, threads, provider, library=None)
    except OnnxnormError:
        raise
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded: {one_line(error)}") from None


def _contestants(paths: Sequence[str], provider: str) -> list[_Contestant]:
    names = _short_names(paths)
    if len(paths) > 1:
        keys = [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]
        return [_as_it_is(path, key, key) for path, key in zip(paths, keys, strict=True)]
    path = paths[0]
    return [
        _as_it_is(path, FILE, names[0]),
        _optimized(path, OPTIMIZED, "onnxnorm optimize", "onnxnorm", provider),
        _optimized(path, STANDARD, "optimize, standard ops", "standard", provider),
    ]


def _short_names(paths: Sequence[str]) -> list[str]:
    """File names, with their folder where names repeat."""
    names = [Path(path).name for path in paths]
    if len(set(names)) == len(names):
        return names
    return [str(Path(*Path(path).parts[-2:])) for path in paths]


def _as_it_is(path: str, key: str, label: str) -> _Contestant:
    from onnxnorm.model_file import load_model

    row = ModelRow(key, label, path)
    with contextlib.suppress(ModelError):  # ONNX Runtime may take what our stricter loading does not
        row = replace(row, nodes=sum(1 for _ in load_model(path).graph))
    return _Contestant(row, path)


def _optimized(path: str, key: str, label: str, target: Any, provider: Any) -> _Contestant:
    from onnxnorm.passes.pipeline import optimize

    row = ModelRow(key, label, path, target)
    try:
        model = optimize(path, target=target, provider=provider).model
    except OnnxnormError as error:
        return _Contestant(replace(row, status="not available", reason=one_line(error, 300)))
    return _Contestant(replace(row, nodes=sum(1 for _ in model.graph)), model)


def _ready(item: _Contestant, arrays: Mapping[str, Array], threads: int, provider: str) -> _Contestant:
    """Makes a session, runs it once for its outputs, and binds those of that size."""
    if item.model is None:
        return item
    try:
        session = new_session(item.model, threads, provider, library=None)
        feeds = _feeds(session, arrays, item.row.label)
        values = session.run_with_ort_values(None, {name: to_ort(array) for name, array in feeds.items()})
        item.outputs = [from_ort(value) for value in values]
        run, _ = bound(session, list(feeds.values()), [(a.shape, a.dtype) for a in item.outputs], provider)
        run()
        item.run = run
    except Exception as error:
        reason = one_line(error, 300) if isinstance(error, OnnxnormError) else error_line(error)
        item.row = replace(item.row, status="not available", reason=reason)
    return item


def _feeds(session: Any, arrays: Mapping[str, Array], label: str) -> dict[str, Array]:
    """The arrays by this session's input names: the same names, or else the same number in the same order."""
    names = [item.name for item in session.get_inputs()]
    if set(names) == set(arrays):
        return {name: arrays[name] for name in names}
    if len(names) != len(arrays):
        raise UsageError(f"{label} has the inputs {', '.join(names)}; the first model has {', '.join(arrays)}")
    return dict(zip(names, arrays.values(), strict=True))


def _compare(contestants: Sequence[_Contestant]) -> None:
    """Every candidate's outputs with the first one's."""
    first = contestants[0]
    if first.run is None:
        raise ModelError(f"{first.row.file} failed while running: {first.row.reason}")
    for item in contestants[1:]:
        if item.run is None:
            continue
        far, allowed, reason = difference(item.outputs, first.outputs)
        status = "differs" if reason else "ok"
        item.row = replace(item.row, distance=far, allowed=allowed, status=status, reason=reason)


def difference(outputs: Sequence[Array], wanted: Sequence[Array]) -> tuple[float, float, str]:
    """How far outputs are from others.

    Two correct programs differ by rounding, which a deep network magnifies, so up to the root of machine epsilon of an
    output's scale (its largest value) counts as agreement. Which of the two is nearer to the truth, ``onnxnorm check``
    tells. Integers and booleans must be equal.

    Returns:
        the largest distance, the allowed one (of the output with the largest share of it), and why they do not agree.

    """
    if len(outputs) != len(wanted):
        return math.inf, 0.0, f"{len(outputs)} outputs, the first has {len(wanted)}"
    worst, allowed, reason = 0.0, 0.0, ""
    for index, (array, other) in enumerate(zip(outputs, wanted, strict=True)):
        far, limit, text = _output_difference(array, other)
        worst, allowed = max(worst, far), max(allowed, limit)
        if text and not reason:
            reason = f"output {index}: {text}"
    return worst, allowed, reason


def _output_difference(array: Array, other: Array) -> tuple[float, float, str]:
    if array.shape != other.shape or array.dtype != other.dtype:
        have, want = (f"{item.dtype}{list(item.shape)}" for item in (array, other))
        return math.inf, 0.0, f"{have}, the first has {want}"
    if not is_float(array.dtype):
        count = int(np.count_nonzero(array != other))
        return (math.inf, 0.0, f"{count} of {array.size} values differ") if count else (0.0, 0.0, "")
    allowed = math.sqrt(float(float_info(array.dtype).eps))
    one, two = array.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(two)
    if not np.array_equal(np.where(finite, np.isfinite(one), one), np.where(finite, True, two), equal_nan=True):
        return math.inf, allowed, "values are not finite where the first's are, or the reverse"
    scale = float(np.abs(two[finite]).max(initial=0.0)) or 1.0
    far = float(np.abs(one[finite] - two[finite]).max(initial=0.0)) / scale
    return far, allowed, "" if far <= allowed else f"distance {far:.2g} from the first, allowed is {allowed:.2g}"


def _profiled(model: Any, arrays: Mapping[str, Array], threads: int, provider: str) -> Breakdown:
    """Where the time of a few runs goes."""
    with tempfile.TemporaryDirectory(prefix="onnxnorm-") as folder:
        session = new_session(model, threads, provider, library=None, profile=str(Path(folder) / "profile"))
        feeds = {name: to_ort(array) for name, array in _feeds(session, arrays, "the model").items()}
        for _ in range(WARM_UP_RUNS + PROFILED_RUNS):
            session.run_with_ort_values(None, feeds)
        return read_profile(session.end_profiling(), skip=WARM_UP_RUNS)


def _described(arrays: Mapping[str, Array], source: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": str(array.dtype), "shape": list(array.shape), "source": source}
        for name, array in arrays.items()
    ]
