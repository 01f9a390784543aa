"""Where a model's time goes: ONNX Runtime's profile, summed by operator type.

The profile is a JSON list of events. A run is an event ``model_run``; each node's kernel is an event of the category
``Node`` whose name ends in ``_kernel_time``, with the operator's name in its arguments and microseconds in ``ts`` and
``dur``. The kernel of a node with subgraphs (If, Loop, Scan) holds those of the nodes inside, which are taken off it,
so that no time counts twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxnorm.errors import ModelError

#: Operators that move tensors into ONNX Runtime's blocked NCHWc layout and back.
REORDERS = ("ReorderInput", "ReorderOutput")


@dataclass(frozen=True)
class OpTime:
    """One operator type: calls and kernel milliseconds of one run, and its share of all kernels' time."""

    op: str
    calls: float
    milliseconds: float
    share: float

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return {"op": self.op, "calls": self.calls, "milliseconds": self.milliseconds, "share": self.share}


@dataclass(frozen=True)
class Breakdown:
    """Kernel times of one run, averaged over ``runs`` of them, the longest first.

    Attributes:
        runs: how many were averaged.
        run_milliseconds: of a run as a whole while profiled, which takes longer than it does otherwise.
        ops: by operator type.

    """

    runs: int
    run_milliseconds: float
    ops: tuple[OpTime, ...]

    @property
    def kernel_milliseconds(self) -> float:
        """Of all kernels together."""
        return sum(item.milliseconds for item in self.ops)

    @property
    def reorder_milliseconds(self) -> float:
        """Of the changes between NCHW and ONNX Runtime's blocked layout."""
        return sum(item.milliseconds for item in self.ops if item.op in REORDERS)

    def milliseconds(self, op: str) -> float:
        """Of one operator type; 0 where the model has none."""
        return sum(item.milliseconds for item in self.ops if item.op == op)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return {
            "runs": self.runs,
            "run_milliseconds": self.run_milliseconds,
            "kernel_milliseconds": self.kernel_milliseconds,
            "reorder_milliseconds": self.reorder_milliseconds,
            "ops": [item.to_json() for item in self.ops],
        }


@dataclass(frozen=True)
class _Kernel:
    op: str
    start: float
    duration: float

    @property
    def end(self) -> float:
        return self.start + self.duration


def read_profile(path: str | os.PathLike[str], skip: int = 0) -> Breakdown:
    """The breakdown in a profile file; the first ``skip`` runs, which warm up, are left out.

    Raises:
        ModelError: the file is no profile of ONNX Runtime, or has no run after those.

    """
    try:
        events = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{os.fspath(path)} is no profile of ONNX Runtime: {error}") from None
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise ModelError(f"{os.fspath(path)} is no profile of ONNX Runtime: it is no list of events")
    return breakdown(events, skip)


def breakdown(events: Sequence[Mapping[str, Any]], skip: int = 0) -> Breakdown:
    """As ``read_profile``, from the events themselves."""
    runs = sorted((float(e["ts"]), float(e["dur"])) for e in events if e.get("name") == "model_run")[skip:]
    if not runs:
        raise ModelError(f"the profile has no run after the first {skip}; run the profiled session more often")
    kernels = [
        _Kernel(_operator(event), float(event["ts"]), float(event["dur"]))
        for event in events
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time")
    ]
    counted = [item for item in _exclusive(kernels) if any(start <= item.start < start + dur for start, dur in runs)]
    total = sum(item.duration for item in counted)
    found: dict[str, list[float]] = {}
    for item in counted:
        found.setdefault(item.op, []).append(item.duration)
    ops = [
        OpTime(op, len(times) / len(runs), sum(times) / len(runs) / 1e3, sum(times) / total if total else 0.0)
        for op, times in found.items()
    ]
    whole = sum(duration for _, duration in runs) / len(runs) / 1e3
    return Breakdown(len(runs), whole, tuple(sorted(ops, key=lambda item: (-item.milliseconds, item.op))))


def _operator(event: Mapping[str, Any]) -> str:
    return str(event.get("args", {}).get("op_name") or "?")


def _exclusive(kernels: Iterable[_Kernel]) -> list[_Kernel]:
    """Each kernel's own time: without that of kernels inside it. Sequential execution, so they nest or are apart."""
    own: list[list[Any]] = []
    around: list[int] = []
    for item in sorted(kernels, key=lambda item: (item.start, -item.duration)):
        while around and own[around[-1]][0].end <= item.start:
            around.pop()
        if around:
            own[around[-1]][1] -= item.duration
        own.append([item, item.duration])
        around.append(len(own) - 1)
    return [_Kernel(item.op, item.start, max(time, 0.0)) for item, time in own]
