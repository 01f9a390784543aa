"""Writes a split into a sequence of which single elements are read as Split: ``torch.chunk`` and ``split`` come so.

ONNX Runtime has no sequences of bfloat16, and copies each element once more. Left alone: a sequence with another
reader than SequenceAt at constant places, sizes that are not known, opsets before 13, whose Split has its sizes as an
attribute, and sequences of single slices without their axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.graph import all_graphs, attribute, holds_initializers, is_op, node_name, tensor_of
from onnxnorm.passes.names import Names

_OLDEST = 13


def split_tensors(model: ir.Model) -> None:
    """Changes ``model``; the nodes are left without readers."""
    names: Names | None = None
    for graph, opset, in_function in all_graphs(model):
        if opset is None or opset < _OLDEST or not holds_initializers(model, in_function):
            continue
        for node in [item for item in graph if is_op(item, "SplitToSequence")]:
            places, sizes = _places(node), _sizes(node)
            if places is None or sizes is None or any(not -len(sizes) <= at < len(sizes) for at in places.values()):
                continue
            names = names or Names.of(model)
            _split(node, sizes, places, names)


def _places(node: ir.Node) -> dict[ir.Node, int] | None:
    """Each reader with the place that it reads; None where one does something else."""
    sequence = node.outputs[0]
    if sequence.is_graph_output() or not sequence.uses():
        return None
    places: dict[ir.Node, int] = {}
    for reader, index in sequence.uses():
        at = tensor_of(reader.inputs[1]) if is_op(reader, "SequenceAt") and index == 0 else None
        if at is None or at.size != 1 or reader.graph is not node.graph or reader.outputs[0].is_graph_output():
            return None
        places[reader] = int(at.reshape(()))
    return places


def _sizes(node: ir.Node) -> list[int] | None:
    """The sizes of the parts, None where they are not known."""
    data = node.inputs[0]
    split = tensor_of(node.inputs[1]) if len(node.inputs) > 1 else None
    axis = attribute(node, "axis", 0)
    if data is None or split is None or axis is None:
        return None
    if split.ndim == 1:
        return [int(size) for size in split] if split.size else None
    if data.shape is None or not -len(data.shape) <= axis < len(data.shape):
        return None
    total, size = data.shape[axis], int(split)
    if not isinstance(total, int) or total < 1 or size < 1:
        return None
    return [min(size, total - start) for start in range(0, total, size)]


def _split(node: ir.Node, sizes: Sequence[int], places: dict[ir.Node, int], names: Names) -> None:
    """Puts Split in the node's place."""
    data, graph = node.inputs[0], node.graph
    assert data is not None
    assert isinstance(graph, ir.Graph)
    name = names.fresh(f"{node_name(node)}_sizes")
    constant = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([len(sizes)]))
    constant.const_value = ir.tensor(np.array(sizes, np.int64), name=name)
    graph.register_initializer(constant)
    axis = {"axis": attribute(node, "axis", 0)}
    new = ir.node("Split", [data, constant], axis, num_outputs=len(sizes), name=node.name)
    new.metadata_props.update(node.metadata_props)
    for index, value in enumerate(new.outputs):
        value.name = names.fresh(f"{node_name(node)}_part_{index}")
        value.type = None if data.dtype is None else ir.TensorType(data.dtype)
    graph.insert_before(node, new)
    for reader, place in places.items():
        old, part = reader.outputs[0], new.outputs[place]
        part.type, part.shape = part.type or old.type, part.shape or old.shape
        old.replace_all_uses_with(part)
        graph.remove(reader, safe=True)
    graph.remove(node, safe=True)
