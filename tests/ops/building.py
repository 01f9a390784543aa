"""Builds of the native library for tests, once for all workers: an older version of fewer ops, or with sanitizers."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "ops"
OLD_VERSION = "0.0.9"
_ROW = '    {abi::ElementType::kBFloat16, "bfloat16"},\n'


@contextmanager
def shared_folder(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder of this test run, for all its workers, one at a time."""
    base = factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = base / name
    folder.mkdir(exist_ok=True)
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def build(folder: Path, sources: Path = SOURCES, **options: str) -> Path:
    """Configures and builds; the second call in a folder finds everything done. Returns the folder of the results."""
    cmake = shutil.which("cmake")
    assert cmake is not None, "the tests build the native library: install cmake"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    settings = [f"-D{name}={value}" for name, value in options.items()]
    for command in (
        [cmake, *generator, "-S", str(sources), "-B", str(folder), *settings],
        [cmake, "--build", str(folder), "--parallel", str(len(os.sched_getaffinity(0)))],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-10_000:]
    return folder


def old_library(factory: pytest.TempPathFactory) -> Path:
    """A library as an older version could be: group norm alone, without bfloat16, on the scalar level."""
    with shared_folder(factory, "old-library") as folder:
        sources = folder / "ops"
        if not sources.exists():
            shutil.copytree(SOURCES, sources)
            header = sources / "core" / "op.h"
            text = header.read_text()
            assert text.count(_ROW) == 1, f"{header} has no line {_ROW!r} any more"
            header.write_text(text.replace(_ROW, ""))
        built = build(
            folder / "build",
            sources,
            CMAKE_BUILD_TYPE="Debug",
            ONNXNORM_NORMS="group_norm",
            ONNXNORM_SIMD="OFF",
            ONNXNORM_VERSION=OLD_VERSION,
        )
        return next(built.glob("libonnxnorm.*"))
