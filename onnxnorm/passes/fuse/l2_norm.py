"""fuse/l2-norm: division by the Euclidean length in primitive operators becomes onnxnorm L2Norm.

    x * c / max(sqrt(sum(x^2 over axes)), epsilon)  =  L2Norm(x, scale = c)

``torch.nn.functional.normalize`` with p = 2, over any axes, in every spelling that ``rms_norm_power`` reads, with the
clamp inside or outside the root; c are scalar factors. Without a clamp epsilon is 0: a tensor of zeros becomes NaN in
both. Weights stay behind it, where fuse/rms-norm-weight takes them in.

A root mean square norm is the same product with another factor: without a clamp this rule takes only the plain length,
and leaves what meets a scalar factor next, or has an epsilon in the root, to fuse/rms-norm.

Refused:
    1. As for fuse/rms-norm: epsilon outside the root (x / (length + epsilon)), other readers, another power, element
       types, epsilon, shapes, sizes that are not known.
    2. It has both an epsilon in the root and a clamp.
"""

from __future__ import annotations

import math
from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.product import (
    Product,
    check_graph,
    check_power,
    check_weight_types,
    find_product,
    is_centred,
    known_sizes,
    rows_norm,
)
from onnxnorm.passes.graph import is_op, scalar_of, sole_consumer
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule


class FuseL2Norm(Rule):
    """See the module."""

    recognizes: ClassVar[bool] = True
    id: ClassVar[str] = "fuse/l2-norm"
    operators: ClassVar[frozenset[str]] = frozenset({"Mul", "Div"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """The product of a tensor and the inverse of its length."""
        product = find_product(node, context)
        if product is None or is_centred(product.power.source):
            return None
        power = product.power
        plain = power.epsilon == 0 and math.isclose(_scale(product), 1.0, rel_tol=1e-6) and not _meets_a_number(node)
        return Match(product.matched, {"product": product}) if power.floor or power.total or plain else None

    def check(self, match: Match, context: Context) -> None:
        """Both reasons of the module."""
        product: Product = match.facts["product"]
        check_graph(match.nodes.values(), context)
        check_power(product.power, product.x)
        known_sizes(product.x, product.power.axes)
        if product.power.epsilon:
            raise Refusal(
                "it has both an epsilon in the root and a clamp",
                epsilon=product.power.epsilon,
                floor=product.power.floor,
            )
        check_weight_types(product.weights, product.x)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op with a scale of the scalar factors, then a product with each weight."""
        product: Product = match.facts["product"]
        scale = _scale(product)
        near = round(scale)
        scale = float(near) if near and math.isclose(scale, near, rel_tol=1e-12) else scale
        epsilon = math.sqrt(product.power.floor * (product.power.count or 0))
        return rows_norm("L2Norm", product, scale, epsilon, context)


def _scale(product: Product) -> float:
    """The factor beside the inverse length: the power counts in means, the length in sums."""
    power = product.power
    return power.factor if power.total else power.factor * math.sqrt(power.count or 0)


def _meets_a_number(node: ir.Node) -> bool:
    """Whether the result is multiplied by a number next, as sqrt(D) in a spelling of the root mean square norm."""
    value = node.outputs[0]
    reader = sole_consumer(value)
    if reader is None or not is_op(reader, "Mul"):
        return False
    return any(scalar_of(other, 0 if other is None else 9) is not None for other in reader.inputs if other is not value)
