"""The short form of ``python ops/sanitize.py``: address, undefined behaviour and threads, on the scalar level."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .building import shared_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="GCC's or Clang's sanitizers, and ELF")
@pytest.mark.parametrize("kind", ["address", "thread"])
def test_kernels_under_sanitizers(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with shared_folder(tmp_path_factory, f"sanitize-{kind}") as folder:
        command = [sys.executable, "ops/sanitize.py", kind, "--brief", "--build-dir", str(folder), "--", "-n0"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-10_000:]
