"""``python -m models``: the main job, from training to the table and the report."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from rich.console import Console

from models import all_models
from models.data import load
from models.environment import environment
from models.job import Budget, run_model
from models.progress import watcher_for
from models.report import write_report
from models.result import JobResult
from models.table import WIDTH, marks_for, render

REPORT = "report.html"


def main(arguments: Sequence[str] | None = None, *, budget: Budget | None = None) -> int:
    """Runs the job; returns the exit status: 0 passed, 1 something is not as it must be, 2 bad usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"--out {options.out}: {error.strerror}; it must be a folder that can be written", file=sys.stderr)
        return 2
    console = _console(sys.stderr if options.json else sys.stdout)
    job = _run(options, shlex.join(["python", "-m", "models", *given]), console, budget or Budget())
    report = options.out / REPORT
    write_report(job, report)
    if options.json:
        print(json.dumps(job.to_json(), indent=2))
    else:
        console.print()
        console.print(render(job, marks_for(console)), soft_wrap=True)
        console.print(
            f"models and report: {options.out} (open {report})", markup=False, highlight=False, soft_wrap=True
        )
    return job.exit_status


def _run(options: argparse.Namespace, command: str, console: Console, budget: Budget) -> JobResult:
    names = list(options.models)
    start = time.perf_counter()
    watcher = watcher_for(console, names)
    try:
        results = [
            run_model(model, load(raw=model.raw_pixels), options.out, watcher, budget, debug=options.debug)
            for model in (all_models()[name] for name in names)
        ]
    finally:
        watcher.close()
    return JobResult(tuple(results), environment(), command, time.perf_counter() - start)


def _parser() -> argparse.ArgumentParser:
    names = list(all_models())
    parser = argparse.ArgumentParser(
        prog="python -m models",
        description="Train the reference models, export them to ONNX, optimize, run and check them, and report.",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for models and report (default: out)")
    parser.add_argument(
        "--models", nargs="+", choices=names, default=names, metavar="NAME", help=f"which ones: {', '.join(names)}"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of the table")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a step that fails")
    return parser


def _console(stream: IO[str]) -> Console:
    """Whether it is a terminal is the stream's own word: a log must not get control characters, whatever is set."""
    terminal = stream.isatty()
    return Console(file=stream, force_terminal=terminal, no_color=not terminal, width=None if terminal else WIDTH)


if __name__ == "__main__":
    raise SystemExit(main())
