"""onnxnorm optimize: fold and fuse the normalizations of an ONNX file.

Example: onnxnorm optimize model.onnx -o fast.onnx --explain
"""

from __future__ import annotations

import argparse

from onnxnorm.cli._common import add_rewrite_arguments, print_json
from onnxnorm.cli._progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Input, output and what the rewrite may do."""
    parser.add_argument("model", help="the .onnx file to read")
    parser.add_argument("-o", "--output", required=True, help="the .onnx file to write")
    add_rewrite_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Optimizes and writes."""
    from onnxnorm.passes.pipeline import Result, optimize

    with progress(arguments.model):
        result: Result = optimize(
            arguments.model,
            target=arguments.target,
            provider=arguments.provider,
            disable=arguments.disable,
            verify=arguments.verify,
        )
        data = result.save(arguments.output, arguments.external_data)
    report(result, arguments)
    if data is not None and arguments.external_data is None and not arguments.json:
        print(f"{data}: the weights, which one file of ONNX cannot hold; keep both files together")
    return 0


def report(result: object, arguments: argparse.Namespace) -> None:
    """Prints what was done."""
    from onnxnorm.passes.pipeline import Result

    assert isinstance(result, Result)
    if arguments.json:
        decisions = [item.to_json() for item in result.decisions]
        print_json({"output": arguments.output, "decisions": decisions, "state": result.state})
        return
    if arguments.explain:
        print(result.explain())
    counts: dict[str, int] = {}
    for item in result.decisions:
        counts[item.action.value] = counts.get(item.action.value, 0) + 1
    summary = ", ".join(f"{count} {action}" for action, count in counts.items()) or "no normalization found"
    state = f"; {len(result.state)} state tensors, each fed back from next.<name>" if result.state else ""
    print(f"{arguments.output}: {summary}{state}")
