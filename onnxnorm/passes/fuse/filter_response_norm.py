"""fuse/filter-response-norm: a filter response norm in primitive operators becomes onnxnorm FilterResponseNorm.

    x * (mean(x^2 over positions) + epsilon)^(-1/2) * w  =  FilterResponseNorm(x, scale = w, bias = 0, tau = -inf)

for x of (N, C, *) or (N, *, C) in every spelling that ``rms_norm_power`` reads, among them means taken axis by axis or
over flattened positions. Scale and shift behind it are taken in by fuse/channel-affine, its threshold by
fuse/threshold, its activation by fuse/activation.

The same product is a root mean square norm with one weight per position. What it is, and whether the channels come
first or last, says a tensor that varies along the channels: a factor of the product, or what its result meets next.
Where none does, fuse/rms-norm takes it.

Refused:
    1. As for fuse/rms-norm: epsilon outside the root, other readers, another power, element types, epsilon, shapes; a
       clamp, which is fuse/l2-norm's.
    2. The number of channels is not known, or 0.
    3. A factor is no constant with one value per channel: it is computed at run time, a caller may override it, or it
       varies along another axis, too.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.product import (
    Product,
    attribute_of_epsilon,
    check_graph,
    check_power,
    check_weight_types,
    find_product,
    is_centred,
    put,
)
from onnxnorm.passes.fuse.sizes import channel_count, channel_vector, names_channels, position_axes
from onnxnorm.passes.graph import is_op, node_name, rank_of, sole_consumer
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN

#: Operators by which scale, shift and threshold come in.
_FOLLOWERS = ("Mul", "Div", "Add", "Sub", "Max", "Cast", "CastLike")


class FuseFilterResponseNorm(Rule):
    """See the module."""

    recognizes: ClassVar[bool] = True
    id: ClassVar[str] = "fuse/filter-response-norm"
    operators: ClassVar[frozenset[str]] = frozenset({"Mul", "Div"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """The product of a tensor and the root of its mean square over the positions."""
        product = find_product(node, context)
        if product is None or product.power.total or is_centred(product.power.source):
            return None
        rank = rank_of(product.x) or 0
        for last in (False, True):
            if rank > 2 and product.power.axes == position_axes(rank, last) and _speaks_of_channels(product, last):
                return Match(product.matched, {"product": product, "last": last})
        return None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 and 2 of the module."""
        product: Product = match.facts["product"]
        check_graph(match.nodes.values(), context)
        check_power(product.power, product.x)
        if product.power.floor:
            raise Refusal("the root mean square is clamped, which is no epsilon in the root", floor=product.power.floor)
        channel_count(product.x, match.facts["last"])
        check_weight_types(product.weights, product.x)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op."""
        product: Product = match.facts["product"]
        last: bool = match.facts["last"]
        x, power, root = product.x, product.power, product.root
        assert x.dtype is not None
        scale = np.full(channel_count(x, last), power.factor, np.float64)
        for weight in product.weights:
            scale = scale * channel_vector(weight, x, last, "weight")
        name = node_name(root)
        inputs = [
            x,
            context.constant(f"{name}_scale", scale, x.dtype),
            context.constant(f"{name}_bias", np.zeros(scale.size), x.dtype),
            context.constant(f"{name}_tau", np.full(scale.size, -np.inf), x.dtype, infinite=True),
        ]
        attributes: dict[str, Any] = {
            "epsilon": attribute_of_epsilon(power.epsilon, x.dtype),
            "activation": "none",
            "channels_last": int(last),
        }
        new = ir.node("FilterResponseNorm", inputs, attributes, domain=DOMAIN, name=root.name)
        new.outputs[0].dtype, new.outputs[0].shape = x.dtype, x.shape
        return put([new], match.nodes.values(), power.shared, root)


def _speaks_of_channels(product: Product, last: bool) -> bool:
    """Whether a factor, or a tensor that the result meets next, has one value per channel."""
    x = product.x
    if any(names_channels(weight, x, last) for weight in product.weights):
        return True
    value = product.root.outputs[0]
    for _ in range(3):  # casts in between
        node = sole_consumer(value)
        if node is None or not any(is_op(node, name) for name in _FOLLOWERS):
            return False
        if any(other is not None and other is not value and names_channels(other, x, last) for other in node.inputs):
            return True
        if not (is_op(node, "Cast") or is_op(node, "CastLike")):
            return False
        value = node.outputs[0]
    return False
