"""lower/affine-to-batch-normalization: s[c] * x + t[c] in several nodes becomes one BatchNormalization.

What no layer takes of a chain of Mul, Div, Add, Sub, Neg by constants of a channel (axis 1), possibly with
BatchNormalization among them, is computed in one go by BatchNormalization with scale s, bias t, mean 0, variance 1 and
epsilon 0. On ONNX Runtime's CPU provider that takes 0.5 to 0.85 of the time of a Mul and an Add in float32 (1.31.1, two
threads: 8 x 64 x 56 x 56, 0.174 and 0.287 ms; 4096 x 64, 0.048 and 0.099 ms). In float64 it takes up to 1.3 of the
time, in float16 up to 6 times: there chains are left alone that hold no BatchNormalization yet.

Left alone: a single node; BatchNormalization beside a layer, which says why it does not take it; one number for all
channels, which is arithmetic of something else as often as not (of GELU, of a mask); the scale and shift of a
normalization with statistics of its own, by which it is recognized; an input whose number of channels is not known.

Refused:
    1. A map is not finite, or its scale or shift overflows or loses digits in the element type.
    2. A shift comes before a scale and is large behind it: s * x + t then is a small difference of large numbers, which
       the subtraction in front was not.

The chain ends before a node whose constant a caller may override or whose constant differs along other axes, and where
a result has another reader or is a graph output.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fold.affine import OLDEST_OPSET, is_normalized, subject_of
from onnxnorm.passes.fold.affine_behind import per_channel
from onnxnorm.passes.fold.affine_into_layer import LARGEST_SHIFT
from onnxnorm.passes.fold.affine_layout import FloatArray, is_layout
from onnxnorm.passes.fold.batch_norm import check_private, tolerance_of
from onnxnorm.passes.fold.layer_output import OPERATORS
from onnxnorm.passes.graph import constant_tensor, is_op, sole_consumer
from onnxnorm.passes.lower.choice import ChoosingRule
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement
from onnxnorm.runtime.arrays import float_info

#: Of more channels no map is looked for.
_MOST_CHANNELS = 1 << 20
_MAPS = ("Add", "BatchNormalization", "Div", "Mul", "Neg", "Sub")


class LowerAffineToBatchNormalization(ChoosingRule):
    """See the module."""

    id: ClassVar[str] = "lower/affine-to-batch-normalization"
    operators: ClassVar[frozenset[str]] = frozenset(_MAPS)
    action: ClassVar[Action] = Action.LOWERED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """The first of two or more maps, one of which differs between channels."""
        if self.provider != "cpu" or context.opset < OLDEST_OPSET:
            return None
        data = _data(node)
        if data is None or data.shape is None or len(data.shape) < 2 or not isinstance(data.shape[1], int):
            return None
        maps, scale, shift, early = _chain(node, data, context)
        has_norm = any(is_op(item, "BatchNormalization") for item in maps)
        differs = bool((scale != scale[0]).any() or (shift != shift[0]).any())
        if len(maps) < 2 or not (has_norm or (differs and data.dtype == ir.DataType.FLOAT)):
            return None
        if not has_norm and is_normalized(_moved_from(data)):
            return None
        if has_norm and (_is_layer(data.producer()) or _is_layer(sole_consumer(maps[-1].outputs[0]))):
            return None  # whose rule says why it does not take them
        facts = {"data": data, "maps": maps, "scale": scale, "shift": shift, "early": early}
        return Match({str(index): item for index, item in enumerate(maps)}, facts)

    def subject(self, match: Match) -> ir.Node:
        """BatchNormalization if there is one."""
        return subject_of(match.facts["maps"])

    def check(self, match: Match, context: Context) -> None:
        """Reason 2, and the first part of 1."""
        scale, shift = match.facts["scale"], match.facts["shift"]
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise Refusal("the map is not finite: it divides by zero or overflows")
        if match.facts["early"] and np.abs(shift).max() > LARGEST_SHIFT:
            raise Refusal("the shift is large against the data, so that it stays in front of the scale",
                          shift=f"{np.abs(shift).max():.6g}")  # fmt: skip

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """BatchNormalization in the place of the last map."""
        data, maps = match.facts["data"], match.facts["maps"]
        scale, shift = match.facts["scale"], match.facts["shift"]
        last = maps[-1].outputs[0]
        dtype = data.dtype
        _check_digits(scale, dtype)
        wish = last.name or "affine"
        zeros, ones = np.zeros(scale.size), np.ones(scale.size)
        parameters = [
            context.constant(f"{wish}_{name}", exact, dtype)
            for name, exact in (("scale", scale), ("bias", shift), ("mean", zeros), ("variance", ones))
        ]
        new = ir.node("BatchNormalization", [data, *parameters], {"epsilon": 0.0}, name=maps[-1].name)
        new.outputs[0].type, new.outputs[0].shape = data.type, data.shape
        norms = [node for node in maps if is_op(node, "BatchNormalization")]
        return Replacement(
            [new],
            {last: new.outputs[0]},
            maps,
            self.subject(match),
            tolerance=max([1e-9, *map(tolerance_of, norms)]),
        )


def _is_layer(node: ir.Node | None) -> bool:
    return any(is_op(node, name) for name in OPERATORS)


def _data(node: ir.Node) -> ir.Value | None:
    """What the node maps, where it is the only input that is computed."""
    if is_op(node, "BatchNormalization"):
        return node.inputs[0]
    if not any(is_op(node, name) for name in _MAPS):
        return None
    computed = [value for value in node.inputs if value is not None and constant_tensor(value) is None]
    return computed[0] if len(computed) == 1 else None


def _chain(node: ir.Node, data: ir.Value, context: Context) -> tuple[list[ir.Node], FloatArray, FloatArray, bool]:
    """(maps, scale, shift, whether a shift comes before a scale) of the longest chain from the node on."""
    assert data.shape is not None
    channels = int(data.shape[1])  # type: ignore[arg-type]
    channels = channels if channels <= _MOST_CHANNELS else 0  # a file may name any number
    index = np.arange(channels, dtype=np.float64).reshape(1, -1, *(1,) * (len(data.shape) - 2))
    scale, shift = np.ones(max(channels, 1)), np.zeros(max(channels, 1))
    maps: list[ir.Node] = []
    early = False
    value, reader = data, node
    while channels > 0:
        try:
            if maps:
                check_private(value, reader, context)
            by, plus = per_channel(reader, value, index, channels, context)
        except Refusal:
            break
        early |= bool((by != 1.0).any() and shift.any() and not is_op(reader, "Neg"))
        with np.errstate(all="ignore"):  # what is not finite is refused later
            scale, shift = scale * by, shift * by + plus
        maps.append(reader)
        value = reader.outputs[0]
        following = sole_consumer(value)
        if following is None or following.graph is not context.graph or _data(following) is not value:
            break
        reader = following
    return maps, scale, shift, early


def _moved_from(value: ir.Value) -> ir.Value:
    """The value in front of operators that only move elements."""
    node = value.producer()
    while node is not None and is_layout(node) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _check_digits(scale: FloatArray, dtype: ir.DataType) -> None:
    """Refusal where rounding a scale loses more than the type's precision."""
    info = float_info(dtype.numpy())
    with np.errstate(all="ignore"):
        lost = np.abs(scale.astype(dtype.numpy()).astype(np.float64) - scale)
    wrong = np.isfinite(lost) & (lost > float(info.eps) * np.abs(scale))
    if wrong.any():
        channel = int(np.argmax(wrong))
        raise Refusal(f"a scale would underflow {dtype.name.lower()}", channel=channel, value=f"{scale[channel]:.6g}")
