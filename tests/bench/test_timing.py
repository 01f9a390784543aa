"""Statistics of given samples, and turns that are taken fairly. Nothing here depends on how fast anything is."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from onnxnorm.bench import Protocol, contention, timing
from onnxnorm.bench.statistics import QUIET_SHARE, Burst, summarize

BUSY = QUIET_SHARE * 2


def test_percentiles() -> None:
    found = summarize([[Burst((1.0, 2.0, 3.0)), Burst((4.0, 5.0, 6.0)), Burst((7.0, 8.0, 9.0, 10.0, 11.0))]])
    assert (found.median, found.p20, found.p80) == (6.0, 3.0, 9.0)
    assert (found.samples, found.medians, found.quiet) == (11, (6.0,), True)


def test_the_best_repeat_counts() -> None:
    found = summarize([[Burst((3.0,))], [Burst((1.0, 1.0, 4.0))], [Burst((2.0,))]])
    assert found.median == 1.0
    assert found.medians == (3.0, 1.0, 2.0)
    assert found.p80 == pytest.approx(2.8)


def test_disturbed_bursts_are_left_out() -> None:
    calm = [Burst((1.0,)), Burst((2.0,)), Burst((3.0,))]
    found = summarize([[*calm, Burst((50.0,), BUSY), Burst((60.0,), BUSY)]])
    assert (found.median, found.samples, found.quiet) == (2.0, 3, True)


def test_all_count_where_too_few_are_quiet() -> None:
    found = summarize([[Burst((1.0,)), Burst((2.0,)), Burst((50.0,), BUSY)]])
    assert (found.median, found.samples, found.quiet) == (2.0, 3, False)


def test_a_quiet_repeat_goes_before_a_faster_one_that_was_disturbed() -> None:
    found = summarize([[Burst((1.0,), BUSY)], [Burst((2.0,))]])
    assert (found.median, found.quiet) == (2.0, True)


def test_timing_as_json() -> None:
    assert summarize([[Burst((1.0,))]]).to_json() == {
        "median": 1.0,
        "p20": 1.0,
        "p80": 1.0,
        "samples": 1,
        "medians": [1.0],
        "quiet": True,
    }


def test_candidates_take_turns(fast: Protocol) -> None:
    calls: list[str] = []
    found = timing.measure({name: lambda name=name: calls.append(name) for name in "abc"}, fast)  # type: ignore[misc]
    assert set(found) == set("abc")
    assert all(len(item.medians) == fast.repeats for item in found.values())
    turns = [name for name, before in zip(calls, ["", *calls], strict=False) if name != before]
    after_planning = turns[3:]
    assert "".join(after_planning[:3]) in ("abc", "bca", "cab")
    firsts = {after_planning[index] for index in range(0, 9, 3)}
    assert len(firsts) > 1, "the order must rotate"


def test_tiny_calls_are_timed_together() -> None:
    plan = timing._plan(lambda: None, Protocol(sample_seconds=1e-3))
    assert plan.inner > 10


def test_slow_calls_are_timed_one_by_one() -> None:
    plan = timing._plan(lambda: time.sleep(0.02), Protocol())
    assert (plan.inner, plan.samples >= 3, plan.rounds >= 3, plan.warm >= 2) == (1, True, True, True)


def test_garbage_collection_is_back_on_afterwards(fast: Protocol) -> None:
    seen = []
    timing.measure({"a": lambda: seen.append(gc.isenabled())}, fast)
    assert seen[-1] is False
    assert gc.isenabled()


def test_garbage_collection_is_back_on_after_a_failure(fast: Protocol) -> None:
    calls: list[int] = []

    def fails_later() -> None:
        calls.append(1)
        if len(calls) > 150:
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        timing.measure({"a": fails_later}, Protocol(seconds=1.0, burst_seconds=0.1, settle_seconds=0))
    assert gc.isenabled()


@pytest.mark.skipif(contention.waited_seconds() is None, reason="the system does not tell how long threads wait")
def test_a_turn_waits_for_threads_that_still_run() -> None:
    over = threading.Event()

    def work() -> None:
        end = time.perf_counter() + 0.1
        while time.perf_counter() < end:
            pass
        over.set()

    thread = threading.Thread(target=work)
    thread.start()
    timing._settle(10.0)
    assert over.is_set()
    thread.join()


def test_settling_gives_up() -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            pass

    thread = threading.Thread(target=work)
    thread.start()
    timing._settle(0.05)
    stop.set()
    thread.join()
