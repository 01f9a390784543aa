"""What the terminal shows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxnorm.bench.candidates import COPY, OURS
from onnxnorm.bench.ops import CaseResult, Row

#: Width from which on what ran stands beside the figures.
_WIDE = 120
DASH = "-"
_COLUMNS = ("candidate", "ms", "p20 .. p80", "/ copy", "/ ours", "distance")


def console() -> Console:
    """Standard output; as wide as the terminal, or $COLUMNS or 120 where there is none."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=_columns())


def _columns() -> int:
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else _WIDE


def header(machine: Mapping[str, Any]) -> Text:
    """Machine, versions and threads."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    library = machine["library"]
    native = library.get("problem") or f"{library['version']} ({library['simd']}) {library['file']}"
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    text = Text()
    for name, value in (
        ("machine", f"{machine['cpu']}, {cores}; {machine['system']}; {machine['date']}"),
        ("versions", f"Python {machine['python']}, {versions}"),
        ("library", native),
        ("measured", f"{threads}, provider {machine['provider']}"),
    ):
        text.append(f"{name:<9}", style="bold")
        text.append(f"{value}\n")
    return text


def milliseconds(value: float) -> str:
    """Three significant digits or so: 0.0123, 1.23, 123."""
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def ratio(value: float | None) -> str:
    """Such as 1.23x; a dash for what was not measured."""
    return DASH if value is None else f"{value:.2f}x" if value < 100 else f"{value:.0f}x"


def case_table(result: CaseResult, width: int) -> RenderableType:
    """One case: a row for each candidate, and below them why some have no figures."""
    shown = [row for row in result.rows if row.timing is not None]
    table = plain_table(
        _COLUMNS,
        [_cells(result, row) for row in shown],
        styles=[_style(result, row) for row in shown],
        note=("what ran", [row.note for row in shown]) if width >= _WIDE else None,
    )
    lines = (Text(line, style="dim") for line in remarks(result))
    return Group(Text(result.case.label, style="bold underline"), table, *lines, Text(""))


def plain_table(
    columns: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    styles: Sequence[str] = (),
    note: tuple[str, Sequence[str]] | None = None,
) -> Table:
    """A table without rules: the first column is text, the others are numbers, which are never cut; a note may be.

    Args:
        columns: their titles.
        lines: cells.
        styles: of the lines.
        note: title and cells of a last column, which takes what room is left.

    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, name in enumerate(columns):
        widest = max([len(name), *(len(line[index]) for line in lines)])
        table.add_column(name, justify="right" if index else "left", no_wrap=True, min_width=widest)
    if note is not None:
        table.add_column(note[0], overflow="ellipsis", no_wrap=True, style="dim")
    for index, line in enumerate(lines):
        table.add_row(*line, *([note[1][index]] if note else []), style=styles[index] if styles else "")
    return table


def _style(result: CaseResult, row: Row) -> str:
    if row.status == "wrong":
        return "red"
    fastest = result.fastest
    return "bold green" if fastest is not None and row.key == fastest.key else ""


def _cells(result: CaseResult, row: Row) -> list[str]:
    timing = row.timing
    assert timing is not None
    return [
        row.label + (" WRONG" if row.status == "wrong" else ""),
        milliseconds(timing.median),
        f"{milliseconds(timing.p20)} .. {milliseconds(timing.p80)}",
        DASH if row.key == COPY else ratio(result.ratio(row, COPY)),
        DASH if row.key == OURS else ratio(result.ratio(row, OURS)),
        DASH if row.distance is None else f"{row.distance:.0e}",
    ]


def remarks(result: CaseResult) -> Iterator[str]:
    """Why rows have no figures or wrong ones, and whether other programs disturbed the measurement."""
    labels = {row.key: row.label for row in result.rows}
    for row in result.rows:
        if row.status == "same":
            yield f"{row.label}: the same as {labels.get(row.reason, row.reason)}"
        elif row.status != "ok":
            yield f"{row.label}: {row.status}: {row.reason}"
    disturbed = [row.label for row in result.rows if row.timing is not None and not row.timing.quiet]
    if disturbed:
        yield f"not quiet (other programs took the cores meanwhile): {', '.join(disturbed)}"
