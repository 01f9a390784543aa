"""Whether other programs were in the way of a measurement."""

from __future__ import annotations

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
