"""Charts of measurements, drawn by matplotlib: for a file (PNG, SVG), and as SVG inside the HTML report.

In the report the page's stylesheet sets the colours, for a light and a dark theme: there each colour of ``THEME`` is
written as a CSS variable of that name.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxnorm.bench.candidates import COPY, OURS
from onnxnorm.bench.models import FILE, ModelsReport
from onnxnorm.bench.ops import CaseResult, OpsReport
from onnxnorm.bench.table import milliseconds
from onnxnorm.bench.table import ratio as times_text
from onnxnorm.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Name of a CSS variable -> its colour in the light theme. No two may be equal.
THEME = {
    "ink": "#1c2127",
    "soft": "#59636e",
    "line": "#dde1e6",
    "card": "#ffffff",
    "onnxnorm": "#2a68b8",
    "onnxnorm-soft": "#8fb3e0",
    "runtime": "#8a96a3",
    "torch": "#cf7a3c",
    "openvino": "#7d5ba6",
    "bad": "#b3261e",
}
#: Operator types of the stacked bars, readable on both themes.
_STACK = ("#2f7fc1", "#d98032", "#3f9b5f", "#c0504d", "#8468b0", "#8a6d5a", "#cf6fa8", "#8c8c8c", "#a8a637", "#2fa6b3")
_COLOURS = {
    OURS: "onnxnorm",
    "optimize": "onnxnorm",
    "body": "onnxnorm-soft",
    "torch": "torch",
    "compile": "torch",
    "openvino": "openvino",
}
SUFFIXES = (".png", ".svg")
#: Operator types with a colour of their own.
_NAMED_OPS = len(_STACK) - 1
#: A bar may be so many times as long as that of the fastest candidate.
_LONGEST = 25


@dataclass(frozen=True)
class _Bar:
    label: str
    value: float
    low: float
    high: float
    colour: str
    text: str


def check_plot_path(path: str) -> None:
    """UsageError unless a chart can be written to that path."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path}: the file's name must end in {' or '.join(SUFFIXES)}")
    import matplotlib  # noqa: F401  (a missing one must be told before anything is measured)


def save_plot(report: OpsReport | ModelsReport, path: str) -> None:
    """Writes a chart of the whole report as PNG or SVG, by the file's name."""
    with _style():
        figure = _ops_figure(report.cases) if isinstance(report, OpsReport) else _models_figure(report)
        figure.savefig(path, dpi=150, bbox_inches="tight")


def case_svg(result: CaseResult) -> str:
    """One case as an SVG element for the report."""
    return _themed(lambda: _ops_figure([result], titles=False), result.case.label)


def models_svg(report: ModelsReport) -> str:
    """Times and breakdown of models as an SVG element for the report."""
    return _themed(lambda: _models_figure(report), "models")


def _themed(draw: Callable[[], Figure], salt: str) -> str:
    """The figure as an SVG element whose colours are CSS variables; ``salt`` keeps its ids apart from others'."""
    with _style({"svg.hashsalt": salt}):
        buffer = io.StringIO()
        draw().savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for name, colour in THEME.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    return text


