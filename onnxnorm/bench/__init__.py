"""The benchmark harness.

case         what is measured, and the default list
candidate(s) who competes; torch_forms: the norms in PyTorch; graph, sessions: ONNX models and how they are run
timing       the protocol: turns, bursts, repeats; statistics, contention
ops          ``run_cases``: verify, then time
machine      the machine and versions that a figure belongs to
table        what the terminal shows
"""

from __future__ import annotations

from onnxnorm.bench.case import Case, default_cases
from onnxnorm.bench.models import ModelRow, ModelsReport, bench_models
from onnxnorm.bench.ops import CaseResult, OpsReport, run_cases
from onnxnorm.bench.timing import MODELS, QUICK, Protocol

__all__ = [
    "MODELS",
    "QUICK",
    "Case",
    "CaseResult",
    "ModelRow",
    "ModelsReport",
    "OpsReport",
    "Protocol",
    "bench_models",
    "default_cases",
    "run_cases",
]
