"""What the terminal shows of whole models."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxnorm.bench.models import ModelRow, ModelsReport
from onnxnorm.bench.profile import Breakdown
from onnxnorm.bench.table import DASH, milliseconds, plain_table, ratio

#: Operator types that have a line of their own; the rest is added up.
_SHOWN = 12


def models_table(report: ModelsReport) -> RenderableType:
    """Times of all candidates, remarks, and the breakdown."""
    timed = [row for row in report.rows if row.timing is not None]
    cells = [_cells(report, row) for row in timed]
    styles = [_style(report, row) for row in timed]
    columns = ("candidate", "nodes", "ms", "p20 .. p80", "speed", "distance")
    parts: list[RenderableType] = [
        Text(_inputs(report), style="bold underline"),
        plain_table(columns, cells, styles=styles),
        *(Text(line, style="dim") for line in remarks(report)),
        Text(""),
    ]
    profiled = [(row, row.breakdown) for row in timed if row.breakdown is not None]
    if profiled:
        parts += [*_breakdown(profiled), Text("")]
    return Group(*parts)


def _inputs(report: ModelsReport) -> str:
    shapes = ", ".join(
        f"{item['name']} {'x'.join(map(str, item['shape'])) or 'scalar'} {item['dtype']}" for item in report.inputs
    )
    source = report.inputs[0]["source"] if report.inputs else "none"
    return f"inputs ({source}): {shapes or 'none'}"


def _cells(report: ModelsReport, row: ModelRow) -> list[str]:
    timing = row.timing
    assert timing is not None
    return [
        row.label + (" DIFFERS" if row.status == "differs" else ""),
        DASH if row.nodes is None else str(row.nodes),
        milliseconds(timing.median),
        f"{milliseconds(timing.p20)} .. {milliseconds(timing.p80)}",
        DASH if row is report.rows[0] else ratio(report.ratio(row)),
        DASH if row.distance is None else f"{row.distance:.0e}",
    ]


def _style(report: ModelsReport, row: ModelRow) -> str:
    if row.status == "differs":
        return "red"
    fastest = min((item.timing.median for item in report.rows if item.timing and item.status == "ok"), default=None)
    return "bold green" if row.timing and row.timing.median == fastest else ""


def remarks(report: ModelsReport) -> Iterator[str]:
    """Why rows have no figures or differ, and whether other programs disturbed the measurement."""
    for row in report.rows:
        if row.status != "ok":
            yield f"{row.label}: {row.status}: {row.reason}"
    disturbed = [row.label for row in report.rows if row.timing is not None and not row.timing.quiet]
    if disturbed:
        yield f"not quiet (other programs took the cores meanwhile): {', '.join(disturbed)}"


def _breakdown(profiled: list[tuple[ModelRow, Breakdown]]) -> list[RenderableType]:
    """Milliseconds of each operator type, one column for each candidate; the longest of any first."""
    lines = breakdown_lines([item for _, item in profiled], _SHOWN)
    columns = ("kernel ms of a run", *(row.label for row, _ in profiled))
    runs = profiled[0][1].runs
    title = Text(f"where the time goes (ONNX Runtime's profile, mean of {runs} runs)", style="bold underline")
    table: Table = plain_table(columns, lines)
    return [title, table]


def breakdown_lines(items: list[Breakdown], shown: int) -> list[list[str]]:
    """Lines of a table: operator type, then milliseconds and share of each breakdown; sums and reorders last."""
    ops = {op.op for item in items for op in item.ops}
    ordered = sorted(ops, key=lambda op: (-max(item.milliseconds(op) for item in items), op))
    lines = [[op, *(_share(item, item.milliseconds(op)) for item in items)] for op in ordered[:shown]]
    if ordered[shown:]:
        rest = [sum(item.milliseconds(op) for op in ordered[shown:]) for item in items]
        cells = [_share(item, value) for item, value in zip(items, rest, strict=True)]
        lines.append([f"{len(ordered) - shown} others", *cells])
    lines.append(["all kernels", *(_share(item, item.kernel_milliseconds) for item in items)])
    lines.append(["of these, layout reorders", *(_share(item, item.reorder_milliseconds) for item in items)])
    return lines


def _share(item: Breakdown, value: float) -> str:
    total = item.kernel_milliseconds
    return DASH if not value else f"{milliseconds(value)} {100 * value / total if total else 0:3.0f} %"
