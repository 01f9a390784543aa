"""ONNX Runtime sessions that can be timed: threads as asked for, inputs and outputs bound once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxnorm.bench.case import aligned
from onnxnorm.errors import UsageError
from onnxnorm.runtime.arrays import Array, to_ort
from onnxnorm.runtime.environment import available_provider, onnxruntime_module

PROVIDERS = ("cpu", "cuda")


def check_provider(provider: str) -> None:
    """UsageError unless it is one that can be measured here."""
    if provider not in PROVIDERS:
        raise UsageError(f"provider is {provider!r}; it must be one of {', '.join(map(repr, PROVIDERS))}")
    available_provider(provider)


def new_session(model: Any, threads: int, provider: str = "cpu", *, library: bool | None, profile: str = "") -> Any:
    """A session of ``threads`` threads within one operator, operators one after the other.

    Args:
        model: a path, bytes or a model object.
        threads: within one operator.
        provider: cpu or cuda.
        library: as in ``onnxnorm.InferenceSession``.
        profile: prefix of the file for ONNX Runtime's profile; none without.

    """
    from onnxnorm.runtime.session import InferenceSession

    onnxruntime = onnxruntime_module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return InferenceSession(model, options, providers=[available_provider(provider)], library=library)


def bound(
    session: Any, inputs: Sequence[Array], outputs: Sequence[tuple[Sequence[int], np.dtype[Any]]], provider: str = "cpu"
) -> tuple[Callable[[], object], Callable[[], list[Array]]]:
    """One call of the session, and its latest outputs.

    Args:
        session: the session.
        inputs: in the order of the session's inputs.
        outputs: shape and type of each output.
        provider: where the tensors live.

    """
    binding = session.io_binding()
    kept = [_on(array, provider) for array in inputs]
    for item, value in zip(session.get_inputs(), kept, strict=True):
        binding.bind_ortvalue_input(item.name, value)
    arrays = [aligned(shape, dtype) for shape, dtype in outputs]
    values = [_on(array, provider) for array in arrays]
    for item, value in zip(session.get_outputs(), values, strict=True):
        binding.bind_ortvalue_output(item.name, value)
    run_bound = session.run_with_iobinding

    def run() -> None:
        run_bound(binding)

    def read() -> list[Array]:
        assert kept
        return arrays if provider == "cpu" else [value.numpy() for value in values]

    return run, read


def _on(array: Array, provider: str) -> Any:
    """An OrtValue on the device; on the CPU it shares the array's memory."""
    if provider == "cpu":
        return to_ort(array)
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(array, provider, 0)
