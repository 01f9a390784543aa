"""Follows a layer's output through maps by constants of its channels, and says what they compute together.

Channels are followed as an array of their numbers (``layer_output.Output``); a constant is one value per channel where
all elements of a channel meet the same number.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.fold import affine_pad
from onnxnorm.passes.fold.affine import allowed_types, constant_map
from onnxnorm.passes.fold.affine_layout import FloatArray, carries, full_rank, is_layout, moved
from onnxnorm.passes.fold.batch_norm import affine_of, check_private
from onnxnorm.passes.fold.layer_output import Output
from onnxnorm.passes.fold.layout_chain import reduced
from onnxnorm.passes.graph import is_op, node_name, rank_of, sole_consumer
from onnxnorm.passes.rule import Context, Refusal


@dataclass
class Behind:
    """The legal chain behind a layer.

    Attributes:
        nodes: all of it, in order; empty where there is no map.
        maps: those of them that compute.
        stay: operators that move elements or take means, as far as the rest does not undo them.
        scale: of each channel, with ``shift``.
        shift: of each channel.
        way: what was followed without being part of the chain, as no map comes behind it.
        pad_values: what the Pads among ``stay`` add once the map comes before them.
        stopped_by: the BatchNormalization that ended it.
        refusal: why.

    """

    scale: FloatArray
    shift: FloatArray
    nodes: list[ir.Node] = field(default_factory=list)
    maps: list[ir.Node] = field(default_factory=list)
    stay: list[ir.Node] = field(default_factory=list)
    way: list[ir.Node] = field(default_factory=list)
    pad_values: dict[ir.Node, float] = field(default_factory=dict)
    stopped_by: ir.Node | None = None
    refusal: Refusal | None = None

    @property
    def single(self) -> bool:
        """Whether it is one number for all channels."""
        same = bool((self.scale == self.scale[0]).all() and (self.shift == self.shift[0]).all())
        return same and not any(is_op(node, "BatchNormalization") for node in self.maps)


def follow(layer: ir.Node, output: Output, context: Context) -> Behind:
    """The longest legal chain."""
    scale, shift = np.ones(output.channels), np.zeros(output.channels)
    found = Behind(scale, shift)
    index, way, maps = output.index, list[ir.Node](), list[ir.Node]()
    values: dict[ir.Node, float] = {}
    value = layer.outputs[0]
    while (node := sole_consumer(value)) is not None and node.graph is context.graph:
        try:
            check_private(value, node, context)
            if affine_pad.is_pad(node):
                index = affine_pad.behind(index, node, context)
                values = {**values, node: affine_pad.value_of(node, context)}
            elif carries(node):
                index = moved(index, node, context)
            elif not is_op(node, "Cast"):
                by, plus = per_channel(node, value, index, output.channels, context)
                values = {pad: _added(pad, added, by, plus) for pad, added in values.items()}
                with np.errstate(all="ignore"):  # what is not finite is refused in the end
                    scale, shift = scale * by, shift * by + plus
                maps.append(node)
            elif node.outputs[0].dtype not in allowed_types(layer.outputs[0].dtype):
                break
        except Refusal as refusal:
            if is_op(node, "BatchNormalization"):
                found.stopped_by, found.refusal = node, refusal
            break
        way.append(node)
        value = node.outputs[0]
        if maps and value.dtype == layer.outputs[0].dtype and (not carries(node) or _undoes(way)):
            found = Behind(scale, shift, list(way), list(maps), pad_values=values)
    found.way = way
    found.stay = reduced([node for node in found.nodes if carries(node)])
    return found


def _added(pad: ir.Node, value: float, scale: FloatArray, shift: FloatArray) -> float:
    """What a Pad adds behind a map; Refusal where that is not one number."""
    added = value if affine_pad.repeats(pad) else affine_pad.after(value, scale, shift)
    if added is None:
        raise Refusal(f"Pad {node_name(pad)} adds {value:g}, of which the map makes several numbers")
    return added


def _undoes(way: list[ir.Node]) -> bool:
    """Whether the last node takes back what others did."""
    if not is_layout(way[-1]):
        return False
    layout = [node for node in way if carries(node)]
    return len(reduced(layout)) < len(reduced(layout[:-1]))


def per_channel(
    node: ir.Node, data: ir.Value, index: FloatArray, channels: int, context: Context
) -> tuple[FloatArray, FloatArray]:
    """(scale, shift) of one node, each of one value per channel; Refusal where it is no such map."""
    scale, shift = (by_channel(part, index, channels, rank_of(data)) for part in own_map(node, data, context))
    return scale, shift


def own_map(node: ir.Node, data: ir.Value, context: Context) -> tuple[FloatArray, FloatArray]:
    """(scale, shift) of one node, broadcasting over its data; Refusal where it is no map by a constant."""
    if is_op(node, "BatchNormalization"):
        affine, rank = affine_of(node, context), rank_of(data)
        if rank is None or rank < 2:
            raise Refusal("the rank of its input is not known, so neither is the axis that it scales", rank=rank)
        shape = (-1, *(1,) * (rank - 2))
        return affine.scale.reshape(shape), affine.shift.reshape(shape)
    parts = constant_map(node, context)
    if parts is None:
        raise Refusal("it is no map by a constant")
    return parts


def by_channel(values: FloatArray, index: FloatArray, channels: int, rank: int | None) -> FloatArray:
    """Which of the values each channel meets; Refusal (reason 2 of the rule) where they are several.

    Args:
        values: what broadcasts over the data.
        index: the channel of each element, broadcasting as well.
        channels: how many there are.
        rank: of the data, None where it is not known beyond that it is the index's at least.

    """
    if values.ndim > (index.ndim if rank is None else max(rank, index.ndim)):
        raise Refusal("its constant may have more axes than its input", constant=values.shape)
    axes = max(values.ndim, index.ndim)
    given, where = full_rank(values, axes), full_rank(index, axes)
    for size, known in zip(given.shape, where.shape, strict=True):
        if size not in (1, known):
            raise Refusal("its constant differs along other axes than the channels, or enlarges its input",
                          constant=values.shape, channels=index.shape)  # fmt: skip
    each = np.broadcast_to(given, where.shape).reshape(-1)
    places = where.reshape(-1).astype(np.int64)
    result = np.zeros(channels)
    result[places] = each
    if not np.array_equal(result[places], each):
        raise Refusal("its constant differs within a channel", constant=values.shape)
    return result
