"""onnxnorm bench: verify and time the norms, or whole models, against ONNX Runtime, PyTorch and a plain copy.

Without a file it measures ops: every inference op of onnxnorm at a list of shapes, or what --op, --shape, --dtype and
--activation choose. Each candidate is compared with the float64 reference before it is timed; the candidates take
turns; the best of several repeats counts.
Example: onnxnorm bench --op GroupNorm --shape 1x320x64x64 --activation silu
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxnorm.cli._common import print_json
from onnxnorm.errors import UsageError

if TYPE_CHECKING:
    from onnxnorm.bench import Protocol


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, how long, and where the result goes."""
    ops = parser.add_argument_group("which ops")
    ops.add_argument("--op", action="append", default=[], help="an op such as GroupNorm; repeatable; all by default")
    ops.add_argument("--shape", action="append", default=[], help="of X, such as 1x320x64x64; repeatable")
    ops.add_argument("--dtype", action="append", default=[], help="float32 (default), float16, bfloat16, float64")
    ops.add_argument("--activation", action="append", default=[], help="none, relu, silu, gelu or all; repeatable")
    ops.add_argument("--groups", type=int, help="groups of GroupNorm and its kin at the shapes given; 32 by default")
    ops.add_argument("--axes", help="axes of LayerNorm and its kin, such as -1 or 1,2,3; -1 up to rank 3, else 1")
    ops.add_argument("--channels-last", action="store_true", help="X is (N, *, C)")
    how = parser.add_argument_group("how")
    how.add_argument("--threads", type=int, help="within one operator; 2 by default")
    how.add_argument("--provider", default="cpu", help="cpu or cuda")
    how.add_argument("--repeats", type=int, help="of the interleaved loop, the best of which counts; 3 by default")
    how.add_argument("--seconds", type=float, help="of timed calls of each candidate in each repeat; 0.2 by default")
    how.add_argument("--quick", action="store_true", help="few shapes, short measurement: for a first look")
    how.add_argument("--only", action="append", default=[], metavar="KEY", help="measure these candidates alone")
    how.add_argument("--without", action="append", default=[], metavar="KEY", help="leave a candidate out")
    how.add_argument("--compile-seconds", type=float, default=60.0, help="what torch.compile may take for a case; 60")
    where = parser.add_argument_group("where the result goes")
    where.add_argument("--save", metavar="FILE.json", help="write the result as JSON to this file")


def run(arguments: argparse.Namespace) -> int:
    """Measures ops."""
    from onnxnorm.bench import default_cases, run_cases
    from onnxnorm.bench.table import case_table, console, header

    cases = default_cases(
        arguments.op,
        shapes=[_shape(text) for text in arguments.shape],
        dtypes=arguments.dtype,
        activations=_activations(arguments.activation),
        groups=arguments.groups,
        axes=_axes(arguments.axes),
        channels_last=arguments.channels_last,
        quick=arguments.quick,
    )
    screen = console()
    report = run_cases(
        cases,
        threads=arguments.threads,
        provider=arguments.provider,
        protocol=_protocol(arguments),
        only=arguments.only,
        without=arguments.without,
        compile_seconds=arguments.compile_seconds,
        started=lambda machine: None if arguments.json else screen.print(header(machine)),
        progress=lambda result: None if arguments.json else screen.print(case_table(result, screen.width)),
    )
    _write(report.to_json(), arguments)
    return 0 if report.passed else 1


def _write(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(result)
    if arguments.save:
        path = Path(arguments.save)
        if not path.parent.is_dir():
            raise UsageError(f"{path.parent} is no folder; make it before writing {path.name}")
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _protocol(arguments: argparse.Namespace) -> Protocol:
    from dataclasses import replace

    from onnxnorm.bench import QUICK, Protocol

    base = QUICK if arguments.quick else Protocol()
    for name, least in (("repeats", 1), ("seconds", 0.001), ("threads", 1), ("compile_seconds", 0.001)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    return replace(
        base,
        repeats=base.repeats if arguments.repeats is None else arguments.repeats,
        seconds=base.seconds if arguments.seconds is None else arguments.seconds,
    )


def _activations(wanted: list[str]) -> list[str]:
    from onnxnorm.spec.record import ACTIVATIONS

    return list(ACTIVATIONS) if "all" in wanted else wanted


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split("x"))
    except ValueError:
        raise UsageError(f"--shape {text}: {text!r} is no shape; write one such as 1x320x64x64") from None


def _axes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(axis) for axis in text.split(","))
    except ValueError:
        raise UsageError(f"--axes {text}: axes are numbers such as -1 or 1,2,3") from None
