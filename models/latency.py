"""Latency of several ways to run one model, measured so that they can be compared.

Blocks of runs alternate between the contestants, so that a change of the machine's load or clock meets all of them.
Each block starts with untimed runs after a pause: threads of the contestant before are still spinning for a moment,
and its data fills the caches.

Another program on the same cores does not slow all contestants alike: it costs PyTorch's threads, which wait for each
other actively, ten times and more, and would make ONNX Runtime shine for no reason of its own. So each block notes how
long its threads waited for a core, only quiet blocks count, and where there are too few the result says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxnorm.bench.contention import waited_seconds

BATCH = 32
#: Threads within one operator, for PyTorch and ONNX Runtime alike.
THREADS = max(1, min(2, os.cpu_count() or 1))
#: Quiet blocks wanted of each contestant, and with how few the result still counts as quiet.
BLOCKS, FEWEST = 24, 8
RUNS_PER_BLOCK = 5
WARM_UP_RUNS = 3
PAUSE_SECONDS = 0.01
#: A machine that does not come to rest must not hold up the job.
LIMIT_SECONDS = 5.0
#: Share of a block's time for which a thread may have waited for a core.
QUIET_SHARE = 0.02


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one run: median and quartiles over ``runs`` timed runs.

    Attributes:
        quiet: no other program used the cores; False means that the figure compares with no other.

    """

    median: float
    lower_quartile: float
    upper_quartile: float
    runs: int
    quiet: bool

    def speed_against(self, base: Latency) -> float | None:
        """How many times faster than ``base``; None unless both are quiet: a busy machine makes up its own ratio."""
        return base.median / self.median if self.quiet and base.quiet else None


@dataclass(frozen=True)
class Block:
    """Milliseconds of the runs of one block, and the share of its time for which its threads waited for a core."""

    times: tuple[float, ...]
    waited: float

    @property
    def quiet(self) -> bool:
        """Whether nobody was in the way."""
        return self.waited <= QUIET_SHARE


def measure(
    contestants: Mapping[str, Callable[[], object]], *, blocks: int = BLOCKS, limit: float = LIMIT_SECONDS
) -> dict[str, Latency]:
    """The latency of each contestant, by its name: ``blocks`` quiet blocks of each, or what ``limit`` seconds gave."""
    names = list(contestants)
    found: dict[str, list[Block]] = {name: [] for name in names}
    end = time.perf_counter() + limit
    turn = 0
    while turn == 0 or (time.perf_counter() < end and _quiet_blocks(found) < blocks):
        shift = turn % len(names)  # nobody always follows the same one
        for name in names[shift:] + names[:shift]:
            found[name].append(_block(contestants[name]))
        turn += 1
    # One contestant's quiet hour must not be held against another's busy one: all are judged quiet, or none.
    quiet = _quiet_blocks(found) >= min(FEWEST, blocks)
    return {name: summarize(items, quiet) for name, items in found.items()}


def _quiet_blocks(found: Mapping[str, Sequence[Block]]) -> int:
    return min(sum(block.quiet for block in items) for items in found.values())


def _block(run: Callable[[], object]) -> Block:
    time.sleep(PAUSE_SECONDS)
    for _ in range(WARM_UP_RUNS):
        run()
    times = []
    waited = waited_seconds()
    for _ in range(RUNS_PER_BLOCK):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    after = waited_seconds()
    # Where the system does not tell, the blocks count as quiet: there is nothing to hold against them.
    share = 0.0 if waited is None or after is None else (after - waited) * 1e3 / sum(times)
    return Block(tuple(times), share)


def summarize(blocks: Sequence[Block], quiet: bool) -> Latency:
    """Median and quartiles over the quiet blocks, or over all when there are too few of them."""
    values = [value for block in blocks if block.quiet or not quiet for value in block.times]
    lower, median, upper = (float(value) for value in np.percentile(values, [25, 50, 75]))
    return Latency(median, lower, upper, len(values), quiet)
