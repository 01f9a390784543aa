"""The command line: what each command prints, its exit status, and one clear line for a user's mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxnorm.cli import main
from onnxnorm.model_file import save_model
from onnxnorm.norms import all_specs
from onnxnorm.spec.sample_model import sample_model

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.GroupNorm(2, 8), nn.SiLU())
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    return net, (torch.randn(2, 3, 12, 12),)

def other():
    torch.manual_seed(1)
    return make_with_seed(1)

def make_with_seed(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.GroupNorm(2, 8), nn.SiLU())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    (path / "net.py").write_text(NET)
    status = main(["export", f"{path}/net.py:make", "-o", f"{path}/net.onnx", "--dynamic", "input=0,2,3", "--json"])
    assert status == 0
    return path


def _error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a command that must fail with 2; returns its one line."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err + captured.out
    return lines[0]


def test_the_command_is_also_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "onnxnorm", "--help"], capture_output=True, text=True, check=True)
    for command in ("export", "optimize", "recalibrate", "run", "check", "inspect", "ops", "doctor"):
        assert command in done.stdout


def test_export_explains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"{folder}/net.py:make", "-o", f"{folder}/again.onnx", "--explain", "--verify"]) == 0
    out = capsys.readouterr().out
    assert "1 (BatchNormalization" in out
    assert "folded into" in out
    assert "fold/batch-norm-into-conv" in out
    assert "fuse/activation" in out
    onnx.checker.check_model(folder / "again.onnx", full_check=True)


def test_export_with_an_input_shape(folder: Path) -> None:
    arguments = ["export", f"{folder}/net.py:other", "-o", f"{folder}/o.onnx", "--input", "1x3x8x8", "--opset", "21"]
    assert main([*arguments, "--target", "standard"]) == 0
    model = onnx.load(folder / "o.onnx")
    assert model.opset_import[0].version == 21
    assert {node.domain for node in model.graph.node} == {""}
    assert "GroupNormalization" in {node.op_type for node in model.graph.node}


def test_export_needs_inputs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = _error(capsys, "export", f"{folder}/net.py:other", "-o", f"{folder}/none.onnx")
    assert "without example inputs" in line
    assert "--input" in line
    assert not (folder / "none.onnx").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input", "1x3xA"], "1x3xA"),
        (["--input", "1x3:float33"], "float33"),
        (["--input", "1x3x8x8", "--opset", "17"], "opset is 17; it must be from 18"),
        (["--input", "1x3x8x8", "--target", "tensorrt"], "target is 'tensorrt'"),
        (["--input", "1x3x8x8", "--disable", "fold/nothing"], "no rule 'fold/nothing'"),
        (["--input", "1x3x8x8", "--dynamic", "y=0"], "y=0"),
        (["--input", "1x4x8x8"], "cannot be exported"),
    ],
)
def test_export_mistakes(folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str) -> None:
    before = sorted(folder.iterdir())
    assert words in _error(capsys, "export", f"{folder}/net.py:other", "-o", f"{folder}/bad.onnx", *options)
    assert sorted(item for item in folder.iterdir() if item.name != "__pycache__") == [
        item for item in before if item.name != "__pycache__"
    ]


def test_optimize_and_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", f"{folder}/net.onnx", "-o", f"{folder}/twice.onnx"]) == 0
    assert "1 kept" in capsys.readouterr().out
    assert (folder / "twice.onnx").read_bytes() == (folder / "net.onnx").read_bytes()
    assert main(["inspect", f"{folder}/net.onnx"]) == 0
    assert "onnxnorm.GroupNorm" in capsys.readouterr().out
    assert main(["inspect", f"{folder}/net.onnx", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["normalizations"]
    assert record["module"] == "3"
    assert record["op"] == "onnxnorm.GroupNorm"


def test_inspect_tells_what_norms_are_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three alike in one line, one refused with the reason, shares of all there is, the same in --json."""
    text = """<ir_version: 8, opset_import: ["": 18]> g (float[1,2,2,2] x) => (float[1,2,2,2] y, float[1,2,2,2] c4)
        <float[2,2,1,1] w = {1,2,3,4}, float[2] s = {1,2}, float[2] b = {1,2}, float[2] m = {1,2}, float[2] v = {1,2}>
        { c1 = Conv (x, w) n1 = BatchNormalization (c1, s, b, m, v) r1 = Relu (n1)
          c2 = Conv (r1, w) n2 = BatchNormalization (c2, s, b, m, v) r2 = Relu (n2)
          c4 = Conv (r2, w) y = BatchNormalization (c4, s, b, m, v) }"""
    path = f"{tmp_path}/m.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    assert main(["inspect", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "opset 18, 8 nodes, 12 parameters" in lines[0]
    (folded,) = (line for line in lines if "fold/batch-norm-into-conv" in line and "folded" in line)
    assert "│     2 │ folded   │ Conv" in folded
    (refused,) = (line for line in lines if "refused  │" in line)
    assert "the output of Conv * is also a graph output" in refused
    assert lines[-3] == "3 in all: 2 folded, 1 refused"
    assert lines[-2].startswith(
        "they are 3 of 8 (38 %) nodes, hold 8 of 12 (67 %) parameters, make 24 of 64 (38 %) elem"
    )
    assert lines[-1] == "after it the model has 6 nodes, 2 fewer"
    assert main(["inspect", path, "--explain", "--disable", "fold/batch-norm-into-conv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert main(["inspect", path, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["nodes"] == {"norms": 3, "total": 8, "fraction": 0.375}
    assert (record["nodes_after"], record["actions"]) == (6, {"folded": 2, "refused": 1})
    assert [(item["count"], item["becomes"]) for item in record["groups"]] == [(2, "Conv"), (1, None)]


def test_check_passes_and_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{folder}/net.py:make", f"{folder}/net.onnx"]) == 0
    assert "passed" in capsys.readouterr().out.splitlines()[-1]
    model = onnx.load(folder / "net.onnx")
    weight = next(item for item in model.graph.initializer if len(item.dims) == 4)
    array = onnx.numpy_helper.to_array(weight).copy()
    array.flat[0] += 1e-2
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, folder / "broken.onnx")
    assert main(["check", f"{folder}/net.py:make", f"{folder}/broken.onnx", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((1, 3, 9, 10)).astype(np.float32))
    results = []
    for options in ([], ["--no-library"]):
        arguments = ["run", f"{folder}/net.onnx", "--input", f"input={folder}/x.npy", "--output", f"{folder}/out.npz"]
        assert main([*arguments, *options]) == 0
        results.append(np.load(folder / "out.npz")["silu"])
    assert results[0].shape == (1, 8, 7, 8)
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)
    assert "1x8x7x8" in capsys.readouterr().out


def test_run_in_bfloat16(tmp_path: Path) -> None:
    spec = all_specs()["RMSNorm"]
    sample = next(iter(spec.samples()))
    save_model(sample_model(spec, sample, "bfloat16"), tmp_path / "m.onnx")
    arrays = [array.astype(ml_dtypes.bfloat16) for array in sample.inputs]
    np.save(tmp_path / "X.npy", arrays[0])  # NumPy writes ml_dtypes' bfloat16 as two raw bytes
    np.save(tmp_path / "scale.npy", arrays[1].astype(np.float32))
    inputs = [f"--input={name}={tmp_path}/{name}.npy" for name in ("X", "scale")]
    assert main(["run", f"{tmp_path}/m.onnx", *inputs, "--output", f"{tmp_path}/y.npz"]) == 0
    y = np.load(tmp_path / "y.npz")["Y"]
    truth = spec.reference([array.astype(np.float64) for array in arrays], sample.attributes)[0]
    assert y.dtype == np.float32
    assert np.abs(y - truth).max() <= float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps) * np.abs(truth).max()


