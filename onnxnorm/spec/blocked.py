"""The blocked form of a norm: the same norm on a tensor in ONNX Runtime's NCHWc memory layout.

X has the shape (N, C, *) by its record, but its memory holds (N, C / block, positions, block): channel c of a position
lies in block c // block, lane c % block, as ONNX Runtime's convolutions for the CPU read and write it (domain
``com.microsoft.nchwc``; a block is what one vector register of the machine holds, or half of it). The same holds of a
skip input and of every output of X's shape; parameters stay (C,).

The forms are derived from the norm's own record, for every norm that has channels-first positions. They are made by
``onnxnorm compile`` alone: no PyTorch operator means them, and no rule of ``optimize`` writes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxnorm.spec.record import (
    CHANNELS_LAST,
    Attributes,
    AttributeSpec,
    ErrorSample,
    FloatArray,
    InputSpec,
    NormSpec,
    NormValueError,
    PartialShape,
    Sample,
)
from onnxnorm.spec.skip import skip_form

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

PREFIX = "Blocked"
BLOCK = AttributeSpec(
    "block",
    "int",
    "channels in a block of the memory layout (N, C / block, positions, block); divides C",
    check=lambda value: None if value >= 1 else "it must be at least 1",
)
#: The attribute stays, as the kernels and bodies of the plain form read it, but has one value.
_CHANNELS_FIRST = dataclasses.replace(CHANNELS_LAST, doc="0: X is (N, C, *)", choices=(0,))


def blocked_forms(plain: NormSpec, skip: NormSpec | None) -> list[NormSpec]:
    """The blocked forms of a norm and of its skip form; none for norms over axes, and for those of training graphs."""
    if plain.has_state or all(item.name != CHANNELS_LAST.name for item in plain.attributes):
        return []
    blocked = blocked_form(plain)
    if skip is None:
        return [blocked]
    # The sum of two tensors of one layout has that layout, so the skip form of the blocked form is what is wanted.
    return [blocked, dataclasses.replace(skip_form(blocked), name=PREFIX + skip.name, summary=_summary(skip))]


def blocked_form(plain: NormSpec) -> NormSpec:
    """The record of ``Blocked<name>``: inputs and outputs of the plain op, and ``block`` after its attributes."""

    def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
        x, *rest = inputs
        block = int(attributes["block"])
        outputs = plain.reference([from_blocked(x, block), *rest], attributes)
        return tuple(to_blocked(output, block) for output in outputs)

    def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
        x, *rest = inputs
        layout = _Layout(b, x, rest[0])
        outputs = plain.body(b, [layout.plain(x), *rest])
        return [layout.blocked(output) for output in outputs]

    def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
        plain.check_shapes(shapes, attributes)
        channels, block = plain.channels(shapes, attributes), attributes["block"]
        if channels is not None and channels % block != 0:
            raise NormValueError(f"block is {block}; it must divide the {channels} channels of X")

    return dataclasses.replace(
        plain,
        name=PREFIX + plain.name,
        summary=_summary(plain),
        inputs=(InputSpec("X", "(N, C, *)"), *plain.inputs[1:]),
        attributes=(*(_CHANNELS_FIRST if item == CHANNELS_LAST else item for item in plain.attributes), BLOCK),
        reference=reference,
        body=body,
        check_shapes=check_shapes,
        torch_ops=(),  # PyTorch has no such layout
        samples=lambda: _samples(plain),
        error_samples=lambda: _error_samples(plain),
    )


def to_blocked(x: FloatArray, block: int) -> FloatArray:
    """X (N, C, *) with its memory as (N, C / block, positions, block); the shape stays."""
    n, c = x.shape[:2]
    return _swapped(x, (n, c // block, block, x[0, 0].size if n * c else 0))


def from_blocked(x: FloatArray, block: int) -> FloatArray:
    """Undoes ``to_blocked``."""
    n, c = x.shape[:2]
    return _swapped(x, (n, c // block, x[0, 0].size if n * c else 0, block))


def _swapped(x: FloatArray, split: tuple[int, int, int, int]) -> FloatArray:
    """The memory as ``split`` with its last two axes exchanged, in X's shape."""
    if not x.size:
        return x
    return np.ascontiguousarray(x.reshape(split).swapaxes(2, 3)).reshape(x.shape)


