"""Makes the nodes of one onnxnorm op agree on their optional outputs, since they share one function body.

ONNX Runtime loads no node that has fewer outputs than its function, and an empty name at the end of a node's outputs is
lost when onnx_ir writes the file. So an output that no node of the op needs goes, from the nodes and from the body; one
that some need gets a name on the others too.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.graph import all_names


def settle_outputs(model: ir.Model, nodes: Sequence[ir.Node]) -> dict[str, int]:
    """Brings the nodes of each op to the same number of outputs, and returns that number by op name."""
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.op_type] = max(counts.get(node.op_type, 1), _needed(node))
    for node in nodes:
        if len(node.outputs) != counts[node.op_type]:
            node.resize_outputs(counts[node.op_type])
    unnamed = [node for node in nodes if not all(value.name for value in node.outputs)]
    taken = all_names(model) if unnamed else set()
    for node in unnamed:
        _name_outputs(node, taken)
    return counts


def _needed(node: ir.Node) -> int:
    """Up to the last output that is required or read."""
    required = sum(not item.optional for item in all_specs()[node.op_type].outputs)
    read = [index for index, value in enumerate(node.outputs, start=1) if value.uses() or value.is_graph_output()]
    return max(required if required <= len(node.outputs) else len(node.outputs), *read, 1)


def _name_outputs(node: ir.Node, taken: set[str]) -> None:
    """Names what has none, after the first output; optional outputs have X's type and shape."""
    x = node.inputs[0]
    for value, item in zip(node.outputs, all_specs()[node.op_type].outputs, strict=False):
        if value.name:
            continue
        name, count = f"{node.outputs[0].name}_{item.name}", 0
        while name in taken:
            count += 1
            name = f"{node.outputs[0].name}_{item.name}_{count}"
        taken.add(name)
        value.name = name
        if item.shape == "X" and x is not None:
            value.type, value.shape = x.type, x.shape
