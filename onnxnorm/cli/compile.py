"""onnxnorm compile: rewrite a model for the CPU of this machine, with the norms in ONNX Runtime's blocked layout.

The file is for this CPU alone, and for onnxnorm.InferenceSession; keep the one that it is made from.
Example: onnxnorm compile model.onnx -o model.compiled.onnx --explain
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from onnxnorm.cli._common import parse_pairs, print_json
from onnxnorm.errors import UsageError

if TYPE_CHECKING:
    from onnxnorm.compilation.compile import Compiled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Input, output, and how the result is compared."""
    parser.add_argument("model", help="the .onnx file to read; it is optimized first")
    parser.add_argument("-o", "--output", required=True, help="the .onnx file to write")
    parser.add_argument("--disable", action="append", default=[], metavar="RULE", help="leave a rule out; repeatable")
    parser.add_argument("--explain", action="store_true", help="print what was done to each normalization, and why")
    parser.add_argument("--external-data", metavar="NAME", help="write the weights to this file beside the model")
    compared = parser.add_argument_group("the comparison of the results before and after")
    compared.add_argument("--no-verify", action="store_true", help="leave it out")
    compared.add_argument("--inputs", metavar="FILE.npz", help="an array for each input, by name; random ones without")
    compared.add_argument("--dim", action="append", default=[], metavar="NAME=SIZE", help="size of a dynamic dimension")


def run(arguments: argparse.Namespace) -> int:
    """Compiles and writes; where there is nothing to gain it writes the optimized model, and says so."""
    from onnxnorm.compilation.compile import compile

    result = compile(
        arguments.model,
        disable=arguments.disable,
        verify=not arguments.no_verify,
        dims=_sizes(arguments.dim),
        inputs=arguments.inputs,
    )
    result.save(arguments.output, arguments.external_data)
    _report(result, arguments)
    return 0


def _sizes(items: list[str]) -> dict[str, int]:
    """``NAME=SIZE`` items."""
    sizes = {}
    for name, text in parse_pairs(items, "dim").items():
        if not name or not text.isdecimal() or int(text) < 1:
            raise UsageError(f"--dim {name}={text}: write NAME=SIZE with a size of at least 1")
        sizes[name] = int(text)
    return sizes


def _report(result: Compiled, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(
            {
                "output": arguments.output,
                "compiled": result.gained,
                "reason": result.reason,
                "machine": {"cpu": result.machine.cpu, "block": result.machine.block},
                "onnxruntime": result.machine.onnxruntime,
                "reorders": {"before": result.reorders[0], "after": result.reorders[1]},
                "distance": result.distance,
                "decisions": [item.to_json() for item in result.decisions],
            }
        )
        return
    if arguments.explain:
        print(result.explain())
    if not result.gained:
        print(f"{arguments.output}: nothing to gain here, so it is the optimized model: {result.reason}")
        return
    count = sum(item.into is not None for item in result.decisions)
    compared = "not compared" if result.distance is None else f"outputs agree within {result.distance:.2g}"
    print(
        f"{arguments.output}: {count} norms in blocks of {result.machine.block} channels, {result.reorders[1]} changes "
        f"of the layout where there were {result.reorders[0]}; {compared}; for {result.machine.cpu}"
    )
