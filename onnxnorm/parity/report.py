"""The result of a check: for people as a table, for programs as JSON, for CI as an exit status."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxnorm.parity.compare import Measurement, OutputComparison
from onnxnorm.parity.runs import Variant

#: Rows of the table; the worst come first, the rest is counted.
_ROWS = 24


@dataclass(frozen=True)
class SampleRun:
    """One sample through one variant: a comparison per output, or the error that stopped it."""

    variant: Variant
    sample: str
    outputs: tuple[OutputComparison, ...] = ()
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran and every output passed; a module without outputs proves nothing, so it does not pass."""
        return not self.error and bool(self.outputs) and all(output.passed for output in self.outputs)


@dataclass(frozen=True)
class SampleNote:
    """What a sample was: feed shapes, and the precision of its truth."""

    label: str
    shapes: Mapping[str, Sequence[int]]
    truth: str


@dataclass(frozen=True)
class Report:
    """The result of ``onnxnorm.check``.

    Attributes:
        module, model: what was compared.
        runs: every sample through every variant.
        samples: what the inputs were.
        factor: how many times PyTorch's own distance was allowed.
        seed: gives the same generated inputs again.
        notes: what limits the meaning of the result.
        environment: versions and machine.

    """

    module: str
    model: str
    runs: tuple[SampleRun, ...]
    samples: tuple[SampleNote, ...]
    factor: float
    seed: int
    notes: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether something ran, and all that ran passed."""
        return bool(self.runs) and all(run.passed for run in self.runs)

    @property
    def exit_status(self) -> int:
        """0 passed, 1 failed."""
        return 0 if self.passed else 1

    def assert_passed(self) -> None:
        """Raises AssertionError, with what to look at first, unless the check passed."""
        if not self.passed:
            raise AssertionError(self._failure())

    def to_dict(self) -> dict[str, Any]:
        """Plain data; floats that JSON lacks are the strings "nan", "inf" and "-inf"."""
        fields = {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "runs": [{"passed": run.passed, "run": str(run.variant), **dataclasses.asdict(run)} for run in self.runs],
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
        }
        plain: dict[str, Any] = _plain({"passed": self.passed, "exit_status": self.exit_status, **fields})
        return plain

    def to_json(self, indent: int | None = 2) -> str:
        """``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __str__(self) -> str:
        rows = [_HEADER, *(_row(run, output) for run, output in self._worst())]
        shown, left = rows[: _ROWS + 1], len(rows) - 1 - _ROWS
        lines = [f"{self.model} against {self.module} in float64", "", *_table(shown)]
        if left > 0:
            lines.append(f"... and {left} more with smaller distances")
        for run, output in self._failures():
            lines.append(
                f"failed: {output.name if output else 'run'} ({run.variant}; {run.sample}): {_why(run, output)}"
            )
        lines.extend(f"note: {note}" for note in self.notes)
        lines.append(self._summary())
        return "\n".join(lines)

    def _summary(self) -> str:
        variants = len({str(run.variant) for run in self.runs})
        failed = sum(not run.passed for run in self.runs)
        of = f"{variants} ways to run, {len(self.samples)} inputs, seed {self.seed}, factor {self.factor:g}"
        if self.passed:
            worst = max((_ratio(output) for run in self.runs for output in run.outputs), default=0.0)
            return f"passed: the largest distance is {worst:.2g} of what is allowed ({of})"
        return f"FAILED: {failed} of {len(self.runs)} runs ({of})"

    def _worst(self) -> list[tuple[SampleRun, OutputComparison | None]]:
        """One row per output and variant, that of its worst sample, failures and large distances first."""
        best: dict[tuple[str, str], tuple[SampleRun, OutputComparison | None]] = {}
        for run in self.runs:
            for output in run.outputs or (None,):
                key = (str(run.variant), output.name if output else "")
                if key not in best or _ratio(output) > _ratio(best[key][1]):
                    best[key] = (run, output)
        return sorted(best.values(), key=lambda row: -_ratio(row[1]))

    def _failures(self) -> Iterator[tuple[SampleRun, OutputComparison | None]]:
        return (row for row in self._worst() if row[1] is None or not row[1].passed)

    def _failure(self) -> str:
        first = next(self._failures(), None)
        if first is None:
            return f"{self.model}: nothing was compared; the module gives no tensors or no run was made"
        run, output = first
        lines = [self._summary(), f"run: {run.variant}; inputs: {run.sample}"]
        if output is None:
            return "\n".join([*lines, f"it did not run: {_why(run, output)}", *self._notes()])
        lines.append(f"output {output.name!r} ({output.dtype}{list(output.shape)}): {output.reason}")
        if output.onnx is not None:
            lines.extend(_details(output, output.onnx))
        return "\n".join([*lines, *self._where_next(output.name), *self._notes()])

    def _where_next(self, name: str) -> list[str]:
        """Which ways to run agree with PyTorch on this output narrows down where the error is made."""
        state: dict[str, bool] = {}
        variants: dict[str, Variant] = {}
        for run in self.runs:
            key = str(run.variant)
            variants[key] = run.variant
            fine = not run.error and all(each.passed for each in run.outputs if each.name == name)
            state[key] = state.get(key, True) and fine
        good, bad = [variants[key] for key in state if state[key]], [variants[key] for key in state if not state[key]]
        if not good:
            return ["next: every way to run it is off, so look at the file: its weights, epsilons, and the export"]
        hints = [f"next: it passes with {'; '.join(map(str, good))}"]
        if {item.level for item in bad} == {"all"} and "none" in {item.level for item in good}:
            hints.append("so ONNX Runtime's own graph optimizations bring the error")
        if {item.library for item in bad} == {True} and False in {item.library for item in good}:
            hints.append("so onnxnorm's native library brings the error; please report it")
        if len({item.provider for item in bad}) == 1 and {item.provider for item in good} - {bad[0].provider}:
            hints.append(f"so look at {bad[0].provider}")
        return hints

    def _notes(self) -> list[str]:
        return [f"note: {note}" for note in self.notes]


