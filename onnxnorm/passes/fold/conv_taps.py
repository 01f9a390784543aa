"""Where the taps of a convolution lie, and one kernel that holds the taps of several.

Along an axis with stride s, tap t of a kernel of size k with dilation d and padding (p, q) reads position
s * i + t * d - p for result i: its offset is t * d - p. Convolutions of the same input and stride have results of the
same size wherever p + q - d * (k - 1) is the same, whatever the input's size. Their sum is a convolution over all
offsets; where these lie on a grid, it has a kernel with a dilation again, and its padding is the largest of each side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.fold.affine_into_conv import group_of
from onnxnorm.passes.fold.affine_layout import FloatArray
from onnxnorm.passes.graph import attribute, node_name
from onnxnorm.passes.rule import Refusal


@dataclass(frozen=True)
class Axis:
    """A kernel along one axis."""

    size: int
    dilation: int
    begin: int
    end: int

    @property
    def excess(self) -> int:
        """How much larger than the input the results are at stride 1."""
        return self.begin + self.end - self.dilation * (self.size - 1)

    @property
    def offsets(self) -> range:
        """Of all taps."""
        return range(-self.begin, -self.begin + self.dilation * (self.size - 1) + 1, self.dilation)


@dataclass(frozen=True)
class Taps:
    """A convolution's taps.

    Attributes:
        axes: along each spatial axis.
        strides: of the results.
        group: how many groups of channels there are.
        inputs: number of channels that it reads.
        outputs: number of channels that it makes.

    """

    axes: tuple[Axis, ...]
    strides: tuple[int, ...]
    group: int
    inputs: int
    outputs: int

    @property
    def products(self) -> int:
        """Multiplications for each position of the result."""
        return math.prod(axis.size for axis in self.axes) * self.outputs * self.inputs // self.group

    @property
    def fits_with(self) -> tuple[object, ...]:
        """The same for convolutions whose results can be added and made by one."""
        return (self.strides, tuple(axis.excess for axis in self.axes), self.inputs, self.outputs)

    @property
    def keeps_size(self) -> bool:
        """Whether the results have as many channels and positions as the input."""
        same = self.inputs == self.outputs and all(step == 1 for step in self.strides)
        return same and all(axis.excess == 0 for axis in self.axes)


def taps_of(conv: ir.Node, shape: Sequence[int]) -> Taps:
    """The taps of a Conv with a weight of that shape.

    Raises:
        Refusal: an attribute is one of the function that the Conv stands in, or its padding depends on the input's
            size.

    """
    kernel = tuple(int(size) for size in shape[2:])
    given = {name: attribute(conv, name, ()) for name in ("strides", "dilations", "pads", "kernel_shape")}
    auto = attribute(conv, "auto_pad", "NOTSET")
    if auto is None or any(value is None for value in given.values()):
        raise Refusal(f"an attribute of Conv {node_name(conv)} is one of the function that it stands in")
    rank = len(kernel)
    strides = tuple(given["strides"]) or (1,) * rank
    dilations = tuple(given["dilations"]) or (1,) * rank
    pads = _pads(conv, auto, tuple(given["pads"]) or (0,) * (2 * rank), kernel, strides, dilations)
    wrong = tuple(given["kernel_shape"]) not in ((), kernel) or len(pads) != 2 * rank
    if rank < 1 or wrong or len(strides) != rank or len(dilations) != rank or min(pads, default=0) < 0:
        raise Refusal(f"the attributes of Conv {node_name(conv)} do not fit its weight", shape=tuple(shape))
    axes = tuple(Axis(*item) for item in zip(kernel, dilations, pads[:rank], pads[rank:], strict=True))
    group = group_of(conv, int(shape[0]))
    return Taps(axes, strides, group, group * int(shape[1]), int(shape[0]))


def _pads(
    conv: ir.Node,
    auto: str,
    given: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[int, ...]:
    if auto == "NOTSET":
        return given
    rank = len(kernel)
    if auto == "VALID":
        return (0,) * (2 * rank)
    if auto not in ("SAME_UPPER", "SAME_LOWER") or any(step != 1 for step in strides):
        raise Refusal(f"the padding of Conv {node_name(conv)} depends on the size of its input", auto_pad=auto)
    total = [(size - 1) * step for size, step in zip(kernel, dilations, strict=True)]
    less, more = [size // 2 for size in total], [size - size // 2 for size in total]
    return tuple([*less, *more] if auto == "SAME_UPPER" else [*more, *less])


def union(parts: Sequence[Taps]) -> Taps:
    """The smallest kernel with all the taps of convolutions that fit with each other."""
    first = parts[0]
    axes = tuple(_joined(column) for column in zip(*(part.axes for part in parts), strict=True))
    return Taps(axes, first.strides, math.gcd(*(part.group for part in parts)), first.inputs, first.outputs)


def _joined(axes: Sequence[Axis]) -> Axis:
    low = min(axis.offsets[0] for axis in axes)
    high = max(axis.offsets[-1] for axis in axes)
    steps = [axis.dilation for axis in axes if axis.size > 1] + [axis.offsets[0] - low for axis in axes]
    step = math.gcd(*steps) or 1
    return Axis((high - low) // step + 1, step, -low, axes[0].excess + high)


def holds_origin(taps: Taps) -> bool:
    """Whether a tap reads the position of the result."""
    return all(0 in axis.offsets for axis in taps.axes)


def embedded(weight: FloatArray, part: Taps, whole: Taps) -> FloatArray:
    """A weight of ``part`` in the kernel and the groups of ``whole``."""
    inner = whole.group
    outputs, inputs = whole.outputs, whole.inputs
    result = np.zeros((outputs, inputs // inner, *(axis.size for axis in whole.axes)))
    places: tuple[slice, ...] = tuple(
        slice(start, start + step * (small.size - 1) + 1, step)
        for small, large in zip(part.axes, whole.axes, strict=True)
        for start, step in [_place(small, large)]
    )
    block_out, block_in = outputs // part.group, inputs // part.group
    for index in range(part.group):
        first = (index * block_in) % (inputs // inner)
        rows = slice(index * block_out, (index + 1) * block_out)
        index_of: tuple[slice, ...] = (rows, slice(first, first + block_in), *places)
        result[index_of] = weight[rows]
    return result


def _place(small: Axis, large: Axis) -> tuple[int, int]:
    return (small.offsets[0] - large.offsets[0]) // large.dilation, max(small.dilation // large.dilation, 1)


def unit(scale: FloatArray, whole: Taps) -> FloatArray:
    """The kernel of scale[c] * x."""
    result = np.zeros((whole.outputs, whole.inputs // whole.group, *(axis.size for axis in whole.axes)))
    channels = np.arange(whole.outputs)
    origin = tuple(axis.offsets.index(0) for axis in whole.axes)
    place: tuple[Any, ...] = (channels, channels % (whole.inputs // whole.group), *origin)
    result[place] = scale
    return result


def dense(weight: FloatArray, part: Taps, group: int) -> FloatArray:
    """A weight in fewer groups, a divisor of its own number."""
    return embedded(weight, part, replace(part, group=group))


def with_taps(taps: Taps) -> dict[str, int | list[int]]:
    """The attributes of a Conv with these taps."""
    return {
        "kernel_shape": [axis.size for axis in taps.axes],
        "strides": list(taps.strides),
        "dilations": [axis.dilation for axis in taps.axes],
        "pads": [*(axis.begin for axis in taps.axes), *(axis.end for axis in taps.axes)],
        "group": taps.group,
    }
