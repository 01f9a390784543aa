"""The main job for one model: train, export, optimize, trace the training graph, run, check, prove, measure.

Each step fills a part of the ModelResult, and writes down in its ``problems`` what is not as it must be. A step that
raises ends the model, not the job.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import onnxnorm
from models import latency
from models.data import Digits
from models.exporting import export_onnxnorm, export_plain, export_training
from models.graph import file_facts, layers_of, norm_layers
from models.progress import Watcher
from models.proofs import Evidence, prove, small_inputs
from models.record import ReferenceModel
from models.result import ACCURACY_WANTED, LABELS, ONNXNORM, PLAIN, PYTORCH, TRAINING, ModelResult, TrainingGraph
from models.threads import threads
from models.train import accuracy, train
from models.training_steps import TrainingSteps, training_batches


@dataclass(frozen=True)
class Budget:
    """How much to spend on each model; the tests spend less."""

    epochs: int | None = None
    latency_blocks: int = latency.BLOCKS
    latency_seconds: float = latency.LIMIT_SECONDS


@dataclass
class _Work:
    """A model on its way through the steps."""

    model: ReferenceModel
    digits: Digits
    folder: Path
    budget: Budget
    watcher: Watcher
    result: ModelResult
    module: nn.Module = field(default_factory=nn.Module)

    @property
    def files(self) -> dict[str, Path]:
        """Where the ONNX files go."""
        return {
            PLAIN: self.folder / f"{self.model.name}.plain.onnx",
            ONNXNORM: self.folder / f"{self.model.name}.onnx",
            TRAINING: self.folder / f"{self.model.name}.train.onnx",
        }

    @property
    def batches(self) -> tuple[Tensor, ...]:
        """One batch for each training step of the proof."""
        return training_batches(self.model, self.digits.train_images)


def run_model(
    model: ReferenceModel,
    digits: Digits,
    folder: Path,
    watcher: Watcher,
    budget: Budget,
    *,
    debug: bool = False,
) -> ModelResult:
    """Takes one model through all steps; its files are left in ``folder``.

    Args:
        model: which one.
        digits: the data.
        folder: where the ONNX files go; it exists.
        watcher: is told what is going on.
        budget: how much to spend.
        debug: let an exception of a step through, for its traceback.

    """
    work = _Work(model, digits, folder, budget, watcher, ModelResult(model))
    for path in work.files.values():
        path.unlink(missing_ok=True)  # a file of an earlier run must not pass for one of this run that failed
    steps: dict[str, Callable[[_Work], str]] = {
        "train": _train,
        "export": _export_plain,
        "optimize": _export_onnxnorm,
        "trace": _export_training,
        "run": _run,
        "check": _check,
        "prove": _prove,
        "measure": _measure,
    }
    name = ""
    try:
        for name, step in steps.items():
            with _timed(work, name) as note:
                note.append(step(work))
    except Exception as error:
        if debug:
            raise
        work.result.problems.append(f"step {name}: {type(error).__name__}: {' '.join(str(error).split())[:400]}")
    for problem in work.result.problems:
        watcher.fail(model.name, problem)
    return work.result


@contextmanager
def _timed(work: _Work, step: str) -> Iterator[list[str]]:
    """Tells the watcher of a step and keeps its time; the caller puts the outcome into the list."""
    note: list[str] = []
    start = time.perf_counter()
    work.watcher.begin(work.model.name, step)
    try:
        yield note
    finally:
        work.result.seconds[step] = time.perf_counter() - start
        work.watcher.end(" ".join(note))


def _train(work: _Work) -> str:
    result = work.result
    trained = train(
        work.model,
        work.digits,
        epochs=work.budget.epochs,
        on_epoch=lambda done, total: work.watcher.advance(done / total),
    )
    work.module, result.losses = trained.module, trained.losses
    result.layers = layers_of(work.module, work.digits.test_images[:1])
    result.parameters = sum(parameter.numel() for parameter in work.module.parameters())
    result.ways[PYTORCH].norms = norm_layers(work.module)
    return f"loss {trained.losses[-1]:.4f}"


def _export_plain(work: _Work) -> str:
    export_plain(work.module, work.model, work.files[PLAIN])
    return _note_file(work, PLAIN)


def _export_onnxnorm(work: _Work) -> str:
    result = work.result
    result.decisions = export_onnxnorm(work.module, work.model, work.files[ONNXNORM])
    note = _note_file(work, ONNXNORM)
    left, wanted = result.ways[ONNXNORM].norms, work.model.norms_left
    if left != wanted:
        refused = [str(decision) for decision in result.decisions if decision.action.value in ("refused", "reverted")]
        why = f"; {len(refused)} refused, first: {refused[0]}" if refused else ""
        result.problems.append(f"{left} norms are left in the optimized file; it must be {wanted}{why}")
    _check_nodes(work)
    return note


def _check_nodes(work: _Work) -> None:
    """Whether nothing is left of what normalizes a weight or the input."""
    facts, wanted = work.result.ways[ONNXNORM].facts, work.model.nodes_left
    if wanted is not None and facts is not None and facts.nodes != wanted:
        work.result.problems.append(f"{facts.nodes} nodes are left in the optimized file; it must be {wanted}")


def _export_training(work: _Work) -> str:
    path = work.files[TRAINING]
    state = export_training(work.module, work.model, work.batches[0], path)
    facts = file_facts(str(path), path.stat().st_size)
    work.result.training = TrainingGraph(path.name, facts, tuple(state))
    return f"{facts.nodes} nodes, {len(state)} tensors of state"


def _note_file(work: _Work, key: str) -> str:
    path, way = work.files[key], work.result.ways[key]
    way.facts = file_facts(str(path), path.stat().st_size)
    way.file, way.norms = path.name, way.facts.norms
    return f"{way.facts.nodes} nodes, {way.facts.norms} of them norms"


def _run(work: _Work) -> str:
    """Accuracy of each way on all test images; the class of every image must be PyTorch's."""
    digits, result = work.digits, work.result
    result.test_images = len(digits.test_labels)
    for key, run in _runners(work, digits.test_images).items():
        logits = torch.as_tensor(run())
        way = result.ways[key]
        way.accuracy = accuracy(logits, digits.test_labels)
        way.predictions = tuple(logits.argmax(1).tolist())
    ours, pytorch = result.ways[ONNXNORM], result.ways[PYTORCH]
    assert pytorch.accuracy is not None
    assert ours.accuracy is not None
    if pytorch.accuracy <= ACCURACY_WANTED:
        result.problems.append(f"accuracy is {pytorch.accuracy:.2%}; it must be over {ACCURACY_WANTED:.0%}")
    if ours.predictions != pytorch.predictions:
        pairs = zip(ours.predictions, pytorch.predictions, strict=True)
        differing = sum(mine != theirs for mine, theirs in pairs)
        result.problems.append(
            f"ONNX Runtime puts {differing} of {result.test_images} test images into another class than PyTorch "
            f"(accuracy {ours.accuracy:.2%} against {pytorch.accuracy:.2%})"
        )
    return f"accuracy {pytorch.accuracy:.2%} in PyTorch, {ours.accuracy:.2%} in ONNX Runtime"


