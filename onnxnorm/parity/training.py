"""Training graphs against training modules: several steps, outputs and state.

A module runs with its own training flags, without noise, as the export takes it; its buffers (and parameters that its
forward changes) are the state. The ONNX file starts from the defaults that it stores, and what leaves through
``next.<key>`` is fed back. Compared are the outputs of each step, ``step 2: output logits``, and every state after the
last one, ``state bn.running_mean``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from onnxnorm.errors import UsageError
from onnxnorm.exporter.calls import NoNoise
from onnxnorm.exporter.noise import without_noise
from onnxnorm.parity.compare import OutputComparison, compare_output
from onnxnorm.parity.generate import Generator, Sizes
from onnxnorm.parity.inputs import Sample
from onnxnorm.parity.oracle import Oracle
from onnxnorm.parity.outputs import Expected, NamedArray, alone, compare_outputs
from onnxnorm.parity.source import Source
from onnxnorm.parity.trees import output_arrays
from onnxnorm.runtime.arrays import from_ort, from_torch, to_ort

if TYPE_CHECKING:
    from onnxnorm.runtime.arrays import Array

_STATE = "state"


@dataclass(frozen=True)
class StepsSample(Sample):
    """The inputs of several steps, one after the other; ``args`` holds the (args, kwargs) of each."""

    steps: tuple[Sample, ...] = ()

    @classmethod
    def of(cls, label: str, steps: Sequence[Sample]) -> StepsSample:
        """A run of steps; the shapes told of are those of the first."""
        args = tuple((step.args, step.kwargs) for step in steps)
        return cls(f"{label}, {len(steps)} steps", args, {}, steps[0].feeds, tuple(steps))


def user_steps(given: Sample, steps: int) -> StepsSample:
    """The user's inputs, the same at each step."""
    return StepsSample.of(given.label, [given] * steps)


@dataclass(frozen=True)
class StepsGenerator(Generator):
    """Makes inputs for runs of ``steps`` steps, with other values at each."""

    steps: int = 1

    def sample(self, index: int, sizes: Sizes) -> Sample:
        """Run number ``index`` at these sizes."""
        first = index * self.steps
        samples = [super(StepsGenerator, self).sample(first + step, sizes) for step in range(self.steps)]
        return StepsSample.of(samples[0].label, samples)


