"""``onnxnorm.check``: truth, PyTorch, ONNX Runtime, verdict."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxnorm.errors import ModelError, OnnxnormError, UsageError
from onnxnorm.parity.report import Report, SampleNote, SampleRun

if TYPE_CHECKING:
    import torch

    from onnxnorm.parity.generate import Generator
    from onnxnorm.parity.inputs import Sample
    from onnxnorm.parity.oracle import Oracle
    from onnxnorm.parity.outputs import Expected
    from onnxnorm.parity.runs import Variant
    from onnxnorm.parity.source import Source

_PACKAGES = ("onnxnorm", "torch", "onnx", "onnx_ir", "onnxruntime", "onnxruntime-gpu", "numpy")


def check(
    module: torch.nn.Module,
    model_or_path: Any,
    inputs: Any = None,
    *,
    providers: Sequence[Any] | None = None,
    mode: str = "eval",
    bisect: bool = False,
    factor: float = 4.0,
    seed: int = 0,
    samples: int = 3,
) -> Report:
    """Whether an ONNX file computes what a PyTorch module computes, as well as PyTorch itself does.

    The module is copied, never changed, and runs in eval mode on the CPU, in float64 for the truth and as it is. The
    file runs on every provider, with and without onnxnorm's native library when it uses onnxnorm's ops, and with all
    and none of ONNX Runtime's graph optimizations.

    Args:
        module: the trained module.
        model_or_path: a path, ``onnx_ir.Model``, ``onnx.ModelProto``, or an object with ``.model``.
        inputs: a tensor or array, a tuple of forward's positional arguments, or a dict by argument name; may be nested.
            None makes ``samples`` of them from the file's signature.
        providers: ONNX Runtime providers, "cpu" or "CPUExecutionProvider" or ``(name, options)``; default CPU.
        mode: "eval".
        bisect: not there yet.
        factor: how many times farther from the truth than PyTorch the file may be.
        seed: fixes the generated inputs, and what the module draws at random.
        samples: how many inputs to generate; from the second one on every other has other dynamic sizes.

    Raises:
        UsageError: arguments or inputs that do not fit, a provider that is not there, a module that does not run.
        ModelError: a file that cannot be read, or that ONNX Runtime cannot load in any way.

    """
    _check_arguments(module, mode, bisect, factor, samples)
    from onnxnorm.parity.oracle import Oracle
    from onnxnorm.parity.runs import variants
    from onnxnorm.parity.source import read_source

    source = read_source(model_or_path)
    ways = variants(source, providers)
    oracle = Oracle(module, seed)
    notes: list[str] = []
    prepared = _prepare(oracle, source, inputs, samples, notes)
    truths = [_expected(oracle, sample, pytorch, notes) for sample, pytorch in prepared]
    given = [sample for sample, _ in prepared]
    runs = [run for way in ways for run in _measure(source, way, given, [item for item, _ in truths], factor)]
    _loads_somewhere(source, runs)
    notes.extend(_blunt_notes(runs))
    return Report(
        module=type(oracle.module).__name__,
        model=source.label,
        runs=tuple(runs),
        samples=tuple(
            SampleNote(sample.label, sample.shapes(), precision)
            for sample, (_, precision) in zip(given, truths, strict=True)
        ),
        factor=factor,
        seed=seed,
        notes=tuple(dict.fromkeys(notes)),
        environment=_environment(),
    )


def _check_arguments(module: Any, mode: str, bisect: bool, factor: float, samples: int) -> None:
    try:
        import torch
    except ImportError:
        raise UsageError("check needs PyTorch; install it with: pip install 'onnxnorm[torch]'") from None
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"module is a {type(module).__name__}; it must be a torch.nn.Module")
    if mode == "train":
        raise UsageError("mode='train' is not there yet: training graphs cannot be checked in this version")
    if mode != "eval":
        raise UsageError(f"mode is {mode!r}; it must be 'eval'")
    if bisect:
        raise UsageError("bisect=True is not there yet: this version says whether a file is off, not where")
    if not factor >= 1 or factor == float("inf"):
        raise UsageError(f"factor is {factor}; it must be a finite number, at least 1")
    if samples < 1:
        raise UsageError(f"samples is {samples}; at least 1 is needed")


def _prepare(oracle: Oracle, source: Source, inputs: Any, samples: int, notes: list[str]) -> list[tuple[Sample, Any]]:
    """The samples, each with what PyTorch at the deployed dtype makes of it."""
    from onnxnorm.parity.generate import Generator
    from onnxnorm.parity.inputs import user_sample

    if inputs is not None:
        sample = user_sample(oracle.module, source, inputs)
        return [(sample, oracle.deployed(sample.args, sample.kwargs))]
    generator = Generator(oracle.module, source, oracle.seed)
    notes.extend(generator.notes())
    sizes, first = _first_accepted(oracle, generator, 0, list(generator.first_sizes()))
    if first is None:
        raise UsageError(f"{sizes}; give inputs= that it takes")
    prepared = [first]
    others = list(generator.other_sizes(sizes))
    for index in range(1, samples):
        tried = others if index % 2 and others else [sizes]
        found, pair = _first_accepted(oracle, generator, index, tried)
        if pair is None:
            notes.append(f"a second shape was left out: {found}")
            others = []
        else:
            prepared.append(pair)
            others = [found] if index % 2 and others else others
    return prepared


def _first_accepted(
    oracle: Oracle, generator: Generator, index: int, tried: Sequence[dict[str, int]]
) -> tuple[Any, tuple[Sample, Any] | None]:
    """The first of the sizes that PyTorch takes, with its sample and PyTorch's outputs; else the last error."""
    from onnxnorm.parity.oracle import ModuleFailure

    failure: ModuleFailure | None = None
    for sizes in tried:
        sample = generator.sample(index, sizes)
        try:
            return sizes, (sample, oracle.deployed(sample.args, sample.kwargs))
        except ModuleFailure as error:
            failure = error
    return failure, None