def _runners(work: _Work, images: Tensor) -> dict[str, Callable[[], Any]]:
    """A function for each way that runs the images once."""
    array = images.numpy()
    sessions = {
        PLAIN: onnxruntime.InferenceSession(work.files[PLAIN], _options(), providers=["CPUExecutionProvider"]),
        ONNXNORM: onnxnorm.InferenceSession(work.files[ONNXNORM], _options(), providers=["CPUExecutionProvider"]),
    }

    def pytorch() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = work.module(images)
        return logits

    def runner(session: Any) -> Callable[[], Any]:
        feeds = {session.get_inputs()[0].name: array}
        return lambda: session.run(None, feeds)[0]

    return {PYTORCH: pytorch, **{key: runner(session) for key, session in sessions.items()}}


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = latency.THREADS
    return options


def _check(work: _Work) -> str:
    """onnxnorm.check on real images and on generated inputs of other sizes; the plain file for comparison only."""
    result, module = work.result, work.module
    real = (work.digits.test_images[: latency.BATCH],)
    baseline = onnxnorm.check(module, work.files[PLAIN], inputs=real).to_dict()
    result.ways[PLAIN].distance = _largest(baseline, "onnx")
    result.checks = {
        "test images": onnxnorm.check(module, work.files[ONNXNORM], inputs=real).to_dict(),
        "generated inputs": onnxnorm.check(module, work.files[ONNXNORM]).to_dict(),
    }
    result.ways[PYTORCH].distance = _largest(result.checks["test images"], "pytorch")
    result.ways[ONNXNORM].distance = _largest(result.checks["test images"], "onnx")
    for what, report in result.checks.items():
        failed = [run for run in report["runs"] if not run["passed"]]
        if not report["passed"]:
            why = _why_failed(failed[0]) if failed else "nothing was compared"
            result.problems.append(f"check on {what}: {len(failed)} of {len(report['runs'])} runs failed; {why}")
    return f"{sum(len(report['runs']) for report in result.checks.values())} runs against float64"


def _largest(report: Mapping[str, Any], who: str) -> float | None:
    """The largest distance of ``who`` ("onnx" or "pytorch") in any run; None when none was measured."""
    found = [output[who]["maximum"] for run in report["runs"] for output in run["outputs"] if output[who]]
    return max((float(value) for value in found), default=None)


def _why_failed(run: Mapping[str, Any]) -> str:
    reasons = [output["reason"] for output in run["outputs"] if not output["passed"]]
    return f"{run['run']}: {run['error'] or (reasons or ['no outputs'])[0]}"


def _prove(work: _Work) -> str:
    result = work.result
    inputs = small_inputs(work.model, work.digits.test_images)
    steps = TrainingSteps(copy.deepcopy(work.module).train(), work.batches)
    result.proofs = prove(Evidence(work.module, work.files[ONNXNORM], inputs, steps, work.files[TRAINING]))
    failed = [proof for proof in result.proofs if not proof.passed]
    result.problems.extend(f"{proof.name} ({proof.meaning}): {proof.detail}" for proof in failed)
    return f"{len(result.proofs) - len(failed)} of {len(result.proofs)} proofs hold"


def _measure(work: _Work) -> str:
    runners = _runners(work, work.digits.test_images[: latency.BATCH])
    with threads(latency.THREADS):
        found = latency.measure(runners, blocks=work.budget.latency_blocks, limit=work.budget.latency_seconds)
    for key, value in found.items():
        work.result.ways[key].latency = value
    if not all(value.quiet for value in found.values()):
        return "other programs used the cores: no comparison"
    return ", ".join(f"{LABELS[key]} {value.median:.2f} ms" for key, value in found.items())
