"""The version of onnxnorm that is installed, and its note in the files that it writes."""

from __future__ import annotations

import importlib.metadata

#: Metadata of a model that needs onnxnorm's ops: the version that wrote it.
WRITER_KEY = "onnxnorm.written_by"


def installed_version() -> str:
    """The installed version; "0.0.0+unknown" where the package is imported without being installed."""
    try:
        return importlib.metadata.version("onnxnorm")
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0+unknown"
