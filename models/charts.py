"""Bars as inline SVG. All positions are percentages, so a bar is as wide as its column on any screen; the page's
stylesheet colours the classes for the light and the dark theme.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

_HEIGHT = 16


@dataclass(frozen=True)
class LogScale:
    """Whole decades from 10**low to 10**high, as percentages of the width."""

    low: int
    high: int

    @staticmethod
    def around(values: list[float]) -> LogScale:
        """The decades that hold all positive values, with room below the smallest; 1e-8 to 1e-5 without any."""
        positive = [value for value in values if value > 0 and math.isfinite(value)]
        if not positive:
            return LogScale(-8, -5)
        low = math.floor(math.log10(min(positive)) - 0.3)
        return LogScale(low, max(math.ceil(math.log10(max(positive)) + 0.05), low + 1))

    def percent(self, value: float) -> float:
        """Where ``value`` stands, held within the chart."""
        if value <= 0:
            return 0.0
        if not math.isfinite(value):
            return 100.0
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return 100.0 * min(max(share, 0.0), 1.0)

    @property
    def decades(self) -> list[int]:
        """The decades inside the chart and at its ends."""
        return list(range(self.low, self.high + 1))


def distance_bar(scale: LogScale, value: float, allowed: float | None, kind: str, label: str) -> Markup:
    """One distance on a log scale, with a mark at what is allowed."""
    parts = [_line("grid", scale.percent(10.0**decade)) for decade in scale.decades]
    parts.append(_bar(kind, scale.percent(value)))
    if allowed is not None:
        parts.append(_line("allowed", scale.percent(allowed)))
    return _svg(parts, label)


def log_axis(scale: LogScale) -> Markup:
    """The labels under a column of distance bars."""
    texts = []
    for decade in scale.decades:
        anchor = "start" if decade == scale.low else "end" if decade == scale.high else "middle"
        texts.append(
            Markup('<text class="tick" x="{:.2f}%" y="11" text-anchor="{}">1e{}</text>').format(
                scale.percent(10.0**decade), anchor, decade
            )
        )
    return _svg(texts, "scale of the distances", hidden=True)


def latency_bar(median: float, lower: float, upper: float, longest: float, kind: str, label: str) -> Markup:
    """A median on a linear scale from 0, with its quartiles as a whisker."""
    middle = Markup('<line class="whisker" x1="{:.2f}%" x2="{:.2f}%" y1="{}" y2="{}"/>').format(
        100 * lower / longest, 100 * upper / longest, _HEIGHT // 2, _HEIGHT // 2
    )
    return _svg([_bar(kind, 100 * median / longest), middle], label)


def _bar(kind: str, percent: float) -> Markup:
    return Markup('<rect class="bar {}" x="0" y="3" width="{:.2f}%" height="{}" rx="2"/>').format(
        kind, percent, _HEIGHT - 6
    )


def _line(kind: str, percent: float) -> Markup:
    return Markup('<line class="{}" x1="{:.2f}%" x2="{:.2f}%" y1="0" y2="{}"/>').format(kind, percent, percent, _HEIGHT)


def _svg(parts: list[Markup], label: str, *, hidden: bool = False) -> Markup:
    role = Markup('aria-hidden="true"') if hidden else Markup('role="img" aria-label="{}"').format(label)
    return Markup('<svg width="100%" height="{}" {}>{}</svg>').format(_HEIGHT, role, Markup("").join(parts))
