"""Operators in a row that only move elements, and which of them move nothing when taken together.

    Transpose, Transpose = nothing, where the second one's order is the inverse of the first's
    Reshape, Squeeze, Flatten, Unsqueeze in any number = nothing, where the shape is at the end what it was in front
    Transpose, (nothing), Transpose the same

Two shapes are the same when each size is the same number or symbol, but for one size at most: the number of elements
is the same anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxnorm.passes.fold.affine_layout import is_layout, same_size
from onnxnorm.passes.graph import attribute, is_op, sole_consumer


def reduced(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """The nodes without those that move nothing together; in a row, though others may stand between them."""
    left = [node for node in nodes if not is_op(node, "Identity")]
    changed = True
    while changed:
        changed = False
        for start in range(len(left)):
            for end in range(len(left), start, -1):
                if moves_nothing(left[start:end]):
                    del left[start:end]
                    changed = True
                    break
            if changed:
                break
    return left


def moves_nothing(nodes: Sequence[ir.Node]) -> bool:
    """Whether the nodes end in what they start with."""
    if all(is_op(node, "Transpose") for node in nodes):
        return _is_whole(nodes)
    if not all(is_layout(node) and not is_op(node, "Transpose") for node in nodes):
        return False
    source, target = nodes[0].inputs[0], nodes[-1].outputs[0]
    if source is None or source.shape is None or target.shape is None or len(source.shape) != len(target.shape):
        return False
    if any(size == 0 for size in source.shape):
        return False
    same = [same_size(a, b) for a, b in zip(source.shape, target.shape, strict=True)]
    return same.count(False) <= 1


def _is_whole(nodes: Sequence[ir.Node]) -> bool:
    """Whether the orders of these Transposes together are that of the axes."""
    source = nodes[0].inputs[0]
    if source is None or source.shape is None:
        return False
    axes = list(range(len(source.shape)))
    for node in nodes:
        order = attribute(node, "perm", list(range(len(axes)))[::-1])
        if order is None or sorted(order) != sorted(range(len(axes))):
            return False
        axes = [axes[index] for index in order]
    return axes == sorted(axes)


def before(value: ir.Value | None, graph: ir.Graph) -> list[ir.Node]:
    """Operators in a row of that graph that make the value, nearest last."""
    found: list[ir.Node] = []
    while value is not None:
        node = value.producer()
        if node is None or not is_layout(node) or node.graph is not graph:
            break
        found.insert(0, node)
        value = node.inputs[0]
    return found


def needed_by(nodes: Sequence[ir.Node], reader: ir.Node) -> list[ir.Node]:
    """Those of the nodes in a row in front of ``reader`` that nothing else needs."""
    found: list[ir.Node] = []
    for node in reversed(nodes):
        if sole_consumer(node.outputs[0]) is not (found[0] if found else reader):
            break
        found.insert(0, node)
    return found
