"""Which norm a standardized tensor is: layer norm, or group norm with one group or one group per channel.

The statistics alone do not say it: over the last axis of (N, C, L) they are those of layer norm and of instance norm.
What tells is the scale and shift behind, one value per feature or one per channel; without these, what the sizes that
are known allow, and then what is most common.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxnorm.passes.fuse.sizes import position_axes, sole_reader
from onnxnorm.passes.fuse.standardized import Standardized
from onnxnorm.passes.graph import constant_tensor, is_op

_AFFINE = ("Mul", "Div", "Add", "Sub")


@dataclass(frozen=True)
class Kind:
    """What a norm is.

    Attributes:
        per_channel: it is GroupNorm, else LayerNorm.
        channels: of GroupNorm: how many there are, None where that is not known.
        one_group: of GroupNorm: there is one group; else one for each channel.
        channels_last: of GroupNorm: the layout.

    """

    per_channel: bool = False
    channels: int | None = None
    one_group: bool = False
    channels_last: bool = False


def kind_of(found: Standardized) -> Kind:
    """See the module."""
    shape = found.x.shape
    rank, axes = len(shape or ()), found.axes
    assert shape is not None
    fixed = all(isinstance(shape[axis], int) for axis in axes)
    varied = _varied_axes(found)
    layer = Kind()
    for channels in _channel_kinds(shape, axes):
        axis = rank - 1 if channels.channels_last else 1
        if varied and varied <= {axis}:
            return channels
        if not varied and channels.channels is not None and (not fixed or not _reads_as_layer(rank, axes)):
            return channels
    if varied or fixed:
        return layer
    return next(iter(_channel_kinds(shape, axes)), layer)


def _reads_as_layer(rank: int, axes: tuple[int, ...]) -> bool:
    """Whether layer norm is what that most often is: one axis."""
    return len(axes) == 1


def _channel_kinds(shape: ir.Shape, axes: tuple[int, ...]) -> list[Kind]:
    """Which forms of group norm have these statistics."""
    rank = len(shape)
    kinds: list[Kind] = []
    for last in (False, True):
        size = shape[rank - 1 if last else 1] if rank > 2 else None
        channels = size if isinstance(size, int) and size > 0 else None
        if rank > 2 and axes == position_axes(rank, last):
            kinds.append(Kind(True, channels, False, last))
        if rank > 2 and axes == tuple(range(1, rank)):
            kinds.append(Kind(True, channels, True, last))
    return kinds


def _varied_axes(found: Standardized) -> set[int]:
    """The axes along which the scale and the shift vary."""
    rank = len(found.x.shape or ())
    values = [*found.weights, *(value for value, _ in found.shifts)]
    value: ir.Value = found.root.outputs[0]
    reader = sole_reader(value)
    while reader is not None and len(values) < 4:
        if is_op(reader, "Cast"):
            value = reader.outputs[0]
        elif any(is_op(reader, name) for name in _AFFINE):
            other = next((item for item in reader.inputs if item is not value), None)
            if other is None or (constant_tensor(other) is None and other.const_value is None):
                break
            values.append(other)
            value = reader.outputs[0]
        else:
            break
        reader = sole_reader(value)
    varied: set[int] = set()
    for item in values:
        if item.shape is not None and len(item.shape) <= rank:
            before = rank - len(item.shape)
            varied |= {before + axis for axis, size in enumerate(item.shape) if size != 1}
    return varied
