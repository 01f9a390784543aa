"""fold/shift-before-norm: a shift that the norm's mean takes away again is left out.

    norm(x + c) = norm(x)   where c is one number in each group of values that the norm brings to mean 0

for InstanceNormalization, GroupNormalization, LayerNormalization, and onnxnorm GroupNorm and LayerNorm: a number per
channel in front of a norm with one group per channel, as the bias of the convolution there, a number per group in front
of group norm, one number in front of any of them. The shift is an Add or Sub of a constant, or the bias of Conv or
ConvTranspose.

Refused:
    1. The shifted tensor has other readers, or is a graph output, or stands in another graph.
    2. The shift is not finite, or the caller may override it.
    3. The shifted tensor is of a half type: a shift that brings values near 0 saves them from being rounded coarsely.

Another shift is no part of this: it stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.product import check_graph
from onnxnorm.passes.fuse.sizes import FloatArray
from onnxnorm.passes.graph import attribute, constant_tensor, is_op, is_overridable, node_name, sole_consumer
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN

_STANDARD = ("InstanceNormalization", "GroupNormalization", "LayerNormalization")
_OWN = ("GroupNorm", "LayerNorm")


@dataclass(frozen=True)
class _Shift:
    """What is added in front of a norm.

    Attributes:
        node: the node that adds it.
        source: what it is added to by an Add or Sub; None where a layer adds its bias.
        value: the constant.
        axis: the axis of the result along which a bias of a layer runs; None for a constant that broadcasts.

    """

    node: ir.Node
    source: ir.Value | None
    value: ir.Value
    axis: int | None = None


class FoldShiftBeforeNorm(Rule):
    """See the module."""

    id: ClassVar[str] = "fold/shift-before-norm"
    operators: ClassVar[frozenset[str]] = frozenset({*_STANDARD, *_OWN})
    action: ClassVar[Action] = Action.FOLDED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A norm behind a shift that its mean takes away."""
        if not node.inputs or node.inputs[0] is None or node.inputs[0].shape is None:
            return None
        if not any(is_op(node, name) for name in _STANDARD) and not (node.domain == DOMAIN and node.op_type in _OWN):
            return None
        if len(node.outputs) > 1 and any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
            return None  # Mean is an output of LayerNormalization
        shift = _shift(node.inputs[0])
        if shift is None or not _is_dead(node, shift):
            return None
        return Match({"shift": shift.node, "norm": node}, {"shift": shift})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        shift: _Shift = match.facts["shift"]
        check_graph(match.nodes.values(), context)
        shifted = shift.node.outputs[0]
        if sole_consumer(shifted) is not match["norm"]:
            raise Refusal("the shifted tensor has other readers or is a graph output", value=shifted.name)
        if is_overridable(shift.value):
            raise Refusal("the shift is a graph input that a caller may override", input=shift.value.name)
        array = _array(shift.value)
        if array is None or not np.isfinite(array).all():
            raise Refusal("the shift is not finite", input=shift.value.name)
        if shifted.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            raise Refusal(
                "a half type rounds what is not shifted towards 0 more coarsely", dtype=shifted.dtype.name.lower()
            )

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The norm of what was shifted."""
        shift: _Shift = match.facts["shift"]
        norm, node = match["norm"], shift.node
        made = []
        source = shift.source
        if source is None:
            layer = ir.node(node.op_type, node.inputs[:2], node.attributes, domain=node.domain, name=node.name)
            layer.outputs[0].type, layer.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            made.append(layer)
            source = layer.outputs[0]
        new = ir.node(
            norm.op_type,
            [source, *norm.inputs[1:]],
            norm.attributes,
            domain=norm.domain,
            num_outputs=len(norm.outputs),
            name=norm.name,
        )
        for old, value in zip(norm.outputs, new.outputs, strict=True):
            value.type, value.shape = old.type, old.shape
        outputs = dict(zip(norm.outputs, new.outputs, strict=True))
        result = Replacement([*made, new], outputs, [node, norm], norm, into=node_name(norm))
        result.tolerance = 1e-7
        return result

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]


def _array(value: ir.Value) -> FloatArray | None:
    tensor = constant_tensor(value) if not is_overridable(value) else value.const_value
    if tensor is None or not tensor.dtype.is_floating_point():
        return None
    return np.asarray(tensor.numpy()).astype(np.float64)


def _shift(shifted: ir.Value) -> _Shift | None:
    """What was added to make the value; None where nothing constant was."""
    node = shifted.producer()
    if node is None:
        return None
    if is_op(node, "Add") or is_op(node, "Sub"):
        first, second = node.inputs
        pairs = [(first, second)] if is_op(node, "Sub") else [(first, second), (second, first)]
        for source, value in pairs:
            if source is not None and value is not None and _array(value) is not None and _array(source) is None:
                return _Shift(node, source, value)
        return None
    if len(node.inputs) < 3 or node.inputs[2] is None or _array(node.inputs[2]) is None:
        return None
    if is_op(node, "Conv") or is_op(node, "ConvTranspose"):
        return _Shift(node, None, node.inputs[2], 1)
    return None


def _is_dead(norm: ir.Node, shift: _Shift) -> bool:
    """Whether the shift is one number in each group of values that the norm brings to mean 0."""
    x, array = norm.inputs[0], _array(shift.value)
    assert x is not None
    if array is None or x.shape is None:
        return False
    rank = len(x.shape)
    if shift.axis is not None:
        array = array.reshape(-1, *(1,) * (rank - 1 - shift.axis))
    elif shift.source is None or shift.source.shape is None or list(shift.source.shape) != list(x.shape):
        return False  # it may give the tensor another shape
    if array.ndim > rank or (shift.axis is None and not _has_names(x.shape)):
        return False
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    groups = _groups(norm, rank)
    if groups is None:
        axes: Sequence[int] = _row_axes(norm, rank)
        return all(_is_even(array, axis) for axis in axes)
    count, channel = groups
    if not all(_is_even(array, axis) for axis in range(1, rank) if axis != channel):
        return False
    size = array.shape[channel]
    if size == 1:
        return True
    parts = np.moveaxis(array, channel, 0)
    count = size if count is None else count
    if size % count:
        return False
    parts = parts.reshape(count, size // count, -1)
    return bool((parts == parts[:, :1]).all())


def _has_names(shape: ir.Shape) -> bool:
    """Whether each size is a number or a symbol, so that equal shapes are the same."""
    return all(isinstance(size, int) or size.value is not None for size in shape)


def _is_even(array: FloatArray, axis: int) -> bool:
    return array.shape[axis] == 1 or bool((array == array.take([0], axis=axis)).all())


def _groups(norm: ir.Node, rank: int) -> tuple[int | None, int] | None:
    """The number of groups, None for one per channel, and the channels' axis; None for norms over given axes."""
    if is_op(norm, "InstanceNormalization"):
        return None, 1
    if norm.op_type in ("GroupNormalization", "GroupNorm"):
        return attribute(norm, "num_groups", 1), rank - 1 if attribute(norm, "channels_last", 0) else 1
    return None


def _row_axes(norm: ir.Node, rank: int) -> list[int]:
    if norm.domain == DOMAIN:
        return [axis % rank for axis in attribute(norm, "axes", ())]
    return list(range(attribute(norm, "axis", -1) % rank, rank))
