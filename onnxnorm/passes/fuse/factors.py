"""Products and sums as what they are made of, whatever the order and the grouping."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES, holds
from onnxnorm.passes.graph import is_op, sole_consumer

#: More operators than this are not taken apart.
_MOST = 8


@dataclass
class Factors:
    """``product(above) / product(below)``.

    Attributes:
        above, below: the factors; one may stand there several times.
        nodes: the Mul, Div, Reciprocal and widening Cast nodes that join them, in the order in which they were met.

    """

    above: list[ir.Value] = field(default_factory=list)
    below: list[ir.Value] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)


def factors_of(node: ir.Node) -> Factors:
    """The factors of a Mul or Div, through inner ones that nothing else reads."""
    found = Factors()
    _take(node, found, False)
    return found


def _take(node: ir.Node, found: Factors, inverse: bool) -> None:
    found.nodes.append(node)
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        below = inverse != ((is_op(node, "Div") and index == 1) or is_op(node, "Reciprocal"))
        inner = value.producer()
        if inner is not None and _joins(inner) and sole_consumer(value) is not None and len(found.nodes) < _MOST:
            _take(inner, found, below)
        else:
            (found.below if below else found.above).append(value)


def _joins(node: ir.Node) -> bool:
    if is_op(node, "Cast") or is_op(node, "CastLike"):
        source = node.inputs[0].dtype if node.inputs[0] is not None else None
        product = node.inputs[0].producer() if node.inputs[0] is not None else None
        return product is not None and _joins(product) and holds(node.outputs[0].dtype, source)
    known = any(is_op(node, name) for name in ("Mul", "Div", "Reciprocal"))
    return known and node.outputs[0].dtype in FLOAT_TYPES


def addends_of(node: ir.Node) -> tuple[list[ir.Value], list[ir.Node]]:
    """The addends of an Add, through inner ones that nothing else reads, and the Add nodes."""
    addends: list[ir.Value] = []
    nodes: list[ir.Node] = []
    waiting = [node]
    while waiting:
        current = waiting.pop(0)
        nodes.append(current)
        for value in current.inputs:
            if value is None:
                continue
            inner = value.producer()
            if inner is not None and is_op(inner, "Add") and sole_consumer(value) is not None and len(nodes) < _MOST:
                waiting.append(inner)
            else:
                addends.append(value)
    return addends, nodes
