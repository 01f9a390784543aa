"""The machine and the versions that a measurement belongs to."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from typing import Any

from onnxnorm.errors import OnnxnormError
from onnxnorm.runtime.library import library_path, op_table
from onnxnorm.runtime.machine import cpu_name

_PACKAGES = (
    *("onnxnorm", "onnxruntime", "onnxruntime-gpu", "torch", "onnx", "onnx_ir", "onnxscript", "openvino", "numpy"),
)


def machine(threads: int, provider: str = "cpu") -> dict[str, Any]:
    """CPU, system, versions, native library, threads and date, by what a reader would call them."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": threads,
        "provider": provider,
        "library": _library(provider),
        "versions": dict(_versions()),
    }


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _library(provider: str) -> dict[str, str]:
    """The native library's version, SIMD level in force and file name, or why there is none."""
    try:
        path = library_path("cuda" if provider == "cuda" else "cpu")
        table = op_table(path)
    except OnnxnormError as error:
        return {"problem": str(error)}
    return {"version": str(table.get("version")), "simd": str(table.get("cpu_target")), "file": str(path)}
