"""fold/linear-into-linear: (x W1 + c1) W2 + c2 = x (W1 W2) + (c1 W2 + c2), for MatMul [+ constant] and Gemm.

A decorrelation or whitening in front of a linear layer is such a pair. W1 is (D, K), W2 is (K, E); one product takes
D * E multiplications for each row in place of D * K + K * E. With both constants on the left, W2 (W1 x + c1) + c2, the
same holds transposed. The result is MatMul [+ Add] where both are MatMul, else Gemm, whose matrices have rank 2 anyway.

Refused:
    1. A weight, an added constant, Gemm's C or alpha, beta, transA, transB is a graph input that a caller may override,
       not constant, or an attribute of a function.
    2. The first product (with its constant) has another reader, is a graph output, or stands in another graph.
    3. The merged product would take more multiplications.
    4. The weights are no matrices that fit, Gemm reads the first product transposed, or a constant enlarges a product
       that becomes Gemm.
    5. A merged value would overflow, underflow or not be finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fold.affine import reads_input
from onnxnorm.passes.fold.affine_into_gemm import known, number, own_term
from onnxnorm.passes.fold.affine_into_matmul import bias_add
from onnxnorm.passes.fold.affine_layout import FloatArray
from onnxnorm.passes.fold.batch_norm import check_private
from onnxnorm.passes.graph import constant_tensor, is_op, is_overridable, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, check_underflow, constant_array


@dataclass(frozen=True)
class Linear:
    """A product with a constant and what is added to it.

    Attributes:
        product: MatMul or Gemm.
        add: the Add of a constant behind a MatMul.
        side: which input of the product is the data.

    """

    product: ir.Node
    add: ir.Node | None
    side: int

    @property
    def last(self) -> ir.Node:
        """The node that makes the result."""
        return self.add or self.product

    @property
    def nodes(self) -> list[ir.Node]:
        """In graph order."""
        return [self.product] if self.add is None else [self.product, self.add]

    def weight(self) -> FloatArray:
        """(in, out), or (out, in) for data on the right; Gemm's alpha and transposition are in it."""
        array = constant_array(self.product.inputs[1 - self.side], f"{self.product.op_type}'s weight")
        if array.ndim != 2:
            raise Refusal(f"{self.product.op_type}'s weight is not a matrix", shape=array.shape)
        exact = array.astype(np.float64)
        if is_op(self.product, "Gemm"):
            exact = number(self.product, "alpha") * (exact.T if known(self.product, "transB", 0) else exact)
        return exact

    def term(self) -> FloatArray | None:
        """What is added, None where nothing is."""
        if self.add is not None:
            value = self.add.inputs[1] if self.add.inputs[0] is self.product.outputs[0] else self.add.inputs[0]
            return constant_array(value, "added constant").astype(np.float64)
        if is_op(self.product, "Gemm") and len(self.product.inputs) > 2 and self.product.inputs[2] is not None:
            return own_term(self.product)
        return None


