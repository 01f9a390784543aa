"""What several commands share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from onnxnorm.errors import UsageError


def add_rewrite_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of export and optimize."""
    parser.add_argument("--target", default="onnxnorm", help="onnxnorm (custom ops with function bodies) or standard")
    parser.add_argument("--provider", default="cpu", help="what lowering is tuned for: cpu or cuda")
    parser.add_argument("--disable", action="append", default=[], metavar="RULE", help="leave a rule out; repeatable")
    parser.add_argument("--verify", action="store_true", help="run each rewrite's before and after in float64")
    parser.add_argument("--explain", action="store_true", help="print what was done to each normalization, and why")
    parser.add_argument("--external-data", metavar="NAME", help="write the weights to this file beside the model")


def print_json(value: Any) -> None:
    """Prints a value as indented JSON."""
    print(json.dumps(value, indent=2, default=str))


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()
) -> None:
    """Prints a table that fits the terminal; numbers in the columns ``right``."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 160))
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name in right else "left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)


def parse_pairs(items: Sequence[str], what: str) -> dict[str, str]:
    """``NAME=VALUE`` items as a dictionary; an item without a name gets the name ''."""
    pairs: dict[str, str] = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator:
            name, value = "", item
        if name in pairs:
            raise UsageError(f"--{what} {name or item} is given twice")
        pairs[name] = value
    return pairs
