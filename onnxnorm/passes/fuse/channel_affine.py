"""fuse/channel-affine: scale and shift behind a norm go into the norm's own.

    norm(x, s, b) * w + c  =  norm(x, s * w, b * w + c)

for every onnxnorm op that ends in ``* scale + bias``, in any part of that chain (a Mul, a Div, an Add, a Sub, or a Mul
and the Add behind it at once, which is rounded once). w and c have one value for each value of scale. A single number
for all of them is part of the norm only where it changes nothing, as PyTorch writes a missing scale and shift: other
numbers belong to what comes next as often as not. GlobalResponseNorm ends in ``+ bias`` only: no factor goes into it.

What is no constant, or varies along other axes, is no part of the norm (a residual, a positional embedding) and stays.

Refused:
    1. The norm's own result has other readers, or is a graph output, or the norm stands in another graph.
    2. The norm already has an activation, or (FilterResponseNorm) a threshold.
    3. A caller may override w or c, or they differ from the norm in element type.
    4. The norm's scale or bias is computed at run time, or a caller may override it.
    5. A result overflows or loses digits in the element type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.activation import is_without_threshold
from onnxnorm.passes.fuse.rms_norm_weight import check_digits, check_private
from onnxnorm.passes.fuse.sizes import FloatArray
from onnxnorm.passes.graph import attribute, constant_tensor, is_op, is_overridable, node_name, sole_consumer
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, constant_array
from onnxnorm.runtime.arrays import float_info
from onnxnorm.spec.blocked import PREFIX as BLOCKED
from onnxnorm.spec.record import DOMAIN, NormSpec

_OPERATORS = ("Mul", "Div", "Add", "Sub")
#: Ops that end in ``+ bias`` without a factor.
_WITHOUT_SCALE = frozenset({"GlobalResponseNorm"})


@dataclass(frozen=True)
class _Step:
    """One factor or shift.

    Attributes:
        node: the Mul, Div, Add or Sub.
        other: the constant.
        exact: its numbers in float64, in the shape of the norm's scale, or of that with sizes of 1.

    """

    node: ir.Node
    other: ir.Value
    exact: FloatArray

    @property
    def is_factor(self) -> bool:
        return self.node.op_type in ("Mul", "Div")


class FuseChannelAffine(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/channel-affine"
    operators: ClassVar[frozenset[str]] = frozenset(_OPERATORS)
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A product or sum of a norm's result and a constant, with the sum behind a product."""
        norm = next((item for item in map(_norm_of, node.inputs) if item is not None), None)
        if norm is None:
            return None
        step = _step(norm.outputs[0], node, norm)
        if step is None or (step.is_factor and norm.op_type in _WITHOUT_SCALE):
            return None
        steps = [step]
        follower = sole_consumer(node.outputs[0]) if step.is_factor else None
        if follower is not None and (is_op(follower, "Add") or is_op(follower, "Sub")):
            further = _step(node.outputs[0], follower, norm)
            steps += [further] if further is not None and not is_overridable(further.other) else []
        nodes = {"norm": norm} | {str(index): item.node for index, item in enumerate(steps)}
        return Match(nodes, {"steps": steps})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        norm, steps = match["norm"], match.facts["steps"]
        check_private(norm, steps[0].node, context)
        present = attribute(norm, "activation", "none")
        if present != "none":
            raise Refusal("the norm already has an activation", activation=present)
        if norm.op_type == "FilterResponseNorm" and not is_without_threshold(norm):
            raise Refusal("the norm already has a threshold")
        for step in steps:
            if is_overridable(step.other):
                raise Refusal("a caller may override what it meets", input=step.other.name)
            if step.other.dtype != norm.outputs[0].dtype:
                raise Refusal("they differ in element type", norm=norm.outputs[0].dtype, other=step.other.dtype)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The norm with new parameters."""
        norm, steps = match["norm"], match.facts["steps"]
        spec = all_specs()[norm.op_type]
        inputs = list(norm.inputs)
        places = {item.name: index for index, item in enumerate(spec.inputs)}
        dtype = inputs[places["scale"]].dtype  # type: ignore[union-attr]
        assert dtype is not None
        made = {}
        bias = constant_array(inputs[places["bias"]], "bias").astype(np.float64)
        if any(step.is_factor for step in steps):
            made["scale"] = constant_array(inputs[places["scale"]], "scale").astype(np.float64)
        for step in steps:
            with np.errstate(all="ignore"):
                if step.is_factor:
                    factor = step.exact if step.node.op_type == "Mul" else 1.0 / step.exact
                    made["scale"], bias = made["scale"] * factor, bias * factor
                else:
                    bias = bias + step.exact if step.node.op_type == "Add" else _difference(norm, step, bias, made)
        for name, exact in {**made, "bias": bias}.items():
            if name == "scale":
                check_digits(exact, dtype)
            inputs[places[name]] = context.constant(f"{node_name(norm)}_{name}", exact, dtype)
        new = ir.node(norm.op_type, inputs, norm.attributes, domain=DOMAIN, name=norm.name)
        new.outputs[0].type, new.outputs[0].shape = norm.outputs[0].type, norm.outputs[0].shape
        root = steps[-1].node
        result = Replacement(
            [new], {root.outputs[0]: new.outputs[0]}, list(match.nodes.values()), norm, into=node_name(norm)
        )
        result.tolerance = 4 * float(float_info(dtype.numpy()).eps)
        return result

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]


def _norm_of(value: ir.Value | None) -> ir.Node | None:
    """The norm whose result the value is, where it ends in a scale and a bias and has no other result."""
    norm = value.producer() if value is not None else None
    if norm is None or norm.domain != DOMAIN or len(norm.outputs) > 1:
        return None
    spec = all_specs().get(norm.op_type)
    known = spec is not None and _has_affine(spec) and not norm.op_type.startswith(BLOCKED)
    return norm if known else None


def _has_affine(spec: NormSpec) -> bool:
    return {"scale", "bias"} <= {item.name for item in spec.inputs} and not spec.has_state


def _step(y: ir.Value, node: ir.Node, norm: ir.Node) -> _Step | None:
    """What the node does to ``y``, which has the norm's shape; None where it is no part of the norm."""
    if not any(is_op(node, name) for name in _OPERATORS) or (
        sole_consumer(y) is not node and node.inputs.count(y) != 1
    ):
        return None
    for value, other in _operands(node):
        if value is not y or other is None:
            continue
        tensor = constant_tensor(other) if not is_overridable(other) else other.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            return None
        array = np.asarray(tensor.numpy()).astype(np.float64)
        exact = _along_scale(array, norm)
        step = None if exact is None else _Step(node, other, exact)
        changes = step is not None and bool((step.exact != (1.0 if step.is_factor else 0.0)).any())
        return None if changes and array.size == 1 and not _is_single(norm) else step
    return None


