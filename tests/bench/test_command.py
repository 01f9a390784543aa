"""onnxnorm bench on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxnorm.bench import ops
from onnxnorm.bench.candidate import Candidate, Ready, Workbench
from onnxnorm.bench.candidates import candidates
from onnxnorm.cli import main

FAST = ("--seconds", "0.001", "--repeats", "1", "--threads", "1")
CASE = ("--op", "GroupNorm", "--shape", "1x8x4x4", "--groups", "2", "--activation", "relu", "--only", "body")


def _error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["bench", *argv]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err + captured.out
    return lines[0]


def test_ops_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *CASE, *FAST]) == 0
    out = capsys.readouterr().out
    for words in ("machine", "versions", "1 thread", "GroupNorm 1x8x4x4 float32 groups=2 relu", "copy, one thread"):
        assert words in out
    assert "onnxnorm, no library" in out


def test_ops_in_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], check_schema: Callable[[Any], None]) -> None:
    files = [f"{tmp_path}/{name}" for name in ("r.json", "r.png", "r.html")]
    assert main(["bench", *CASE, *FAST, "--save", files[0], "--plot", files[1], "--html", files[2]]) == 0
    assert f"written to {files[2]}" in capsys.readouterr().out
    saved = json.loads(Path(files[0]).read_text())
    check_schema(saved)
    assert saved["cases"][0]["attributes"]["num_groups"] == 2
    assert Path(files[1]).stat().st_size > 1000
    assert "<svg" in Path(files[2]).read_text()


def test_json_alone_on_standard_output(capsys: pytest.CaptureFixture[str], check_schema: Callable[[Any], None]) -> None:
    assert main(["bench", *CASE, *FAST, "--json"]) == 0
    check_schema(json.loads(capsys.readouterr().out))


def test_a_wrong_result_of_ours_is_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(bench: Workbench) -> Ready:
        return Ready(lambda: None, lambda: [bench.data.truth[0].astype("float32") + 1])

    copy = candidates()[0]
    monkeypatch.setattr(ops, "candidates", lambda provider: (copy, Candidate("body", "ours", wrong, ours=True)))
    assert main(["bench", *CASE, *FAST]) == 1
    assert "ours WRONG" in capsys.readouterr().out


def test_models(make_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(make_model()), "--dim", "batch=2", *FAST]) == 0
    out = capsys.readouterr().out
    for words in ("inputs (random): x 2x4x6x6 float32", "net.onnx", "optimize, standard ops", "where the time goes"):
        assert words in out
    assert "of these, layout reorders" in out


def test_models_that_differ_are_exit_status_1(
    make_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(make_model("a.onnx")), str(make_model("c.onnx", seed=5))]
    assert main(["bench", *files, "--dim", "batch=2", *FAST, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--op", "Norm"), "Norm is no op of onnxnorm; bench measures"),
        (("--op", "BatchNormTraining"), "BatchNormTraining is an op of training graphs"),
        (("--op", "GroupNorm", "--shape", "1x30x4x4"), "num_groups is 32; it must divide the 30 channels of X"),
        (("--op", "GroupNorm", "--shape", "1xCx4"), "--shape 1xCx4: '1xCx4' is no shape"),
        (("--op", "LayerNorm", "--axes", "a"), "--axes a: axes are numbers"),
        (("--dtype", "int8"), "dtype is 'int8'"),
        (("--activation", "elu"), "activation is 'elu'"),
        (("--threads", "0"), "--threads is 0; it must be at least 1"),
        (("--repeats", "0"), "--repeats is 0; it must be at least 1"),
        (("--provider", "tpu"), "provider is 'tpu'"),
        (("--only", "tvm"), "there is no candidate 'tvm'"),
        (("--plot", "x.pdf"), "--plot x.pdf: the file's name must end in .png or .svg"),
        (("--html", "no/r.html"), "--html no/r.html: no is no folder"),
        (("--inputs", "x.npz"), "--inputs is for whole models"),
        (("none.onnx",), "none.onnx: no such file"),
        (("none.onnx", "--op", "GroupNorm"), "--op is for ops"),
        (("none.onnx", "--dim", "batch=x"), "--dim batch=x: a dimension is NAME=SIZE"),
    ],
)
def test_mistakes_are_one_line(argv: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in _error(capsys, *argv)


@pytest.mark.parametrize(("option", "module"), [("--plot=x.png", "matplotlib"), ("--html=x.html", "jinja2")])
def test_a_missing_package_is_told_before_anything_is_measured(option: str, module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from onnxnorm.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, "bench", option], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == f"onnxnorm: error: this command needs {module}: pip install 'onnxnorm[bench]'"
    assert not done.stdout
