"""How far a long run is, for whoever wants to show it.

What works for long calls ``report``; where nobody listens that costs nothing to speak of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeAlias, TypeVar

#: Takes what is being done, and how many of how many steps of that are done.
Listener: TypeAlias = Callable[[str, int, int], None]
T = TypeVar("T")

_listener: ContextVar[Listener | None] = ContextVar("onnxnorm_progress", default=None)
#: Every so many items a listener is told.
_STRIDE = 256


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Has the listener told of what is done inside."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(what: str, done: int = 0, total: int = 0) -> None:
    """Tells the listener, if there is one."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


def tracked(items: Sequence[T], what: str) -> Iterable[T]:
    """The items; the listener is told on the way."""
    if _listener.get() is None:
        return items
    return _tracked(items, what)


def _tracked(items: Sequence[T], what: str) -> Iterator[T]:
    for index, item in enumerate(items):
        if index % _STRIDE == 0:
            report(what, index, len(items))
        yield item
