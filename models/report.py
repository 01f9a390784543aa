"""The report: one HTML file that needs nothing else, neither a network nor a script."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from models import charts
from models.judge import FACTOR
from models.latency import BATCH, RUNS_PER_BLOCK, THREADS
from models.proofs import MEANINGS
from models.result import ONNXNORM, PLAIN, PYTORCH, JobResult, ModelResult, all_quiet

_TEMPLATE = "report.html.jinja"
#: What an optimizer's action means, for those who read it for the first time.
ACTIONS = {
    "folded": "computed into the weights of the layer before it: nothing is left to run",
    "fused": "became one operator together with its neighbours",
    "lowered": "written in the form that runs best or that the target understands",
    "kept": "left as it is",
    "refused": "a rule matched, but could not be applied safely; the reason says why",
    "reverted": "rewritten, found to differ, and taken back",
}


@dataclass(frozen=True)
class Row:
    """One bar with its texts."""

    label: str
    value: str
    bar: Markup
    passed: bool = True


@dataclass(frozen=True)
class Chart:
    """Bars under one heading; ``axis`` is None where the values beside the bars say it all."""

    title: str
    rows: tuple[Row, ...]
    axis: Markup | None = None


def write_report(job: JobResult, path: Path) -> None:
    """Writes the report; nothing is left behind when that fails."""
    text = render_report(job)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def render_report(job: JobResult) -> str:
    """The report as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(
        job=job,
        keys={"pytorch": PYTORCH, "plain": PLAIN, "onnxnorm": ONNXNORM},
        meanings=MEANINGS,
        actions=ACTIONS,
        batch=BATCH,
        threads=THREADS,
        block=RUNS_PER_BLOCK,
        factor=FACTOR,
        distance_charts=distance_charts,
        latency_chart=latency_chart,
        speed=speed,
        quiet=all_quiet(job),
    )


def speed(model: ModelResult, key: str) -> str:
    """How many times faster than PyTorch; "-" where it was not measured, or not in quiet."""
    base, latency = model.ways[PYTORCH].latency, model.ways[key].latency
    ratio = None if base is None or latency is None else latency.speed_against(base)
    return "-" if ratio is None else f"{ratio:.2f}x"


def distance_charts(model: ModelResult) -> list[Chart]:
    """One chart for each check: PyTorch's own distance, then each way in which ONNX Runtime ran the file."""
    measured = [
        float(output[who]["maximum"])
        for report in model.checks.values()
        for run in report["runs"]
        for output in run["outputs"]
        for who in ("onnx", "pytorch")
        if output[who]
    ]
    allowed = [
        float(output["allowed"])
        for report in model.checks.values()
        for run in report["runs"]
        for output in run["outputs"]
        if output["allowed"]
    ]
    scale = charts.LogScale.around(measured + allowed)
    return [_distance_chart(what, report, scale) for what, report in model.checks.items()]


def _distance_chart(what: str, report: dict[str, Any], scale: charts.LogScale) -> Chart:
    samples = len(report["samples"])
    title = f"On {what}" + (f" ({samples} of them, with other sizes)" if samples > 1 else "")
    by_way: dict[str, list[dict[str, Any]]] = {}
    for run in report["runs"]:
        by_way.setdefault(run["run"], []).append(run)
    rows = [_pytorch_row(report, scale), *(_way_row(name, runs, scale) for name, runs in by_way.items())]
    return Chart(title, tuple(row for row in rows if row is not None), charts.log_axis(scale))


def _pytorch_row(report: dict[str, Any], scale: charts.LogScale) -> Row | None:
    outputs = [output for run in report["runs"] for output in run["outputs"] if output["pytorch"]]
    if not outputs:
        return None
    value = max(float(output["pytorch"]["maximum"]) for output in outputs)
    label = "PyTorch float32"
    return Row(label, f"{value:.1e}", charts.distance_bar(scale, value, None, PYTORCH, f"{label}: {value:.1e}"))


def _way_row(name: str, runs: list[dict[str, Any]], scale: charts.LogScale) -> Row:
    """The sample that came closest to what is allowed (or went beyond) speaks for all samples of a way."""
    label = name.removeprefix("CPUExecutionProvider, ")
    passed = all(run["passed"] for run in runs)
    outputs = [output for run in runs for output in run["outputs"] if output["onnx"] and output["allowed"]]
    if not outputs:
        error = next((run["error"] for run in runs if run["error"]), "nothing was compared")
        return Row(label, "did not run", charts.distance_bar(scale, 0.0, None, ONNXNORM, error), False)
    worst = max(outputs, key=lambda output: float(output["onnx"]["maximum"]) / float(output["allowed"]))
    value, allowed = float(worst["onnx"]["maximum"]), float(worst["allowed"])
    text = f"{label}: {value:.1e}, allowed {allowed:.1e}"
    return Row(label, f"{value:.1e}", charts.distance_bar(scale, value, allowed, ONNXNORM, text), passed)


def latency_chart(model: ModelResult) -> Chart:
    """One bar for each way that was measured."""
    found = [(key, way.label, way.latency) for key, way in model.ways.items() if way.latency is not None]
    longest = max((latency.upper_quartile for _, _, latency in found), default=1.0)
    rows = []
    for key, label, latency in found:
        value = f"{latency.median:.2f} ms · {speed(model, key)}"
        bar = charts.latency_bar(
            latency.median, latency.lower_quartile, latency.upper_quartile, longest, key, f"{label}: {value}"
        )
        rows.append(Row(label, value, bar))
    return Chart("", tuple(rows))
