"""The form of nodes: what a rule may rely on, which neither protobuf nor onnx_ir asks for."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import onnx.defs
import onnx_ir as ir

from onnxnorm.errors import ModelError
from onnxnorm.passes.graph import STANDARD, all_graphs, node_name


def check_form(model: ir.Model) -> None:
    """ModelError unless each standard node has the inputs, outputs and attributes of its operator."""
    for graph, opset, _ in all_graphs(model):
        for node in graph:
            form = None if node.domain not in STANDARD or opset is None else _form(node.op_type, opset)
            problem = None if form is None else _problem(node, form)
            if problem is not None:
                raise ModelError(f"node {node_name(node)!r} ({node.op_type}, opset {opset}) {problem}")


@dataclass(frozen=True)
class _Form:
    """What the nodes of an operator have: bounds of counts, inputs that must be there by index, attributes."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    single: tuple[tuple[int, str], ...]
    attributes: tuple[tuple[str, bool, str], ...]  #: name, whether it must be there, kind


@functools.cache
def _form(op_type: str, opset: int) -> _Form | None:
    """None for an operator that the opset has not. To ask onnx.defs for each node takes longer than the rest."""
    if not onnx.defs.has(op_type, opset, ""):
        return None
    schema = onnx.defs.get_schema(op_type, opset, "")
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return _Form(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        tuple((index, item.name) for index, item in enumerate(schema.inputs) if item.option == single),
        tuple((name, item.required, str(item.type).rsplit(".", 1)[-1]) for name, item in schema.attributes.items()),
    )


def _problem(node: ir.Node, form: _Form) -> str | None:
    count = len(node.inputs)
    if not form.inputs[0] <= count <= form.inputs[1]:
        return f"has {count} inputs; the operator takes {_range(*form.inputs)}"
    if not form.outputs[0] <= len(node.outputs) <= form.outputs[1]:
        return f"has {len(node.outputs)} outputs; the operator has {_range(*form.outputs)}"
    for index, parameter in form.single:
        if index < count and node.inputs[index] is None:
            return f"lacks its input {parameter}"
    for name, required, kind in form.attributes:
        found = node.attributes.get(name)
        if found is None and required:
            return f"lacks its attribute {name}"
        if found is not None and found.type.name != kind:
            return f"has an attribute {name} of the kind {found.type.name.lower()}; it is {kind.lower()}"
    return None


def _range(low: int, high: int) -> str:
    if low == high:
        return str(low)
    return f"{low} to {high}" if high < 2**31 - 1 else f"{low} or more"
