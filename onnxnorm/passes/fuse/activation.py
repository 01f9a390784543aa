"""fuse/activation: act(norm(x)) = norm(x) with the attribute activation, for every onnxnorm op that has it.

Recognized by what is computed: relu as Relu, Max with 0 or Clip from 0; silu as x * Sigmoid(x), x / (1 + exp(-x)) or
Swish (alpha 1); exact gelu as Gelu (approximate none) or x * 0.5 * (1 + erf(x / sqrt(2))) in any order and grouping of
products, quotients and the 0.5. Its constants must be those numbers as x's element type rounds them, and must not give
the product more axes than x has.

Refused:
    1. The norm already has an activation, but for a relu behind a relu, which changes nothing.
    2. The norm's output has readers besides the activation, or is a graph output.
    3. The norm stands in another graph than the activation.
    4. It is a filter response norm with a threshold, which comes after its activation: act(max(y, tau)) is another
       thing than max(act(y), tau), but for relu.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.factors import factors_of
from onnxnorm.passes.graph import (
    attribute,
    constant_tensor,
    is_op,
    node_name,
    rank_of,
    scalar_of,
    sole_consumer,
    tensor_of,
)
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.runtime.arrays import float_info
from onnxnorm.spec.record import DOMAIN


class FuseActivation(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/activation"
    operators: ClassVar[frozenset[str]] = frozenset({"Relu", "Max", "Clip", "Mul", "Div", "Swish", "Gelu"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """An activation whose input is the output of a norm that has the attribute."""
        found = read_activation(node)
        if found is None:
            return None
        name, x, inner = found
        norm = x.producer()
        spec = all_specs().get(norm.op_type) if norm is not None and norm.domain == DOMAIN else None
        if norm is None or spec is None or all(item.name != "activation" for item in spec.attributes):
            return None
        if x is not norm.outputs[0]:
            return None
        nodes = {"norm": norm, **{f"inner{index}": item for index, item in enumerate(inner)}, "root": node}
        return Match(nodes, {"activation": name})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 4 of the module."""
        norm = match["norm"]
        present = attribute(norm, "activation", "none")
        name = match.facts["activation"]
        if present != "none" and not present == name == "relu":
            raise Refusal("the norm already has an activation", activation=present)
        if norm.graph is not context.graph:
            raise Refusal("the norm stands in an outer graph")
        if norm.op_type.endswith("FilterResponseNorm") and name != "relu" and not is_without_threshold(norm):
            raise Refusal("the norm's threshold comes after its activation", tau=_name(norm.inputs[-1]))
        if norm.outputs[0].is_graph_output():
            raise Refusal("the norm's own result is a graph output", output=norm.outputs[0].name)
        matched = set(match.nodes.values())
        for use in norm.outputs[0].uses():
            if use.node not in matched:
                raise Refusal("the norm's own result has another reader", reader=node_name(use.node))

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The norm with the attribute."""
        norm, root = match["norm"], match["root"]
        name: str = match.facts["activation"]
        attributes = {**norm.attributes, "activation": ir.AttrString("activation", name)}
        new = ir.node(
            norm.op_type,
            list(norm.inputs),
            attributes,
            domain=norm.domain,
            num_outputs=len(norm.outputs),
            name=norm.name,
        )
        outputs = {root.outputs[0]: new.outputs[0]}
        outputs |= dict(zip(norm.outputs[1:], new.outputs[1:], strict=True))
        # In the place of the norm: others may read a second result of it before the activation comes.
        removed = [*dict.fromkeys(node for role, node in match.nodes.items() if role != "norm"), norm]
        result = Replacement([new], outputs, removed, norm, into=node_name(norm), values={"activation": name})
        result.tolerance = max(result.tolerance, self._rounding(match))
        return result

    def _rounding(self, match: Match) -> float:
        """What the constants of a decomposed gelu lost to the model's type."""
        return constants_precision(match["norm"].outputs[0]) if len(match.nodes) > 3 else 0.0

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]


def is_without_threshold(norm: ir.Node) -> bool:
    """Whether tau, the last input, is a constant of -inf that nobody can override."""
    tensor = tensor_of(norm.inputs[-1])
    return tensor is not None and bool(np.isneginf(np.asarray(tensor, np.float64)).all())


def _name(value: ir.Value | None) -> str | None:
    return None if value is None else value.name


def constants_precision(x: ir.Value) -> float:
    """What the constants of a decomposed gelu may have lost to the element type."""
    return 4 * _precision(x)


def read_activation(node: ir.Node) -> tuple[str, ir.Value, list[ir.Node]] | None:
    """(name, input, inner nodes) when the node is the last of an activation."""
    x = node.inputs[0] if node.inputs else None
    if x is None:
        return None
    if is_op(node, "Relu"):
        return "relu", x, []
    if is_op(node, "Swish") and attribute(node, "alpha", 1.0) == 1.0:
        return "silu", x, []
    if is_op(node, "Gelu") and attribute(node, "approximate", "none") == "none":
        return "gelu", x, []
    if is_op(node, "Max") or is_op(node, "Clip"):
        return _relu(node)
    return (_silu(node) or _gelu(node)) if is_op(node, "Mul") or is_op(node, "Div") else None


