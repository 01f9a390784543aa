"""Attaches to a model the function bodies of the onnxnorm ops that it uses, for the opset that it has."""

from __future__ import annotations

import onnx_ir as ir

from onnxnorm.errors import ModelError
from onnxnorm.norms import all_specs
from onnxnorm.passes.graph import all_graphs, node_name
from onnxnorm.spec.body import MIN_OPSET, function_body
from onnxnorm.spec.record import DOMAIN, VERSION, NormValueError

#: For a node whose element type is not known: the body must then serve all.
_ANY = (ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def attach_function_bodies(model: ir.Model) -> None:
    """Makes the bodies anew: they depend on the model's opset and on the element types that meet them.

    Raises:
        ModelError: an onnxnorm op that this version does not know, attributes or shapes that do not fit, or an opset
            older than 15.

    """
    for key in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[key]
    elements: dict[str, dict[ir.DataType, None]] = {}
    for graph, _, in_function in all_graphs(model):
        for node in graph:
            if node.domain != DOMAIN:
                continue
            check_node(node)
            dtype = node.inputs[0].dtype if node.inputs[0] is not None and not in_function else None
            found = elements.setdefault(node.op_type, {})
            found.update(dict.fromkeys(_ANY if dtype is None else (dtype,)))
    if not elements:
        model.opset_imports.pop(DOMAIN, None)
        return
    opset = model.opset_imports.get("", 0)
    if opset < MIN_OPSET:
        raise ModelError(f"onnxnorm ops need a model of opset {MIN_OPSET} or newer; this one has {opset}")
    model.opset_imports[DOMAIN] = VERSION
    for name, found in sorted(elements.items()):
        function = function_body(all_specs()[name], opset, tuple(found))
        model.functions[function.identifier()] = function
    for function in model.functions.values():
        if any(node.domain == DOMAIN for node in function):
            function.opset_imports[DOMAIN] = VERSION


def check_node(node: ir.Node) -> None:
    """ModelError unless an onnxnorm node is one that its norm allows."""
    spec = all_specs().get(node.op_type)
    where = f"node {node_name(node)!r} ({DOMAIN}.{node.op_type})"
    if spec is None:
        known = ", ".join(all_specs())
        raise ModelError(f"{where}: this version of onnxnorm has no such op; it has {known}")
    shapes = [
        None if value is None or value.shape is None else [d if isinstance(d, int) else None for d in value.shape]
        for value in node.inputs
    ]
    attributes = {name: item.value for name, item in node.attributes.items() if not item.is_ref()}
    if any(item.is_ref() for item in node.attributes.values()):
        return
    try:
        spec.validate(shapes, attributes)
    except NormValueError as error:
        raise ModelError(f"{where}: {error}") from None
