"""Finds what brings a tensor to mean 0 and variance 1 over some axes: the core of layer, group and instance norm.

    (x - mean(x)) * (var(x) + epsilon)^(-1/2) * weights + shifts

in any order and grouping, also multiplied out as ``x * (r * w) + (b - mean * r * w)``. What a node computes is expanded
to a sum of products of x, its mean, the power of its variance, and all else; it is the norm where x and its mean have
the same factors with opposite signs. The search starts at a root (Sqrt, Pow, ReduceL2), of which there are few in any
model, and goes forward to the first node that is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES, Power
from onnxnorm.passes.fuse.standardized_terms import Expansion, Term
from onnxnorm.passes.fuse.variance import VarianceWalk, is_near
from onnxnorm.passes.graph import constant_tensor, is_op, scalar_of
from onnxnorm.passes.rule import Context

#: Where a search starts.
ANCHORS = frozenset({"Sqrt", "Pow", "ReduceL2"})
#: Operators between the root and the last node of the norm.
_FORWARD = frozenset(
    {"Add", "Cast", "CastLike", "Clip", "Div", "Expand", "Max", "Mul", "Neg", "Pow", "Reciprocal", "Relu"}
    | {"Reshape", "Sqrt", "Squeeze", "Sub", "Unsqueeze"}
)
_LAST = frozenset({"Add", "Div", "Mul", "Sub"})
#: More nodes than this are not asked.
_MOST_NODES = 48


@dataclass(frozen=True)
class Standardized:
    """See the module.

    Attributes:
        x: the tensor, before casts that widen it.
        inputs: the tensor as it was found: itself, and behind such casts.
        axes: ascending non-negative numbers.
        power: the power of its variance.
        factor: the product of the scalar factors, without the power's own.
        weights: other factors.
        shifts: what is added, or taken away where the flag is set.
        nodes: what computes it, in no order; the root is none of them.
        shared: what others may read, too.
        dtypes: element types on the way.
        root: the last node.

    """

    x: ir.Value
    inputs: tuple[ir.Value, ...]
    axes: tuple[int, ...]
    power: Power
    factor: float
    weights: tuple[ir.Value, ...]
    shifts: tuple[tuple[ir.Value, bool], ...]
    nodes: tuple[ir.Node, ...]
    shared: tuple[ir.Node, ...]
    dtypes: frozenset[ir.DataType]
    root: ir.Node

    @property
    def matched(self) -> dict[str, ir.Node]:
        """All nodes by a running number, the root last."""
        nodes = [*(node for node in dict.fromkeys(self.nodes) if node is not self.root), self.root]
        return {str(index): node for index, node in enumerate(nodes)}


def find_standardized(anchor: ir.Node, context: Context) -> Standardized | None:
    """The norm that reads the anchor's result; None where there is none."""
    if context.in_function or not is_op(anchor, anchor.op_type) or anchor.outputs[0].dtype not in FLOAT_TYPES:
        return None
    if anchor.op_type == "Pow" and scalar_of(anchor.inputs[1], 9) not in (0.5, -0.5):
        return None
    walk = VarianceWalk(context.opset)
    if walk.variance(anchor.outputs[0]) is None:
        return None
    expansions: dict[tuple[ir.Value, tuple[int, ...]], Expansion] = {}
    for node in _readers(anchor, context.graph):
        power = walk.variance(node.outputs[0])
        if power is not None:
            key = (power.source, power.axes)
            if key not in expansions and constant_tensor(power.source) is None and power.source.const_value is None:
                expansions[key] = Expansion(power.source, power.axes, walk)
        elif node.op_type in _LAST:
            for expansion in expansions.values():
                found = _standardized(node, expansion)
                if found is not None:
                    return found
    return None


def _readers(anchor: ir.Node, graph: ir.Graph) -> Iterator[ir.Node]:
    """The anchor and what reads its result, and so on, each after those on a shorter way."""
    waiting = [anchor]
    seen = {anchor}
    yield anchor
    while waiting:
        node = waiting.pop(0)
        for use in node.outputs[0].uses():
            reader = use.node
            if reader in seen or reader.graph is not graph or not is_op(reader, reader.op_type):
                continue
            if reader.op_type not in _FORWARD or len(seen) > _MOST_NODES:
                continue
            seen.add(reader)
            waiting.append(reader)
            yield reader


def _standardized(root: ir.Node, expansion: Expansion) -> Standardized | None:
    """What the root computes, where that is the norm of the expansion's tensor."""
    expanded = expansion.of(root.outputs[0])
    if expanded.power is None:
        return None
    of_x = [term for term in expanded.terms if term.x]
    of_mean = [term for term in expanded.terms if term.mean]
    rest = [term for term in expanded.terms if not term.x and not term.mean]
    if len(of_x) != 1 or len(of_mean) != 1 or not _are_opposite(of_x[0], of_mean[0], root.outputs[0].dtype):
        return None
    shifts = [_shift(term) for term in rest]
    known = [shift for shift in shifts if shift is not None]
    if len(known) != len(shifts) or any(below for _, below in of_x[0].others) or of_x[0].exponent >= 0:
        return None
    return Standardized(
        expansion.x,
        tuple(expanded.inputs),
        expansion.axes,
        replace(expanded.power, factor=1.0, exponent=of_x[0].exponent),
        of_x[0].factor,
        tuple(value for value, _ in of_x[0].others),
        tuple(known),
        tuple(expanded.nodes),
        tuple(expanded.shared),
        frozenset(expanded.dtypes),
        root,
    )


def _are_opposite(first: Term, second: Term, dtype: ir.DataType | None) -> bool:
    """Whether x and its mean have the same factors, with opposite signs."""
    if (first.x, first.mean, second.x, second.mean) != (1, 0, 0, 1) or first.exponent != second.exponent:
        return False
    return first.same_others(second) and is_near(second.factor, -first.factor, dtype, 3)


def _shift(term: Term) -> tuple[ir.Value, bool] | None:
    """What is added, and whether it is taken away; None where it has factors or belongs to the statistics."""
    if term.exponent or len(term.others) != 1 or term.others[0][1] or abs(term.factor) != 1.0:
        return None
    return term.others[0][0], term.factor < 0
