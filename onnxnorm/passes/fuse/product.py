"""A tensor times a power of its own mean square: what several norms are made of, and what they have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES, Power, holds, read_power, without_casts
from onnxnorm.passes.fuse.sizes import same_size
from onnxnorm.passes.graph import constant_tensor, in_order, is_op, node_name, rank_of, sole_consumer
from onnxnorm.passes.rule import Context, Refusal, Replacement
from onnxnorm.spec.record import DOMAIN

#: What may stand between a mean and what it is taken away from.
_AROUND_MEAN = ("Expand", "Unsqueeze", "Squeeze", "Reshape", "Cast", "CastLike", "Div", "Mul", "Neg")


@dataclass(frozen=True)
class Product:
    """``x * power * weights``.

    Attributes:
        x: the tensor whose squares ``power`` averages, perhaps behind casts that widen it.
        power: the power of the mean square, inverted where x is divided by it.
        weights: the other factors.
        nodes: what computes it without the power's own nodes, last first.

    """

    x: ir.Value
    power: Power
    weights: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]

    @property
    def root(self) -> ir.Node:
        """The last node."""
        return self.nodes[0]

    @property
    def matched(self) -> dict[str, ir.Node]:
        """All nodes by a running number, the root last."""
        nodes = [*self.power.nodes, *self.nodes[1:], self.root]
        return {str(index): node for index, node in enumerate(nodes)}


def find_product(node: ir.Node, context: Context) -> Product | None:
    """The product that a Mul or Div in the main graph or a subgraph completes; None where it is none of floats."""
    if (
        not (is_op(node, "Mul") or is_op(node, "Div"))
        or node.outputs[0].dtype not in FLOAT_TYPES
        or context.in_function
    ):
        return None
    pairs = [tuple(node.inputs)] if node.op_type == "Div" else [tuple(node.inputs), tuple(reversed(node.inputs))]
    for top, other in pairs:
        power = read_power(other, context.opset)
        if top is None or power is None:
            continue
        if node.op_type == "Div":
            power = power.power(-1.0)
        found = _numerator(top, power.source, [])
        if found is not None:
            return Product(found[0], power, (*found[1], *power.weights), (node, *reversed(found[2])))
    return None


def _numerator(
    top: ir.Value, source: ir.Value, inner: list[ir.Node]
) -> tuple[ir.Value, list[ir.Value], list[ir.Node]] | None:
    """The factor of a product that is the source (before casts), the other factors, and the Mul nodes in between."""
    if without_casts(top) is source:
        return None if constant_tensor(source) is not None or source.const_value is not None else (top, [], inner)
    node = top.producer()
    if node is None or not is_op(node, "Mul") or sole_consumer(top) is None or len(inner) > 3:
        return None
    for value, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        if value is None or other is None:
            continue
        found = _numerator(value, source, [*inner, node])
        if found is not None:
            return found[0], [*found[1], other], found[2]
    return None


def is_centred(x: ir.Value) -> bool:
    """Whether a mean was taken away from x."""
    node = x.producer()
    if node is None or not (is_op(node, "Sub") or is_op(node, "Add")):
        return False
    return any(_is_mean(value, node.op_type == "Add") for value in node.inputs[node.op_type == "Sub" :])


def _is_mean(value: ir.Value | None, negative: bool) -> bool:
    """Whether a mean is all that the value is, but for a factor and its shape; with its sign changed, if so asked."""
    mean, turned = value.producer() if value is not None else None, False
    for _ in range(10):
        if mean is None or mean.op_type not in _AROUND_MEAN:
            break
        turned = turned or mean.op_type == "Neg"
        mean = mean.inputs[0].producer() if mean.inputs[0] is not None else None
    found = mean is not None and mean.op_type in ("ReduceMean", "ReduceSum", "GlobalAveragePool")
    return found and turned == negative


def check_power(power: Power, x: ir.Value) -> None:
    """Refusal unless it is an inverse root that the op computes as well: its spelling, element types and shapes."""
    if power.problem is not None:
        raise Refusal(power.problem)
    if power.exponent != -0.5 or not power.broadcasts:
        raise Refusal("its power is not the inverse square root", exponent=power.exponent)
    check_types(power, x, power.source.dtype)
    if any(not same_shape(shape, x.shape) for shape in power.expanded):
        raise Refusal("the statistic is broadcast to a shape that is not known to be that of x", x=str(x.shape))


def check_graph(nodes: Iterable[ir.Node], context: Context) -> None:
    """Refusal unless all nodes stand in the context's graph."""
    if any(item.graph is not context.graph for item in nodes):
        raise Refusal("a part of it stands in an outer graph")


def check_types(power: Power, x: ir.Value, narrowest: ir.DataType | None) -> None:
    """Refusal when the statistic is kept in a type narrower than that, or wider than an op on ``x`` computes in."""
    computed = ir.DataType.DOUBLE if x.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    for dtype in power.dtypes:
        if not holds(dtype, narrowest):
            raise Refusal("the statistic is kept in a type that is narrower than x", dtype=dtype, x=narrowest)
        if not holds(computed, dtype):
            raise Refusal("the statistic is kept in a type that is wider than the op computes in", dtype=dtype)


