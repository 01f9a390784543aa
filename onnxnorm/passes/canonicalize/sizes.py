"""Sizes are read where they are given: Shape of an input of the graph in place of Shape of what is computed from it.

An exporter writes y.view(y.size(0), -1) as Shape of y, Gather, Concat and Reshape of y. y then has two readers, and no
rule that takes it away finds it private. A size of y that has the name of an input's size is that size, and is read
there:

    Gather(Shape(y), i) = Gather(Shape(x), j)        Shape<start=i, end=i+1>(y) = Shape<start=j, end=j+1>(x)

x is the input from which y is computed (by first inputs that are no constants), so that a name that two inputs share
does not matter. Main graph only: what a subgraph or a function reads has no declared sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.passes.graph import all_names, attribute, constant_tensor, is_op, tensor_of


def read_sizes_of_inputs(model: ir.Model) -> bool:
    """Whether anything changed; a Shape without readers is left to the clean-up."""
    graph = model.graph
    shapes = [node for node in graph if is_op(node, "Shape") and node.inputs[0] is not None]
    if not any(_is_computed(node.inputs[0]) for node in shapes):
        return False
    origins = _Origins()
    names = all_names(model)
    changed = False
    for node in shapes:
        source = node.inputs[0]
        if source is None or not _is_computed(source) or source.shape is None:
            continue
        origin = origins.of(source)
        if origin is None or origin.shape is None:
            continue
        changed |= _move_single(node, source, origin) or _move_gathers(node, source, origin, names)
    return changed


class _Origins:
    """The graph input from which a value is computed, by first inputs that are no constants."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, ir.Value | None] = {}

    def of(self, value: ir.Value) -> ir.Value | None:
        way: list[ir.Value] = []
        current: ir.Value | None = value
        while current is not None and current not in self._known:
            way.append(current)
            producer = current.producer()
            if producer is None:
                self._known[current] = current if current.is_graph_input() and current.const_value is None else None
                break
            current = next(
                (item for item in producer.inputs if item is not None and constant_tensor(item) is None), None
            )
        found = None if current is None else self._known[current]
        self._known.update((item, found) for item in way)
        return found


def _is_computed(value: ir.Value | None) -> bool:
    return value is not None and value.producer() is not None


def _axis(size: object, origin: ir.Value) -> int | None:
    """Where the origin has a size of that name."""
    name = getattr(size, "value", None)
    if isinstance(size, int) or name is None or origin.shape is None:
        return None
    return next((axis for axis, other in enumerate(origin.shape) if getattr(other, "value", None) == name), None)


def _move_single(node: ir.Node, source: ir.Value, origin: ir.Value) -> bool:
    """Shape of one axis."""
    assert source.shape is not None
    rank = len(source.shape)
    start, end = attribute(node, "start", 0), attribute(node, "end", rank)
    if start is None or end is None or len(range(rank)[start:end]) != 1:
        return False
    axis = _axis(source.shape[range(rank)[start:end][0]], origin)
    if axis is None:
        return False
    node.replace_input_with(0, origin)
    node.attributes["start"] = ir.AttrInt64("start", axis)
    node.attributes["end"] = ir.AttrInt64("end", axis + 1)
    return True


def _move_gathers(node: ir.Node, source: ir.Value, origin: ir.Value, names: set[str]) -> bool:
    """Each Gather of one size among the readers of a Shape of all axes."""
    assert source.shape is not None
    graph = node.graph
    if graph is None or node.attributes:
        return False
    moved = False
    for use in list(node.outputs[0].uses()):
        gather = use.node
        index = tensor_of(gather.inputs[1]) if is_op(gather, "Gather") and use.idx == 0 else None
        if index is None or index.size != 1 or attribute(gather, "axis", 0) != 0 or gather.graph is not graph:
            continue
        place = int(index.reshape(()))
        rank = len(source.shape)
        axis = _axis(source.shape[place], origin) if -rank <= place < rank else None
        if axis is None:
            continue
        name = _fresh(f"{node.outputs[0].name}_{origin.name}", names)
        shape = ir.node("Shape", [origin], name=name)
        shape.outputs[0].name = name
        shape.outputs[0].type = node.outputs[0].type
        shape.outputs[0].shape = ir.Shape([len(origin.shape or ())])
        constant = _index(_fresh(f"{name}_axis", names), np.full(index.shape, axis, index.dtype))
        graph.insert_before(gather, [constant, shape])
        gather.replace_input_with(0, shape.outputs[0])
        gather.replace_input_with(1, constant.outputs[0])
        moved = True
    return moved


def _index(name: str, array: npt.NDArray[Any]) -> ir.Node:
    node = ir.node("Constant", [], {"value": ir.tensor(array)}, name=name)
    node.outputs[0].name = name
    node.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    node.outputs[0].shape = ir.Shape(array.shape)
    return node


def _fresh(wish: str, names: set[str]) -> str:
    name, count = wish, 0
    while name in names:
        count += 1
        name = f"{wish}_{count}"
    names.add(name)
    return name
