"""onnxnorm: export, optimize, run and check the normalization layers of trained models in ONNX.

The public names load on first use, so that ``import onnxnorm`` imports neither torch, onnx nor onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxnorm import nn
    from onnxnorm.compilation.compile import compile
    from onnxnorm.errors import ExportError, ModelError, OnnxnormError, RuntimeUnavailable, UsageError
    from onnxnorm.exporter.export import export
    from onnxnorm.parity import check
    from onnxnorm.passes.pipeline import optimize
    from onnxnorm.recalibration.recalibrate import recalibrate
    from onnxnorm.runtime.library import library_path
    from onnxnorm.runtime.session import InferenceSession, register

_HOMES = {
    "ExportError": "onnxnorm.errors",
    "InferenceSession": "onnxnorm.runtime.session",
    "ModelError": "onnxnorm.errors",
    "OnnxnormError": "onnxnorm.errors",
    "RuntimeUnavailable": "onnxnorm.errors",
    "UsageError": "onnxnorm.errors",
    "check": "onnxnorm.parity",
    "compile": "onnxnorm.compilation.compile",
    "export": "onnxnorm.exporter.export",
    "library_path": "onnxnorm.runtime.library",
    "optimize": "onnxnorm.passes.pipeline",
    "recalibrate": "onnxnorm.recalibration.recalibrate",
    "register": "onnxnorm.runtime.session",
}
_SUBPACKAGES = ("nn",)

__all__ = [
    "ExportError",
    "InferenceSession",
    "ModelError",
    "OnnxnormError",
    "RuntimeUnavailable",
    "UsageError",
    "check",
    "compile",
    "export",
    "library_path",
    "nn",
    "optimize",
    "recalibrate",
    "register",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(_load(_HOMES[name], name), name)
    elif name in _SUBPACKAGES:
        value = _load(f"onnxnorm.{name}", name)
    elif name == "__version__":
        value = importlib.import_module("importlib.metadata").version("onnxnorm")
    else:
        raise AttributeError(f"module 'onnxnorm' has no attribute {name!r}")
    globals()[name] = value
    return value


def _load(module: str, name: str) -> Any:
    """The module; where a package of an optional extra is missing, an ImportError that says what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        from onnxnorm.errors import EXTRAS

        if error.name not in EXTRAS:
            raise
        message = f"onnxnorm.{name} needs {error.name}: pip install '{EXTRAS[error.name]}'"
        raise ModuleNotFoundError(message, name=error.name) from None


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