def check_weight_types(weights: Iterable[ir.Value], x: ir.Value) -> None:
    """Refusal unless weights have the element type of x."""
    for weight in weights:
        if weight.dtype != x.dtype:
            raise Refusal("a weight and x differ in element type", weight=weight.dtype, x=x.dtype)


#: Elements of a scale that a norm without one gets; a file may name any size.
_LARGEST_SCALE = 1 << 24


def known_sizes(x: ir.Value, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of the normalized axes; Refusal when one is not known, or is 0."""
    sizes = [x.shape[axis] if x.shape is not None and axis < len(x.shape) else None for axis in axes]
    known = [size for size in sizes if isinstance(size, int) and size > 0]
    if len(known) != len(sizes):
        raise Refusal("the size of a normalized axis is not known or 0", x=str(x.shape), axes=list(axes))
    if math.prod(known) > _LARGEST_SCALE:
        raise Refusal("a scale for so many elements is not made", x=str(x.shape), axes=list(axes))
    return tuple(known)


def same_shape(shape: ir.Shape, x: ir.Shape | None) -> bool:
    """Whether broadcasting x against ``shape`` surely gives x's own shape."""
    if x is None or len(shape) > len(x):
        return False
    pairs = zip(reversed(list(shape)), reversed(list(x)), strict=False)
    return all(size == 1 or same_size(size, own) for size, own in pairs)


def attribute_of_epsilon(epsilon: float, dtype: ir.DataType) -> float:
    """The attribute; Refusal when epsilon is negative, or a float32 cannot say it."""
    with np.errstate(over="ignore", under="ignore"):
        stored = float(np.float32(epsilon))
    if epsilon < 0 or not np.isfinite(stored) or (epsilon > 0 and stored < float(np.finfo(np.float32).tiny)):
        raise Refusal("epsilon is not one that the op can hold", epsilon=epsilon)
    meant = float(f"{stored:.6e}")  # what the op takes in float64, see BodyBuilder.float_attribute
    if dtype == ir.DataType.DOUBLE and epsilon != stored and abs(meant - epsilon) > 1e-12 * epsilon:
        raise Refusal("epsilon has more digits than the op's attribute holds", epsilon=epsilon)
    return stored


def rows_norm(op: str, product: Product, factor: float, epsilon: float, context: Context) -> Replacement:
    """The op over the power's axes with a scale of ``factor``, then a product with each weight."""
    x, root, axes = product.x, product.root, product.power.axes
    assert x.dtype is not None
    rank = rank_of(x) or 0
    scale = context.constant(f"{node_name(root)}_scale", np.full(known_sizes(x, axes), factor, np.float64), x.dtype)
    attributes: dict[str, Any] = {
        "axes": [axis - rank for axis in axes],
        "epsilon": attribute_of_epsilon(epsilon, x.dtype),
        "activation": "none",
    }
    nodes = [ir.node(op, [x, scale], attributes, domain=DOMAIN, name=root.name)]
    nodes[0].outputs[0].dtype, nodes[0].outputs[0].shape = x.dtype, x.shape
    for weight in product.weights:
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], weight]))
        nodes[-1].outputs[0].dtype = x.dtype
    nodes[-1].outputs[0].shape = root.outputs[0].shape
    return put(nodes, product.matched.values(), product.power.shared, root)


def put(nodes: Sequence[ir.Node], matched: Iterable[ir.Node], shared: Iterable[ir.Node], root: ir.Node) -> Replacement:
    """The replacement of ``root`` by the nodes' last result; Refusal where others read what would go.

    Args:
        nodes: what is new.
        matched: what computes the root and has no readers outside.
        shared: what others may read, too: it goes where nothing else does.
        root: the last of the matched nodes.

    """
    gone = dict.fromkeys(node for node in matched if node is not root)
    gone[root] = None
    removed = in_order([*unread(shared, gone), *gone])
    check_private_nodes(removed, root)
    result = Replacement(nodes, {root.outputs[0]: nodes[-1].outputs[0]}, removed, root, into=node_name(root))
    result.before = in_order([*shared, *gone])
    result.tolerance = 1e-5  # epsilon and scalar factors are rounded: checked is the algebra
    return result


def unread(shared: Iterable[ir.Node], gone: Iterable[ir.Node]) -> list[ir.Node]:
    """Those of the nodes whose results only nodes that go read."""
    leaving, waiting, found = set(gone), list(dict.fromkeys(shared)), True
    kept: list[ir.Node] = []
    while found:
        found = False
        for node in list(waiting):
            values = node.outputs
            if node in leaving or any(
                value.is_graph_output() or any(use.node not in leaving for use in value.uses()) for value in values
            ):
                continue
            waiting.remove(node)
            leaving.add(node)
            kept.append(node)
            found = True
    return kept


def check_private_nodes(nodes: Iterable[ir.Node], root: ir.Node, shared: Iterable[ir.Node] = ()) -> None:
    """Refusal unless each result of the nodes but the root's is read by the nodes, and by shared ones, alone."""
    own = list(dict.fromkeys(nodes))
    inside = {*own, *shared}
    for node in own:
        if node is root:
            continue
        for value in node.outputs:
            if value.is_graph_output():
                raise Refusal("an inner value is a graph output", output=value.name)
            for use in value.uses():
                if use.node not in inside:
                    raise Refusal("an inner value has other readers", value=value.name, reader=node_name(use.node))
