"""The one table at the end of the job, a line for each model, and the line under it that sums up. Readable at 100
columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.text import Text

from models.latency import BATCH, THREADS
from models.proofs import MEANINGS
from models.result import ONNXNORM, PLAIN, PYTORCH, JobResult, ModelResult, Way, all_quiet

WIDTH = 100
_MARK, _NAME = 3, 30
#: (heading, width) of the columns, under the headings that span them: (heading, how many).
_SPANS = (("nodes", 2), ("norms", 1), ("accuracy", 1), ("distance", 2), ("median ms", 3))
_COLUMNS = (
    ("plain", 5),
    ("ours", 5),
    ("left", 6),
    ("", 9),
    ("PyTorch", 9),
    ("ours", 8),
    ("PyTorch", 9),
    ("plain", 8),
    ("ours", 8),
)
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

    Written by hand rather than with rich's Table: its headings span several columns, and a log gets the same lines.
    """
    header = _line("model", [heading for heading, _ in _COLUMNS])
    lines = [Text(_spanning(), style="bold"), Text(header, style="bold"), Text("-" * len(header), style="dim")]
    lines += [_model(result, marks) for result in job.models]
    lines.append(Text())
    lines.extend(Text(line, style="dim") for line in (*_LEGEND, *([] if all_quiet(job) else _BUSY)))
    lines.append(Text())
    return Text("\n").join([*lines, *_sum(job, marks)])


def _spanning() -> str:
    """The upper line of headings, each at the right end of the columns that it spans."""
    text, column = " " * (_MARK + _NAME), 0
    for heading, count in _SPANS:
        text += f"{heading:>{sum(width for _, width in _COLUMNS[column : column + count])}}"
        column += count
    return text


def _line(name: str, cells: list[str]) -> str:
    columns = zip(cells, _COLUMNS, strict=True)
    return f"{'':<{_MARK}}{name:<{_NAME}}" + "".join(f"{cell:>{width}}" for cell, (_, width) in columns)


def _model(result: ModelResult, marks: Marks) -> Text:
    mark = (f"{marks.good:<{_MARK}}", "bold green") if result.passed else (f"{marks.bad:<{_MARK}}", "bold red")
    return Text.assemble(mark, _line(result.model.name, _cells(result))[_MARK:])


def _cells(result: ModelResult) -> list[str]:
    ways = result.ways
    pytorch, plain, ours = ways[PYTORCH], ways[PLAIN], ways[ONNXNORM]
    return [
        *(_shown(way.facts, lambda facts: str(facts.nodes)) for way in (plain, ours)),
        _shown(ours.norms, str),
        _shown(ours.accuracy, lambda value: f"{value:.2%}"),
        *(_shown(way.distance, lambda value: f"{value:.1e}") for way in (pytorch, ours)),
        *map(_milliseconds, (pytorch, plain, ours)),
    ]


def _milliseconds(way: Way) -> str:
    return _shown(way.latency, lambda value: f"{'' if value.quiet else '~'}{value.median:.2f}")


def _shown(value: _Value | None, write: Callable[[_Value], str]) -> str:
    return "-" if value is None else write(value)


_LEGEND = (
    "plain, ours   what torch.onnx.export writes, and what onnxnorm does, both in ONNX Runtime",
    "nodes         in the ONNX file; a norm that an export spells out counts with all its operators",
    "norms left    that onnxnorm has not computed into weights: one operator each",
    "accuracy      on all test images; ONNX Runtime must put every image into PyTorch's class",
    "distance      the largest from the float64 truth, relative to the largest output",
    f"median ms     batch {BATCH}, CPU, {THREADS} threads each, measured in turns",
    "proofs        models that agree with PyTorch in ONNX Runtime with onnxnorm's library (lib), in plain",
    "              ONNX Runtime (no-lib), in ONNX's reference evaluator (ref), over three steps of their",
    "              training graph (train); whose files onnx.checker accepts (checker)",
)

_BUSY = (
    "~             other programs used the cores, which slows PyTorch and ONNX Runtime unequally: no",
    "              comparison; run it again on a quiet machine",
)


def _sum(job: JobResult, marks: Marks) -> list[Text]:
    count, good = len(job.models), sum(result.passed for result in job.models)
    lines = [_proofs(job, marks)]
    if job.passed:
        text = f"passed: {count} of {count} models run the same in ONNX Runtime as in PyTorch ({job.seconds:.0f} s)"
        return [*lines, Text(text, style="bold green")]
    problems = [f"{result.model.name}: {problem}" for result in job.models for problem in result.problems]
    failed = f"FAILED: {count - good} of {count} models ({job.seconds:.0f} s)"
    return [*lines, *(Text(line, style="bold red") for line in (*problems, failed))]


def _proofs(job: JobResult, marks: Marks) -> Text:
    """How many models have passed each proof."""
    parts = []
    for name in MEANINGS:
        passed = sum(proof.passed for result in job.models for proof in result.proofs if proof.name == name)
        parts.append(f"{name} {passed} {marks.good if passed == len(job.models) else marks.bad}")
    return Text("proofs        " + "   ".join(parts))
