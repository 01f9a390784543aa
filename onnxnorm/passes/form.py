"""The form of nodes: what a rule may rely on, which neither protobuf nor onnx_ir asks for."""

from __future__ import annotations

import onnx.defs
import onnx_ir as ir

from onnxnorm.errors import ModelError
from onnxnorm.passes.graph import STANDARD, all_graphs, node_name


def check_form(model: ir.Model) -> None:
    """ModelError unless each standard node has the inputs, outputs and attributes of its operator."""
    for graph, opset, _ in all_graphs(model):
        for node in graph:
            if node.domain not in STANDARD or opset is None or not onnx.defs.has(node.op_type, opset, ""):
                continue
            problem = _problem(node, onnx.defs.get_schema(node.op_type, opset, ""))
            if problem is not None:
                raise ModelError(f"node {node_name(node)!r} ({node.op_type}, opset {opset}) {problem}")


def _problem(node: ir.Node, schema: onnx.defs.OpSchema) -> str | None:
    count = len(node.inputs)
    if not schema.min_input <= count <= schema.max_input:
        return f"has {count} inputs; the operator takes {_range(schema.min_input, schema.max_input)}"
    if not schema.min_output <= len(node.outputs) <= schema.max_output:
        wanted = _range(schema.min_output, schema.max_output)
        return f"has {len(node.outputs)} outputs; the operator has {wanted}"
    for value, parameter in zip(node.inputs, schema.inputs, strict=False):
        if value is None and parameter.option == onnx.defs.OpSchema.FormalParameterOption.Single:
            return f"lacks its input {parameter.name}"
    for name, item in schema.attributes.items():
        found = node.attributes.get(name)
        if found is None and item.required:
            return f"lacks its attribute {name}"
        kind = str(item.type).rsplit(".", 1)[-1]
        if found is not None and found.type.name != kind:
            return f"has an attribute {name} of the kind {found.type.name.lower()}; it is {kind.lower()}"
    return None


def _range(low: int, high: int) -> str:
    if low == high:
        return str(low)
    return f"{low} to {high}" if high < 2**31 - 1 else f"{low} or more"
