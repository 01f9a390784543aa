"""fold/scale-before-norm: a positive number that multiplies what is normalized goes into the norm's epsilon.

    norm(a x, epsilon) = norm(x, epsilon / a^2)     a > 0

for InstanceNormalization, GroupNormalization, LayerNormalization, RMSNormalization, and onnxnorm GroupNorm, LayerNorm,
RMSNorm and FilterResponseNorm, where a is a scalar constant of a Mul or Div.

Refused:
    1. The scaled tensor has other readers, or is a graph output, or stands in another graph.
    2. The new epsilon is not a number that the attribute, a float32, can say.

A number that a caller may override is no constant.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.product import attribute_of_epsilon, check_graph
from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES
from onnxnorm.passes.graph import attribute, is_op, node_name, rank_of, scalar_of, sole_consumer
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN

_STANDARD = ("InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization")
_OWN = ("GroupNorm", "LayerNorm", "RMSNorm", "FilterResponseNorm")


class FoldScaleBeforeNorm(Rule):
    """See the module."""

    id: ClassVar[str] = "fold/scale-before-norm"
    operators: ClassVar[frozenset[str]] = frozenset({*_STANDARD, *_OWN})
    action: ClassVar[Action] = Action.FOLDED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A norm of a product with a positive number."""
        scaled = node.inputs[0] if node.inputs else None
        if scaled is None or context.in_function or scaled.dtype not in FLOAT_TYPES:
            return None
        if not any(is_op(node, name) for name in _STANDARD) and not (node.domain == DOMAIN and node.op_type in _OWN):
            return None
        if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
            return None
        found = _factor(scaled)
        if found is None:
            return None
        factor, x, scale = found
        return Match({"scale": scale, "norm": node}, {"factor": factor, "x": x})

    def check(self, match: Match, context: Context) -> None:
        """Reason 1 of the module."""
        check_graph(match.nodes.values(), context)
        scaled = match["scale"].outputs[0]
        if sole_consumer(scaled) is not match["norm"]:
            raise Refusal("the scaled tensor has other readers or is a graph output", value=scaled.name)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The norm of x itself."""
        norm, factor, x = match["norm"], match.facts["factor"], match.facts["x"]
        epsilon = attribute(norm, "epsilon", 1e-6 if norm.op_type == "FilterResponseNorm" else 1e-5)
        stored = attribute_of_epsilon(_meant(epsilon, x.dtype) / factor**2, x.dtype)
        attributes = {**norm.attributes, "epsilon": ir.AttrFloat32("epsilon", stored)}
        outputs = len(norm.outputs)
        new = ir.node(
            norm.op_type, [x, *norm.inputs[1:]], attributes, domain=norm.domain, num_outputs=outputs, name=norm.name
        )
        for old, value in zip(norm.outputs, new.outputs, strict=True):
            value.type, value.shape = old.type, old.shape
        changed = dict(zip(norm.outputs, new.outputs, strict=True))
        result = Replacement([new], changed, [match["scale"], norm], norm, into=node_name(norm))
        result.values, result.tolerance = {"epsilon": stored}, 1e-5
        return result

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]


def _factor(scaled: ir.Value) -> tuple[float, ir.Value, ir.Node] | None:
    """The positive number, what it multiplies, and the node that does."""
    node = scaled.producer()
    if node is None or not (is_op(node, "Mul") or is_op(node, "Div")):
        return None
    first, second = node.inputs
    for x, other in [(first, second)] if is_op(node, "Div") else [(first, second), (second, first)]:
        rank = rank_of(x) if x is not None else None
        number = scalar_of(other, rank) if rank is not None and other is not None else None
        if x is None or number is None or not 0.0 < number < float("inf"):
            continue
        return (1.0 / number if is_op(node, "Div") else number), x, node
    return None


def _meant(epsilon: float, dtype: ir.DataType | None) -> float:
    """In float64 the decimal that was written down."""
    return float(f"{epsilon:.6e}") if dtype == ir.DataType.DOUBLE else epsilon
