"""Rewriting a model and the doctor need no ONNX Runtime; what needs torch says how to get it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from onnxnorm.model_file import save_model
from onnxnorm.norms import all_specs
from onnxnorm.spec.sample_model import sample_model

_BLOCK = "import sys; sys.modules[{!r}] = None; from onnxnorm.cli import main; sys.exit(main(sys.argv[1:]))"


def _run(*argv: str, without: str = "onnxruntime") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _BLOCK.format(without), *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_optimize(tmp_path: Path) -> None:
    spec = all_specs()["GroupNorm"]
    save_model(sample_model(spec, next(iter(spec.samples()))), tmp_path / "in.onnx")
    done = _run("optimize", str(tmp_path / "in.onnx"), "-o", str(tmp_path / "out.onnx"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.onnx").is_file()


def test_doctor_reports_it() -> None:
    done = _run("doctor", "--json")
    assert done.returncode == 1
    assert "pip install 'onnxnorm[cpu]'" in done.stdout


def test_export_without_torch_says_what_to_install(tmp_path: Path) -> None:
    done = _run("export", "timm:resnet18", "-o", str(tmp_path / "x.onnx"), without="torch")
    assert done.returncode == 2
    assert done.stderr.strip() == "onnxnorm: error: this command needs torch: pip install 'onnxnorm[torch]'"
    code = "import sys; sys.modules['torch'] = None; import onnxnorm; onnxnorm.export"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "onnxnorm.export needs torch: pip install 'onnxnorm[torch]'" in done.stderr
