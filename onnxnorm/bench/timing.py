"""Times several candidates so that they can be compared.

Candidates take turns, so that a change of the machine's load or clock meets all of them. A turn is a burst of
consecutive calls rather than one call: the threads of an ONNX Runtime session go on spinning after their work, for
55 ms where this was measured, PyTorch's for 8 ms, and would take a core from whoever comes next. So a turn begins by
waiting until no thread of this process runs any more, goes on with calls that are not timed (they wake this candidate's
own threads and bring its tensors into the caches), and then times call by call, as in a loop of inference, in which
spinning is what makes a session fast. The order rotates from round to round.

A sample is one call, or so many in a row that it takes 50 microseconds at least, for a clock is read twice a sample.
The whole is repeated, and each candidate's best repeat counts (lowest median): on a shared machine the other repeats
tell of the neighbours. A burst during which threads of this process waited for a core tells of other programs; it is
left out where there are quiet ones, and repeated for a while where there are too few.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnxnorm.bench.contention import others_running, waited_seconds
from onnxnorm.bench.statistics import Burst, Timing, summarize

Run = Callable[[], object]


@dataclass(frozen=True)
class Protocol:
    """How long to measure.

    Attributes:
        repeats: of the whole interleaved loop; the best counts.
        seconds: of timed calls of one candidate in one repeat.
        burst_seconds: of timed calls in one turn.
        warm_seconds: of calls before them that are not timed; at least two calls.
        settle_seconds: how long to wait, at most, for the threads of the turn before to come to rest.
        sample_seconds: a sample has as many calls as take this long.

    """

    repeats: int = 3
    seconds: float = 0.15
    burst_seconds: float = 0.05
    warm_seconds: float = 0.002
    settle_seconds: float = 0.3
    sample_seconds: float = 50e-6

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return asdict(self)


#: For a first look.
QUICK = Protocol(repeats=2, seconds=0.05, burst_seconds=0.02)
#: For whole models, of which a call takes long.
MODELS = Protocol(seconds=0.6, burst_seconds=0.15)


@dataclass(frozen=True)
class _Plan:
    """How many calls one candidate's turn has."""

    run: Run
    warm: int
    inner: int
    samples: int
    rounds: int


def measure(runs: Mapping[str, Run], protocol: Protocol) -> dict[str, Timing]:
    """The timing of each candidate, by its key."""
    plans = {key: _plan(run, protocol) for key, run in runs.items()}
    found: dict[str, list[list[Burst]]] = {key: [] for key in plans}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(protocol.repeats):
            for key, bursts in _interleaved(plans, protocol).items():
                found[key].append(bursts)
    finally:
        if was_enabled:
            gc.enable()
    return {key: summarize(repeats) for key, repeats in found.items()}


def _plan(run: Run, protocol: Protocol) -> _Plan:
    call = _estimate(run)
    inner = max(1, math.ceil(protocol.sample_seconds / call))
    samples = min(max(3, int(protocol.burst_seconds / (inner * call))), 1000)
    rounds = max(3, math.ceil(protocol.seconds / (samples * inner * call)))
    warm = min(max(2, math.ceil(protocol.warm_seconds / call)), 1000)
    return _Plan(run, warm, inner, samples, rounds)


def _estimate(run: Run) -> float:
    """Seconds of one warm call."""
    end = time.perf_counter() + 0.05
    run()
    times: list[int] = []
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 100):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return max(sorted(times)[len(times) // 2], 50) / 1e9


def _interleaved(plans: Mapping[str, _Plan], protocol: Protocol) -> dict[str, list[Burst]]:
    """Rounds of turns until each candidate has had its own; the slow ones need fewer of them.

    A candidate that others disturbed goes on until it has as many quiet bursts, for twice the time at most.
    """
    found: dict[str, list[Burst]] = {key: [] for key in plans}
    keys = list(plans)
    rounds = max(plan.rounds for plan in plans.values())
    start = time.perf_counter()
    for turn in range(rounds):
        for key in _rotated(keys, turn):
            wanted = plans[key].rounds  # spread over all rounds
            if turn * wanted // rounds != (turn - 1) * wanted // rounds:
                found[key].append(_burst(plans[key], protocol.settle_seconds))
    end = 2 * time.perf_counter() - start
    turn = rounds
    while time.perf_counter() < end:
        disturbed = [key for key in _rotated(keys, turn) if sum(item.quiet for item in found[key]) < plans[key].rounds]
        if not disturbed:
            break
        for key in disturbed:
            found[key].append(_burst(plans[key], protocol.settle_seconds))
        turn += 1
    return found


def _rotated(keys: list[str], turn: int) -> list[str]:
    """Nobody always follows the same one."""
    shift = turn % len(keys)
    return keys[shift:] + keys[:shift]


def _settle(limit: float) -> None:
    """Waits until no thread of this process but the caller's runs: those of whoever ran before have gone to sleep."""
    end = time.perf_counter() + limit
    calm = 0
    while calm < 2 and time.perf_counter() < end:
        time.sleep(0.001)
        calm = 0 if others_running() else calm + 1


def _burst(plan: _Plan, settle_seconds: float) -> Burst:
    run, inner = plan.run, range(plan.inner)
    clock = time.perf_counter_ns
    _settle(settle_seconds)
    for _ in range(plan.warm):
        run()
    times: list[int] = []
    before = waited_seconds()
    for _ in range(plan.samples):
        start = clock()
        for _ in inner:
            run()
        times.append(clock() - start)
    after = waited_seconds()
    # Where the system does not tell, the burst counts as quiet: there is nothing to hold against it.
    share = 0.0 if before is None or after is None else (after - before) * 1e9 / max(sum(times), 1)
    return Burst(tuple(value / plan.inner / 1e6 for value in times), share)
