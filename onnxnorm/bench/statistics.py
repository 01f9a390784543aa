"""Numbers from timed samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

#: Share of a burst's time for which a thread may have waited for a core.
QUIET_SHARE = 0.02
#: So many quiet bursts of a repeat, or all that it has where it has fewer, speak for it alone.
ENOUGH_QUIET = 3


@dataclass(frozen=True)
class Burst:
    """Consecutive calls of one candidate.

    Attributes:
        samples: milliseconds of one call, one for each sample.
        waited: share of the burst's time for which a thread of this process was ready and had no core: other programs.

    """

    samples: tuple[float, ...]
    waited: float = 0.0

    @property
    def quiet(self) -> bool:
        """Whether nobody was in the way."""
        return self.waited <= QUIET_SHARE


@dataclass(frozen=True)
class Timing:
    """What one candidate took, in milliseconds for one call.

    Attributes:
        median, p20, p80: of the repeat with the lowest median, among the quiet ones if there are any.
        samples: how many that repeat has.
        medians: of every repeat, in their order.
        quiet: other programs were not in the way; False means that the figures compare with no others.

    """

    median: float
    p20: float
    p80: float
    samples: int
    medians: tuple[float, ...]
    quiet: bool

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return asdict(self) | {"medians": list(self.medians)}


def summarize(repeats: Sequence[Sequence[Burst]]) -> Timing:
    """The best repeat by its median; quiet ones go before others, and within a repeat only quiet bursts count, unless
    there are too few of them.
    """
    found = [_repeat(bursts) for bursts in repeats]
    disturbed, median, p20, p80, samples = min(found)
    return Timing(median, p20, p80, samples, tuple(item[1] for item in found), not disturbed)


def _repeat(bursts: Sequence[Burst]) -> tuple[bool, float, float, float, int]:
    """Whether it was disturbed, then median, p20, p80 and number of samples."""
    calm = [burst for burst in bursts if burst.quiet]
    quiet = len(calm) >= min(ENOUGH_QUIET, len(bursts))
    values = [value for burst in (calm if quiet else bursts) for value in burst.samples]
    p20, median, p80 = (float(value) for value in np.percentile(values, [20, 50, 80]))
    return not quiet, median, p20, p80, len(values)