def test_run_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x64.npy", np.zeros((1, 3, 9, 9)))
    np.save(tmp_path / "x2.npy", np.zeros((1, 2, 9, 9), np.float32))
    np.savez(tmp_path / "many.npz", a=np.zeros(2))
    (tmp_path / "text.npy").write_text("hello")
    model = f"{folder}/net.onnx"
    for argument, words in (
        (f"y={tmp_path}/x2.npy", "no input 'y'; it has input"),
        (f"{tmp_path}/x64.npy", "float64, but input 'input' is float32"),
        (f"{tmp_path}/x2.npy", "shape [1, 2, 9, 9], but input 'input' is float[s77, 3, s53, s0]"),
        (f"{tmp_path}/text.npy", "is no .npy file"),
        (f"{tmp_path}/many.npz", "is an .npz file with the arrays a"),
        (f"{tmp_path}/none.npy", "no such file"),
    ):
        line = _error(capsys, "run", model, "--input", argument, "--output", f"{tmp_path}/out.npz")
        assert words.split("[s77")[0] in line
        assert not (tmp_path / "out.npz").exists()
    assert "input 'input' is missing" in _error(capsys, "run", model)
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 9, 9), np.float32))
    line = _error(capsys, "run", model, "--input", f"{tmp_path}/x.npy", "--output", f"{tmp_path}/no/out.npz")
    assert "no is no folder" in line


@pytest.mark.parametrize("command", ["optimize", "recalibrate", "inspect", "run", "check"])
def test_files_that_are_not_models(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "text.onnx").write_text("this is not a model")
    (tmp_path / "empty.onnx").touch()
    for name in ("text.onnx", "empty.onnx", "missing.onnx"):
        path = str(tmp_path / name)
        arguments = {
            "optimize": ["optimize", path, "-o", str(tmp_path / "out.onnx")],
            "recalibrate": ["recalibrate", path, "--data", "x.npy", "-o", str(tmp_path / "out.onnx")],
            "inspect": ["inspect", path],
            "run": ["run", path],
            "check": ["check", f"{folder}/net.py:make", path],
        }[command]
        assert name in _error(capsys, *arguments)
        assert not (tmp_path / "out.onnx").exists()


def test_an_error_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "missing.onnx"), "--json"]) == 2
    assert "no such file" in json.loads(capsys.readouterr().out)["error"]


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "missing.onnx"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ops_lists_every_norm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "--json"]) == 0
    listed = {item["name"]: item for item in json.loads(capsys.readouterr().out)["ops"]}
    assert set(listed) == set(all_specs())
    for name, spec in all_specs().items():
        assert listed[name]["native"] == spec.native
        assert sorted(listed[name]["cpu"]) == (sorted(spec.dtypes) if spec.native else [])
    assert main(["ops"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line and not line[0].isspace()}
    for name, spec in all_specs().items():
        assert rows[name].rstrip().endswith("function body") is not spec.native, rows[name]


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor"]) == 0
    assert "everything works" in capsys.readouterr().out
    monkeypatch.setattr("onnxnorm.runtime.environment.installed", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "2"})
    monkeypatch.setattr("onnxnorm.runtime.library._folders", list)
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    problems = {item["subject"]: item["text"] for item in report["findings"] if not item["ok"]}
    assert "installed over each other" in problems["onnxruntime"]
    assert "without a C++ compiler" in problems["native library"]
    assert "run with bodies" not in problems
