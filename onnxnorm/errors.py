"""The errors that a user can act on: one line that names the file, node or value and what would be right."""

from __future__ import annotations


class OnnxnormError(Exception):
    """Base of onnxnorm's own errors. The command line prints its text as one line and exits with 2."""


class UsageError(OnnxnormError):
    """A call that cannot be carried out as asked: a bad argument, a missing package, an absent provider."""


class ModelError(OnnxnormError):
    """A model that cannot be used: not ONNX, a cycle, an unknown operator, parameters that do not fit."""


#: Packages of optional extras: import name -> what to install.
EXTRAS = {
    "torch": "onnxnorm[torch]",
    "onnxruntime": "onnxnorm[cpu]",
    "matplotlib": "onnxnorm[bench]",
    "jinja2": "onnxnorm[bench]",
}


class RuntimeUnavailable(OnnxnormError):
    """ONNX Runtime or the native library is missing, too old, or not what it should be."""


class ExportError(OnnxnormError):
    """PyTorch cannot export the module as asked; the cause is chained."""


def one_line(text: object, limit: int | None = None) -> str:
    """A text, or an error's text, on one line; what is longer than ``limit`` characters ends in dots."""
    line = " ".join(str(text).split())
    return line if limit is None or len(line) <= limit else line[: limit - 3] + "..."


def error_line(error: BaseException) -> str:
    """An error as one line of at most 300 characters, its type in front."""
    return one_line(f"{type(error).__name__}: {error}", 300)
