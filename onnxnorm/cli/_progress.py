"""A bar on standard error for runs that take long, where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from onnxnorm.progress import listening

#: Shorter runs, in seconds, show none.
_PATIENCE = 1.0


@contextlib.contextmanager
def progress(title: str) -> Iterator[None]:
    """Shows what is done inside; leaves nothing on the screen."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(title, total=None)
    start = time.monotonic()
    shown = False

    def listen(what: str, done: int, total: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - start > _PATIENCE:
            bar.start()
            shown = True
        if shown:
            bar.update(task, description=f"{title}: {what}", completed=done, total=total or None)

    try:
        with listening(listen):
            yield
    finally:
        if shown:
            bar.stop()
