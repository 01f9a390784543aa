"""Chains of nodes that compute a value from constants alone, and which of them make the weight of a layer.

A chain reads dense constants that no caller can override, through operators that ``exact`` knows: none that is random,
depends on data, holds a subgraph, or has an attribute of the function that it stands in.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.canonicalize.evaluate import KNOWN, LAYOUT
from onnxnorm.passes.graph import STANDARD, constant_tensor, has_references
from onnxnorm.spec.record import DOMAIN

#: Layers by operator, with the inputs that are weights.
WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "DeformConv": (1,),
    "Einsum": tuple(range(8)),
    "GRU": (1, 2),
    "Gather": (0,),
    "Gemm": (0, 1),
    "LSTM": (1, 2),
    "MatMul": (0, 1),
    "RNN": (1, 2),
}
#: Operators that change no number: element types, shapes and places only.
CASTS = frozenset({"Cast", "CastLike"})
MOVES = LAYOUT | {"Concat", "Expand", "Gather", "Identity", "Pad", "Slice", "Split", "Tile"}
_FILLS = frozenset({"ConstantOfShape", "Range", "Shape", "Size"})

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
WHOLE = frozenset(
    {ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64}
    | {ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64}
)


def is_arithmetic(node: ir.Node) -> bool:
    """Whether the node makes new numbers."""
    return node.domain not in STANDARD or node.op_type not in MOVES | CASTS | _FILLS


def is_layout(node: ir.Node) -> bool:
    """Whether the node keeps all elements, and their number: those of all its inputs where it joins several."""
    return node.domain in STANDARD and (node.op_type in LAYOUT or node.op_type in ("Concat", "Identity"))


def leaf(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The value's tensor when it is a constant that a chain can start from."""
    tensor = constant_tensor(value)
    return tensor if tensor is not None and tensor.dtype in FLOATS | WHOLE else None


def operands(node: ir.Node) -> list[ir.Value]:
    """What a node's result depends on: of CastLike's second input only the type counts."""
    read = node.inputs[:1] if node.op_type == "CastLike" and node.domain in STANDARD else node.inputs
    return [value for value in read if value is not None]


class Chains:
    """Finds chains; remembers the values that depend on more than constants, which they do for ever."""

    def __init__(self) -> None:
        self._varying: set[ir.Value] = set()

    def nodes_of(self, value: ir.Value) -> list[ir.Node] | None:
        """The nodes that compute the value from constants, each after those that it reads; None where they do not.

        An empty list is a constant.
        """
        found: dict[ir.Node, None] = {}
        stack = [(value, False)]
        while stack:
            current, inputs_done = stack.pop()
            node = current.producer()
            if leaf(current) is not None or (node is not None and node in found):
                continue
            if node is None or current in self._varying or not _is_known(node):
                self._varying.add(current)
                self._varying.update(item for item, done in stack if done)  # those that read it
                return None
            if inputs_done:
                found[node] = None
                continue
            stack.append((current, True))
            stack += [(item, False) for item in operands(node)]
        return list(found)

    def is_constant(self, value: ir.Value) -> bool:
        """Whether constants alone decide the value."""
        return self.nodes_of(value) is not None

    def layers(self, value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
        """The layers, with the input, that read the value as a weight, or after its elements were moved."""
        for node, index, _ in self._readers(value, MOVES):
            yield node, index

    def makes_weight(self, node: ir.Node) -> bool:
        """Whether the node's floats go into the arithmetic that makes the weight of a layer."""
        if node.outputs[0].dtype in WHOLE:
            return False
        chain = self.nodes_of(node.outputs[0])
        if chain is None:
            return False
        own = any(map(is_arithmetic, chain))
        return any(own or changed for _, _, changed in self._readers(node.outputs[0], None))

    def _readers(self, value: ir.Value, passing: frozenset[str] | None) -> Iterator[tuple[ir.Node, int, bool]]:
        """(layer, input, whether arithmetic lies between) behind nodes of the chain that are of those operators."""
        seen: set[tuple[ir.Value, bool]] = set()
        stack = [(value, False)]
        while stack:
            current, changed = stack.pop()
            if (current, changed) in seen:
                continue
            seen.add((current, changed))
            for use in current.uses():
                node, index = use.node, use.idx
                if not node.outputs or _takes_no_numbers(node, index):
                    continue
                if not self.is_constant(node.outputs[0]):
                    if node.domain in STANDARD and index in WEIGHTS.get(node.op_type, ()):
                        yield node, index, changed
                elif (passing is None or (node.domain in STANDARD and node.op_type in passing)) and (
                    node.outputs[0].dtype not in WHOLE
                ):
                    stack += [(output, changed or is_arithmetic(node)) for output in node.outputs]


def _takes_no_numbers(node: ir.Node, index: int) -> bool:
    """Whether the node asks only for the type or the shape of that input."""
    return node.domain in STANDARD and (
        node.op_type in ("Shape", "Size") or (node.op_type == "CastLike" and index == 1)
    )


def _is_known(node: ir.Node) -> bool:
    if has_references(node) or not node.inputs:
        return False
    several = node.op_type == "Split" and node.domain in STANDARD
    if not several and any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return False
    if node.domain == DOMAIN:
        return node.op_type in all_specs()
    return node.domain in STANDARD and (several or node.op_type in KNOWN | CASTS | {"Shape"})
