"""Computes what depends on constants only, and makes initializers of Constant nodes.

Left as it is: what reads an initializer that a caller may override or an attribute of the function that it stands in,
graph outputs, what ``evaluate`` does not know, and large tensors unless only their layout or type changes, to none
larger, and nothing else reads them (so that a model never grows). Arithmetic that makes the weight of a layer is left
to the rule fold/constant-weight, which rounds once and says what it did.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.canonicalize.chains import Chains
from onnxnorm.passes.canonicalize.evaluate import KNOWN, LAYERS, LAYOUT, Array, cast, evaluate
from onnxnorm.passes.canonicalize.exact import NotComputed, split_parts
from onnxnorm.passes.canonicalize.selected_sizes import selected_sizes
from onnxnorm.passes.graph import (
    STANDARD,
    all_graphs,
    attribute,
    constant_tensor,
    has_references,
    holds_initializers,
    is_op,
    sole_consumer,
)
from onnxnorm.passes.large import Room

#: Tensors of more elements are large.
_SMALL = 8192
_COMPUTED = (KNOWN - LAYERS) | {"CastLike", "Shape"}


def fold_constants(model: ir.Model) -> bool:
    """Replaces nodes by what they compute, in every graph; whether there was one."""
    chains, room, found = Chains(), Room(), False
    for graph, opset, in_function in all_graphs(model):
        as_initializer = holds_initializers(model, in_function)
        for node in list(graph):
            results = _constant_results(node, opset or 0, chains)
            if results is None:
                continue
            for old, result in zip(node.outputs, results, strict=True):
                if old.uses():
                    array = room.settle(result)
                    new = _initializer(old, array, graph) if as_initializer else _constant_node(old, array, graph, node)
                    old.replace_all_uses_with(new)
            graph.remove(node, safe=True)
            found = True
    return found


def _constant_results(node: ir.Node, opset: int, chains: Chains) -> list[Array] | None:
    if is_op(node, "Split"):
        return _parts(node, opset, chains)
    result = _constant_result(node, opset, chains)
    return None if result is None else [result]


def _parts(node: ir.Node, opset: int, chains: Chains) -> list[Array] | None:
    """The parts of a small constant: how weights that are taken one by one are exported."""
    tensors = [constant_tensor(value) for value in node.inputs]
    data = tensors[0] if tensors else None
    if data is None or data.size > _SMALL or data.dtype == ir.DataType.STRING or opset < 7 or has_references(node):
        return None
    if any(tensor is None for tensor in tensors) or any(value.is_graph_output() for value in node.outputs):
        return None
    if chains.makes_weight(node):
        return None
    try:
        return split_parts(node, [None if item is None else np.asarray(item.numpy()) for item in tensors], opset)
    except NotComputed:
        return None


def _constant_result(node: ir.Node, opset: int, chains: Chains) -> Array | None:
    known = node.domain in STANDARD and node.op_type in _COMPUTED
    if not known or opset < 7 or len(node.outputs) != 1 or node.outputs[0].is_graph_output() or has_references(node):
        return None
    if node.op_type == "Shape":
        return _static_shape(node)
    if node.op_type == "CastLike":
        return None if chains.makes_weight(node) else _cast_like(node)
    if node.op_type in ("Gather", "Slice"):
        sizes = selected_sizes(node)
        if sizes is not None:
            return sizes
    tensors = [constant_tensor(value) for value in node.inputs]
    for value, tensor in zip(node.inputs, tensors, strict=True):
        if value is not None and (tensor is None or tensor.dtype == ir.DataType.STRING):
            return None
        if tensor is not None and tensor.size > _SMALL and not _only_moves(node, value):
            return None
    if chains.makes_weight(node):
        return None
    return evaluate(node, [None if tensor is None else np.asarray(tensor.numpy()) for tensor in tensors], opset)


def _only_moves(node: ir.Node, value: ir.Value | None) -> bool:
    """Whether the node is the one reader of the value and makes no more bytes of it."""
    if value is None or sole_consumer(value) is not node:
        return False
    if node.op_type == "Cast" and value.dtype is not None:
        return ir.DataType(attribute(node, "to", 0)).itemsize <= value.dtype.itemsize
    return node.op_type in LAYOUT


def _static_shape(node: ir.Node) -> Array | None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    start, end = (None if name not in node.attributes else node.attributes[name].as_int() for name in ("start", "end"))
    sizes = list(value.shape)[start:end]
    return np.array(sizes, np.int64) if all(isinstance(size, int) for size in sizes) else None


def _cast_like(node: ir.Node) -> Array | None:
    """CastLike of a constant: of its second input only the type counts, which need not be constant."""
    tensor, like = constant_tensor(node.inputs[0]), node.inputs[1]
    if tensor is None or like is None or like.dtype is None or tensor.size > _SMALL:
        return None
    return cast(np.asarray(tensor.numpy()), like.dtype)


def lift_constants(model: ir.Model) -> None:
    """Makes initializers of the dense Constant nodes of the main graph and its subgraphs, but for strings."""
    for graph, _, in_function in all_graphs(model):
        if not holds_initializers(model, in_function):
            continue
        lifted = []
        for node in graph:
            if not is_op(node, "Constant") or node.outputs[0].is_graph_output():
                continue
            tensor = constant_tensor(node.outputs[0])
            if tensor is not None and tensor.dtype != ir.DataType.STRING:
                old = node.outputs[0]
                old.replace_all_uses_with(_registered(old, tensor, graph))
                lifted.append(node)
        graph.remove(lifted, safe=True)


def _initializer(old: ir.Value, array: Array, graph: ir.Graph) -> ir.Value:
    return _registered(old, ir.tensor(array, name=old.name), graph)


def _registered(old: ir.Value, tensor: ir.TensorProtocol, graph: ir.Graph) -> ir.Value:
    """An initializer in the place of a node's output, with its name and metadata."""
    if tensor.name != old.name:  # the name under which it is stored; the given tensor may be the caller's
        tensor = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=old.name)
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=old.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    value.metadata_props.update(old.metadata_props)
    graph.register_initializer(value)
    return value


def _constant_node(old: ir.Value, array: Array, graph: ir.Graph, place: ir.Node) -> ir.Value:
    node = ir.node("Constant", [], {"value": ir.tensor(array)}, name=place.name)
    new = node.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(place, node)
    return new
