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
_KNOWN = KNOWN | CASTS | {"Shape"}
_FILLS = frozenset({"ConstantOfShape", "Range", "Shape", "Size"})

_NO_ARITHMETIC = MOVES | CASTS | _FILLS

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
WHOLE = frozenset(
    {ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64}
    | {ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64}
)
_NUMBERS = FLOATS | WHOLE


def is_arithmetic(node: ir.Node) -> bool:
    """Whether the node makes new numbers."""
    return node.domain not in STANDARD or node.op_type not in _NO_ARITHMETIC


def is_layout(node: ir.Node) -> bool:
    """Whether the node keeps all elements, and their number: those of all its inputs where it joins several."""
    return node.domain in STANDARD and (node.op_type in LAYOUT or node.op_type in ("Concat", "Identity"))


def leaf(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The value's tensor when it is a constant that a chain can start from."""
    tensor = constant_tensor(value)
    return tensor if tensor is not None and tensor.dtype in _NUMBERS else None


def operands(node: ir.Node) -> list[ir.Value]:
    """What a node's result depends on: of CastLike's second input only the type counts."""
    read = node.inputs[:1] if node.op_type == "CastLike" and node.domain in STANDARD else node.inputs
    return [value for value in read if value is not None]


class Chains:
    """Finds chains; remembers which values constants alone decide, for that stays as it is when nodes are replaced."""

    def __init__(self) -> None:
        self._constant: dict[ir.Value, bool] = {}
        self._weights: dict[ir.Value, tuple[bool, bool]] = {}

    def nodes_of(self, value: ir.Value) -> list[ir.Node] | None:
        """The nodes that compute the value from constants, each after those that it reads; None where they do not.

        An empty list is a constant.
        """
        if not self.is_constant(value):
            return None
        found: dict[ir.Node, None] = {}
        stack = [(value, False)]
        while stack:
            current, inputs_done = stack.pop()
            node = current.producer()
            if node is None or node in found or leaf(current) is not None:
                continue
            if inputs_done:
                found[node] = None
                continue
            stack.append((current, True))
            stack += [(item, False) for item in operands(node)]
        return list(found)

    def is_constant(self, value: ir.Value) -> bool:
        """Whether constants alone decide the value."""
        known = self._constant
        stack = [value]
        while stack and value not in known:
            current = stack[-1]
            node = current.producer()
            if current in known:
                pass
            elif leaf(current) is not None:
                known[current] = True
            elif node is None or not _is_known(node):
                known[current] = False
            else:
                sources = operands(node)
                unknown = [item for item in sources if item not in known]
                if unknown and all(known.get(item, True) for item in sources):
                    stack += unknown
                    continue
                known[current] = not unknown and all(known[item] for item in sources)
            stack.pop()
        return known[value]

    def has_arithmetic(self, value: ir.Value) -> bool:
        """Whether a node of the value's chain makes new numbers."""
        seen, stack = {value}, [value]
        while stack:
            current = stack.pop()
            node = current.producer()
            if node is None or leaf(current) is not None:
                continue
            if is_arithmetic(node):
                return True
            new = [item for item in operands(node) if item not in seen]
            seen.update(new)
            stack += new
        return False

    def layers(self, value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
        """The layers, with the input, that read the value as a weight, or after its elements were moved."""
        seen, stack = {value}, [value]
        while stack:
            layers, made = self._readers(stack.pop())
            yield from layers
            new = [item for node, item in made if node.domain in STANDARD and node.op_type in MOVES]
            stack += [item for item in new if item not in seen]
            seen.update(new)

    def makes_weight(self, node: ir.Node) -> bool:
        """Whether the node's floats go into the arithmetic that makes the weight of a layer."""
        if node.outputs[0].dtype in WHOLE:
            return False
        if not self.is_constant(node.outputs[0]):
            return False
        plain, changed = self._weighs(node.outputs[0])
        return changed or (plain and self.has_arithmetic(node.outputs[0]))

    def _weighs(self, value: ir.Value) -> tuple[bool, bool]:
        """Whether the value's numbers come to the weight of a layer as they are, and through arithmetic.

        What is behind a value is asked for it and for all before it: the answers are kept.
        """
        known = self._weights
        stack = [value]
        while value not in known:
            current = stack[-1]
            layers, made = self._readers(current)
            unknown = [item for _, item in made if item not in known]
            if unknown:
                stack += unknown
                continue
            plain, changed = bool(layers), False
            for node, item in made:
                as_is, through = known[item]
                arithmetic = is_arithmetic(node)
                plain |= as_is and not arithmetic
                changed |= through or (as_is and arithmetic)
            known[current] = plain, changed
            stack.pop()
        return known[value]

    def _readers(self, value: ir.Value) -> tuple[list[tuple[ir.Node, int]], list[tuple[ir.Node, ir.Value]]]:
        """The layers with the input that reads the value as a weight, and what constant nodes make of its numbers."""
        layers: list[tuple[ir.Node, int]] = []
        made: list[tuple[ir.Node, ir.Value]] = []
        for node, index in value.uses():
            if not node.outputs or _takes_no_numbers(node, index):
                continue
            if not self.is_constant(node.outputs[0]):
                if node.domain in STANDARD and index in WEIGHTS.get(node.op_type, ()):
                    layers.append((node, index))
            elif node.outputs[0].dtype not in WHOLE:
                made += [(node, output) for output in node.outputs]
        return layers, made


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
    return node.domain in STANDARD and (several or node.op_type in _KNOWN)
