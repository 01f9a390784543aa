"""Takes away nodes that no output needs, and initializers that nothing reads."""

from __future__ import annotations

import onnx_ir as ir

from onnxnorm.passes.graph import all_graphs, graphs_of, is_needed


def remove_unused(model: ir.Model) -> None:
    """Graph inputs stay, also those that have an initializer as default."""
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        _remove_nodes(root)
    for graph, _, _ in all_graphs(model):
        for name, value in list(graph.initializers.items()):
            if not (is_needed(value) or value.is_graph_input()):
                del graph.initializers[name]


def _remove_nodes(graph: ir.Graph) -> None:
    """From the last node to the first, so that what only a dead node reads is dead when its turn comes."""
    dead: list[ir.Node] = []
    for node in reversed(graph):
        if any(map(is_needed, node.outputs)):
            for inner in _subgraphs(node):
                _remove_nodes(inner)
        else:
            _detach(node)
            dead.append(node)
    graph.remove(dead)


def _detach(node: ir.Node) -> None:
    """Ends the node's reading of its inputs, and that of the nodes in its subgraphs."""
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
    for graph in _subgraphs(node):
        for inner in graph:
            _detach(inner)


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    return [graph for attribute in node.attributes.values() for graph in graphs_of(attribute)]
