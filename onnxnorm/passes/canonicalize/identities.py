"""Passes over Identity, and over what is one: Dropout in inference, a Cast or CastLike to the type that is there, a
division by 1 (diffusers divides each residual sum by a factor that is 1) or a product with it.

A node whose result is a graph output stays while rules are at work: the output's name is the user's. In the end what
makes its input gives the output under that name (``give_outputs``).
"""

from __future__ import annotations

import onnx_ir as ir

from onnxnorm.passes.graph import all_graphs, attribute, is_op, rank_of, scalar_of, sole_consumer, tensor_of


def skip_identities(model: ir.Model) -> None:
    """Readers of an Identity read its input instead; the node is left without readers."""
    for graph, opset, _ in all_graphs(model):
        for node in graph:
            if node.inputs and node.inputs[0] is not None and _passes_on(node, opset or 0):
                _forward(node.outputs[0], node.inputs[0])


def give_outputs(model: ir.Model) -> None:
    """What makes the input of an Identity in front of a graph output makes the output; the node has no readers then.

    It stays where its input is given (an input of the graph, a constant, a value of an outer graph), has another reader
    or is an output itself.
    """
    for graph, opset, _ in all_graphs(model):
        for node in graph:
            source = node.inputs[0] if node.inputs else None
            maker = source.producer() if source is not None and sole_consumer(source) is node else None
            made = maker is not None and maker.graph is graph and not is_op(maker, "Constant")
            if source is not None and made and node.outputs[0].is_graph_output() and _is_identity(node, opset or 0):
                _give(node.outputs[0], source, graph)


def _give(output: ir.Value, source: ir.Value, graph: ir.Graph) -> None:
    for index, value in enumerate(list(graph.outputs)):
        if value is output:
            graph.outputs[index] = source
    name = output.name
    _forward(output, source)
    output.name, source.name = source.name, name


def _passes_on(node: ir.Node, opset: int) -> bool:
    return not node.outputs[0].is_graph_output() and _is_identity(node, opset)


def _is_identity(node: ir.Node, opset: int) -> bool:
    if is_op(node, "Identity") or _keeps_type(node) or _by_one(node):
        return True
    if not is_op(node, "Dropout") or opset < 7:
        return False
    if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
        return False
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    training = tensor_of(node.inputs[2])
    return training is not None and training.size == 1 and not training.item()


def _keeps_type(node: ir.Node) -> bool:
    """Whether it is a cast between two times the same type, both known."""
    source = node.inputs[0].dtype if node.inputs[0] is not None else None
    if source is None or not (is_op(node, "Cast") or is_op(node, "CastLike")):
        return False
    if is_op(node, "Cast"):
        return bool(attribute(node, "to", None) == source)
    like = node.inputs[1]
    return like is not None and like.dtype == source


def _by_one(node: ir.Node) -> bool:
    """Whether it divides a tensor of floats by 1, or multiplies it with 1; not where that adds axes to it.

    Every number stays what it is, also NaN, infinity and zero with a sign.
    """
    if not (is_op(node, "Div") or is_op(node, "Mul")) or node.inputs[0] is None:
        return False
    rank = rank_of(node.inputs[0])
    known = node.inputs[0].dtype is not None and node.inputs[0].dtype.is_floating_point()
    return known and rank is not None and scalar_of(node.inputs[1], rank) == 1.0


def _forward(output: ir.Value, source: ir.Value) -> None:
    if source.type is None:
        source.type = output.type
    if source.shape is None:
        source.shape = output.shape
    output.replace_all_uses_with(source)
