"""What all tests share: timm and transformers beside a CPU build of PyTorch, and PyTorch's exporter made faster."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models, and one process for each core

import pytest
import torch

_KEPT: list[Any] = []


def _stand_in_for_torchvision() -> None:
    """Declares two operators when torchvision's library does not load, as with a CPU torch and PyPI's torchvision.

    timm and transformers import torchvision, which stops at these declarations; no test calls the operators.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # the declarations end with the object
    except ImportError:
        pass


@pytest.fixture(scope="session")
def zoo() -> None:
    """Makes timm and transformers importable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _stand_in_for_torchvision()
        import timm.layers  # noqa: F401  it warns of its own use of TorchScript
        import transformers  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def _translations_are_read_once() -> Iterator[None]:
    """PyTorch's exporter parses its 500 translations anew in every call, more than half the time of a small export.

    What it parses is source code and stays the same. With a version that is made otherwise the tests are slower.
    """
    with pytest.MonkeyPatch.context() as patch:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from onnxscript._internal.values import TracedOnnxFunction
                from torch.onnx._internal.exporter import _schemas
            read = functools.cache(TracedOnnxFunction.function_ir.fget)
            patch.setattr(TracedOnnxFunction, "function_ir", property(read))
            patch.setattr(_schemas, "op_signature_from_function", functools.cache(_schemas.op_signature_from_function))
        except (ImportError, AttributeError):
            pass
        yield
