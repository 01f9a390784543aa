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

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES, Power, holds, read_power, without_casts
from onnxnorm.passes.graph import constant_tensor, is_op, node_name, rank_of, sole_consumer
from onnxnorm.passes.lower.choice import ChoosingRule
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement
from onnxnorm.spec.record import DOMAIN


class FuseRMSNorm(ChoosingRule):
    """See the module."""

    recognizes: ClassVar[bool] = True
    id: ClassVar[str] = "fuse/rms-norm"
    operators: ClassVar[frozenset[str]] = frozenset({"Mul", "Div"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """The product in which a tensor meets the inverse root of its own mean square."""
        dtype = node.outputs[0].dtype
        if not (is_op(node, "Mul") or is_op(node, "Div")) or dtype not in FLOAT_TYPES or context.in_function:
            return None
        if self.target == "standard" and context.opset < 23 and dtype != ir.DataType.DOUBLE:
            return None
        pairs = [tuple(node.inputs)] if node.op_type == "Div" else [tuple(node.inputs), tuple(reversed(node.inputs))]
        for top, other in pairs:
            power = read_power(other, context.opset)
            if top is None or power is None:
                continue
            if node.op_type == "Div":
                power = power.power(-1.0)
            found = _numerator(top, power.source, [])
            if found is not None and not _is_centred(power.source):
                x, weights, inner = found
                nodes = [*power.nodes, *inner, node]
                facts = {"power": power, "x": x, "weights": [*weights, *power.weights]}
                return Match({str(index): item for index, item in enumerate(nodes)}, facts)
        return None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 5, 7 and 8 of the module."""
        power: Power = match.facts["power"]
        x: ir.Value = match.facts["x"]
        if power.problem is not None:
            raise Refusal(power.problem)
        if power.exponent != -0.5 or not power.broadcasts:
            raise Refusal("its power is not the inverse square root", exponent=power.exponent)
        if any(item.graph is not context.graph for item in match.nodes.values()):
            raise Refusal("a part of it stands in an outer graph")
        _check_types(power, x)
        _sizes(x, power.axes)
        if any(not _same_shape(shape, x.shape) for shape in power.expanded):
            raise Refusal("the statistic is broadcast to a shape that is not known to be that of x", x=str(x.shape))
        for weight in match.facts["weights"]:
            if weight.dtype != x.dtype:
                raise Refusal("a weight and x differ in element type", weight=weight.dtype, x=x.dtype)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op with a scale of the scalar factors, then a product with each weight."""
        power: Power = match.facts["power"]
        x: ir.Value = match.facts["x"]
        root = self.subject(match)
        assert x.dtype is not None
        rank = rank_of(x) or 0
        scale = context.constant(
            f"{node_name(root)}_scale", np.full(_sizes(x, power.axes), power.factor, np.float64), x.dtype
        )
        attributes: dict[str, Any] = {
            "axes": [axis - rank for axis in power.axes],
            "epsilon": _epsilon(power.epsilon, x.dtype),
            "activation": "none",
        }
        nodes = [ir.node("RMSNorm", [x, scale], attributes, domain=DOMAIN, name=root.name)]
        nodes[0].outputs[0].dtype, nodes[0].outputs[0].shape = x.dtype, x.shape
        for weight in match.facts["weights"]:
            nodes.append(ir.node("Mul", [nodes[-1].outputs[0], weight]))
            nodes[-1].outputs[0].dtype = x.dtype
        nodes[-1].outputs[0].shape = root.outputs[0].shape
        removed = [*reversed(match.nodes.values())]
        removed = [*(item for item in removed if item is not root), root]
        removed = [*_unread(power.shared, removed), *removed]
        result = Replacement(nodes, {root.outputs[0]: nodes[-1].outputs[0]}, removed, root, into=root.name)
        result.tolerance = 1e-5  # epsilon and scalar factors are rounded: checked is the algebra
        return result


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


def _is_centred(x: ir.Value) -> bool:
    """Whether a mean was taken away from x."""
    node = x.producer()
    if node is None or not is_op(node, "Sub") or node.inputs[1] is None:
        return False
    mean = without_casts(node.inputs[1]).producer()
    while mean is not None and mean.op_type in ("Expand", "Unsqueeze", "Reshape", "Cast", "CastLike", "Div", "Mul"):
        mean = mean.inputs[0].producer() if mean.inputs[0] is not None else None
    return mean is not None and mean.op_type in ("ReduceMean", "ReduceSum", "GlobalAveragePool")


def _check_types(power: Power, x: ir.Value) -> None:
    """Reason 4 of the module."""
    computed = ir.DataType.DOUBLE if x.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    for dtype in power.dtypes:
        if not holds(dtype, power.source.dtype):
            raise Refusal("the statistic is kept in a type that is narrower than x", dtype=dtype, x=power.source.dtype)
        if not holds(computed, dtype):
            raise Refusal("the statistic is kept in a type that is wider than the op computes in", dtype=dtype)


def _sizes(x: ir.Value, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of the normalized axes; Refusal (reason 5) when one is not known."""
    sizes = [x.shape[axis] if x.shape is not None and axis < len(x.shape) else None for axis in axes]
    known = [size for size in sizes if isinstance(size, int) and size > 0]
    if len(known) != len(sizes):
        raise Refusal("the size of a normalized axis is not known or 0", x=str(x.shape), axes=list(axes))
    return tuple(known)


def _same_shape(shape: ir.Shape, x: ir.Shape | None) -> bool:
    """Whether broadcasting x against ``shape`` surely gives x's own shape."""
    if x is None or len(shape) > len(x):
        return False
    for size, own in zip(reversed(list(shape)), reversed(list(x)), strict=False):
        if size == 1 or (isinstance(size, int) and size == own):
            continue
        if isinstance(size, int) or isinstance(own, int) or size.value is None or size.value != own.value:
            return False
    return True


def _epsilon(epsilon: float, dtype: ir.DataType) -> float:
    """The attribute; Refusal (reason 6) when a float32 cannot say it."""
    with np.errstate(over="ignore", under="ignore"):
        stored = float(np.float32(epsilon))
    if epsilon < 0 or not np.isfinite(stored) or (epsilon > 0 and stored < float(np.finfo(np.float32).tiny)):
        raise Refusal("epsilon is not one that the op can hold", epsilon=epsilon)
    meant = float(f"{stored:.6e}")  # what the op takes in float64, see BodyBuilder.float_attribute
    if dtype == ir.DataType.DOUBLE and epsilon != stored and abs(meant - epsilon) > 1e-12 * epsilon:
        raise Refusal("epsilon has more digits than the op's attribute holds", epsilon=epsilon)
    return stored


def _unread(shared: tuple[ir.Node, ...], removed: list[ir.Node]) -> Iterator[ir.Node]:
    """Those of the nodes, first ones first, that nothing else reads."""
    gone = set(removed)
    kept: list[ir.Node] = []
    for node in shared:
        value = node.outputs[0]
        if value.is_graph_output() or any(use.node not in gone for use in value.uses()):
            break
        gone.add(node)
        kept.append(node)
    yield from reversed(kept)
