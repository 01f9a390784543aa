"""fold/constant-weight: a weight that constants alone decide is computed once, and is then a plain weight.

Weight norm w = g * v / |v|, spectral norm w = v / (u' v w), weight standardization w = (v - mean) / std, LoRA's
w + b @ a, masks, scales: whatever arithmetic of constants ends in the weight of Conv, ConvTranspose, Gemm, MatMul,
Gather (an embedding), Einsum or a recurrent layer. The chain is computed in float64 throughout, casts to narrower
floats included, and rounded once to the weight's type. What only changes the layout between the chain and its one
reader, or joins the parts of the weight, is done as well.

Underflow is no reason to refuse, as it is for folds: the node that the constant replaces rounds to the same type.

Refused:
    1. The computed weight is also a graph output.
    2. The model would grow: the result is larger than the constants that nothing reads any more, and has more than
       8192 elements (a low-rank product, one raw weight under two norms).
    3. The weight would overflow its type or not be finite.
    4. An operator of the chain cannot be computed: its version or its values are not known.

Left alone: opsets before 7, chains that read what a caller may override, and weights that are only cast or moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.canonicalize.chains import CASTS, FLOATS, Chains, is_arithmetic, is_layout, leaf, operands
from onnxnorm.passes.canonicalize.evaluate import KNOWN
from onnxnorm.passes.canonicalize.exact import NotComputed, compute_chain
from onnxnorm.passes.decision import Action
from onnxnorm.passes.fold.constant_weight_names import describe, plain_name
from onnxnorm.passes.graph import is_norm
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule

#: Weights of no more elements may take more room than what they are computed from.
_SMALL = 8192
#: Since which opset operators broadcast as NumPy does.
_OLDEST = 7


class FoldConstantWeight(Rule):
    """See the module."""

    id: ClassVar[str] = "fold/constant-weight"
    operators: ClassVar[frozenset[str]] = frozenset({*KNOWN, *CASTS, *all_specs()})
    action: ClassVar[Action] = Action.FOLDED
    recognizes: ClassVar[bool] = True

    def __init__(self) -> None:
        self._chains = Chains()

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """The last node of a chain with arithmetic in it, whose result is read as a weight."""
        value = node.outputs[0]
        ends = is_arithmetic(node) or is_layout(node) or node.op_type in CASTS
        if not ends or (value.dtype is not None and value.dtype not in FLOATS) or context.opset < _OLDEST:
            return None
        if not self._chains.is_constant(value) or self._goes_on(value):
            return None
        layer = next(self._chains.layers(value), None)
        chain = None if layer is None else self._chains.nodes_of(value)
        if layer is None or not chain or not any(map(is_arithmetic, chain)):
            return None
        return Match({**{f"chain{index}": item for index, item in enumerate(chain)}, "layer": layer[0]})

    def _goes_on(self, value: ir.Value) -> bool:
        """Whether the one reader only changes the layout or joins parts: then the chain ends there."""
        uses = value.uses()
        if value.is_graph_output() or len(uses) != 1:
            return False
        reader = next(iter(uses)).node
        return (
            is_layout(reader)
            and not reader.outputs[0].is_graph_output()
            and self._chains.is_constant(reader.outputs[0])
        )

    def check(self, match: Match, context: Context) -> None:
        """Reason 1."""
        value = _result(match)
        if value.is_graph_output():
            raise Refusal("its computed weight is also a graph output", output=value.name)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The weight as a constant in the place of the chain's result."""
        chain, value = _chain(match), _result(match)
        dead = _dead(chain, value)
        _check_growth(chain, dead, value)
        try:
            exact = compute_chain(chain, value, context.opset)
        except NotComputed as error:
            raise Refusal(f"its weight is computed, but {error}") from None
        if exact.dtype not in FLOATS:
            raise Refusal("its weight is computed, but not of floats", dtype=exact.dtype.name.lower())
        _check_size(chain, dead, exact.array.size * exact.dtype.itemsize, exact.array.size)
        constant = context.constant(plain_name(chain), exact.array, exact.dtype)
        double = exact.dtype == ir.DataType.DOUBLE and any(map(is_norm, chain))  # an epsilon in float32
        return Replacement(
            [],
            {value: constant},
            [node for node in dead if node.graph is context.graph],
            match["layer"],
            values={"weight": describe(chain)},
            tolerance=1e-7 if double else 1e-9,
            before=chain,
        )


def _chain(match: Match) -> list[ir.Node]:
    return list(match.nodes.values())[:-1]


def _result(match: Match) -> ir.Value:
    return _chain(match)[-1].outputs[0]


def _dead(chain: Sequence[ir.Node], value: ir.Value) -> list[ir.Node]:
    """The nodes of the chain that nothing needs once its result is a constant, in order."""
    dead: dict[ir.Node, None] = {}
    for node in reversed(chain):
        outputs = [item for item in node.outputs if item is not value]
        if not any(item.is_graph_output() or any(use.node not in dead for use in item.uses()) for item in outputs):
            dead[node] = None
    return list(reversed(dead))


def _freed(chain: Sequence[ir.Node], dead: Sequence[ir.Node]) -> int:
    """Bytes of the constants that only dead nodes read."""
    gone = set(dead)
    leaves = {item: tensor for node in chain for item in operands(node) if (tensor := leaf(item)) is not None}
    return sum(
        tensor.nbytes
        for item, tensor in leaves.items()
        if not item.is_graph_output() and all(use.node in gone for use in item.uses())
    )


def _check_growth(chain: Sequence[ir.Node], dead: Sequence[ir.Node], value: ir.Value) -> None:
    """Reason 2 before anything is computed, where the shape is known."""
    if value.shape is None or value.dtype is None or not all(isinstance(size, int) for size in value.shape):
        return
    elements = math.prod(value.shape.numpy())
    _check_size(chain, dead, elements * value.dtype.itemsize, elements)


def _check_size(chain: Sequence[ir.Node], dead: Sequence[ir.Node], size: float, elements: int) -> None:
    """Reason 2."""
    freed = _freed(chain, dead)
    if size > freed and elements > _SMALL:
        raise Refusal(
            f"its weight is computed ({describe(chain)}), but as a constant it would make the model larger",
            bytes=int(size),
            freed=freed,
        )
