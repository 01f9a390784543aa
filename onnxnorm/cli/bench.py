"""onnxnorm bench: verify and time the norms, or whole models, against ONNX Runtime, PyTorch and a plain copy.

Without a file it measures ops: every inference op of onnxnorm at a list of shapes, or what --op, --shape, --dtype and
--activation choose. Each candidate is compared with the float64 reference before it is timed; the candidates take
turns; the best of several repeats counts.

With one ONNX file it measures the file as it is and as onnxnorm optimizes it, with several files each as it is, and
tells by ONNX Runtime's profile which operators take the time.
Example: onnxnorm bench --op GroupNorm --shape 1x320x64x64 --activation silu
Example: onnxnorm bench model.onnx --dim batch=1
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxnorm.cli._common import parse_pairs, print_json
from onnxnorm.errors import UsageError

if TYPE_CHECKING:
    from onnxnorm.bench import ModelsReport, OpsReport, Protocol


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, how long, and where the result goes."""
    parser.add_argument("model", nargs="*", help="ONNX files: one, as it is and optimized; several, as they are")
    whole = parser.add_argument_group("inputs of whole models")
    whole.add_argument("--inputs", metavar="FILE.npz", help="an array for each input, by name; random ones without it")
    whole.add_argument("--dim", action="append", default=[], metavar="NAME=SIZE", help="size of a dynamic dimension")
    ops = parser.add_argument_group("which ops, without a model")
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
    how.add_argument("--seconds", type=float, help="of timed calls of each candidate in each repeat; 0.15, models 0.6")
    how.add_argument("--quick", action="store_true", help="few shapes, short measurement: for a first look")
    how.add_argument("--only", action="append", default=[], metavar="KEY", help="measure these candidates alone")
    how.add_argument("--without", action="append", default=[], metavar="KEY", help="leave a candidate out")
    how.add_argument("--compile-seconds", type=float, default=60.0, help="what torch.compile may take for a case; 60")
    where = parser.add_argument_group("where the result goes")
    where.add_argument("--save", metavar="FILE.json", help="write the result as JSON to this file")
    where.add_argument("--plot", metavar="FILE", help="draw it as PNG or SVG, by the file's name")
    where.add_argument("--html", metavar="FILE.html", help="write a report with charts: one file, for any browser")


def run(arguments: argparse.Namespace) -> int:
    """Measures models where there are any, else ops."""
    _check_outputs(arguments)
    report = _models(arguments) if arguments.model else _ops(arguments)
    _write(report, arguments)
    return 0 if report.passed else 1


def _check_outputs(arguments: argparse.Namespace) -> None:
    """What cannot be written must be told before anything is measured."""
    for name in ("save", "plot", "html"):
        path = getattr(arguments, name)
        if path and not Path(path).parent.is_dir():
            raise UsageError(f"--{name} {path}: {Path(path).parent} is no folder; make it first")
    if arguments.plot:
        from onnxnorm.bench.chart import check_plot_path

        check_plot_path(arguments.plot)
    if arguments.html:
        from onnxnorm.bench.report import check_report_path

        check_report_path(arguments.html)


def _ops(arguments: argparse.Namespace) -> OpsReport:
    from onnxnorm.bench import default_cases, run_cases
    from onnxnorm.bench.table import case_table, console, header

    _refuse(arguments, ("inputs", "dim"), "is for whole models; name an ONNX file")
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

    def started(machine: dict[str, Any]) -> None:
        if not arguments.json:
            screen.print(header(machine))
            screen.print(
                f"{len(cases)} cases, of some 20 seconds each unless told otherwise\n" if len(cases) > 3 else ""
            )

    return run_cases(
        cases,
        threads=arguments.threads,
        provider=arguments.provider,
        protocol=_protocol(arguments),
        only=arguments.only,
        without=arguments.without,
        compile_seconds=arguments.compile_seconds,
        started=started,
        progress=lambda result: None if arguments.json else screen.print(case_table(result, screen.width)),
    )


def _models(arguments: argparse.Namespace) -> ModelsReport:
    from onnxnorm.bench import bench_models
    from onnxnorm.bench.model_table import models_table
    from onnxnorm.bench.table import console, header

    names = ("op", "shape", "dtype", "activation", "groups", "axes", "channels_last", "only", "without")
    _refuse(arguments, names, "is for ops; it does not go with a model")
    screen = console()
    report = bench_models(
        arguments.model,
        inputs=arguments.inputs,
        dims={name: _size(name, text) for name, text in parse_pairs(arguments.dim, "dim").items()},
        threads=arguments.threads,
        provider=arguments.provider,
        protocol=_protocol(arguments),
        started=lambda machine: None if arguments.json else screen.print(header(machine)),
    )
    if not arguments.json:
        screen.print(models_table(report))
    return report


def _refuse(arguments: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(arguments, name):
            raise UsageError(f"--{name.replace('_', '-')} {why}")


def _size(name: str, text: str) -> int:
    if not name or not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--dim {name}={text}: a dimension is NAME=SIZE, such as batch=1")
    return int(text)


def _write(report: OpsReport | ModelsReport, arguments: argparse.Namespace) -> None:
    result = report.to_json()
    if arguments.json:
        print_json(result)
    if arguments.save:
        Path(arguments.save).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        from onnxnorm.bench.chart import save_plot

        save_plot(report, arguments.plot)
    if arguments.html:
        from onnxnorm.bench.report import save_report

        save_report(report, arguments.html, shlex.join(["onnxnorm", *sys.argv[1:]]))
    for path in (arguments.save, arguments.plot, arguments.html):
        if path and not arguments.json:
            print(f"written to {path}")


def _protocol(arguments: argparse.Namespace) -> Protocol:
    from dataclasses import replace

    from onnxnorm.bench import MODELS, QUICK, Protocol

    base = QUICK if arguments.quick else MODELS if arguments.model else Protocol()
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
