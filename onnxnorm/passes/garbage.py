"""Keeps Python's collector of cycles from looking through a model again and again while it grows."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No collections inside, a quarter of the time: all objects of a graph are in cycles, and nearly all stay."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
