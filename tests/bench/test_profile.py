"""ONNX Runtime's profile, summed by operator type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxnorm.bench.model_table import breakdown_lines
from onnxnorm.bench.profile import breakdown, read_profile
from onnxnorm.errors import ModelError


def _run(start: float, duration: float) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration, "args": {}}


def _kernel(op: str, start: float, duration: float) -> dict[str, Any]:
    return {
        "cat": "Node",
        "name": f"n{start}_kernel_time",
        "ts": start,
        "dur": duration,
        "args": {"op_name": op, "provider": "CPUExecutionProvider"},
    }


EVENTS = [
    {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 90},
    _run(100, 1000),
    _kernel("Conv", 110, 900),
    _run(2000, 100),
    _kernel("ReorderInput", 2001, 4),
    _kernel("Conv", 2005, 50),
    _kernel("ReorderOutput", 2056, 6),
    _kernel("Relu", 2063, 10),
    _run(3000, 120),
    _kernel("Conv", 3005, 60),
    _kernel("Conv", 3066, 10),
    {"cat": "Node", "name": "n_fence_before", "ts": 3080, "dur": 7, "args": {"op_name": "Conv"}},
]


def test_sums_by_type_over_the_runs_after_the_warm_up() -> None:
    found = breakdown(EVENTS, skip=1)
    assert (found.runs, found.run_milliseconds) == (2, pytest.approx(0.11))
    assert [item.op for item in found.ops] == ["Conv", "Relu", "ReorderOutput", "ReorderInput"]
    conv = found.ops[0]
    assert (conv.calls, conv.milliseconds) == (1.5, pytest.approx(0.06))
    assert conv.share == pytest.approx(120 / 140)
    assert found.kernel_milliseconds == pytest.approx(0.07)
    assert found.reorder_milliseconds == pytest.approx(0.005)
    assert found.milliseconds("Softmax") == 0


def test_the_time_of_a_subgraph_counts_once() -> None:
    events = [
        _run(0, 100),
        _kernel("Loop", 0, 60),
        _kernel("Add", 10, 20),
        _kernel("If", 40, 15),
        _kernel("Mul", 42, 5),
    ]
    found = {item.op: item.milliseconds * 1e3 for item in breakdown(events).ops}
    assert found == {
        "Loop": pytest.approx(25),
        "Add": pytest.approx(20),
        "If": pytest.approx(10),
        "Mul": pytest.approx(5),
    }


def test_a_table_of_it() -> None:
    one, two = breakdown(EVENTS, skip=1), breakdown(EVENTS, skip=2)
    lines = breakdown_lines([one, two], 2)
    assert [line[0] for line in lines] == ["Conv", "Relu", "2 others", "all kernels", "of these, layout reorders"]
    assert lines[1][2] == "-"
    assert lines[3][2].endswith("100 %")


def test_no_run_is_left(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no run after the first 3"):
        breakdown(EVENTS, skip=3)


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}', "[1]"])
def test_no_profile(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ModelError, match=r"p\.json is no profile of ONNX Runtime"):
        read_profile(tmp_path / "p.json")


def test_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(EVENTS))
    assert read_profile(tmp_path / "p.json", skip=1) == breakdown(EVENTS, skip=1)
