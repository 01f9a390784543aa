"""Chooses for each candidate whether it works on blocks, so that the fewest values are reordered.

A value is reordered once if what makes it and what reads it do not agree. Beginning with every candidate in blocks,
each is turned to where it costs less, again and again, until nothing changes; where both cost the same it keeps the
plain layout. Each turn lowers the cost or the number of blocked nodes at that cost, so it comes to an end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from onnxnorm.compilation.operators import NCHWC, Candidate, blocked_channels
from onnxnorm.passes.graph import attribute


class Layout:
    """Which candidates are blocked, and what that costs.

    Args:
        candidates: nodes that may be blocked, in the graph's order; all are to begin with.
        block: channels in a block.

    """

    def __init__(self, candidates: Sequence[Candidate], block: int) -> None:
        self.block = block
        self._by_node = {item.node: item for item in candidates}
        self._blocked = set(self._by_node)

    def settle(self) -> None:
        """Turns candidates until none is better off otherwise."""
        order = list(self._by_node)
        changed = True
        while changed:
            changed = False
            for node in (*reversed(order), *order):
                changed |= self._turn(node)

    def blocked(self) -> list[Candidate]:
        """The candidates that work on blocks, in order."""
        return [item for node, item in self._by_node.items() if node in self._blocked]

    def cost(self) -> int:
        """Elements that are reordered around the candidates, at the sizes that are known."""
        values = dict.fromkeys(value for node in self._by_node for value in _around(self._by_node[node]))
        return sum(self._cost_of(value) for value in values)

    def plain_cost(self) -> int:
        """The same with every candidate in the plain layout, as ONNX Runtime has it."""
        kept, self._blocked = self._blocked, set()
        cost = self.cost()
        self._blocked = kept
        return cost

    def _turn(self, node: ir.Node) -> bool:
        """Gives the node the better layout; whether that is another than it had."""
        values = list(dict.fromkeys(_around(self._by_node[node])))
        was = node in self._blocked
        self._blocked.add(node)
        in_blocks = sum(map(self._cost_of, values))
        self._blocked.discard(node)
        plain = sum(map(self._cost_of, values))
        if in_blocks < plain:
            self._blocked.add(node)
        return was != (node in self._blocked)

    def _cost_of(self, value: ir.Value) -> int:
        readers = {self._reads_blocks(usage.node, usage.idx) for usage in value.uses()}
        if value.is_graph_output():
            readers.add(False)
        made_in_blocks = self._makes_blocks(value)
        return _elements(value) if (not made_in_blocks) in readers else 0

    def _makes_blocks(self, value: ir.Value) -> bool:
        node = value.producer()
        return node is not None and (node in self._blocked or is_reorder_output(node, self.block))

    def _reads_blocks(self, node: ir.Node, index: int) -> bool:
        if node in self._blocked:
            return index in self._by_node[node].inputs
        return is_reorder_input(node)


def is_reorder_output(node: ir.Node, block: int) -> bool:
    """Whether the node brings whole blocks into the plain layout."""
    return (
        node.domain == NCHWC
        and node.op_type == "ReorderOutput"
        and attribute(node, "channels_last", 0) == 0
        and blocked_channels(node.outputs[0], block) is None
    )


def is_reorder_input(node: ir.Node) -> bool:
    """Whether the node brings the plain layout into blocks."""
    return node.domain == NCHWC and node.op_type == "ReorderInput" and attribute(node, "channels_last", 0) == 0


def _around(item: Candidate) -> list[ir.Value]:
    """The values whose layout the candidate has a say in."""
    read = [item.node.inputs[index] for index in item.inputs]
    return [value for value in (*read, *item.node.outputs) if value is not None]


def _elements(value: ir.Value) -> int:
    """Number of elements, unknown sizes as 1."""
    return math.prod(size for size in value.shape or () if isinstance(size, int))
