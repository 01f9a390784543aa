"""The proof that the saved files are the trained model wherever they run: with the native library, without onnxnorm on
the machine, and in ONNX's reference evaluator; and that the training graph trains as PyTorch does.

All are judged by the rule of ``onnxnorm.check``, see ``judge``.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnxruntime
from torch import Tensor, nn
from torch.nn import functional as F

import onnxnorm
from models import without_onnxnorm
from models.judge import Judge, combined
from models.record import ReferenceModel
from models.training_steps import TrainingSteps
from models.without_onnxnorm import ERROR, run_training_graph

#: Each proof's short name, as the table has it, and what it says.
MEANINGS = {
    "lib": "ONNX Runtime with onnxnorm's native library",
    "no-lib": "plain ONNX Runtime, in a process that never imports onnxnorm",
    "ref": "ONNX's own reference evaluator",
    "checker": "onnx.checker.check_model(full_check=True), with and without onnxnorm imported",
    "train": "the training graph: three steps, its state fed back, with the library and without onnxnorm",
}
#: A fresh process imports onnx and onnxruntime and runs a few images; a machine that needs longer than this hangs.
TIME_LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Proof:
    """One proof: what it shows, whether it holds, and the distance or the reason."""

    name: str
    meaning: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Evidence:
    """What is to be proven.

    Attributes:
        module: the network, in evaluation.
        path: its file.
        inputs: images by a name.
        steps: its training forwards.
        training: the file of the training graph.

    """

    module: nn.Module
    path: Path
    inputs: Mapping[str, Tensor]
    steps: TrainingSteps
    training: Path

    @functools.cached_property
    def judges(self) -> dict[str, Judge]:
        """The judge of each input."""
        return {name: Judge(self.module, (value,)) for name, value in self.inputs.items()}


@dataclass
class _Found:
    """Outputs by "PROOF/NAME", and an error text for each proof, "" where it ran."""

    outputs: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def of(self, proof: str) -> dict[str, Any]:
        """The outputs of one proof by NAME."""
        prefix = f"{proof}/"
        return {key.removeprefix(prefix): value for key, value in self.outputs.items() if key.startswith(prefix)}


def small_inputs(model: ReferenceModel, images: Tensor) -> dict[str, Tensor]:
    """A small batch of real images and, where the network takes it, another batch of larger, oblong ones."""
    inputs = {"digits": images[:3]}
    if model.any_image_size:
        inputs["larger"] = F.interpolate(images[3:5], size=(12, 10), mode="bilinear", align_corners=False)
    return inputs


def prove(evidence: Evidence) -> tuple[Proof, ...]:
    """All proofs, in the order of ``MEANINGS``."""
    found = _without_onnxnorm(evidence)
    found.errors["lib"] = _error_of(lambda: _with_library(evidence, found.outputs))
    found.errors["checker"] = found.errors["checker"] or _error_of(lambda: _check_here(evidence))
    found.errors["train"] = found.errors["train"] or _error_of(lambda: _train_with_library(evidence, found.outputs))
    details = {
        **{way: _inference_verdict(evidence, found, way) for way in ("lib", "no-lib", "ref")},
        "checker": (True, "both files valid, with all shapes inferred"),
        "train": _training_verdict(evidence, found),
    }
    proofs = []
    for name, meaning in MEANINGS.items():
        passed, detail = (False, found.errors[name]) if found.errors[name] else details[name]
        proofs.append(Proof(name, meaning, passed, detail))
    return tuple(proofs)


def _inference_verdict(evidence: Evidence, found: _Found, way: str) -> tuple[bool, str]:
    """Whether what the file gave when it ran in that way is right."""
    outputs = found.of(way)
    if found.errors[way]:
        return False, found.errors[way]
    verdict = combined(judge.verdict({name: outputs[name]}) for name, judge in evidence.judges.items())
    return verdict.passed, str(verdict)


def _training_verdict(evidence: Evidence, found: _Found) -> tuple[bool, str]:
    """Whether the training graph did what PyTorch does, with the library and without onnxnorm."""
    if found.errors["train"]:
        return False, found.errors["train"]
    steps = evidence.steps
    judge = Judge(steps, steps.batches)
    verdicts = []
    for way in ("train", "train-lib"):
        outputs = found.of(way)
        wrong = sorted(set(outputs) ^ set(steps.names))
        if wrong:
            return False, f"the graph's state is not what PyTorch changes: {', '.join(wrong[:3])}"
        verdicts.append(judge.verdict({name: outputs[name] for name in steps.names}))
    verdict = combined(verdicts)
    return verdict.passed, f"{verdict}; {len(steps.keys) or 'no'} tensors of state"


def _without_onnxnorm(evidence: Evidence) -> _Found:
    """Outputs and errors of the process that does not know onnxnorm."""
    with tempfile.TemporaryDirectory(prefix="onnxnorm-models-") as folder:
        given, batches, wanted = (Path(folder, name) for name in ("inputs.npz", "batches.npz", "outputs.npz"))
        images: dict[str, Any] = {name: value.numpy() for name, value in evidence.inputs.items()}
        np.savez(given, allow_pickle=False, **images)
        np.savez(batches, allow_pickle=False, **{str(i): x.numpy() for i, x in enumerate(evidence.steps.batches)})
        files = [evidence.path, given, evidence.training, batches, wanted]
        script = [sys.executable, "-P", str(without_onnxnorm.__file__), *map(str, files)]
        done = subprocess.run(script, capture_output=True, text=True, timeout=TIME_LIMIT_SECONDS, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            return _Found(errors=dict.fromkeys(MEANINGS, f"the process without onnxnorm failed: {reason}"))
        with np.load(wanted) as archive:
            return _Found(dict(archive), json.loads(done.stdout))


def _with_library(evidence: Evidence, outputs: dict[str, Any]) -> None:
    """Adds the outputs with the native library."""
    session = _session(evidence.path)
    name = session.get_inputs()[0].name
    for each, value in evidence.inputs.items():
        outputs[f"lib/{each}"] = session.run(None, {name: value.numpy()})[0]


def _train_with_library(evidence: Evidence, outputs: dict[str, Any]) -> None:
    """Adds the outputs of the training graph with the native library."""
    batches = [batch.numpy() for batch in evidence.steps.batches]
    found = run_training_graph(_session(evidence.training), batches)
    outputs.update({f"train-lib/{name}": value for name, value in found.items()})


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERROR
    return onnxnorm.InferenceSession(path, options, providers=["CPUExecutionProvider"], library=True)


def _check_here(evidence: Evidence) -> None:
    """The checker once more where onnxnorm's operator schemas are registered."""
    for path in (evidence.path, evidence.training):
        onnx.checker.check_model(str(path), full_check=True)


def _error_of(step: Callable[[], None]) -> str:
    """What went wrong in one line. onnxruntime's, the checker's and shape inference's errors share no base class."""
    try:
        step()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""
