"""Runs one ONNX file as somebody does who has never heard of onnxnorm. A script of its own, started by ``proofs``.

    python -P without_onnxnorm.py MODEL.onnx INPUTS.npz OUTPUTS.npz

In this process onnxnorm is never imported, which it makes sure of at the end. It runs ``onnx.checker``, then every
input of the archive through plain ONNX Runtime and through ONNX's reference evaluator. Standard output is one JSON
object: an error text for each of "checker", "no-lib" and "ref", empty where it worked; the outputs are "no-lib/NAME"
and "ref/NAME".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.reference
import onnxruntime


def main(model: str, inputs: str, outputs: str) -> None:
    """Runs what the module says."""
    results: dict[str, Any] = {}

    def check() -> None:
        onnx.checker.check_model(model, full_check=True)

    def run_plain() -> None:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        for name, array in arrays.items():
            results[f"no-lib/{name}"] = session.run(None, {session.get_inputs()[0].name: array})[0]

    def run_reference() -> None:
        evaluator: Any = onnx.reference.ReferenceEvaluator(onnx.load(model))
        for name, array in arrays.items():
            results[f"ref/{name}"] = evaluator.run(None, {evaluator.input_names[0]: array})[0]

    with np.load(inputs) as archive:
        arrays = dict(archive)
    errors = {"checker": _error_of(check), "no-lib": _error_of(run_plain), "ref": _error_of(run_reference)}
    np.savez(outputs, **results)
    if "onnxnorm" in sys.modules:
        raise SystemExit("onnxnorm was imported, so this run proves nothing")
    print(json.dumps(errors))


def _error_of(step: Callable[[], None]) -> str:
    """What went wrong in one line; a failed step must not hide the results of the others."""
    try:
        step()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
