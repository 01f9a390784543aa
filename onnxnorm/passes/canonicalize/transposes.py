"""Takes transpositions away around norms with channels last: models that were optimized for CUDA hold them.

A Transpose from channels first to channels last goes from in front of a norm or an elementwise operator to behind it,
and the norm takes its channels first from then on:

    norm_last(to_last(x)) = to_last(norm_first(x));    add(to_last(x), to_last(y)) = to_last(add(x, y))

where that makes the graph have fewer of them, or as many while all of the inputs come through one; so it moves on until
it meets its inverse. Two in a row become one, or none. A vector per channel, and one for each item, are turned without
counting: they are small. Numbers do not change.

Only graphs that hold a norm with channels last, or that have just lost operators with channels last, are asked: ONNX
Runtime moves transpositions through standard operators itself, but not through ops of a library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.graph import STANDARD, all_graphs, attribute, constant_tensor, holds_initializers, is_op, rank_of
from onnxnorm.passes.names import Names
from onnxnorm.passes.permutation import Order, combined, is_identity, order_of, permuted, to_first, to_last
from onnxnorm.spec.record import DOMAIN

#: Operators that act on each element by itself.
_UNARY = frozenset({"Cast", "Elu", "Erf", "Gelu", "Identity", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Sqrt", "Tanh"})
_BINARY = frozenset({"Add", "Div", "Mul", "Sub"})
#: Constants of more elements are not turned for an operator to change its layout.
_SMALL = 1 << 16


def norms_with_channels_last(model: ir.Model) -> bool:
    """Whether any norm of the main graph or a subgraph has its channels last."""
    return any(
        _has_channels_last(node) for graph, _, in_function in all_graphs(model) if not in_function for node in graph
    )


def cancel_transposes(model: ir.Model) -> None:
    """Changes ``model``: its main graph and its subgraphs, not its functions."""
    if not holds_initializers(model, in_function=False):
        return
    names = Names.of(model)
    for graph, _, in_function in list(all_graphs(model)):
        if in_function:
            continue
        while sum(_visit(node, graph, names) for node in list(graph) if node.graph is graph):
            pass


def _visit(node: ir.Node, graph: ir.Graph, names: Names) -> bool:
    """One step at the node; whether anything changed."""
    if is_op(node, "Transpose"):
        return _merge(node, graph)
    data = _data_inputs(node)
    if not data:
        return False
    rank = rank_of(node.outputs[0])
    if rank is None or rank < 3 or any(rank_of(value) is None for _, value in data):
        return False
    sources = [_source(value, rank, graph) for _, value in data]
    if any(source is None for source in sources):
        return False
    found = [source for source in sources if source is not None]
    moved = [source for source in found if source.moved]
    change = sum(source.cost for source in found) + sum(_output_cost(value, rank) for value in node.outputs)
    if not moved or change > 0 or (change == 0 and any(source.cost > 0 for source in found)):
        return False
    _turn(node, data, found, rank, graph, names)
    return True


# --- two in a row ---------------------------------------------------------------------------------------------------


def _merge(node: ir.Node, graph: ir.Graph) -> bool:
    """A Transpose behind another one reads what that reads; one that does nothing goes away."""
    value = node.inputs[0]
    first = value.producer() if value is not None else None
    before, order = order_of(first), order_of(node)
    if first is None or before is None or order is None or first.graph is not graph:
        return False
    source, result = first.inputs[0], node.outputs[0]
    assert source is not None
    together = combined(before, order)
    if not is_identity(together):
        node.replace_input_with(0, source)
        node.attributes["perm"] = ir.AttrInt64s("perm", together)
    elif not result.is_graph_output():
        result.replace_all_uses_with(source)
        graph.remove(node, safe=True)
    elif not _takes_place_of(source, result, graph, node):
        return False
    _drop(first, graph)
    return True


def _takes_place_of(source: ir.Value, result: ir.Value, graph: ir.Graph, node: ir.Node) -> bool:
    """Makes what a node computes the graph output that it is equal to; whether that could be."""
    producer = source.producer()
    if producer is None or producer.graph is not graph or source.is_graph_output():
        return False
    name = result.name
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = f"{name}_removed"
    source.name = name
    source.type, source.shape = result.type or source.type, result.shape or source.shape
    return True


def _drop(node: ir.Node, graph: ir.Graph) -> None:
    """Removes a Transpose that nobody reads."""
    if node.graph is graph and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
        graph.remove(node, safe=True)


# --- from in front of an operator to behind it ----------------------------------------------------------------------


@dataclass
class _Source:
    """What an operator reads, with channels first.

    Attributes:
        value: the value before its Transpose, or the value that is yet to be turned.
        moved: whether it comes through a Transpose.
        cost: by how many the graph's transpositions grow.

    """

    value: ir.Value
    moved: bool
    cost: int


def _has_channels_last(node: ir.Node) -> bool:
    return node.domain == DOMAIN and attribute(node, "channels_last", 0) == 1


def _data_inputs(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """The inputs in the layout of the output, by index; none where the operator is none of those that may turn."""
    if _has_channels_last(node):
        indices = [0, 1] if node.op_type.startswith("Skip") else [0]
    elif node.domain in STANDARD and (node.op_type in _UNARY or node.op_type in _BINARY) and len(node.outputs) == 1:
        indices = list(range(len(node.inputs)))
    else:
        return []
    found = [(index, value) for index in indices if (value := node.inputs[index]) is not None]
    return found if len(found) == len(indices) else []


def _source(value: ir.Value, rank: int, graph: ir.Graph) -> _Source | None:
    """Where the value can be read with channels first; None where that cannot be told."""
    producer = value.producer()
    if order_of(producer) == to_last(rank) and producer is not None and producer.graph is graph:
        before = producer.inputs[0]
        assert before is not None
        alone = len(value.uses()) == 1 and not value.is_graph_output()
        return _Source(before, True, -1 if alone else 0)
    tensor = constant_tensor(value)
    if tensor is not None:
        return _Source(value, False, 0) if math.prod(tensor.shape.numpy()) <= _SMALL else None
    shape = value.shape
    if shape is None or len(shape) != rank:
        return _Source(value, False, 0) if shape is not None and len(shape) == 0 else None
    return _Source(value, False, 0 if list(shape)[1:-1] == [1] * (rank - 2) else 1)


def _output_cost(value: ir.Value, rank: int) -> int:
    """By how many the transpositions behind the value grow when its operator turns."""
    readers = [use.node for use in value.uses()]
    if not readers and not value.is_graph_output():
        return 0
    inverse = sum(order_of(reader) == to_first(rank) for reader in readers)
    others = len(readers) > inverse or value.is_graph_output()
    return int(others) - inverse


def _turn(
    node: ir.Node,
    data: Sequence[tuple[int, ir.Value]],
    sources: Sequence[_Source],
    rank: int,
    graph: ir.Graph,
    names: Names,
) -> None:
    """Gives the operator its inputs with channels first, and its readers a Transpose of what it makes."""
    for (index, value), source in zip(data, sources, strict=True):
        node.replace_input_with(index, source.value if source.moved else _first(value, rank, node, graph, names))
        producer = value.producer()
        if source.moved and producer is not None:
            _drop(producer, graph)
    if _has_channels_last(node):
        node.attributes["channels_last"] = ir.AttrInt64("channels_last", 0)
    for value in node.outputs:
        if value.uses() or value.is_graph_output():
            _transpose_behind(value, to_last(rank), node, graph, names)
        else:
            shape = permuted(value.shape, to_first(rank))
            value.shape = None if shape is None else ir.Shape(shape)


def _transpose_behind(value: ir.Value, order: Order, node: ir.Node, graph: ir.Graph, names: Names) -> None:
    """Readers of the value read its Transpose, which takes over its name, and the value has its axes in place."""
    behind = ir.node("Transpose", [value], {"perm": list(order)}, name=names.fresh(f"{value.name}_transpose"))
    result = behind.outputs[0]
    result.type, result.shape = value.type, value.shape
    result.metadata_props.update(value.metadata_props)
    for use in list(value.uses()):
        if use.node is not behind:
            use.node.replace_input_with(use.idx, result)
    if value.is_graph_output():
        graph.outputs[list(graph.outputs).index(value)] = result
    result.name = value.name
    value.name = names.fresh(f"{value.name}_channels_first")
    shape = permuted(value.shape, to_first(len(order)))
    value.shape = None if shape is None else ir.Shape(shape)
    graph.insert_after(node, behind)


def _first(value: ir.Value, rank: int, node: ir.Node, graph: ir.Graph, names: Names) -> ir.Value:
    """A value with channels last, turned to channels first; constants at once."""
    tensor = constant_tensor(value)
    if tensor is not None:
        return _constant_first(value, np.asarray(tensor.numpy()), tensor.dtype, rank, graph, node, names)
    if rank_of(value) == 0:
        return value
    order = to_first(rank)
    turned = ir.node("Transpose", [value], {"perm": list(order)}, name=names.fresh(f"{value.name}_transpose"))
    result = turned.outputs[0]
    result.name, result.type = names.fresh(f"{value.name}_channels_first"), value.type
    shape = permuted(value.shape, order)
    result.shape = None if shape is None else ir.Shape(shape)
    graph.insert_before(node, turned)
    return result


def _constant_first(
    value: ir.Value,
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    dtype: ir.DataType,
    rank: int,
    graph: ir.Graph,
    node: ir.Node,
    names: Names,
) -> ir.Value:
    """A constant that broadcasts against channels last, as one that does so against channels first."""
    if array.ndim == 0 or array.size == 1:
        return value
    spread = array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(to_first(rank))
    name = names.fresh(f"{value.name}_channels_first")
    tensor = ir.tensor(np.ascontiguousarray(spread), name=name, dtype=dtype)
    constant = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(spread.shape), const_value=tensor)
    graph.register_initializer(constant)
    return constant