def _is_single(norm: ir.Node) -> bool:
    """Whether the norm's scale is a single number."""
    scale = norm.inputs[1]
    return scale is not None and scale.shape is not None and list(scale.shape) == [1] * len(scale.shape)


def _operands(node: ir.Node) -> Iterator[tuple[ir.Value | None, ir.Value | None]]:
    first, second = node.inputs
    yield first, second
    if node.op_type != "Div":
        yield second, first


def _along_scale(array: FloatArray, norm: ir.Node) -> FloatArray | None:
    """The array in the shape of the norm's scale; None where it varies along other axes, or broadens the result."""
    x, scale = norm.inputs[:2]
    if x is None or x.shape is None or scale is None or scale.shape is None or array.ndim > len(x.shape):
        return None
    rank, sizes = len(x.shape), list(scale.shape)
    axes = _scale_axes(norm, rank)
    spread = array.reshape((1,) * (rank - array.ndim) + array.shape)
    for axis, size in enumerate(spread.shape):
        wanted = sizes[axes.index(axis)] if axis in axes else 1
        if size not in (1, wanted):
            return None
    return np.asarray(np.broadcast_to(spread.reshape([spread.shape[axis] for axis in axes]), [*map(_known, sizes)]))


def _known(size: object) -> int:
    return size if isinstance(size, int) else 1


def _scale_axes(norm: ir.Node, rank: int) -> list[int]:
    """The axes of X along which scale runs."""
    axes = attribute(norm, "axes", None)
    if axes is not None:
        return sorted(axis % rank for axis in axes)
    return [rank - 1 if attribute(norm, "channels_last", 0) else 1]


def _difference(norm: ir.Node, step: _Step, bias: FloatArray, made: dict[str, FloatArray]) -> FloatArray:
    """The bias of y - c; of c - y, with the scale turned as well, where c comes first."""
    if step.node.inputs[1] is step.other:
        return bias - step.exact
    scale = made.get("scale")
    if scale is None:
        scale = constant_array(norm.inputs[1], "scale").astype(np.float64)
    if norm.op_type in _WITHOUT_SCALE:
        raise Refusal("the norm has no factor that could be turned")
    made["scale"] = -scale
    return step.exact - bias
