"""The one table at the end of the job, and the line under it that sums up. Readable at 100 columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.text import Text

from models.latency import BATCH, THREADS
from models.result import ONNXNORM, PYTORCH, JobResult, ModelResult, Way, all_quiet

WIDTH = 100
_FIRST = 30
_COLUMNS = {"nodes": 7, "norms": 7, "accuracy": 11, "distance": 11, "median ms": 12, "speed": 9}
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Marks:
    """How "holds" and "does not" are written."""

    good: str
    bad: str


def marks_for(console: Console) -> Marks:
    """Signs where the console can write them, else words."""
    try:
        "✓✗".encode(console.encoding)
    except UnicodeEncodeError:
        return Marks("ok", "NO")
    return Marks("✓", "✗")


def render(job: JobResult, marks: Marks) -> Text:
    """The table, what its columns mean, and the sum.

    Written by hand rather than with rich's Table: a model's heading, with its verdict and proofs, spans all columns.
    """
    header = _row("model, as run by", list(_COLUMNS))
    lines = [Text(header, style="bold"), Text("-" * len(header), style="dim")]
    for result in job.models:
        lines.extend(_model(result, marks))
        lines.append(Text())
    lines.extend(Text(line, style="dim") for line in (*_LEGEND, *([] if all_quiet(job) else _BUSY)))
    lines.append(Text())
    return Text("\n").join([*lines, *_sum(job)])


def _model(result: ModelResult, marks: Marks) -> list[Text]:
    """The heading of a model, and a line for each way to run it."""
    verdict = ("passed", "bold green") if result.passed else ("FAILED", "bold red")
    heading = Text.assemble((f"{result.model.name:<{_FIRST}}", "bold"), verdict)
    if result.proofs:
        heading.append("   one file: " + "  ".join(_proofs(result, marks)))
    lines = [heading]
    for key, way in result.ways.items():
        text = _row(f"  {way.label}", _cells(way, result.ways[PYTORCH]))
        lines.append(Text(text, style="" if key == ONNXNORM else "dim"))
    return lines


def _row(first: str, cells: list[str]) -> str:
    widths = _COLUMNS.values()
    return f"{first:<{_FIRST}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _cells(way: Way, pytorch: Way) -> list[str]:
    base = pytorch.latency
    speed = None if base is None or way.latency is None else way.latency.speed_against(base)
    return [
        "-" if way.facts is None else str(way.facts.nodes),
        _shown(way.norms, str),
        _shown(way.accuracy, lambda value: f"{value:.2%}"),
        _shown(way.distance, lambda value: f"{value:.1e}"),
        _shown(way.latency, lambda value: f"{'' if value.quiet else '~'}{value.median:.3f}"),
        _shown(speed, lambda value: f"{value:.2f}x"),
    ]


def _shown(value: _Value | None, write: Callable[[_Value], str]) -> str:
    return "-" if value is None else write(value)


def _proofs(result: ModelResult, marks: Marks) -> list[str]:
    return [f"{proof.name} {marks.good if proof.passed else marks.bad}" for proof in result.proofs]


_LEGEND = (
    "nodes, norms  in the ONNX file (for PyTorch: norm layers); a norm that an export spells out in",
    "              elementary operators counts as nodes only",
    "accuracy      on all test images; ONNX Runtime must put every image into PyTorch's class",
    "distance      the largest from the float64 truth, relative to the largest output",
    f"median ms     batch {BATCH}, CPU, {THREADS} threads each, measured in turns; speed is against PyTorch",
    "one file      agrees with PyTorch in ONNX Runtime with onnxnorm's library (lib), in plain ONNX",
    "              Runtime (no-lib), in ONNX's reference evaluator (ref); onnx.checker accepts it",
)

_BUSY = (
    "~             other programs used the cores, which slows PyTorch and ONNX Runtime unequally: no",
    "              comparison, so no speed is given; run it again on a quiet machine",
)


def _sum(job: JobResult) -> list[Text]:
    count, good = len(job.models), sum(result.passed for result in job.models)
    if job.passed:
        text = f"passed: {count} of {count} models run the same in ONNX Runtime as in PyTorch ({job.seconds:.0f} s)"
        return [Text(text, style="bold green")]
    problems = [f"{result.model.name}: {problem}" for result in job.models for problem in result.problems]
    failed = f"FAILED: {count - good} of {count} models ({job.seconds:.0f} s)"
    return [Text(line, style="bold red") for line in (*problems, failed)]
