"""The HTML report: one file that needs nothing else, neither a network nor a script."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from onnxnorm.bench import chart
from onnxnorm.bench.model_table import breakdown_lines
from onnxnorm.bench.model_table import remarks as model_remarks
from onnxnorm.bench.models import ModelsReport
from onnxnorm.bench.ops import OpsReport
from onnxnorm.bench.table import milliseconds, ratio, remarks
from onnxnorm.errors import UsageError

_TEMPLATE = "report.html.jinja"
#: Operator types with a line of their own.
_SHOWN_OPS = 20


def check_report_path(path: str) -> None:
    """UsageError unless a report can be written to that path."""
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html {path}: the file's name must end in .html")
    import jinja2  # noqa: F401  (missing ones must be told before anything is measured)
    import matplotlib  # noqa: F401


def save_report(report: OpsReport | ModelsReport, path: str, command: str = "") -> None:
    """Writes the report; nothing is left behind when that fails."""
    text = render_report(report, command)
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def render_report(report: OpsReport | ModelsReport, command: str = "") -> str:
    """The report as text; ``command`` is what made it."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values: dict[str, Any] = {
        "report": report,
        "command": command,
        "ms": milliseconds,
        "times": ratio,
        "case_svg": lambda result: Markup(chart.case_svg(result)),
        "remarks": remarks,
        **(_of_models(report) if isinstance(report, ModelsReport) else {"ops": True}),
    }
    return str(environment.get_template(_TEMPLATE).render(values))


def _of_models(report: ModelsReport) -> dict[str, Any]:
    from markupsafe import Markup

    profiled = [(row, row.breakdown) for row in report.rows if row.breakdown is not None]
    return {
        "ops": False,
        "svg": Markup(chart.models_svg(report)),
        "model_remarks": list(model_remarks(report)),
        "profiled": [row for row, _ in profiled],
        "breakdown": breakdown_lines([item for _, item in profiled], _SHOWN_OPS) if profiled else [],
    }