_HEADER = ("output", "provider", "library", "level", "onnx max", "onnx rms", "pytorch max", "allowed", "")


def _row(run: SampleRun, output: OutputComparison | None) -> tuple[str, ...]:
    variant = run.variant
    where = (variant.provider.removesuffix("ExecutionProvider"), "yes" if variant.library else "no", variant.level)
    if output is None:
        return ("-", *where, "", "", "", "", "did not run")
    verdict = "ok" if output.passed else "FAILED"
    if output.onnx is None or output.pytorch_distance is None or output.allowed is None:
        return (output.name, *where, "exact" if output.exact else "", "", "", "", verdict)
    numbers = (output.onnx.maximum, output.onnx.rms, output.pytorch_distance, output.allowed)
    return (output.name, *where, *(f"{number:.2e}" for number in numbers), verdict)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _ratio(output: OutputComparison | None) -> float:
    """How much of what is allowed was used; infinite for what failed without a distance."""
    if output is None or (not output.passed and (output.onnx is None or output.onnx.unexpected_nonfinite)):
        return math.inf
    if output.onnx is None or not output.allowed:
        return 0.0
    ratio = output.onnx.maximum / output.allowed
    return math.inf if math.isnan(ratio) else ratio


def _why(run: SampleRun, output: OutputComparison | None) -> str:
    if output is not None:
        return output.reason
    return run.error or "the module gives no tensors, so nothing was compared"


def _details(output: OutputComparison, onnx: Measurement) -> list[str]:
    lines = []
    if onnx.worst is not None:
        lines.append(
            f"worst element {list(onnx.worst.index)}: {onnx.worst.value:.9g}, truth {onnx.worst.truth:.9g} "
            f"({onnx.ulps:.3g} ulps; output scale {output.scale:.3g})"
        )
    lines.append(f"smallest tolerance that would have passed: {tolerance(onnx)}")
    return lines


def tolerance(onnx: Measurement) -> str:
    """The smallest tolerances in ``numpy.allclose``'s sense, in words."""
    if onnx.atol is None or onnx.rtol is None:
        return "none, for values that are not finite"
    rtol = "no rtol alone, for zeros" if onnx.off_at_zero else f"rtol={onnx.rtol:.3g} with atol=0"
    return f"atol={onnx.atol:.3g} with rtol=0, or {rtol}"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