def _relu(node: ir.Node) -> tuple[str, ir.Value, list[ir.Node]] | None:
    """Max(x, 0) and Clip from 0 without an upper bound: an attribute before opset 11, by default the largest float."""
    x = node.inputs[0] if node.inputs else None
    if is_op(node, "Clip") and len(node.inputs) == 1 and x is not None and x.dtype == ir.DataType.FLOAT:
        largest = float(np.finfo(np.float32).max)
        known = attribute(node, "min", None) == 0.0 and attribute(node, "max", largest) >= largest
        return ("relu", x, []) if known else None
    if len(node.inputs) < 2 or any(value is not None for value in node.inputs[2:]):
        return None
    pairs = [tuple(node.inputs[:2])]
    pairs += [(node.inputs[1], node.inputs[0])] if is_op(node, "Max") else []
    for x, bound in pairs:
        if x is not None and constant_tensor(x) is None and _number(bound, x) == 0.0:
            return "relu", x, []
    return None


def _silu(node: ir.Node) -> tuple[str, ir.Value, list[ir.Node]] | None:
    """X * Sigmoid(x), or x / (1 + exp(-x))."""
    if is_op(node, "Div"):
        x, below = node.inputs
        inner = None if x is None or below is None else _one_plus_exp(below, x)
        return None if x is None or inner is None else ("silu", x, inner)
    for x, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        gate = other.producer() if other is not None else None
        if x is not None and gate is not None and is_op(gate, "Sigmoid") and gate.inputs[0] is x:
            return ("silu", x, [gate]) if sole_consumer(gate.outputs[0]) is node else None
    return None


def _one_plus_exp(value: ir.Value, x: ir.Value) -> list[ir.Node] | None:
    """The nodes of 1 + exp(-x)."""
    add = value.producer()
    if add is None or not is_op(add, "Add") or sole_consumer(value) is None:
        return None
    for one, raised in (tuple(add.inputs), tuple(reversed(add.inputs))):
        exp = raised.producer() if raised is not None else None
        if exp is None or not is_op(exp, "Exp") or _number(one, x) != 1.0 or exp.inputs[0] is None:
            continue
        turned = exp.inputs[0].producer()
        if turned is None or not is_op(turned, "Neg") or turned.inputs[0] is not x:
            continue
        return [turned, exp, add] if sole_consumer(exp.inputs[0]) and sole_consumer(exp.outputs[0]) else None
    return None


def _gelu(node: ir.Node) -> tuple[str, ir.Value, list[ir.Node]] | None:
    """X * 0.5 * (1 + erf(x / sqrt(2))), products and quotients in any grouping."""
    found = _scaled(node)
    if found is None or len(found[1]) != 2:
        return None
    factor, values, inner = found
    for x, gate in (tuple(values), tuple(reversed(values))):
        read = _shifted_erf(gate, x)
        if read is not None and _is(factor * read[0], 0.5, x) and _is(factor * read[1], 0.5, x):
            return "gelu", x, [*read[2], *reversed(inner[1:])]
    return None


def _scaled(node: ir.Node) -> tuple[float, list[ir.Value], list[ir.Node]] | None:
    """The numbers of a product in one, its other factors, and its nodes, the last first; None with others below."""
    factors = factors_of(node)
    if any(is_op(item, "Cast") or is_op(item, "CastLike") for item in factors.nodes):
        return None
    values = [value for value in factors.above if constant_tensor(value) is None]
    if not values:
        return None
    factor = 1.0
    for value in factors.above:
        number = 1.0 if value in values else _number(value, values[0])
        factor *= math.nan if number is None else number
    for value in factors.below:
        number = _number(value, values[0])
        factor /= number or math.nan
    return None if math.isnan(factor) else (factor, values, factors.nodes)


def _number(value: ir.Value | None, x: ir.Value) -> float | None:
    """A scalar constant that leaves a tensor like ``x`` in its shape."""
    rank = rank_of(x)
    return scalar_of(value, 1 if rank is None else rank)


def _is(number: float | None, wanted: float, x: ir.Value) -> bool:
    """Whether a constant is that number as the element type of ``x`` rounds it."""
    return number is not None and math.isclose(number, wanted, rel_tol=_precision(x))


def _precision(x: ir.Value) -> float:
    dtype = x.dtype if x.dtype is not None and x.dtype.is_floating_point() else ir.DataType.FLOAT
    return float(float_info(dtype.numpy()).eps)


def _shifted_erf(gate: ir.Value, x: ir.Value) -> tuple[float, float, list[ir.Node]] | None:
    """(a, b, nodes) where the gate is ``a + b * erf(x / sqrt(2))``."""
    add = gate.producer()
    if add is None or not is_op(add, "Add") or sole_consumer(gate) is None:
        return None
    for shift, value in (tuple(add.inputs), tuple(reversed(add.inputs))):
        number, last = _number(shift, x), value.producer() if value is not None else None
        if number is None or value is None or last is None or sole_consumer(value) is None:
            continue
        factor, inner = 1.0, [add]
        if not is_op(last, "Erf"):
            found = _scaled(last) if is_op(last, "Mul") or is_op(last, "Div") else None
            if found is None or len(found[1]) != 1 or sole_consumer(found[1][0]) is None:
                continue
            factor, inner = found[0], [*reversed(found[2]), add]
            last = found[1][0].producer()
        chain = None if last is None or not is_op(last, "Erf") else _root_of_half(last.inputs[0], x)
        if chain is not None and last is not None:
            return number, factor, [*chain, last, *inner]
    return None


def _root_of_half(value: ir.Value | None, x: ir.Value) -> list[ir.Node] | None:
    """The nodes of x / sqrt(2)."""
    node = value.producer() if value is not None else None
    if node is None or value is None or sole_consumer(value) is None or not (is_op(node, "Mul") or is_op(node, "Div")):
        return None
    found = _scaled(node)
    if found is None or found[1] != [x] or not _is(found[0], math.sqrt(0.5), x):
        return None
    return list(reversed(found[2]))