@contextmanager
def _style(extra: dict[str, Any] | None = None) -> Iterator[None]:
    import matplotlib

    settings: Any = {  # matplotlib's own type lists every key by name
        "svg.fonttype": "none",  # text stays text: small, and in the page's own font
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.edgecolor": THEME["line"],
        "axes.labelcolor": THEME["soft"],
        "axes.titlecolor": THEME["ink"],
        "xtick.color": THEME["soft"],
        "ytick.color": THEME["ink"],
        "text.color": THEME["ink"],
        "legend.frameon": False,
        "figure.facecolor": THEME["card"],
        "axes.facecolor": "none",
    }
    with matplotlib.rc_context(settings | (extra or {})):
        yield


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _ops_figure(cases: Sequence[CaseResult], *, titles: bool = True) -> Figure:
    """A panel for each case."""
    columns = min(3, max(1, math.ceil(math.sqrt(len(cases) / 2))))
    rows = math.ceil(len(cases) / columns)
    tallest = max(len(_case_bars(case)) for case in cases)
    figure = _new_figure(6.4 * columns, (0.27 * tallest + (0.75 if titles else 0.4)) * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, case in zip(panels, cases, strict=False):
        fastest = case.fastest
        _draw_bars(panel, _case_bars(case), fastest.timing.median if fastest and fastest.timing else 0.0)
        if titles:
            panel.set_title(case.case.label, loc="left", fontweight="bold", fontsize=9)
        copy = case.row(COPY)
        if copy is not None and copy.timing is not None:
            panel.axvline(copy.timing.median, color=THEME["ink"], linewidth=1, linestyle=(0, (3, 2)))
    for panel in panels[len(cases) :]:
        panel.set_axis_off()
    return figure


def _case_bars(result: CaseResult) -> list[_Bar]:
    bars = []
    for row in result.rows:
        if row.timing is None:
            continue
        times = result.ratio(row, COPY)
        of_copy = f"  {times_text(times)} copy" if times is not None and row.key != COPY else ""
        colour = "bad" if row.status == "wrong" else _COLOURS.get(row.key, "runtime")
        text = f"{milliseconds(row.timing.median)} ms{of_copy}{'  wrong' if row.status == 'wrong' else ''}"
        bars.append(_Bar(row.label, row.timing.median, row.timing.p20, row.timing.p80, THEME[colour], text))
    return bars


def _draw_bars(panel: Axes, bars: Sequence[_Bar], shortest: float = 0.0) -> None:
    """Horizontal bars from 0, the first on top, p20 to p80 as a whisker, the figure behind each bar.

    Bars over ``_LONGEST`` times ``shortest`` are cut there, marked by an arrow: they would make the others too small to
    tell apart.
    """
    places = range(len(bars))
    end = max(bar.value for bar in bars)
    end = min(end, _LONGEST * shortest) if shortest else end
    panel.barh(places, [min(bar.value, end) for bar in bars], color=[bar.colour for bar in bars], height=0.62)
    for place, bar in zip(places, bars, strict=True):
        if bar.value > end:
            panel.text(1.012 * end, place, f"\N{RIGHTWARDS ARROW}  {bar.text}", va="center", fontsize=8)
            continue
        high = min(bar.high, 1.15 * end)  # a disturbed whisker must not make all bars small
        panel.plot([bar.low, high], [place, place], color=THEME["ink"], linewidth=1.2, alpha=0.7)
        panel.text(max(bar.value, high) + 0.012 * end, place, bar.text, va="center", fontsize=8)
    panel.set_yticks(list(places), [bar.label for bar in bars])
    panel.invert_yaxis()
    panel.set_xlim(0, 1.45 * end)
    panel.tick_params(length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.set_xlabel("milliseconds", loc="left", fontsize=8)


def _models_figure(report: ModelsReport) -> Figure:
    """Times of all candidates; below them where the time goes."""
    bars = []
    for row in report.rows:
        if row.timing is not None:
            ratio = report.ratio(row)
            speed = f"  {ratio:.2f}x as fast" if ratio is not None and row is not report.rows[0] else ""
            colour = "bad" if row.status == "differs" else "onnxnorm" if row.key != FILE and row.target else "runtime"
            text = f"{milliseconds(row.timing.median)} ms{speed}"
            bars.append(_Bar(row.label, row.timing.median, row.timing.p20, row.timing.p80, THEME[colour], text))
    profiled = [row for row in report.rows if row.breakdown is not None]
    height = 0.32 * len(bars) + 0.7
    if not profiled:
        figure = _new_figure(7.5, height)
        _draw_bars(figure.subplots(), bars)
        return figure
    figure = _new_figure(7.5, height + 0.42 * len(profiled) + 1.5)
    above, below = figure.subplots(2, 1, height_ratios=(height, 0.42 * len(profiled) + 1.5))
    _draw_bars(above, bars)
    _draw_stacks(below, report)
    return figure


def _draw_stacks(panel: Axes, report: ModelsReport) -> None:
    """A bar for each candidate, cut into the operator types' times."""
    found = [(row.label, row.breakdown) for row in report.rows if row.breakdown is not None]
    longest: dict[str, float] = {}
    for _, item in found:
        for op in item.ops:
            longest[op.op] = max(longest.get(op.op, 0.0), op.milliseconds)
    named = sorted(longest, key=lambda op: -longest[op])[:_NAMED_OPS]
    left = [0.0] * len(found)
    for index, name in enumerate([*named, "others"]):
        widths = [
            item.milliseconds(name)
            if name != "others"
            else item.kernel_milliseconds - sum(item.milliseconds(op) for op in named)
            for _, item in found
        ]
        if max(widths) > 0:
            panel.barh(range(len(found)), widths, left=left, height=0.6, color=_STACK[index], label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    panel.set_yticks(range(len(found)), [label for label, _ in found])
    panel.invert_yaxis()
    panel.tick_params(length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.set_xlabel("milliseconds in kernels, by operator type, while profiled", loc="left", fontsize=8)
    panel.legend(loc="upper left", bbox_to_anchor=(0, -0.32), ncols=5, fontsize=8, handlelength=1, columnspacing=1.2)
