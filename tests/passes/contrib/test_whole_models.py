"""Networks that ONNX Runtime's optimizer made ready for CUDA run on the CPU, right, after ``onnxnorm optimize``."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxnorm.cli import main

from . import optimized_for_cuda

#: What of ONNX Runtime's own operators each network must hold, so that the test is one.
HELD = {
    "unet": {"GroupNorm", "SkipGroupNorm", "NhwcConv", "BiasSplitGelu", "BiasAdd", "SkipLayerNormalization"},
    "vae": {"GroupNorm", "SkipGroupNorm", "NhwcConv"},
    "bert": {"SkipLayerNormalization", "Attention"},
    "llama": {"SkipSimplifiedLayerNormalization"},
}
#: How far from PyTorch's float64, relative to the largest output.
NEAR = {"float32": 3e-6, "float16": 4e-3}


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type if not node.domain else f"{node.domain}.{node.op_type}" for node in model.graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("name", HELD)
def test_runs_on_the_cpu(kit: Any, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = optimized_for_cuda.__file__
    done = subprocess.run([sys.executable, script, name, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    data = dict(np.load(tmp_path / "data.npz"))
    y = data.pop("y")
    for dtype, tolerance in NEAR.items():
        given = onnx.load(tmp_path / f"{dtype}.onnx")
        held = {item.removeprefix("com.microsoft.") for item in operators(given)}
        assert held >= HELD[name], operators(given)
        feeds = {key: value.astype(dtype) for key, value in data.items()}
        for options in ([], ["--verify"], ["--target", "standard"]):
            out = tmp_path / "out.onnx"
            assert main(["optimize", str(tmp_path / f"{dtype}.onnx"), "-o", str(out), "--explain", *options]) == 0
            told = capsys.readouterr().out
            assert "refused" not in told, told
            assert "reverted" not in told, told
            after = onnx.load(out)
            assert operators(after)["Transpose"] <= max(operators(given)["Transpose"], 8)
            for library in (False, True):
                found = kit.run(after, feeds, library=library)[0]
                distance = np.abs(found.astype(np.float64) - y).max() / np.abs(y).max()
                assert distance <= tolerance, (dtype, options, distance)
