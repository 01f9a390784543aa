"""fuse/rms-norm: a root mean square norm in primitive operators becomes onnxnorm RMSNorm.

    x * w * (mean(x^2 over axes) + epsilon)^(-1/2)  =  RMSNorm(x, ones) * w

in every spelling that ``rms_norm_power`` reads; weights stay behind it, where fuse/rms-norm-weight takes them in. The
mean square may be computed from x before casts that only widened it. In half types the op computes in float32 and
rounds once, which is nearer to the truth than the operators.

With ``target="standard"`` that is a step on the way to RMSNormalization (opset 23). Before, the operators stay: ONNX
Runtime has a fusion of its own for them, but for float64, where that takes 1e-5 for every epsilon.

Left alone: what stands in a model-local function, whose element types differ from call to call; and what is no root
mean square norm in the first place: another numerator than x, a constant x, and x that had its mean taken away (that is
layer normalization).

Refused:
    1. epsilon is added outside the root, or the root mean square is clamped (F.normalize): other functions.
    2. A value in between has other readers.
    3. The power is not the inverse square root.
    4. The statistic is kept in a type that is narrower than x, or wider than the op computes in.
    5. The size of a normalized axis is not known, or is 0: the op needs a scale of that size.
    6. epsilon is negative, or not a number that the op's attribute, a float32, can say.
    7. The result may have more values than x: the statistic is broadcast to a shape that is not known to be x's.
    8. A weight and x differ in element type.
"""

from __future__ import annotations

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
from onnxnorm.passes.lower.choice import ChoosingRule
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement


class FuseRMSNorm(ChoosingRule):
    """See the module."""

    recognizes: ClassVar[bool] = True
    id: ClassVar[str] = "fuse/rms-norm"
    operators: ClassVar[frozenset[str]] = frozenset({"Mul", "Div"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """The product in which a tensor meets the inverse root of its own mean square."""
        if self.target == "standard" and context.opset < 23 and node.outputs[0].dtype != ir.DataType.DOUBLE:
            return None
        product = find_product(node, context)
        if product is None or product.power.total or is_centred(product.power.source):
            return None
        return Match(product.matched, {"product": product})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 5, 7 and 8 of the module."""
        product: Product = match.facts["product"]
        check_graph(match.nodes.values(), context)
        check_power(product.power, product.x)
        if product.power.floor:
            raise Refusal("the root mean square is clamped, which is no epsilon in the root", floor=product.power.floor)
        known_sizes(product.x, product.power.axes)
        check_weight_types(product.weights, product.x)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op with a scale of the scalar factors, then a product with each weight."""
        product: Product = match.facts["product"]
        return rows_norm("RMSNorm", product, product.power.factor, product.power.epsilon, context)