@dataclass
class TrainingOracle(Oracle):
    """Runs of one module in training: outputs of every step, then the state.

    Attributes:
        stated: state keys of the ONNX file.
        keys: states to compare, known after the first run of ``deployed``.

    """

    stated: frozenset[str] = frozenset()
    keys: tuple[str, ...] | None = field(default=None, init=False)

    def in_mode(self, duplicate: torch.nn.Module) -> torch.nn.Module:
        """The training flags as they stand, dropout left out."""
        without_noise(duplicate)
        return duplicate

    def result(self, duplicate: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The arrays of all steps and of the state, and notes."""
        arrays: list[NamedArray] = []
        notes: list[str] = []
        with NoNoise():
            for number, (step_args, step_kwargs) in enumerate(args, start=1):
                found, more = output_arrays(duplicate(*step_args, **step_kwargs))
                arrays += [NamedArray(f"step {number}: output {item.name}", item.value) for item in found]
                notes += more
        if self.keys is None:
            self.keys = tuple(self._changed(duplicate))
        arrays += [NamedArray(f"{_STATE} {key}", from_torch(_tensor(duplicate, key))) for key in self.keys]
        return arrays, notes

    def _changed(self, duplicate: torch.nn.Module) -> Iterator[str]:
        """Keys of buffers and parameters that the run changed or that the file holds as state; a tied one once."""
        for key, before in [*self.module.named_buffers(), *self.module.named_parameters()]:
            after = _tensor(duplicate, key).detach()
            if key in self.stated or not _same(before.detach().to(after.device), after):
                yield key


def _tensor(module: torch.nn.Module, key: str) -> torch.Tensor:
    owner, _, name = key.rpartition(".")
    tensor: torch.Tensor = getattr(module.get_submodule(owner), name)
    return tensor


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the values are the same; NaN is as NaN."""
    if one.shape != other.shape:
        return False
    same = one == other
    if one.is_floating_point():
        same |= torch.isnan(one) & torch.isnan(other)
    return bool(same.all())


def check_module(module: torch.nn.Module) -> None:
    """UsageError unless some part of the module is in training."""
    if not any(part.training for part in module.modules()):
        raise UsageError(
            f"mode is 'train', but every submodule of {type(module).__name__} is in evaluation; call train() on what "
            "computes batch statistics, as at export, or check with mode='eval'"
        )


def check_state(oracle: TrainingOracle, source: Source) -> None:
    """UsageError for a file without any state where the module has some."""
    if oracle.keys and not source.state:
        raise UsageError(
            f"{source.label} is no training graph: it has no state, while {type(oracle.module).__name__} updates "
            f"{oracle.keys[0]!r} in training; export it with mode='train', or check it with mode='eval'"
        )


def run_steps(session: Any, sample: StepsSample, following: Mapping[str, str]) -> tuple[NamedArray, ...]:
    """The outputs of each step, then the state, of which each next value is fed back.

    Raises:
        Exception: whatever ONNX Runtime raises.

    """
    names = [item.name for item in session.get_outputs()]
    state: dict[str, Array] = {}
    arrays: list[NamedArray] = []
    for number, step in enumerate(sample.steps, start=1):
        feeds = {name: to_ort(array) for name, array in {**step.feeds, **state}.items()}
        found = dict(zip(names, map(from_ort, session.run_with_ort_values(names, feeds)), strict=True))
        state = {key: found[output] for key, output in following.items()}
        arrays += [
            NamedArray(f"step {number}: output {name}", value)
            for name, value in found.items()
            if name not in following.values()
        ]
    return (*arrays, *(NamedArray(f"{_STATE} {key}", value) for key, value in state.items()))


def compare_steps(got: Sequence[NamedArray], expected: Expected, factor: float) -> tuple[OutputComparison, ...]:
    """The outputs of each step as ``compare_outputs`` pairs them, the state by its keys."""
    comparisons: list[OutputComparison] = []
    for group in dict.fromkeys(_group(item) for item in (*expected.pytorch, *got)):
        positions = [index for index, item in enumerate(expected.pytorch) if _group(item) == group]
        redrawn = [run for run in expected.redrawn if len(run) == len(expected.pytorch)]
        wanted = Expected(
            _picked(expected.truth, positions),
            _picked(expected.pytorch, positions),
            [_picked(run, positions) for run in redrawn],
        )
        found = [item for item in got if _group(item) == group]
        compare = _compare_state if group == _STATE else compare_outputs
        comparisons += compare(found, wanted, factor)
    return tuple(comparisons)


def _group(item: NamedArray) -> str:
    return _STATE if item.name.startswith(f"{_STATE} ") else item.name.partition(":")[0]


def _picked(arrays: Sequence[NamedArray], positions: Sequence[int]) -> tuple[NamedArray, ...]:
    return tuple(arrays[position] for position in positions)


def _compare_state(got: Sequence[NamedArray], expected: Expected, factor: float) -> tuple[OutputComparison, ...]:
    values = {item.name: item.value for item in got}
    comparisons = []
    for position, pytorch in enumerate(expected.pytorch):
        value = values.pop(pytorch.name, None)
        if value is None:
            comparisons.append(alone(pytorch, "missing from the ONNX file"))
            continue
        truth = expected.truth[position].value
        redrawn = [run[position].value for run in expected.redrawn]
        comparisons.append(compare_output(pytorch.name, value, pytorch.value, truth, factor=factor, redrawn=redrawn))
    left = [item for item in got if item.name in values]
    return (*comparisons, *(alone(item, "not a state of the PyTorch module") for item in left))
