"""The native library: where it is and what it holds."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

from onnxnorm.errors import RuntimeUnavailable, UsageError

#: Names a library to use in place of the installed one.
LIBRARY_VARIABLE = "ONNXNORM_LIBRARY"
_FILE_NAMES = {"cpu": "onnxnorm", "cuda": "onnxnorm_cuda"}


def library_path(provider: str = "cpu") -> Path:
    """The shared library to register with ONNX Runtime, for any language binding.

    Its one entry point is ``RegisterCustomOps``. The environment variable ONNXNORM_LIBRARY overrides it.

    Raises:
        UsageError: ``provider`` is not "cpu" or "cuda".
        RuntimeUnavailable: there is no such library in this installation.

    """
    if provider not in _FILE_NAMES:
        raise UsageError(f"provider is {provider!r}; it must be one of {', '.join(map(repr, _FILE_NAMES))}")
    override = os.environ.get(LIBRARY_VARIABLE)
    if override:
        path = Path(override).resolve()
        if not path.is_file():
            raise RuntimeUnavailable(f"{LIBRARY_VARIABLE} names {override!r}, which is no file")
        return path
    for folder in _folders():
        path = folder / _file_name(provider)
        if path.is_file():
            return path
    raise RuntimeUnavailable(
        f"this installation of onnxnorm has no native library for {provider!r} ({_file_name(provider)}): it was built "
        "without a C++ compiler. Models run through their function bodies all the same; to get the fast kernels "
        "install a C++17 compiler and reinstall onnxnorm"
    )


def has_library(provider: str = "cpu") -> bool:
    """Whether library_path(provider) finds a library; also when ONNXNORM_LIBRARY names one that is not there, so that
    using it fails rather than running slowly without it.
    """
    if os.environ.get(LIBRARY_VARIABLE):
        return True
    try:
        library_path(provider)
    except RuntimeUnavailable:
        return False
    return True


def _file_name(provider: str) -> str:
    stem = _FILE_NAMES[provider]
    if sys.platform == "win32":
        return f"{stem}.dll"
    return f"lib{stem}.dylib" if sys.platform == "darwin" else f"lib{stem}.so"


def _folders() -> list[Path]:
    """Beside the package, and where the distribution was installed.

    The two differ for editable installations, and when Python runs in a checkout and so imports the source tree while
    the built library lies in site-packages.
    """
    folders = [Path(__file__).resolve().parent.parent / "_native"]
    try:
        distribution = importlib.metadata.distribution("onnxnorm")
    except importlib.metadata.PackageNotFoundError:
        return folders
    for file in distribution.files or []:
        if file.parent.name == "_native":
            folder = Path(str(distribution.locate_file(file))).parent
            if folder not in folders:
                folders.append(folder)
    return folders


@functools.cache
def op_table(path: Path) -> dict[str, Any]:
    """What a library holds: its version, ABI version, SIMD level in force, and each op with its dtypes.

    Raises:
        RuntimeUnavailable: the file is no shared library, or not onnxnorm's.

    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeUnavailable(f"{path} cannot be loaded as a shared library: {error}") from None
    try:
        table = library.OnnxnormOpTable
    except AttributeError:
        raise RuntimeUnavailable(
            f"{path} is not onnxnorm's library: it has no function OnnxnormOpTable; use onnxnorm.library_path()"
        ) from None
    table.restype = ctypes.c_char_p
    result: dict[str, Any] = json.loads(table().decode())
    return result