class FoldLinearIntoLinear(Rule):
    """See the module."""

    id: ClassVar[str] = "fold/linear-into-linear"
    operators: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm"})
    action: ClassVar[Action] = Action.FOLDED
    recognizes: ClassVar[bool] = True

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A product with a constant, of a product with a constant on the same side."""
        second = _linear(node, context)
        data = None if second is None else node.inputs[second.side]
        producer = None if data is None else data.producer()
        if second is None or producer is None or context.opset < 7:
            return None
        first = _behind(producer, context)
        if first is None or first.side != second.side or first.last is not producer:
            return None
        roles = {
            f"{name}{index}": item
            for name, pair in (("second", second), ("first", first))
            for index, item in enumerate(pair.nodes)
        }
        return worth_telling(self, Match(roles, {"first": first, "second": second}), context)

    def subject(self, match: Match) -> ir.Node:
        """The first product, which disappears."""
        first: Linear = match.facts["first"]
        return first.product

    def check(self, match: Match, context: Context) -> None:
        """Reasons 2 and 3, and the form of the weights."""
        first, second = match.facts["first"], match.facts["second"]
        if first.add is not None:
            check_private(first.product.outputs[0], first.add, context)
        check_private(first.last.outputs[0], second.product, context)
        if is_op(second.product, "Gemm") and known(second.product, "transA", 0):
            raise Refusal("Gemm reads the first product transposed")
        one, two = _oriented(first), _oriented(second)
        if one.shape[1] != two.shape[0]:
            raise Refusal("the weights do not fit", first=one.shape, second=two.shape)
        before, after = one.size + two.size, one.shape[0] * two.shape[1]
        if after > before:
            raise Refusal("one product would take more multiplications than two", two=before, one=after)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """One product in the place of the second."""
        first: Linear = match.facts["first"]
        second: Linear = match.facts["second"]
        value = second.product.inputs[1 - second.side]
        tensor = constant_tensor(value)
        assert value is not None
        assert tensor is not None
        merged = _oriented(first) @ _oriented(second)
        exact = merged if second.side == 0 else merged.T
        check_underflow(exact, tensor.dtype, 0)
        check_underflow(exact, tensor.dtype, 1)
        weight = context.constant(f"{value.name}_folded", np.ascontiguousarray(exact), tensor.dtype)
        term = _term(first, second)
        added = None if term is None else context.constant(f"{node_name(second.last)}_term", term, tensor.dtype)
        data = first.product.inputs[first.side]
        assert data is not None
        if is_op(first.product, "Gemm") or is_op(second.product, "Gemm"):
            nodes = [_gemm(first, second, data, weight, added)]
        else:
            nodes = _matmul(second, data, weight, added, context)
        return Replacement(
            nodes,
            {second.last.outputs[0]: nodes[-1].outputs[0]},
            [*first.nodes, *second.nodes],
            first.product,
            into=node_name(second.product),
        )


def worth_telling(rule: Rule, match: Match, context: Context) -> Match | None:
    """The match, unless it would be refused deep inside a model, where nobody thinks of a normalization."""
    try:
        rule.check(match, context)
    except Refusal:
        return match if any(map(reads_input, rule.subject(match).inputs[:2])) else None
    return match


def _linear(node: ir.Node, context: Context) -> Linear | None:
    """The product with its Add, None where neither factor is a constant, or both are."""
    constant = [_is_parameter(value) for value in node.inputs[:2]]
    if constant not in ([True, False], [False, True]) or (is_op(node, "Gemm") and constant[0]):
        return None
    if is_op(node, "Gemm"):
        return Linear(node, None, 0)
    add, _ = bias_add(node, context)
    return Linear(node, add, constant.index(False)) if is_op(node, "MatMul") else None


def _behind(node: ir.Node, context: Context) -> Linear | None:
    """The product that the node is, or to which it adds a constant."""
    if is_op(node, "Add"):
        factors = [value.producer() for value in node.inputs if value is not None]
        product = next((item for item in factors if item is not None and is_op(item, "MatMul")), None)
        return None if product is None else _linear(product, context)
    return _linear(node, context) if is_op(node, "MatMul") or is_op(node, "Gemm") else None


def _is_parameter(value: ir.Value | None) -> bool:
    return value is not None and (is_overridable(value) or constant_tensor(value) is not None)


def _oriented(linear: Linear) -> FloatArray:
    """(in, out)."""
    weight = linear.weight()
    return weight if linear.side == 0 else weight.T


def _term(first: Linear, second: Linear) -> FloatArray | None:
    """c1 W2 + c2."""
    inner, outer = first.term(), second.term()
    if inner is None:
        return outer
    weight = second.weight()
    size = weight.shape[0] if first.side == 0 else weight.shape[1]
    axis = -1 if first.side == 0 else -2
    inner = inner.reshape((1,) * (-axis - inner.ndim) + inner.shape)
    if inner.shape[axis] not in (1, size):
        raise Refusal("the added constant enlarges the first product", shape=inner.shape, size=size)
    shape = list(inner.shape)
    shape[axis] = size
    full = np.broadcast_to(inner, shape)
    passed = full @ weight if first.side == 0 else weight @ full
    return np.asarray(passed if outer is None else passed + outer)


def _gemm(first: Linear, second: Linear, data: ir.Value, weight: ir.Value, added: ir.Value | None) -> ir.Node:
    if added is not None and added.shape is not None:
        enlarges = first.add is not None or second.add is not None
        rank = len(added.shape)
        if rank > 2 or (rank == 2 and added.shape[0] != 1 and enlarges):
            raise Refusal("the added constant may enlarge a product that becomes Gemm", shape=str(added.shape))
    attributes = {}
    if is_op(first.product, "Gemm") and known(first.product, "transA", 0):
        attributes["transA"] = ir.AttrInt64("transA", 1)
    inputs = [data, weight] if added is None else [data, weight, added]
    return ir.node("Gemm", inputs, attributes, name=second.product.name)


def _matmul(
    second: Linear, data: ir.Value, weight: ir.Value, added: ir.Value | None, context: Context
) -> list[ir.Node]:
    factors = [data, weight] if second.side == 0 else [weight, data]
    product = ir.node("MatMul", factors, name=second.product.name)
    if added is None:
        return [product]
    old = second.product.outputs[0]
    product.outputs[0].type, product.outputs[0].shape = old.type, None if old.shape is None else old.shape
    name = second.add.name if second.add is not None else context.fresh_name(f"{node_name(second.product)}_add")
    return [product, ir.node("Add", [product.outputs[0], added], name=name)]
