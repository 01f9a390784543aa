"""The installed ONNX Runtime: is it there, is it whole, what can it run."""

from __future__ import annotations

import functools
import importlib.metadata
from types import ModuleType

from onnxnorm.errors import RuntimeUnavailable, UsageError

#: The oldest ONNX Runtime that the native library supports.
OLDEST = (1, 20)
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


def onnxruntime_module() -> ModuleType:
    """The onnxruntime module.

    Raises:
        RuntimeUnavailable: it is not installed, broken, or older than 1.20; the message says what to install.

    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailable(
            f"onnxruntime cannot be imported ({error}); install it with: pip install 'onnxnorm[cpu]' (or [cuda])"
        ) from None
    if not hasattr(onnxruntime, "InferenceSession"):
        raise RuntimeUnavailable(f"the installed onnxruntime is broken: {overlap() or 'it has no InferenceSession'}")
    if version_of(onnxruntime.__version__) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise RuntimeUnavailable(
            f"onnxruntime {onnxruntime.__version__} is too old: onnxnorm needs {oldest} or newer "
            f"(pip install 'onnxruntime>={oldest}')"
        )
    module: ModuleType = onnxruntime
    return module


def available_provider(name: str) -> str:
    """ONNX Runtime's name of an execution provider given as "cpu", "cuda" or by that name.

    Raises:
        UsageError: this ONNX Runtime has no such provider; it would silently take another one.

    """
    onnxruntime = onnxruntime_module()
    available: list[str] = onnxruntime.get_available_providers()
    for full in available:
        if name.lower() in (full.lower(), full.lower().removesuffix("executionprovider")):
            return full
    raise UsageError(
        f"provider {name!r} is not in this ONNX Runtime ({onnxruntime.__version__}); available: {', '.join(available)}"
    )


def version_of(text: str) -> tuple[int, int]:
    """(major, minor) of a version such as "1.31.1"."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def installed() -> dict[str, str]:
    """The ONNX Runtime distributions that are installed, with their versions."""
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def overlap() -> str | None:
    """What is wrong when onnxruntime and onnxruntime-gpu lie over each other, or None.

    Both install the folder ``onnxruntime``; whichever came last wins, and removing either breaks the other.
    """
    found = installed()
    if len(found) < 2:
        return None
    names = " and ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"{names} are installed over each other in one folder; remove both and install one: "
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu (or onnxruntime)"
    )


@functools.cache
def newest_opset() -> int:
    """The newest opset of the standard domain that both the installed onnx and ONNX Runtime take; onnx's alone where
    ONNX Runtime is not installed.

    Found by loading a one-node model of each opset, newest first: ONNX Runtime only warns about some opsets that onnx
    already defines, refuses others, and no table in either package says which.
    """
    import onnx.defs

    try:
        onnxruntime_module()
    except RuntimeUnavailable:
        return int(onnx.defs.onnx_opset_version())
    for opset in range(onnx.defs.onnx_opset_version(), 18, -1):
        if _loads(opset):
            return opset
    return 18


def _loads(opset: int) -> bool:
    import onnx.helper

    onnxruntime = onnxruntime_module()
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True
