"""What a candidate is, and what it needs to get ready for a case."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxnorm.bench.case import Case, Data
from onnxnorm.bench.graph import exported, varying
from onnxnorm.runtime.arrays import Array


class Unavailable(Exception):
    """The candidate cannot run this case here; the text says why."""


class SameAs(Exception):
    """The candidate would run just what another one runs; the text is its key."""


@dataclass(frozen=True)
class Ready:
    """A candidate that can be called.

    Attributes:
        run: one call, on the case's data, that returns when its outputs are there.
        outputs: the outputs of the latest call, as arrays.
        note: what runs, such as the operators of a graph.

    """

    run: Callable[[], object]
    outputs: Callable[[], Sequence[Array]]
    note: str = ""


@dataclass(frozen=True)
class Candidate:
    """One way to compute a norm.

    Attributes:
        key: short name, as in JSON and on the command line.
        label: as the tables call it.
        prepare: makes it ready, or raises Unavailable or SameAs.
        ours: a wrong result is onnxnorm's own mistake.

    """

    key: str
    label: str
    prepare: Callable[[Workbench], Ready]
    ours: bool = False


@dataclass
class Workbench:
    """A case with its data, and what several candidates share while they get ready for it."""

    case: Case
    data: Data
    threads: int
    provider: str = "cpu"
    compile_seconds: float = 60.0
    _exported: dict[int, ir.Model] = field(default_factory=dict)

    @property
    def varying(self) -> list[Array]:
        """The arrays that are inputs of the models."""
        return varying(self.case, self.data)

    @functools.cached_property
    def torch_module(self) -> Any:
        """The norm as a PyTorch module of X (and skip).

        Raises:
            Unavailable: there is no PyTorch, or the norm has no PyTorch form.

        """
        try:
            from onnxnorm.bench.torch_forms import FormModule, torch_form
        except ModuleNotFoundError as error:
            raise Unavailable(f"needs {error.name}: pip install 'onnxnorm[torch]'") from None
        from onnxnorm.runtime.arrays import to_torch

        function = torch_form(self.case.op, self.case.attributes)
        if function is None:
            raise Unavailable(f"onnxnorm.bench.torch_forms has no PyTorch form of {self.case.op}")
        parameters = [to_torch(array) for array in self.data.inputs[len(self.varying) :]]
        return FormModule(function, parameters).eval()

    def standard_model(self, opset: int) -> ir.Model:
        """What ``torch.onnx.export`` writes for the norm's PyTorch form at that opset.

        Raises:
            Unavailable: it cannot.

        """
        if opset not in self._exported:
            from onnxnorm.runtime.arrays import to_torch

            module = self.torch_module
            try:
                self._exported[opset] = exported(module, [to_torch(array) for array in self.varying], opset)
            except ModuleNotFoundError as error:
                raise Unavailable(f"torch.onnx.export needs {error.name}: pip install 'onnxnorm[torch]'") from None
        return self._exported[opset]
