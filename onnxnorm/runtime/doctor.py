"""Examines an installation: packages, ONNX Runtime, the native library, and one real run of each."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from onnxnorm.errors import OnnxnormError, error_line
from onnxnorm.runtime import environment
from onnxnorm.runtime.library import has_library, library_path, op_table


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    ok: bool
    text: str

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return asdict(self)


def examine() -> list[Finding]:
    """Every finding; those with ``ok`` False are problems."""
    findings = [Finding("python", True, f"{platform.python_version()} on {platform.platform()}")]
    findings += [_package(name, needed) for name, needed in _PACKAGES]
    for subject, look in _EXAMINATIONS:
        try:
            findings += [Finding(subject, True, text) for text in look()]
        except OnnxnormError as error:
            findings.append(Finding(subject, False, str(error)))
        except Exception as error:
            findings.append(Finding(subject, False, error_line(error)))
    return findings


_PACKAGES = (
    ("onnxnorm", True),
    ("numpy", True),
    ("onnx", True),
    ("onnx_ir", True),
    ("torch", False),
    ("onnxscript", False),
)


def _package(name: str, needed: bool) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        note = "not installed" if needed else "not installed; export and check need it: pip install 'onnxnorm[torch]'"
        return Finding(name, not needed, note)


def _onnxruntime() -> Iterator[str]:
    overlap = environment.overlap()
    if overlap is not None:
        raise OnnxnormError(overlap)
    module = environment.onnxruntime_module()
    yield f"{module.__version__}; providers {', '.join(module.get_available_providers())}"
    yield f"newest opset {environment.newest_opset()}"


def _library() -> Iterator[str]:
    path = library_path()
    table = op_table(path)
    yield f"{path}"
    ops = ", ".join(item["name"] for item in table["ops"])
    yield f"version {table['version']}, SIMD level {table['cpu_target']}, ops {ops}"
    installed = importlib.metadata.version("onnxnorm")
    if table["version"] != installed:
        raise OnnxnormError(f"the library is of version {table['version']}, the package of {installed}; reinstall")


def _runs_with_library() -> Iterator[str]:
    if not has_library():
        raise OnnxnormError("not run: there is no native library")
    yield from _sample_runs(library=True)


def _runs_without_library() -> Iterator[str]:
    yield from _sample_runs(library=False)


def _sample_runs(library: bool) -> Iterator[str]:
    """One sample of each norm, compared with its float64 reference."""
    import numpy as np

    from onnxnorm.norms import all_specs
    from onnxnorm.runtime.session import InferenceSession
    from onnxnorm.spec.sample_model import sample_model

    names = []
    for spec in all_specs().values():
        sample = next(iter(spec.samples()))
        inputs = [array.astype(np.float32) for array in sample.inputs]
        truth = spec.reference([array.astype(np.float64) for array in inputs], sample.attributes)[0]
        session = InferenceSession(sample_model(spec, sample), providers=["CPUExecutionProvider"], library=library)
        feeds = {item.name: array for item, array in zip(spec.inputs, inputs, strict=True)}
        distance = float(np.abs(session.run(None, feeds)[0] - truth).max() / np.abs(truth).max())
        if distance > 1e-6:
            raise OnnxnormError(f"{spec.name} is off by {distance:.2g} of the output's scale")
        names.append(spec.name)
    yield f"{', '.join(names)} agree with their float64 references"


_EXAMINATIONS: tuple[tuple[str, Callable[[], Iterator[str]]], ...] = (
    ("onnxruntime", _onnxruntime),
    ("native library", _library),
    ("run with kernels", _runs_with_library),
    ("run with bodies", _runs_without_library),
)
