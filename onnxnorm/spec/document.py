"""The README's tables of ops and of the catalogue: ``python -m onnxnorm.spec.document``."""

from __future__ import annotations

from onnxnorm.norms import all_specs
from onnxnorm.spec.blocked import PREFIX
from onnxnorm.spec.catalogue import catalogue_table


def ops_table() -> str:
    """A Markdown table with one row for each norm; the blocked forms, which ``compile`` alone makes, go without."""
    lines = ["| op | inputs | attributes | computes | source |", "|---|---|---|---|---|"]
    for spec in all_specs().values():
        if spec.name.startswith(PREFIX):
            continue
        inputs = ", ".join(item.name for item in spec.inputs)
        attributes = ", ".join(item.name for item in spec.attributes)
        lines.append(f"| {spec.name} | {inputs} | {attributes} | {spec.summary} | {spec.citation} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(catalogue_table(), ops_table(), sep="\n\n")
