"""onnxnorm ops: list the ops of the domain onnxnorm and the kernels that this installation has for them."""

from __future__ import annotations

import argparse
from typing import Any

from onnxnorm.cli._common import print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing to choose."""


def run(arguments: argparse.Namespace) -> int:
    """Shows specs beside the native library's own table."""
    from onnxnorm.norms import all_specs
    from onnxnorm.runtime.library import has_library, library_path, op_table

    table: dict[str, Any] = op_table(library_path()) if has_library() else {"ops": []}
    kernels = {item["name"]: item for item in table["ops"]}
    records = [
        {
            "name": spec.name,
            "inputs": [item.name for item in spec.inputs],
            "outputs": [item.name for item in spec.outputs],
            "attributes": [item.name for item in spec.attributes],
            "native": spec.native,
            "cpu": kernels.get(spec.name, {}).get("dtypes", []),
            "summary": spec.summary,
            "citation": spec.citation,
        }
        for spec in all_specs().values()
    ]
    if arguments.json:
        print_json({"library": {key: value for key, value in table.items() if key != "ops"}, "ops": records})
        return 0
    rows = [
        (
            item["name"],
            ", ".join(item["inputs"]),
            ", ".join(item["attributes"]),
            ", ".join(item["cpu"]) or ("none here: function body" if item["native"] else "function body"),
        )
        for item in records
    ]
    print_table("onnxnorm ops, version 1", ("op", "inputs", "attributes", "CPU kernels"), rows)
    return 0
