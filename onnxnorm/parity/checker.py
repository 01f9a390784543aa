"""``onnxnorm.check``: truth, PyTorch, ONNX Runtime, verdict."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxnorm.errors import ModelError, OnnxnormError, UsageError, error_line
from onnxnorm.parity.report import Report, SampleNote, SampleRun

if TYPE_CHECKING:
    import torch

    from onnxnorm.parity.compare import OutputComparison
    from onnxnorm.parity.generate import Generator
    from onnxnorm.parity.inputs import Sample
    from onnxnorm.parity.oracle import Oracle
    from onnxnorm.parity.outputs import Expected, NamedArray
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
    steps: int = 3,
) -> Report:
    """Whether an ONNX file computes what a PyTorch module computes, as well as PyTorch itself does.

    The module is copied, never changed, and runs on the CPU, in float64 for the truth and as it is. The file runs on
    every provider, with and without onnxnorm's native library when it uses onnxnorm's ops, and with all and none of
    ONNX Runtime's graph optimizations.

    Args:
        module: the trained module.
        model_or_path: a path, ``onnx_ir.Model``, ``onnx.ModelProto``, or an object with ``.model``.
        inputs: a tensor or array, a tuple of forward's positional arguments, or a dict by argument name; may be nested.
            None makes ``samples`` of them from the file's signature.
        providers: ONNX Runtime providers, "cpu" or "CPUExecutionProvider" or ``(name, options)``; default CPU.
        mode: "eval" runs the module as after ``eval()``. "train" runs a training graph for several steps beside the
            module with its own training flags, dropout left out, and compares the outputs of each step and the state
            after the last.
        bisect: not there yet.
        factor: how many times farther from the truth than PyTorch the file may be.
        seed: fixes the generated inputs, and what the module draws at random.
        samples: how many inputs to generate; from the second one on every other has other dynamic sizes.
        steps: how many steps a training graph runs. Given inputs are the same at each step, generated ones are not.

    Raises:
        UsageError: arguments or inputs that do not fit, a provider that is not there, a module that does not run.
        ModelError: a file that cannot be read, or that ONNX Runtime cannot load in any way.

    """
    _check_arguments(module, mode, bisect, factor, samples, steps)
    from onnxnorm.parity.runs import variants
    from onnxnorm.parity.source import read_source

    source = read_source(model_or_path)
    _check_mode(source, mode)
    ways = variants(source, providers)
    oracle = _oracle(module, source, mode, seed)
    notes: list[str] = []
    prepared = _prepare(oracle, source, inputs, samples, steps if mode == "train" else None, notes)
    _check_state(oracle, source)
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


def _check_arguments(module: Any, mode: str, bisect: bool, factor: float, samples: int, steps: int) -> None:
    try:
        import torch
    except ImportError:
        raise UsageError("check needs PyTorch; install it with: pip install 'onnxnorm[torch]'") from None
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"module is a {type(module).__name__}; it must be a torch.nn.Module")
    if mode not in ("eval", "train"):
        raise UsageError(f"mode is {mode!r}; it must be 'eval' or 'train'")
    if bisect:
        raise UsageError("bisect=True is not there yet: this version says whether a file is off, not where")
    if not factor >= 1 or factor == float("inf"):
        raise UsageError(f"factor is {factor}; it must be a finite number, at least 1")
    for name, count in (("samples", samples), ("steps", steps)):
        if count < 1:
            raise UsageError(f"{name} is {count}; at least 1 is needed")


def _check_mode(source: Source, mode: str) -> None:
    """UsageError for a training graph that is to be checked as an inference graph."""
    if source.state and mode == "eval":
        raise UsageError(
            f"{source.label} is a training graph (its state has {next(iter(source.state))!r}); check it with "
            "mode='train', or make an inference graph with mode='eval' of export or with onnxnorm.recalibrate"
        )


def _check_state(oracle: Oracle, source: Source) -> None:
    """UsageError for an inference graph that is to be checked as a training graph."""
    from onnxnorm.parity.training import TrainingOracle, check_state

    if isinstance(oracle, TrainingOracle):
        check_state(oracle, source)


def _oracle(module: torch.nn.Module, source: Source, mode: str, seed: int) -> Oracle:
    from onnxnorm.parity.oracle import Oracle

    if mode == "eval":
        return Oracle(module, seed)
    from onnxnorm.parity.training import TrainingOracle, check_module

    check_module(module)
    return TrainingOracle(module, seed, stated=frozenset(source.state))


def _prepare(
    oracle: Oracle, source: Source, inputs: Any, samples: int, steps: int | None, notes: list[str]
) -> list[tuple[Sample, Any]]:
    """The samples, each with what PyTorch at the deployed dtype makes of it; of several steps in training."""
    from onnxnorm.parity.generate import Generator
    from onnxnorm.parity.inputs import user_sample

    generator = Generator(oracle.module, source, oracle.seed)
    if steps is not None:
        from onnxnorm.parity.training import StepsGenerator, user_steps

        generator = StepsGenerator(oracle.module, source, oracle.seed, steps)
    if inputs is not None:
        given = user_sample(oracle.module, source, inputs)
        sample = given if steps is None else user_steps(given, steps)
        return [(sample, oracle.deployed(sample.args, sample.kwargs))]
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
    from onnxnorm.parity.runs import open_session

    try:
        session = open_session(source, way)
    except OnnxnormError as error:
        return [SampleRun(way, "every input", error=str(error))]
    except Exception as error:  # onnxruntime's own exceptions share no base class
        return [SampleRun(way, "every input", error=f"it does not load: {error_line(error)}")]
    runs = []
    for sample, wanted in zip(samples, expected, strict=True):
        try:
            outputs = _run(session, sample, source)
        except Exception as error:  # as above
            runs.append(SampleRun(way, sample.label, error=error_line(error)))
            continue
        runs.append(SampleRun(way, sample.label, _compare(outputs, wanted, sample, factor)))
    return runs


def _run(session: Any, sample: Sample, source: Source) -> tuple[NamedArray, ...]:
    from onnxnorm.parity.runs import run_session
    from onnxnorm.parity.training import StepsSample, run_steps

    return run_steps(session, sample, source.state) if isinstance(sample, StepsSample) else run_session(session, sample)


def _compare(
    outputs: tuple[NamedArray, ...], wanted: Expected, sample: Sample, factor: float
) -> tuple[OutputComparison, ...]:
    from onnxnorm.parity.outputs import compare_outputs
    from onnxnorm.parity.training import StepsSample, compare_steps

    compare = compare_steps if isinstance(sample, StepsSample) else compare_outputs
    return compare(outputs, wanted, factor)


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
