"""ruff, mypy and clang-format, as pre-commit runs them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = (ROOT / "pyproject.toml").is_file()
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="needs a checkout")


def _check(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _needs(module: str) -> None:
    assert importlib.util.find_spec(module), f"{module} is missing: install the extra 'dev'"


def test_ruff_lint() -> None:
    _needs("ruff")
    _check(sys.executable, "-m", "ruff", "check", ".")


def test_ruff_format() -> None:
    _needs("ruff")
    _check(sys.executable, "-m", "ruff", "format", "--check", ".")


@pytest.mark.slow
def test_mypy() -> None:
    _needs("mypy")
    _check(sys.executable, "-m", "mypy")


def test_clang_format() -> None:
    tool = shutil.which("clang-format", path=str(Path(sys.executable).parent)) or shutil.which("clang-format")
    assert tool, "clang-format is missing: install the extra 'dev'"
    sources = [str(path) for path in sorted((ROOT / "ops").rglob("*")) if path.suffix in {".h", ".cc", ".cu"}]
    assert sources
    _check(tool, "--dry-run", "--Werror", *sources)
