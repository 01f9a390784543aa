"""The proof that one saved file is the trained model wherever it runs: with the native library, without onnxnorm on the
machine, and in ONNX's reference evaluator.

All are judged by the rule of ``onnxnorm.check``: not farther from the float64 run of the PyTorch model than four times
PyTorch's own float32 run, or than rounding.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
from torch import Tensor, nn
from torch.nn import functional as F

import onnxnorm
from models import without_onnxnorm
from models.record import ReferenceModel
from onnxnorm.parity.compare import compare_output
from onnxnorm.parity.oracle import Oracle

#: Each proof's short name, as the table has it, and what it says.
MEANINGS = {
    "lib": "ONNX Runtime with onnxnorm's native library",
    "no-lib": "plain ONNX Runtime, in a process that never imports onnxnorm",
    "ref": "ONNX's own reference evaluator",
    "checker": "onnx.checker.check_model(full_check=True), with and without onnxnorm imported",
}
#: How many times farther from the truth than PyTorch a result may be, as in ``onnxnorm.check``.
FACTOR = 4.0
#: A fresh process imports onnx and onnxruntime and runs a few images; a machine that needs longer than this hangs.
TIME_LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Proof:
    """One proof: what it shows, whether it holds, and the distance or the reason."""

    name: str
    meaning: str
    passed: bool
    detail: str


def small_inputs(model: ReferenceModel, images: Tensor) -> dict[str, Tensor]:
    """A small batch of real images and, where the network takes it, another batch of larger, oblong ones."""
    inputs = {"digits": images[:3]}
    if model.any_image_size:
        inputs["larger"] = F.interpolate(images[3:5], size=(12, 10), mode="bilinear", align_corners=False)
    return inputs


def prove(module: nn.Module, path: Path, inputs: Mapping[str, Tensor]) -> tuple[Proof, ...]:
    """All four proofs for the file at ``path``, in the order of ``MEANINGS``."""
    outputs, errors = _without_onnxnorm(path, {name: value.numpy() for name, value in inputs.items()})
    errors["lib"] = _with_library(path, inputs, outputs)
    if not errors["checker"]:
        errors["checker"] = _check_here(path)
    judge = _Judge(module, inputs)
    proofs = []
    for name, meaning in MEANINGS.items():
        if errors[name] or name == "checker":
            proofs.append(Proof(name, meaning, not errors[name], errors[name] or "valid, with all shapes inferred"))
        else:
            passed, detail = judge.verdict({each: outputs[f"{name}/{each}"] for each in inputs})
            proofs.append(Proof(name, meaning, passed, detail))
    return tuple(proofs)


def _without_onnxnorm(path: Path, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Outputs and errors of the process that does not know onnxnorm."""
    with tempfile.TemporaryDirectory(prefix="onnxnorm-models-") as folder:
        given, wanted = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(given, allow_pickle=False, **inputs)
        script = [sys.executable, "-P", str(without_onnxnorm.__file__), str(path), str(given), str(wanted)]
        done = subprocess.run(script, capture_output=True, text=True, timeout=TIME_LIMIT_SECONDS, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            return {}, dict.fromkeys(MEANINGS, f"the process without onnxnorm failed: {reason}")
        with np.load(wanted) as archive:
            return dict(archive), json.loads(done.stdout)


def _with_library(path: Path, inputs: Mapping[str, Tensor], outputs: dict[str, Any]) -> str:
    """Adds the outputs with the native library; the error is "" when it worked."""
    try:
        session = onnxnorm.InferenceSession(path, providers=["CPUExecutionProvider"], library=True)
        name = session.get_inputs()[0].name
        for each, value in inputs.items():
            outputs[f"lib/{each}"] = session.run(None, {name: value.numpy()})[0]
    except Exception as error:  # onnxruntime's own exceptions share no base class
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


def _check_here(path: Path) -> str:
    """The checker once more where onnxnorm's operator schemas are registered."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # shape inference and the checker have their own exceptions
        return f"with onnxnorm imported: {' '.join(str(error).split())[:300]}"
    return ""


class _Judge:
    """Knows the truth of each input, and what PyTorch makes of it."""

    def __init__(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        oracle = Oracle(module)
        self.pytorch = {name: oracle.deployed((value,), {})[0].value for name, value in inputs.items()}
        self.truth = {name: oracle.truth((value,), {}).outputs[0].value for name, value in inputs.items()}

    def verdict(self, outputs: Mapping[str, Any]) -> tuple[bool, str]:
        """Whether all outputs pass, and the largest distance or the first reason."""
        found = [
            compare_output(name, output, self.pytorch[name], self.truth[name], factor=FACTOR)
            for name, output in outputs.items()
        ]
        failed = [f"{each.name}: {each.reason}" for each in found if not each.passed]
        largest = max((each.onnx.maximum for each in found if each.onnx is not None), default=0.0)
        return not failed, failed[0] if failed else f"distance {largest:.1e}"
