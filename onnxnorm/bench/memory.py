"""Warm memory for whoever allocates its outputs anew in every call."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: glibc's mallopt parameters: number of blocks that may be mapped on their own, and free memory kept at the heap's top.
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1
_DEFAULTS = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 * 1024}
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, the C library keeps freed memory and hands it out again, instead of returning it to the system.

    PyTorch's eager results come from malloc. Depending on what else lies on the heap, glibc gives a large one back to
    the system when it is freed and maps it anew for the next call, page fault by page fault: the same GroupNorm took
    0.8 ms in one process and 4 ms in another. ONNX Runtime keeps its memory anyway. Elsewhere than on glibc nothing is
    changed.
    """
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    for parameter, value in _KEEP.items():
        mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _DEFAULTS.items():
            mallopt(parameter, value)


def _mallopt() -> ctypes._NamedFuncPointer | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version
        return library.mallopt
    except (OSError, AttributeError):
        return None
