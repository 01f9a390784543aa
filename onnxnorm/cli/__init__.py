"""The command ``onnxnorm``. One file of this folder holds one command; they are found by looking.

Exit status: 0 fine, 1 a mismatch or a failed check, 2 bad usage or input. A user's mistake gives one line on standard
error that names the file, node or value and what would be right; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence

from onnxnorm.errors import EXTRAS, OnnxnormError, one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return _fail(arguments, "interrupted", status=130)
    except BrokenPipeError:  # the reader, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OnnxnormError as error:
        return _fail(arguments, str(error))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        text = f"this command needs {error.name}: pip install '{extra}'" if extra else str(error)
        return _fail(arguments, text)
    except OSError as error:
        return _fail(arguments, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Exception as error:
        text = one_line(error)
        return _fail(arguments, f"{type(error).__name__}: {text} (unexpected; --debug shows where)")


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command of this folder."""
    parser = argparse.ArgumentParser(
        prog="onnxnorm",
        description="Export, optimize, run and check the normalization layers of trained models in ONNX.",
        epilog="Exit status: 0 fine, 1 a mismatch or a failed check, 2 bad usage or input.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for info in pkgutil.iter_modules(__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{info.name}")
        summary = (module.__doc__ or "").strip().splitlines()[0]
        summary = summary.split(": ", 1)[-1]
        command = commands.add_parser(info.name, help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=module.run)
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"onnxnorm {version('onnxnorm')}"
    except PackageNotFoundError:
        return "onnxnorm (not installed)"


def _fail(arguments: argparse.Namespace, text: str, status: int = 2) -> int:
    if arguments.debug:
        traceback.print_exc()
    if arguments.json:
        print(json.dumps({"error": text}))
    print(f"onnxnorm: error: {text}", file=sys.stderr)
    return status