def _expected(oracle: Oracle, sample: Sample, pytorch: Any, notes: list[str]) -> tuple[Expected, str]:
    """What the sample must give, and the precision of the truth."""
    from onnxnorm.parity.outputs import Expected

    truth = oracle.truth(sample.args, sample.kwargs)
    notes.extend(truth.notes)
    notes.extend(
        f"output {item.name} is {item.value.flat[0]} everywhere, as an untrained head gives: agreement says nothing"
        for item in truth.outputs
        if item.value.size > 1 and item.value.min() == item.value.max()
    )
    if len(truth.outputs) != len(pytorch):
        raise UsageError(
            f"the module gives {len(pytorch)} tensors as deployed and {len(truth.outputs)} in float64; "
            "its outputs must not depend on the dtype"
        )
    return Expected(truth.outputs, pytorch, oracle.redrawn(sample.args, sample.kwargs)), truth.precision


def _measure(
    source: Source, way: Variant, samples: Sequence[Sample], expected: Sequence[Expected], factor: float
) -> list[SampleRun]:
    """Every sample through one session. What ONNX Runtime refuses is a failed run, not the end of the check."""
    from onnxnorm.parity.oracle import one_line
    from onnxnorm.parity.outputs import compare_outputs
    from onnxnorm.parity.runs import open_session, run_session

    try:
        session = open_session(source, way)
    except OnnxnormError as error:
        return [SampleRun(way, "every input", error=str(error))]
    except Exception as error:  # onnxruntime's own exceptions share no base class
        return [SampleRun(way, "every input", error=f"it does not load: {one_line(error)}")]
    runs = []
    for sample, wanted in zip(samples, expected, strict=True):
        try:
            outputs = run_session(session, sample)
        except Exception as error:  # as above
            runs.append(SampleRun(way, sample.label, error=one_line(error)))
            continue
        runs.append(SampleRun(way, sample.label, compare_outputs(outputs, wanted, factor)))
    return runs


def _loads_somewhere(source: Source, runs: Sequence[SampleRun]) -> None:
    """A file that no session takes is a bad file, not a failed check."""
    if all(run.sample == "every input" for run in runs):
        raise ModelError(f"{source.label} runs in no way: {runs[0].error}")


def _blunt_notes(runs: Sequence[SampleRun]) -> list[str]:
    """What the check cannot see, because PyTorch at the deployed dtype scatters as much."""
    from onnxnorm.parity.compare import blunt

    worst: dict[str, float] = {}
    for output in (output for run in runs for output in run.outputs if blunt(output)):
        worst[output.name] = max(worst.get(output.name, 0.0), output.pytorch_distance or 0.0)
    return [
        f"PyTorch's own {name!r} is up to {distance:.2g} of its scale off the truth, so smaller faults do not show"
        for name, distance in worst.items()
    ]


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
