"""fuse/rms-norm-weight: RMSNorm(x, s) * w = RMSNorm(x, s * w), and RMSNorm(x, s) / c = RMSNorm(x, s / c) for a scalar.

L2Norm, which has the same inputs, likewise.

w is constant, a graph input or computed; where s is all ones it is taken as it is, so that nothing is rounded.

Refused:
    1. The norm already has an activation.
    2. The norm's own result has other readers, or is a graph output, or the norm stands in another graph.
    3. w varies along an axis that is not normalized, has more axes than x, or its shape or that of x is not known.
    4. w is not constant and s is not all ones, or w has not the size of each normalized axis: the product would be
       computed anew in every run.
    5. s * w overflows or loses digits in the element type.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import attribute, is_op, node_name, tensor_of
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, rounded
from onnxnorm.runtime.arrays import float_info
from onnxnorm.spec.record import DOMAIN

_NORMS = ("RMSNorm", "L2Norm")


class FuseRMSNormWeight(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/rms-norm-weight"
    operators: ClassVar[frozenset[str]] = frozenset({"Mul", "Div"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A product with the norm's result, or that divided by a scalar."""
        for y, weight in _operands(node):
            norm = y.producer()
            if norm is not None and norm.domain == DOMAIN and norm.op_type in _NORMS and weight is not y:
                return Match({"norm": norm, "product": node}, {"weight": weight})
        return None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        norm, product = match["norm"], match["product"]
        check_private(norm, product, context)
        present = attribute(norm, "activation", "none")
        if present != "none":
            raise Refusal("the norm already has an activation", activation=present)
        _scale_shape(norm, match.facts["weight"])

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The norm with the product of both scales."""
        norm, product = match["norm"], match["product"]
        nodes: list[ir.Node] = []
        scale = _scale(norm, match.facts["weight"], product, context, nodes)
        new = ir.node(norm.op_type, [norm.inputs[0], scale], norm.attributes, domain=DOMAIN, name=norm.name)
        result = Replacement([*nodes, new], {product.outputs[0]: new.outputs[0]}, [norm, product], norm, into=norm.name)
        result.tolerance = 4 * float(float_info(scale.dtype.numpy()).eps) if scale.dtype is not None else 1e-9
        return result

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]


def check_private(norm: ir.Node, reader: ir.Node, context: Context) -> None:
    """Refusal unless the norm's result is read by that node alone, in the same graph."""
    if norm.graph is not context.graph:
        raise Refusal("the norm stands in an outer graph")
    if norm.outputs[0].is_graph_output():
        raise Refusal("the norm's own result is a graph output", output=norm.outputs[0].name)
    for use in norm.outputs[0].uses():
        if use.node is not reader:
            raise Refusal("the norm's own result has another reader", reader=node_name(use.node))


def _operands(node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    first, second = node.inputs
    if first is None or second is None:
        return []
    if is_op(node, "Mul"):
        return [(first, second), (second, first)]
    divisor = tensor_of(second)
    return [(first, second)] if is_op(node, "Div") and divisor is not None and divisor.size == 1 else []


def _scale_shape(norm: ir.Node, weight: ir.Value) -> list[int]:
    """The weight's size on each normalized axis, in order; Refusal (reason 3)."""
    x = norm.inputs[0]
    if x is None or x.shape is None or weight.shape is None:
        raise Refusal("the rank of x or the shape of the weight is not known")
    rank, sizes = len(x.shape), list(weight.shape)
    if len(sizes) > rank:
        raise Refusal("the weight has more axes than x", weight=str(weight.shape), x=str(x.shape))
    spread = [1] * (rank - len(sizes)) + sizes
    axes = sorted(axis % rank for axis in attribute(norm, "axes", None))
    for axis, size in enumerate(spread):
        allowed = (1, x.shape[axis]) if axis in axes else (1,)
        if not isinstance(size, int) or size not in allowed:
            raise Refusal("the weight varies along an axis that is not normalized", weight=str(weight.shape), axes=axes)
    return [int(spread[axis]) for axis in axes]


def _scale(norm: ir.Node, weight: ir.Value, product: ir.Node, context: Context, nodes: list[ir.Node]) -> ir.Value:
    """The new scale; Refusal (reasons 4 and 5). Nodes that make it are added to ``nodes``."""
    old = norm.inputs[1]
    assert old is not None
    before, factor = tensor_of(old), tensor_of(weight)
    shape = _scale_shape(norm, weight)
    ones = before is not None and bool((before.astype(np.float64) == 1.0).all())
    if before is not None and factor is not None and old.dtype is not None:
        if ones and product.op_type == "Mul" and factor.shape == before.shape:
            return weight
        wide = factor.astype(np.float64).reshape(shape)
        with np.errstate(all="ignore"):
            exact = before.astype(np.float64) * (wide if product.op_type == "Mul" else 1.0 / wide)
        check_digits(exact, old.dtype)
        return context.constant(f"{node_name(norm)}_scale", exact, old.dtype)
    if not ones or before is None:
        raise Refusal("the norm's scale and the weight are not both constant", scale=old.name, weight=weight.name)
    if tuple(shape) != before.shape:
        raise Refusal("the weight has not the size of each normalized axis", weight=str(weight.shape))
    if list(weight.shape or ()) == shape:
        return weight
    nodes.append(ir.node("Constant", [], {"value_ints": shape}))
    nodes.append(ir.node("Reshape", [weight, nodes[0].outputs[0]]))
    made = nodes[-1].outputs[0]
    made.type, made.shape = weight.type, ir.Shape(shape)
    return made


def check_digits(exact: npt.NDArray[Any], dtype: ir.DataType) -> None:
    """Refusal (reason 5) when rounding to ``dtype`` loses more than its precision."""
    lost = np.abs(rounded(exact, dtype).astype(np.float64) - exact)
    wrong = lost > float(float_info(dtype.numpy()).eps) * np.abs(exact)
    if wrong.any():
        raise Refusal(f"the scale would underflow {dtype.name.lower()}", smallest=f"{np.abs(exact[wrong]).min():.6g}")
