"""Attaches to a model the function bodies of the onnxnorm ops that it uses, for the opset that it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxnorm.errors import ModelError
from onnxnorm.norms import all_specs
from onnxnorm.passes.graph import all_graphs, has_references, node_name
from onnxnorm.passes.lower.optional_outputs import settle_outputs
from onnxnorm.spec.body import MIN_OPSET, function_body
from onnxnorm.spec.record import ACTIVATIONS, DOMAIN, VERSION, NormSpec, NormValueError
from onnxnorm.version import WRITER_KEY, installed_version

#: For a node whose element type is not known: the body must then serve all.
ANY_ELEMENT = (ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
#: Model-local functions came with this IR version.
_FUNCTIONS_SINCE = 8
_ACTIVATION_KEYS = ("activation", "input_activation")
_KINDS = {
    "int": ir.AttributeType.INT,
    "float": ir.AttributeType.FLOAT,
    "string": ir.AttributeType.STRING,
    "ints": ir.AttributeType.INTS,
}


def attach_function_bodies(model: ir.Model) -> None:
    """Makes the bodies anew: they depend on the model's opset and on the element types that meet them.

    Raises:
        ModelError: an onnxnorm op that this version does not know, attributes or shapes that do not fit, or an opset
            older than 15.

    """
    for key in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[key]
    check_nodes(model)
    elements: dict[str, dict[ir.DataType, None]] = {}
    callers: list[ir.Function] = [function for function in model.functions.values() if _uses_onnxnorm(function)]
    found_nodes = list(_onnxnorm_nodes(model))
    counts = settle_outputs(model, [node for node, _ in found_nodes])
    for node, in_function in found_nodes:
        dtype = node.inputs[0].dtype if node.inputs[0] is not None and not in_function else None
        elements.setdefault(node.op_type, {}).update(dict.fromkeys(ANY_ELEMENT if dtype is None else (dtype,)))
    if not elements:
        model.opset_imports.pop(DOMAIN, None)
        model.metadata_props.pop(WRITER_KEY, None)
        return
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset < MIN_OPSET:
        raise ModelError(f"onnxnorm ops need a model of opset {MIN_OPSET} or newer; this one has {opset}")
    model.ir_version = max(model.ir_version, _FUNCTIONS_SINCE)
    model.opset_imports[DOMAIN] = VERSION
    model.metadata_props[WRITER_KEY] = installed_version()
    for name, found in sorted(elements.items()):
        nodes = [node for node, _ in found_nodes if node.op_type == name]
        body = function_body(all_specs()[name], opset, tuple(found), counts[name], _activations(model, nodes))
        model.functions[body.identifier()] = body
    for function in callers:
        function.opset_imports[DOMAIN] = VERSION


def _onnxnorm_nodes(model: ir.Model) -> Iterator[tuple[ir.Node, bool]]:
    """Each onnxnorm node of the model, and whether it stands in a function."""
    for graph, _, in_function in all_graphs(model):
        for node in graph:
            if node.domain == DOMAIN:
                yield node, in_function


def _activations(model: ir.Model, nodes: Sequence[ir.Node]) -> Sequence[str]:
    """The activations that the nodes' body must branch on: all, for who edits a node, or those that the nodes name.

    The latter where one of them stands in a branch or a loop: there ONNX Runtime 1.31 optimizes a body that branches
    into one that misses its input, if that is the result of such a body, too.
    """
    if all(node.graph is model.graph for node in nodes) or any(has_references(node) for node in nodes):
        return ACTIVATIONS
    named = {item.value for node in nodes for key, item in node.attributes.items() if key in _ACTIVATION_KEYS}
    return sorted(named) or ACTIVATIONS


def _uses_onnxnorm(function: ir.Function) -> bool:
    return any(node.domain == DOMAIN for node in function.all_nodes())


def check_nodes(model: ir.Model) -> None:
    """ModelError unless each onnxnorm node is one that its norm allows."""
    for node, _ in _onnxnorm_nodes(model):
        _check_node(node)


def _check_node(node: ir.Node) -> None:
    spec = all_specs().get(node.op_type)
    where = f"node {node_name(node)!r} ({DOMAIN}.{node.op_type})"
    if spec is None:
        known = ", ".join(all_specs())
        raise ModelError(f"{where}: this version of onnxnorm has no such op; it has {known}")
    if len(node.inputs) != len(spec.inputs) or any(value is None for value in node.inputs):
        raise ModelError(f"{where}: it needs {len(spec.inputs)} inputs: {', '.join(item.name for item in spec.inputs)}")
    if not 1 <= len(node.outputs) <= len(spec.outputs) or not node.outputs[0].name:
        names = ", ".join(item.name for item in spec.outputs)
        raise ModelError(
            f"{where}: it has {len(node.outputs)} outputs; {spec.name} has {names}, of which the first is used"
        )
    problem = _wrong_attribute(node, spec) or _wrong_type(node, spec)
    if problem is not None:
        raise ModelError(f"{where}: {problem}")
    if has_references(node):
        return  # each call of the function brings its own
    shapes = [
        None if value is None or value.shape is None else [d if isinstance(d, int) else None for d in value.shape]
        for value in node.inputs
    ]
    try:
        spec.validate(shapes, {name: item.value for name, item in node.attributes.items()})
    except NormValueError as error:
        raise ModelError(f"{where}: {error}") from None


def _wrong_attribute(node: ir.Node, spec: NormSpec) -> str | None:
    """An attribute that the op has not, or of another kind than it has."""
    kinds = {item.name: item.kind for item in spec.attributes}
    for name, item in node.attributes.items():
        if name not in kinds:
            return f"it has an attribute {name}; {spec.name} has {', '.join(kinds)}"
        if item.type != _KINDS[kinds[name]]:
            return f"attribute {name} is of the kind {item.type.name.lower()}; it must be {kinds[name]}"
    return None


def _wrong_type(node: ir.Node, spec: NormSpec) -> str | None:
    """An input of a type that the op has no kernel for, or of another type than X."""
    types = [None if value is None else value.dtype for value in node.inputs]
    for item, dtype in zip(spec.inputs, types, strict=True):
        if dtype is not None and dtype not in ANY_ELEMENT:
            return f"{item.name} is {dtype.name.lower()}; it must be one of {', '.join(spec.dtypes)}"
        if dtype is not None and types[0] is not None and dtype != types[0]:
            return f"{item.name} is {dtype.name.lower()}; it must have the type of X, {types[0].name.lower()}"
    return None
