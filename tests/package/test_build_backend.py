"""The build backend: native with a compiler, pure without, an error where a compiler is required."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("onnxnorm_build_backend", ROOT / "ops" / "build_backend.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("ONNXNORM_REQUIRE_NATIVE", raising=False)


@pytest.mark.skipif(sys.platform == "win32", reason="CMake looks for Visual Studio itself")
def test_without_a_compiler_the_wheel_is_pure(backend: ModuleType, no_compiler: None) -> None:
    assert backend._settings({}) == {"wheel.cmake": "false", "wheel.platlib": "false"}


@pytest.mark.skipif(sys.platform == "win32", reason="CMake looks for Visual Studio itself")
def test_without_a_compiler_ci_fails(backend: ModuleType, no_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXNORM_REQUIRE_NATIVE", "1")
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler found.*install one"):
        backend._settings({})


def test_a_compiler_named_by_cxx_counts(
    backend: ModuleType, no_compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", "my-c++ -O2")
    assert backend._settings({"x": "y"}) == {"x": "y"}
