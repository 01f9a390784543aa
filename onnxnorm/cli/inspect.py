"""onnxnorm inspect: list the normalizations of a model and what could be done to each.

Nothing is written. Example: onnxnorm inspect model.onnx --explain
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from onnxnorm.cli._common import print_json, print_table
from onnxnorm.cli._progress import progress

if TYPE_CHECKING:
    from onnxnorm.passes.survey import Share, Survey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and what the rewrite would be for."""
    parser.add_argument("model", help="the .onnx file")
    parser.add_argument("--target", default="onnxnorm", help="onnxnorm (custom ops with function bodies) or standard")
    parser.add_argument("--provider", default="cpu", help="what lowering is tuned for: cpu or cuda")
    parser.add_argument("--disable", action="append", default=[], metavar="RULE", help="leave a rule out; repeatable")
    parser.add_argument("--explain", action="store_true", help="one line for each normalization in place of the table")


def run(arguments: argparse.Namespace) -> int:
    """Optimizes in memory and shows what came of each normalization."""
    from onnxnorm.passes.survey import survey

    options = {name: getattr(arguments, name) for name in ("target", "provider", "disable")}
    with progress(arguments.model):
        found = survey(arguments.model, **options)
    if arguments.json:
        print_json({"model": arguments.model, **found.to_json()})
        return 0
    if not found.decisions:
        print(f"{arguments.model}: no normalization found ({found.headline})")
        return 0
    if arguments.explain:
        print("\n".join(map(str, found.decisions)))
    else:
        _print_groups(arguments.model, found)
    print(_totals(found))
    return 0


def _print_groups(title: str, found: Survey) -> None:
    rows = [
        (item.op, f"{item.count:,}", item.action.value, item.becomes or "", item.rule or "", item.why or item.example)
        for item in found.groups
    ]
    columns = ("normalization", "count", "would be", "as or in", "by", "why, or the first one")
    print_table(f"{title}: {found.headline}", columns, rows, right=("count",))


def _totals(found: Survey) -> str:
    """The last lines: how many of each kind, and what they are of the model."""
    counts = ", ".join(f"{count:,} {action}" for action, count in found.actions.items())
    saved = found.nodes.total - found.nodes_after
    change = f"{abs(saved):,} {'fewer' if saved >= 0 else 'more'}" if saved else "as many"
    return (
        f"{len(found.decisions):,} in all: {counts}\n"
        f"they are {_share(found.nodes)} nodes, hold {_share(found.parameters)} parameters, "
        f"make {_share(found.elements)} elements\n"
        f"after it the model has {found.nodes_after:,} nodes, {change}"
    )


def _share(part: Share) -> str:
    return f"{part.norms:,} of {part.total:,} ({100 * part.fraction:.2g} %)"
