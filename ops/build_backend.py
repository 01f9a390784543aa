"""Build backend: scikit-build-core, and a pure wheel where the machine has no C++ compiler.

With a compiler the native library is built, and an error in it fails the build. Without one the wheel holds the Python
package alone (``onnxnorm doctor`` says so); ONNXNORM_REQUIRE_NATIVE=1 makes that an error, as CI does.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import scikit_build_core.build as _backend

#: What CMake tries too, in this order, after the variable CXX.
_COMPILERS = ("c++", "g++", "clang++", "icpx")
REQUIRE_VARIABLE = "ONNXNORM_REQUIRE_NATIVE"

Settings = Mapping[str, Any] | None


def _compiler() -> str | None:
    """The C++ compiler that CMake would find; on Windows CMake looks for Visual Studio itself."""
    if sys.platform == "win32":
        return "Visual Studio"
    named = os.environ.get("CXX", "").split()
    return next((found for name in (*named[:1], *_COMPILERS) if (found := shutil.which(name))), None)


def _settings(config_settings: Settings) -> dict[str, Any]:
    settings = dict(config_settings or {})
    if _compiler() is not None:
        return settings
    if os.environ.get(REQUIRE_VARIABLE, "0") not in ("", "0"):
        raise SystemExit(
            f"onnxnorm: no C++ compiler found (looked for $CXX, {', '.join(_COMPILERS)}), and {REQUIRE_VARIABLE} is "
            "set; install one that knows C++17, such as g++ or clang++"
        )
    print("onnxnorm: no C++ compiler found; building without the native library", file=sys.stderr)
    return {**settings, "wheel.cmake": "false", "wheel.platlib": "false"}


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """CMake and Ninja, only when there is something to compile."""
    return list(_backend.get_requires_for_build_wheel(_settings(config_settings)))


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """As for a wheel."""
    return list(_backend.get_requires_for_build_editable(_settings(config_settings)))


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    """Nothing is compiled for a source distribution."""
    return list(_backend.get_requires_for_build_sdist(dict(config_settings or {})))


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """The wheel, with the native library when there is a compiler."""
    return str(_backend.build_wheel(wheel_directory, _settings(config_settings), metadata_directory))


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """The editable wheel, with the native library when there is a compiler."""
    return str(_backend.build_editable(wheel_directory, _settings(config_settings), metadata_directory))


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """The source distribution."""
    return str(_backend.build_sdist(sdist_directory, dict(config_settings or {})))
