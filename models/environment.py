"""The machine and the versions that a measurement belongs to."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

from models.latency import THREADS
from onnxnorm.runtime.library import has_library, library_path, op_table

_PACKAGES = ("onnxnorm", "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")


def environment() -> dict[str, str]:
    """Versions, CPU, threads and date, by what a reader would call them."""
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{_cpu_name()} ({os.cpu_count()} logical cores)",
        "threads": f"{THREADS} within one operator",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "native library": _library(),
    }
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _library() -> str:
    """The native library's version and the SIMD level that it has chosen on this CPU."""
    if not has_library():
        return "not installed"
    table = op_table(library_path())
    return ", ".join(f"{name} {table[name]}" for name in ("version", "simd") if isinstance(table.get(name), str))


def _cpu_name() -> str:
    """Linux keeps the CPU's name where ``platform`` does not look."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
