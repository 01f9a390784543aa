"""How far a long run is."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest

from onnxnorm.cli import _progress, main
from onnxnorm.passes.pipeline import optimize
from onnxnorm.progress import listening

MODEL = '<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] y) { y = Relu (x) }'


def test_a_listener_is_told_what_is_done() -> None:
    seen: list[tuple[str, int, int]] = []
    with listening(lambda *step: seen.append(step)):
        optimize(onnx.parser.parse_model(MODEL))
    assert ("fold", 0, 1) in seen
    assert "types and shapes" in {what for what, _, _ in seen}
    count = len(seen)
    optimize(onnx.parser.parse_model(MODEL))
    assert len(seen) == count


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_terminals_only(
    terminal: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "m.onnx")
    monkeypatch.setattr(_progress, "_PATIENCE", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["optimize", f"{tmp_path}/m.onnx", "-o", f"{tmp_path}/out.onnx"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path}/out.onnx: no normalization found\n"
    assert bool(printed.err) == terminal
