"""How a body lays out X (N, C, *) or (N, *, C), so that it is written once for both layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue


@dataclass(frozen=True)
class Layout:
    """Shapes, each a one-dimensional int64 tensor, for one X.

    Attributes:
        shape: X's own shape.
        split: the shape in which the body works.
        per_channel: the shape in which one value per channel broadcasts against that.
        positions: the number of positions S, shape [1].

    """

    shape: BodyValue
    split: BodyValue
    per_channel: BodyValue
    positions: BodyValue


def channel_layout(b: BodyBuilder, x: BodyValue, parameter: BodyValue) -> Layout:
    """X as (N, S1, C, S2), where S1 is 1 for channels-first and S2 is 1 for channels-last; ``parameter`` has size C."""
    shape, channels = b.op("Shape", x), b.op("Shape", parameter)
    before, after = b.positions(shape, channels)
    split = b.op("Concat", b.slice(shape, 0, 1), before, channels, after, axis=0)
    per_channel = b.op("Concat", b.ints(1, 1), channels, b.ints(1), axis=0)
    return Layout(shape, split, per_channel, b.op("Mul", before, after))


def group_layout(b: BodyBuilder, x: BodyValue, parameter: BodyValue) -> Layout:
    """X as (N, S1, G, C / G, S2), with G the attribute ``num_groups``."""
    shape, channels = b.op("Shape", x), b.op("Shape", parameter)
    groups = b.int_attribute("num_groups")
    per_group = b.op("Div", channels, groups)
    before, after = b.positions(shape, channels)
    split = b.op("Concat", b.slice(shape, 0, 1), before, groups, per_group, after, axis=0)
    per_channel = b.op("Concat", b.ints(1, 1), groups, per_group, b.ints(1), axis=0)
    return Layout(shape, split, per_channel, b.op("Mul", before, after))
