"""Which output of the ONNX file is which output of the module, and what to say of those that have no partner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxnorm.parity.compare import OutputComparison, compare_output
from onnxnorm.runtime.arrays import Array


@dataclass(frozen=True)
class NamedArray:
    """One output, of a module or of a file."""

    name: str
    value: Array


@dataclass(frozen=True)
class Expected:
    """What one sample must give: the truth, PyTorch at the deployed dtype, its further runs (``Oracle.redrawn``)."""

    truth: tuple[NamedArray, ...]
    pytorch: tuple[NamedArray, ...]
    redrawn: Sequence[tuple[NamedArray, ...]] = ()


def compare_outputs(got: Sequence[NamedArray], expected: Expected, factor: float) -> tuple[OutputComparison, ...]:
    """Every output that either side has, in the module's order; then what only the ONNX file has."""
    partners = pair(got, expected.pytorch)
    comparisons = []
    for position, pytorch in enumerate(expected.pytorch):
        partner = partners[position]
        if partner is None:
            comparisons.append(alone(pytorch, "missing from the ONNX file"))
            continue
        redrawn = [run[position].value for run in expected.redrawn if len(run) == len(expected.pytorch)]
        name, value = got[partner].name, got[partner].value
        truth = expected.truth[position].value
        comparisons.append(compare_output(name, value, pytorch.value, truth, factor=factor, redrawn=redrawn))
    extra = [item for index, item in enumerate(got) if index not in partners]
    return (*comparisons, *(alone(item, "not an output of the PyTorch module") for item in extra))


def pair(got: Sequence[NamedArray], wanted: Sequence[NamedArray]) -> list[int | None]:
    """For each wanted output the position of its partner in ``got``, None for none.

    By name when the ONNX file's names are the module's (dict outputs); else in order when the numbers are equal; else
    in order, leaving out what keeps most types and shapes in step.
    """
    positions = {item.name: index for index, item in enumerate(got)}
    names = [item.name for item in wanted]
    if len(set(names)) == len(names) and set(positions) <= set(names) and len(positions) == len(got):
        return [positions.get(name) for name in names]
    if len(got) == len(wanted):
        return list(range(len(got)))
    return _in_step([_signature(item.value) for item in got], [_signature(item.value) for item in wanted])


def _signature(value: Array) -> tuple[str, tuple[int, ...]]:
    return value.dtype.name, value.shape


def _in_step(got: Sequence[object], wanted: Sequence[object]) -> list[int | None]:
    """Longest common subsequence of signatures."""
    best = [[0] * (len(wanted) + 1) for _ in range(len(got) + 1)]
    for i in reversed(range(len(got))):
        for j in reversed(range(len(wanted))):
            same = best[i + 1][j + 1] + 1 if got[i] == wanted[j] else 0
            best[i][j] = max(same, best[i + 1][j], best[i][j + 1])
    partners: list[int | None] = [None] * len(wanted)
    i = j = 0
    while i < len(got) and j < len(wanted):
        if got[i] == wanted[j] and best[i][j] == best[i + 1][j + 1] + 1:
            partners[j] = i
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return partners


def alone(item: NamedArray, what: str) -> OutputComparison:
    """The failure of an array without a partner."""
    dtype = item.value.dtype.name
    reason = f"{what} ({dtype}{list(item.value.shape)})"
    return OutputComparison(item.name, False, reason, dtype, item.value.shape)
