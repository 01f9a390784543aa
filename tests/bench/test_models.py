"""Whole models: the same inputs for all, outputs compared, and where the time goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxnorm.bench import Protocol, bench_models
from onnxnorm.bench.models import difference
from onnxnorm.errors import ModelError, UsageError

Write = Callable[..., Path]


def test_one_model(make_model: Write, fast: Protocol, check_schema: Callable[[Any], None]) -> None:
    report = bench_models([make_model()], dims={"batch": 2}, protocol=fast)
    assert report.passed
    assert [row.key for row in report.rows] == ["file", "onnxnorm", "standard"]
    assert [row.status for row in report.rows] == ["ok"] * 3
    assert report.rows[0].nodes == 3
    assert report.rows[1].nodes == 2, "the activation is in the norm"
    assert report.rows[0].distance is None
    assert all(row.distance is not None and row.distance < 1e-5 for row in report.rows[1:])
    assert report.inputs[0]["shape"] == [2, 4, 6, 6]
    for row in report.rows:
        assert row.breakdown is not None
        assert "Conv" in {item.op for item in row.breakdown.ops}
        assert sum(item.share for item in row.breakdown.ops) == pytest.approx(1)
    assert "GroupNorm" in {item.op for item in report.rows[1].breakdown.ops} or report.machine["library"].get("problem")  # type: ignore[union-attr]
    check_schema(report.to_json())


def test_several_models_that_agree(make_model: Write, fast: Protocol) -> None:
    report = bench_models([make_model("a.onnx"), make_model("b.onnx")], dims={"batch": 1}, protocol=fast, profile=False)
    assert [row.label for row in report.rows] == ["a.onnx", "b.onnx"]
    assert report.passed
    assert report.rows[1].distance == 0
    assert report.rows[1].breakdown is None


def test_a_model_that_differs_is_marked(make_model: Write, fast: Protocol, check_schema: Callable[[Any], None]) -> None:
    files = [make_model("a.onnx"), make_model("c.onnx", scale=1.01)]
    report = bench_models(files, dims={"batch": 1}, protocol=fast, profile=False)
    assert not report.passed
    assert report.rows[1].status == "differs"
    assert "output 0: distance 0.0" in report.rows[1].reason
    assert report.rows[1].timing is not None
    check_schema(report.to_json())


def test_the_same_file_twice(make_model: Write, fast: Protocol) -> None:
    report = bench_models([make_model(), make_model()], dims={"batch": 1}, protocol=fast, profile=False)
    assert len({row.key for row in report.rows}) == 2


def test_inputs_from_a_file(make_model: Write, fast: Protocol, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((3, 4, 6, 6), np.float32))
    report = bench_models([make_model()], inputs=tmp_path / "x.npz", protocol=fast, profile=False)
    assert report.inputs[0]["shape"] == [3, 4, 6, 6]
    assert report.inputs[0]["source"].endswith("x.npz")


def test_integers_and_scalars(tmp_path: Path, fast: Protocol) -> None:
    node = helper.make_node("Gather", ["table", "index"], ["y"])
    infos = [
        helper.make_tensor_value_info("table", TensorProto.FLOAT16, [5, 3]),
        helper.make_tensor_value_info("index", TensorProto.INT64, []),
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [3])
    graph = helper.make_graph([node], "g", infos, [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "g.onnx")
    report = bench_models([tmp_path / "g.onnx"], protocol=fast, profile=False)
    assert report.passed
    assert [item["dtype"] for item in report.inputs] == ["float16", "int64"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"axis 0 of input 'x' is dynamic; give --dim batch=SIZE"),
        ({"dims": {"batch": 1, "seq": 2}}, r"--dim seq=2: .*net\.onnx has no dynamic size 'seq'"),
        ({"inputs": "none.npz"}, r"none\.npz: no such file"),
        ({"inputs": "other.npz"}, r"other\.npz has an array 'z'; the model's inputs are x"),
        ({"inputs": "empty.npz"}, r"empty\.npz has no array 'x'"),
        ({"inputs": "shape.npz"}, r"shape\.npz has shape \[1, 4, 6, 7\]"),
        ({"inputs": "dtype.npz"}, r"dtype\.npz holds float64, but input 'x' is float32"),
        ({"inputs": "text.npz"}, r"text\.npz is no \.npz file"),
        ({"inputs": "shape.npz", "dims": {"batch": 1}}, r"--dim is for random inputs"),
        ({"dims": {"batch": 1}, "provider": "tpu"}, r"provider is 'tpu'"),
    ],
)
def test_mistakes(
    options: dict[str, Any], words: str, make_model: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("other.npz", x=np.ones((1, 4, 6, 6), np.float32), z=np.ones(1))
    np.savez("empty.npz")
    np.savez("shape.npz", x=np.ones((1, 4, 6, 7), np.float32))
    np.savez("dtype.npz", x=np.ones((1, 4, 6, 6)))
    Path("text.npz").write_text("no archive")
    with pytest.raises(UsageError, match=words):
        bench_models([make_model()], **options)


def test_files_that_are_no_models(tmp_path: Path, make_model: Write, fast: Protocol) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx: no such file$"):
        bench_models([tmp_path / "none.onnx"])
    with pytest.raises(ModelError, match=r"out\.json: no such file; --json prints, --save FILE writes"):
        bench_models([tmp_path / "out.json"])
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match=r"text\.onnx cannot be loaded"):
        bench_models([tmp_path / "text.onnx"])
    with pytest.raises(UsageError, match="no model to measure"):
        bench_models([])
    report = bench_models([make_model(), tmp_path / "text.onnx"], dims={"batch": 1}, protocol=fast, profile=False)
    assert report.rows[1].status == "not available"
    assert report.rows[1].reason


def test_difference() -> None:
    y = np.array([1.0, -4.0], np.float32)
    assert difference([y], [y]) == (0.0, math.sqrt(np.finfo(np.float32).eps), "")
    far, allowed, reason = difference([y + np.float32(0.01)], [y])
    assert far == pytest.approx(0.0025, rel=1e-4)
    assert far > allowed
    assert reason.startswith("output 0: distance 0.0025 from the first")
    assert difference([y.astype(np.float64)], [y])[2] == "output 0: float64[2], the first has float32[2]"
    assert difference([y, y], [y])[2] == "2 outputs, the first has 1"
    assert difference([np.array([1, 2])], [np.array([1, 3])])[2] == "output 0: 1 of 2 values differ"
    assert difference([np.array([1, 3])], [np.array([1, 3])])[2] == ""
    assert difference([y[:0]], [y[:0]])[2] == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    y, z = np.array([1.0, value], np.float32), np.array([1.0, 2.0], np.float32)
    assert difference([y], [y])[2] == ""
    assert "not finite" in difference([y], [z])[2]
    assert "not finite" in difference([z], [y])[2]
    assert "not finite" in difference([-y if np.isinf(value) else z], [y])[2]
