"""What a person sees while the job runs: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

#: The job's steps for each model, with their share of its time (rough; only the bar's pace depends on them).
STEPS = {"train": 20, "export": 15, "optimize": 15, "trace": 15, "run": 3, "check": 7, "prove": 15, "measure": 10}


class Watcher(Protocol):
    """Told what the job is doing."""

    def begin(self, model: str, step: str) -> None:
        """A step of a model begins."""

    def advance(self, share: float) -> None:
        """So much of the current step is done, from 0 to 1."""

    def end(self, note: str) -> None:
        """The current step has ended; ``note`` is its outcome in a few words."""

    def fail(self, model: str, problem: str) -> None:
        """Something about the model is not as it must be."""

    def close(self) -> None:
        """The job is over."""


class Lines:
    """One plain line for each step, without control characters."""

    def __init__(self, stream: IO[str], models: list[str]) -> None:
        self.stream, self.models = stream, models
        self.started, self.label = 0.0, ""

    def begin(self, model: str, step: str) -> None:
        self.label = f"[{self.models.index(model) + 1}/{len(self.models)}] {model}: {step}"
        self.started = time.perf_counter()

    def advance(self, share: float) -> None:
        """A log has no use for it."""

    def end(self, note: str) -> None:
        seconds = time.perf_counter() - self.started
        print(f"{self.label:<44}{seconds:6.1f} s   {note}".rstrip(), file=self.stream, flush=True)

    def fail(self, model: str, problem: str) -> None:
        print(f"{model}: FAILED: {problem}", file=self.stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""


class Bar:
    """One bar for the whole job, with the model and step that it is at."""

    def __init__(self, console: Console, models: list[str]) -> None:
        self.models = models
        self.width = max(map(len, models), default=0)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self.task: TaskID = self.progress.add_task("", total=len(models) * sum(STEPS.values()))
        self.done, self.step = 0.0, ""
        self.progress.start()

    def begin(self, model: str, step: str) -> None:
        names = list(STEPS)
        self.step = step
        before = sum(STEPS[name] for name in names[: names.index(step)])
        self.done = self.models.index(model) * sum(STEPS.values()) + before
        self.progress.update(self.task, description=f"{model:<{self.width}}  {step:<8}", completed=self.done)

    def advance(self, share: float) -> None:
        self.progress.update(self.task, completed=self.done + share * STEPS[self.step])

    def end(self, note: str) -> None:
        self.advance(1.0)

    def fail(self, model: str, problem: str) -> None:
        self.progress.console.print(f"{model}: FAILED: {problem}", style="red", markup=False, highlight=False)

    def close(self) -> None:
        self.progress.stop()


def watcher_for(console: Console, models: list[str]) -> Watcher:
    """The bar where the console is a terminal that can draw one, else lines."""
    if console.is_terminal and not console.is_dumb_terminal:
        return Bar(console, models)
    return Lines(console.file, models)
