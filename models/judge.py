"""Judges outputs by the rule of ``onnxnorm.check``: not farther from the float64 run of the PyTorch model than four
times PyTorch's own float32 runs, or than rounding; whole numbers exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from onnxnorm.parity.compare import OutputComparison, compare_output
from onnxnorm.parity.oracle import Oracle

#: How many times farther from the truth than PyTorch a result may be, as in ``onnxnorm.check``.
FACTOR = 4.0


@dataclass(frozen=True)
class Verdict:
    """What a judge says of some outputs.

    Attributes:
        reason: why they fail, "" when they pass.
        distance: the largest from the truth, relative to its scale.

    """

    reason: str
    distance: float

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.reason

    def __str__(self) -> str:
        return self.reason or f"distance {self.distance:.1e}"


def combined(verdicts: Iterable[Verdict]) -> Verdict:
    """One for all: the first reason of any, and the largest distance."""
    found = list(verdicts)
    reason = next((verdict.reason for verdict in found if not verdict.passed), "")
    return Verdict(reason, max((verdict.distance for verdict in found), default=0.0))


class Judge:
    """Knows what a module makes of its arguments, in float64 and as it is deployed.

    Args:
        module: the module, in the form to judge by.
        arguments: its positional arguments.

    """

    def __init__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        oracle = Oracle(module)
        self.pytorch = oracle.deployed(arguments, {})
        self.truth = oracle.truth(arguments, {}).outputs
        self.redrawn = oracle.redrawn(arguments, {})

    def verdict(self, outputs: Mapping[str, Any]) -> Verdict:
        """Judges arrays by a name for the reader, in the order of the module's outputs, and as many."""
        if len(outputs) != len(self.truth):
            return Verdict(f"{len(outputs)} outputs, must be {len(self.truth)}", 0.0)
        found = [
            compare_output(
                name,
                output,
                self.pytorch[index].value,
                self.truth[index].value,
                factor=FACTOR,
                redrawn=[run[index].value for run in self.redrawn],
            )
            for index, (name, output) in enumerate(outputs.items())
        ]
        reasons = [f"{each.name}: {_reason(each)}" for each in found if not each.passed]
        distances = [each.onnx.maximum for each in found if each.onnx is not None]
        return Verdict(reasons[0] if reasons else "", max(distances, default=0.0))


def _reason(output: OutputComparison) -> str:
    return output.reason or "it differs"
