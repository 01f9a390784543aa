"""onnxnorm inspect: list the normalizations of a model and what could be done to each.

Nothing is written. Example: onnxnorm inspect model.onnx
"""

from __future__ import annotations

import argparse

from onnxnorm.cli._common import print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model."""
    parser.add_argument("model", help="the .onnx file")


def run(arguments: argparse.Namespace) -> int:
    """Optimizes in memory and shows the decisions."""
    from onnxnorm.passes.pipeline import optimize

    decisions = optimize(arguments.model).decisions
    if arguments.json:
        print_json({"model": arguments.model, "normalizations": [item.to_json() for item in decisions]})
        return 0
    if not decisions:
        print(f"{arguments.model}: no normalization found")
        return 0
    rows = [
        (
            item.module or "",
            item.op,
            item.node,
            item.action.value,
            item.rule or "",
            item.reason or ", ".join(f"{name} = {value}" for name, value in item.values.items()),
        )
        for item in decisions
    ]
    print_table(arguments.model, ("module", "operator", "node", "would be", "rule", "why"), rows)
    return 0
