"""What is measured: one session per provider, native library on and off, graph optimization all and none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxnorm.errors import UsageError
from onnxnorm.parity.outputs import NamedArray
from onnxnorm.runtime.arrays import from_ort, to_ort
from onnxnorm.runtime.environment import available_provider

if TYPE_CHECKING:
    from onnxnorm.parity.inputs import Sample
    from onnxnorm.parity.source import Source

CPU = "CPUExecutionProvider"
LEVELS = ("all", "none")


@dataclass(frozen=True)
class Variant:
    """One way to run the file.

    Attributes:
        provider: ONNX Runtime's name of it.
        library: whether onnxnorm's native library is registered; without it the function bodies run.
        level: ONNX Runtime's graph optimization, "all" or "none".
        options: the provider's own options.

    """

    provider: str
    library: bool
    level: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        library = "native library" if self.library else "no native library"
        return f"{self.provider}, {library}, optimization {self.level}"


def variants(source: Source, providers: Sequence[Any] | None) -> list[Variant]:
    """Every combination that makes a difference, for the providers asked for (default: CPU).

    Raises:
        UsageError: a provider that this ONNX Runtime does not have.

    """
    from onnxnorm.runtime.library import has_library

    wanted = [_named(item) for item in (providers if providers else [CPU])]
    found: list[Variant] = []
    for name, options in wanted:
        kind = "cuda" if name == "CUDAExecutionProvider" and has_library("cuda") else "cpu"
        with_and_without = (True, False) if source.uses_onnxnorm and has_library(kind) else (False,)
        found.extend(Variant(name, library, level, options) for library in with_and_without for level in LEVELS)
    return found


def open_session(source: Source, variant: Variant) -> Any:
    """The session of a variant.

    Raises:
        UsageError: ONNX Runtime took another provider than the one asked for.
        Exception: whatever ONNX Runtime raises for a file that it cannot load.

    """
    import onnxruntime

    from onnxnorm.runtime.session import InferenceSession

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures come back as exceptions; the log would only repeat them
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if variant.level == "all" else levels.ORT_DISABLE_ALL
    names: list[Any] = [(variant.provider, variant.options) if variant.options else variant.provider]
    if variant.provider != CPU:
        names.append(CPU)
    session = InferenceSession(source.target, options, names, library=variant.library)
    if variant.provider not in session.get_providers():
        raise UsageError(
            f"ONNX Runtime could not start {variant.provider} and fell back to {', '.join(session.get_providers())}; "
            "its own log says why (set ORT_LOGGING_LEVEL or run onnxnorm doctor)"
        )
    return session


def run_session(session: Any, sample: Sample) -> tuple[NamedArray, ...]:
    """The outputs of one sample, in the file's order.

    Raises:
        UsageError: an output is no tensor.
        Exception: whatever ONNX Runtime raises.

    """
    names = [item.name for item in session.get_outputs()]
    values = session.run_with_ort_values(names, {name: to_ort(array) for name, array in sample.feeds.items()})
    return tuple(NamedArray(name, from_ort(value)) for name, value in zip(names, values, strict=True))


def _named(item: Any) -> tuple[str, dict[str, Any]]:
    """``"cpu"``, ``"CPUExecutionProvider"`` or ``(name, options)`` -> ONNX Runtime's name and the options."""
    name, options = (item, {}) if isinstance(item, str) else (item[0], dict(item[1]))
    return available_provider(name), options
