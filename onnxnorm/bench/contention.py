"""Whether other programs, or other threads of this one, are in the way of a measurement."""

from __future__ import annotations

import threading
from pathlib import Path

_TASKS = Path("/proc/self/task")


def waited_seconds() -> float | None:
    """Time that this process's threads have so far waited for a core while ready to run; None where it is not known.

    It grows only when there are more threads to run than cores, so over a measurement of as few threads as there are
    cores it tells of somebody else. Linux counts it for each thread.
    """
    total = 0
    try:
        for task in list(_TASKS.iterdir()):
            total += _waited_nanoseconds(task)
    except (OSError, ValueError, IndexError):
        return None
    return total / 1e9


def _waited_nanoseconds(task: Path) -> int:
    try:
        return int((task / "schedstat").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        if (task / "stat").exists():  # the thread is there, the kernel does not count
            raise
        return 0  # it has ended meanwhile


def others_running() -> bool:
    """Whether a thread of this process other than the caller's runs or wants to; False where it is not known.

    A thread that spins in wait for work counts. The process's CPU time would not do to see it: that of other threads is
    brought up to date at the kernel's ticks only, several milliseconds apart.
    """
    caller = str(threading.get_native_id())
    try:
        return any(_state(task) == "R" for task in list(_TASKS.iterdir()) if task.name != caller)
    except OSError:
        return False


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended meanwhile
