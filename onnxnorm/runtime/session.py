"""Sessions of ONNX Runtime with onnxnorm's native library in them."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxnorm.errors import ModelError, RuntimeUnavailable, UsageError, one_line
from onnxnorm.runtime import missing
from onnxnorm.runtime.environment import onnxruntime_module
from onnxnorm.runtime.library import has_library, library_path, op_table
from onnxnorm.runtime.machine import NCHWC_DOMAIN, check_machine

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_ort = onnxruntime_module()

#: Which library each session options object has: ONNX Runtime takes a custom domain once per session.
_registered: weakref.WeakKeyDictionary[Any, Path] = weakref.WeakKeyDictionary()
#: How the library begins its refusal of another version of it in the process (ops/core/other_copies.cc).
_TWO_VERSIONS = "onnxnorm: two versions in one process"


def register(session_options: Any, provider: str = "cpu") -> None:
    """Registers the native library with ONNX Runtime session options; a second call changes nothing.

    Args:
        session_options: ``onnxruntime.SessionOptions``.
        provider: "cpu", or "cuda" for the library that holds the kernels of both.

    Raises:
        RuntimeUnavailable: there is no library, it is not onnxnorm's, or ONNX Runtime is too old for it.
        UsageError: the options already have the library of another provider, or the process uses another version.

    """
    path = library_path(provider)
    already = _registered.get(session_options)
    if already == path:
        return
    if already is not None:
        raise UsageError(
            f"these session options already have {already}; make new onnxruntime.SessionOptions for {path}, since a "
            "session takes the domain 'onnxnorm' once"
        )
    op_table(path)
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:
        text = one_line(error)
        if _TWO_VERSIONS in text:
            raise UsageError(text[text.index(_TWO_VERSIONS) :]) from None
        raise RuntimeUnavailable(f"{path} cannot be registered with ONNX Runtime: {text}") from None
    _registered[session_options] = path


_Base: Any = _ort.InferenceSession


class InferenceSession(_Base):  # type: ignore[misc]
    """``onnxruntime.InferenceSession`` with the native library registered.

    Takes onnxruntime's own arguments; the model may also be an ``onnx_ir.Model``, whose weights may be external data,
    an ``onnx.ModelProto`` or a Path.

    Args:
        path_or_bytes: a path, serialized bytes, or a model object.
        sess_options, providers, provider_options: as in onnxruntime.
        library: None uses the native library when this installation has it, True insists on it, False leaves it out,
            so that onnxnorm's ops run through their function bodies.

    Raises:
        ModelError: ONNX Runtime cannot load the model for a reason that lies in onnxnorm's ops, or it was compiled
            (``onnxnorm.compile``) for a machine with another memory layout.
        RuntimeUnavailable: ``library=True`` and there is none, or it does not fit.

    """

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str] | ir.Model | onnx.ModelProto,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        *,
        library: bool | None = None,
        **kwargs: Any,
    ) -> None:
        options = _ort.SessionOptions() if sess_options is None else sess_options
        names = [item if isinstance(item, str) else item[0] for item in providers or ()]
        kind = "cuda" if "CUDAExecutionProvider" in names and has_library("cuda") else "cpu"
        if library or (library is None and has_library(kind)):
            register(options, kind)
        with tempfile.TemporaryDirectory(prefix="onnxnorm-") as folder:
            model = _for_onnxruntime(path_or_bytes, Path(folder))
            try:
                super().__init__(model, options, providers, provider_options, **kwargs)
            except Exception as error:
                raise _explained(error, path_or_bytes, _registered.get(options)) or error from None
        check_machine(self.get_modelmeta().custom_metadata_map, _called(path_or_bytes))


def _for_onnxruntime(model: Any, folder: Path) -> str | bytes:
    """A path or bytes; a model object too large for protobuf's 2 GB goes through a temporary file."""
    if isinstance(model, str | bytes):
        return model
    if isinstance(model, os.PathLike):
        path: str = os.fspath(model)
        return path
    from onnxnorm.model_file import save_model, serialized, too_large

    if hasattr(model, "SerializeToString"):
        serialized_proto: bytes = model.SerializeToString()
        return serialized_proto
    if too_large(model):
        large = folder / "model.onnx"
        save_model(model, large)
        return str(large)
    return serialized(model)


def _explained(error: Exception, model: Any, library: Path | None) -> Exception | None:
    """A clear error for what users meet with onnxnorm's ops; None when ONNX Runtime's own says it."""
    text = one_line(error)
    if "Domain already set in registry" in text:
        return UsageError(
            "these session options already hold the domain 'onnxnorm' through register_custom_ops_library(); use "
            "onnxnorm.register(options) in its place, or onnxruntime.InferenceSession as it is"
        )
    if NCHWC_DOMAIN in text:
        return ModelError(
            f"{_called(model)} was compiled for another machine, and this ONNX Runtime ({_ort.__version__}) cannot run "
            f"it here: run 'onnxnorm compile' here on the file that it was made from ({text[:200]})"
        )
    return missing.explain(text, model, library)


def _called(model: Any) -> str:
    """What messages call the model."""
    return os.fspath(model) if isinstance(model, str | os.PathLike) else "the model"
