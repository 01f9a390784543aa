"""Runs the ONNX files of a model as somebody does who has never heard of onnxnorm. A script of its own, started by
``proofs``.

    python -P without_onnxnorm.py MODEL.onnx INPUTS.npz TRAINING.onnx BATCHES.npz OUTPUTS.npz

In this process onnxnorm is never imported, which it makes sure of at the end. It runs ``onnx.checker`` on both files,
every input of the first archive through plain ONNX Runtime and through ONNX's reference evaluator, and the batches of
the second one, in their order, through the training graph. Standard output is one JSON object: an error text for each
of "checker", "no-lib", "ref" and "train", empty where it worked; the outputs are "no-lib/NAME", "ref/NAME" and
"train/NAME".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.reference
import onnxruntime

#: In front of a state's name, the name of the output of a training graph that has its next value.
NEXT = "next."
#: Log level. ONNX Runtime warns of every state that has a default, which is what a state needs.
ERROR = 3


def main(model: str, inputs: str, training: str, batches: str, outputs: str) -> None:
    """Runs what the module says."""
    results: dict[str, Any] = {}

    def check() -> None:
        for path in (model, training):
            onnx.checker.check_model(path, full_check=True)

    def run_plain() -> None:
        session = _session(model)
        for name, array in arrays.items():
            results[f"no-lib/{name}"] = session.run(None, {session.get_inputs()[0].name: array})[0]

    def run_reference() -> None:
        evaluator: Any = onnx.reference.ReferenceEvaluator(onnx.load(model))
        for name, array in arrays.items():
            results[f"ref/{name}"] = evaluator.run(None, {evaluator.input_names[0]: array})[0]

    def run_training() -> None:
        found = run_training_graph(_session(training), list(steps.values()))
        results.update({f"train/{name}": value for name, value in found.items()})

    with np.load(inputs) as archive, np.load(batches) as step_archive:
        arrays, steps = dict(archive), dict(step_archive)
    runs = {"checker": check, "no-lib": run_plain, "ref": run_reference, "train": run_training}
    errors = {name: _error_of(run) for name, run in runs.items()}
    np.savez(outputs, **results)
    if "onnxnorm" in sys.modules:
        raise SystemExit("onnxnorm was imported, so this run proves nothing")
    print(json.dumps(errors))


def run_training_graph(session: Any, batches: Sequence[Any]) -> dict[str, Any]:
    """Runs a training graph step by step, the state of each step fed into the next one.

    Args:
        session: an ``onnxruntime.InferenceSession`` of it. The first run gives it no state: its defaults serve.
        batches: one array for each step.

    Returns:
        values by "step 1: output" and, for each state, "step 1: KEY".

    """
    image = session.get_inputs()[0].name
    names = [output.name for output in session.get_outputs()]
    state: Mapping[str, Any] = {}
    found: dict[str, Any] = {}
    for number, batch in enumerate(batches, 1):
        values = dict(zip(names, session.run(None, {image: batch, **state}), strict=True))
        state = {name.removeprefix(NEXT): value for name, value in values.items() if name.startswith(NEXT)}
        found[f"step {number}: output"] = values[names[0]]
        found.update({f"step {number}: {key}": value for key, value in state.items()})
    return found


def _session(path: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERROR
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _error_of(step: Callable[[], None]) -> str:
    """What went wrong in one line; a failed step must not hide the results of the others."""
    try:
        step()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
