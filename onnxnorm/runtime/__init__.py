"""Running models: sessions, the native library, execution providers."""

from onnxnorm.runtime.library import has_library, library_path, op_table
from onnxnorm.runtime.session import InferenceSession, register

__all__ = ["InferenceSession", "has_library", "library_path", "op_table", "register"]
