"""The errors that a user can act on: one line that names the file, node or value and what would be right."""

from __future__ import annotations


class OnnxnormError(Exception):
    """Base of onnxnorm's own errors. The command line prints its text as one line and exits with 2."""


class UsageError(OnnxnormError):
    """A call that cannot be carried out as asked: a bad argument, a missing package, an absent provider."""


class ModelError(OnnxnormError):
    """A model that cannot be used: not ONNX, a cycle, an unknown operator, parameters that do not fit."""


#: Packages of optional extras: import name -> what to install.
EXTRAS = {"torch": "onnxnorm[torch]", "onnxruntime": "onnxnorm[cpu]"}


class RuntimeUnavailable(OnnxnormError):
    """ONNX Runtime or the native library is missing, too old, or not what it should be."""


class ExportError(OnnxnormError):
    """PyTorch cannot export the module as asked; the cause is chained."""