def _summary(plain: NormSpec) -> str:
    return f"{plain.name} on the memory layout (N, C / block, positions, block), as onnxnorm compile writes it"


class _Layout:
    """The shapes of X in both layouts, for a body."""

    def __init__(self, b: BodyBuilder, x: BodyValue, parameter: BodyValue) -> None:
        self._b = b
        self._shape, channels = b.op("Shape", x), b.op("Shape", parameter)
        items, block = b.slice(self._shape, 0, 1), b.int_attribute("block")
        positions = b.op("Mul", *b.positions(self._shape, channels))
        blocks = b.op("Div", channels, block)
        self._of_plain = b.op("Concat", items, blocks, block, positions, axis=0)
        self._of_blocked = b.op("Concat", items, blocks, positions, block, axis=0)

    def plain(self, x: BodyValue) -> BodyValue:
        """X in the order (N, C, *)."""
        return self._swapped(x, self._of_blocked)

    def blocked(self, y: BodyValue) -> BodyValue:
        """Y in blocks."""
        return self._swapped(y, self._of_plain)

    def _swapped(self, x: BodyValue, split: BodyValue) -> BodyValue:
        b = self._b
        swapped = b.op("Transpose", b.reshape(x, split), perm=[0, 1, 3, 2])
        y = b.reshape(swapped, self._shape)
        y.shape, y.type = x.shape, x.type
        return y


def _samples(plain: NormSpec) -> Iterator[Sample]:
    """Blocks of 8, 16 and a size that no machine has; groups within a block, over several, and over all of them."""
    yield _sample(plain, "image", (2, 16, 5, 7), 8, 4)
    yield _sample(plain, "block-16", (2, 48, 3, 13), 16, 3, activation="silu")
    yield _sample(plain, "groups-within-a-block", (2, 64, 3, 3), 16, 32, activation="relu")
    yield _sample(plain, "one-group", (1, 32, 7, 9), 16, 1, activation="gelu")
    yield _sample(plain, "block-3", (2, 6, 5), 3, 2)
    yield _sample(plain, "empty-space", (2, 16, 0, 3), 8, 4)
    offset = next(sample for sample in plain.samples() if sample.label == "offset")
    x, *rest = offset.inputs
    yield Sample("offset", (to_blocked(x, 8), *rest), {**offset.attributes, "block": 8})


def _sample(
    plain: NormSpec, label: str, shape: tuple[int, ...], block: int, groups: int, activation: str = "none"
) -> Sample:
    """Random data; parameters as the plain norm's first sample has them, over and over until there are C."""
    first = next(iter(plain.samples()))
    given: dict[str, Any] = {"num_groups": groups, "activation": activation}
    attributes = {name: given.get(name, value) for name, value in first.attributes.items()}
    rest = [
        np.resize(array, shape[1]) if item.shape == "C" else array
        for item, array in zip(plain.inputs[1:], first.inputs[1:], strict=True)
    ]
    x = np.random.default_rng(len(label)).standard_normal(shape)
    return Sample(label, (x, *rest), {**attributes, "block": block})


def _error_samples(plain: NormSpec) -> Iterator[ErrorSample]:
    """A block that divides nothing, none, the other layout, and the first of what the plain norm refuses."""
    good = _sample(plain, "good", (2, 8, 4), 4, 2)
    for label, change, message in (
        ("block-does-not-divide", {"block": 3}, r"block.*3.*divide.*8"),
        ("no-block", {"block": 0}, r"block.*0.*at least 1"),
        ("layout", {"channels_last": 1}, r"channels_last.*1.*must be.*0"),
    ):
        yield ErrorSample(label, good.inputs, {**good.attributes, **change}, message)
    error = next(iter(plain.error_samples()))
    yield dataclasses.replace(error, attributes={**error.attributes, "block": 2})
