"""Reads what a graph computes as a polynomial in the moments of one tensor, one number for each item and channel.

Means and variances of instances and layers come in many spellings: ``E[x^2] - E[x]^2``, squares of centred values, a
sum divided by the count, the layer's from those of the instances. As polynomials they are all the same. The letters,
for x of (N, C, *) or (N, *, C):

    x           a value
    m, v        its mean over the positions, and the variance there (biased), of each item and channel
    M, V, Q     the means over the channels of m, v and m^2
    n, i, d     the number of positions where that is not static, 1 / n, and 1 / (n - 1)

Coefficients are constants: one number, or one per channel. A tensor of rank 2 has no positions: x is m, and v is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES, holds, reduced_axes, without_casts
from onnxnorm.passes.fuse.sizes import FloatArray, position_axes, same_size, same_sizes, shape_nodes
from onnxnorm.passes.graph import attribute, constant_tensor, is_op, is_overridable, scalar_of, tensor_of

#: Letters in order -> coefficient of shape () or (C,).
Polynomial = dict[tuple[str, ...], FloatArray]
#: For each axis of a value the axis of x that it is, None where its size is 1.
Layout = tuple[int | None, ...]

#: As an axis of x: all positions in one, and these with the channels.
_POSITIONS, _LAYER = -1, -2
_MOST_NODES, _MOST_TERMS, _DEEPEST = 120, 48, 64
_PER_CHANNEL = {"m": "M", "v": "V"}
#: The mean over the positions of 1, x and x^2.
_MEANS: dict[int, tuple[str, ...]] = {0: ("",), 1: ("m",), 2: ("v", "mm")}
#: Between the Shape and the number that it is used as.
_COUNT_PASSES = ("Cast", "CastLike", "ReduceProd", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Statistic:
    """What a value is: a polynomial, and which axes of x its own are."""

    terms: Polynomial
    layout: Layout


@dataclass
class Reader:
    """Reads values as polynomials in the moments of ``x``.

    Attributes:
        x: the tensor.
        channels_last: its layout.
        opset: version of the standard domain.
        nodes: what has been read, without x's own producer.
        shared: what others may read, too: it computes shapes and counts.
        dtypes: element types on the way.
        problem: why what was read can be no part of a norm, for a Refusal.

    """

    x: ir.Value
    channels_last: bool
    opset: int
    nodes: dict[ir.Node, None] = field(default_factory=dict)
    shared: dict[ir.Node, None] = field(default_factory=dict)
    dtypes: set[ir.DataType] = field(default_factory=set)
    problem: str | None = None
    _known: dict[ir.Value, Statistic | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rank = len(self.x.shape or ())
        self.channel = self.rank - 1 if self.channels_last else 1
        self.positions = position_axes(self.rank, self.channels_last)
        self._source = without_casts(self.x)

    def read(self, value: ir.Value | None, depth: int = 0) -> Statistic | None:
        """What the value is; None when it is nothing of the kind."""
        if value is None or depth > _DEEPEST or len(self.nodes) > _MOST_NODES:
            return None
        if value not in self._known:
            found = self._read(value, depth + 1)
            self._known[value] = found if found is None or len(found.terms) <= _MOST_TERMS else None
        return self._known[value]

    @property
    def channels(self) -> int | None:
        """C, None where it is not known."""
        size = self.x.shape[self.channel] if self.x.shape is not None and self.rank > 1 else None
        return size if isinstance(size, int) and size > 0 else None

    @property
    def count(self) -> int | None:
        """The number of positions, None where it is not known."""
        return _product(self.x.shape[axis] for axis in self.positions) if self.x.shape is not None else None

    # --- one value ---------------------------------------------------------------------------------------------------

    def _read(self, value: ir.Value, depth: int) -> Statistic | None:
        if value is self.x or without_casts(value) is self._source:
            self._pass_casts(value)
            return Statistic({("x",) if self.positions else ("m",): np.array(1.0)}, tuple(range(self.rank)))
        constant = self._constant(value)
        if constant is not None:
            return constant
        count = self._count(value)
        if count is not None:
            return Statistic(count, ())
        node = value.producer()
        reader = _READERS.get(node.op_type) if node is not None and is_op(node, node.op_type) else None
        found = None if node is None or reader is None else reader(self, node, depth)
        if found is not None and node is not None:
            self.nodes[node] = None
            if value.dtype in FLOAT_TYPES:
                self.dtypes.add(value.dtype)
        return found

    def _pass_casts(self, value: ir.Value) -> None:
        """Casts of x that are not the ones in front of ``self.x``."""
        while value is not self.x and value is not self._source:
            node = value.producer()
            assert node is not None
            assert node.inputs[0] is not None
            self.shared[node] = None
            value = node.inputs[0]

    def _constant(self, value: ir.Value) -> Statistic | None:
        """A constant: one number, or one per channel in the layout of x."""
        tensor = constant_tensor(value)
        if tensor is None and is_overridable(value):
            tensor = value.const_value
            self.problem = self.problem or f"a caller may override its parameter {value.name}"
        if tensor is None or tensor.dtype not in FLOAT_TYPES:
            return None
        array = np.asarray(tensor.numpy()).astype(np.float64)
        if not np.isfinite(array).all() or array.ndim > self.rank:
            return None
        if array.size == 1:
            return Statistic({(): array.reshape(())}, (None,) * array.ndim)
        if array.size != self.channels or self.channels not in array.shape:
            return None
        place = array.shape.index(array.size)
        layout = tuple(self.channel if axis == place else None for axis in range(array.ndim))
        return Statistic({(): array.reshape(-1)}, layout)

    def _count(self, value: ir.Value) -> Polynomial | None:
        """The number of elements along axes of x that a graph computes from a Shape."""
        node, passed = value.producer(), []
        while node is not None and (node.op_type in _COUNT_PASSES) and node.inputs[0] is not None:
            passed.append(node)
            node = node.inputs[0].producer()
        picked = tensor_of(node.inputs[1]) if node is not None and is_op(node, "Gather") else None
        if node is not None and picked is not None and node.inputs[0] is not None:
            passed.append(node)
            node = node.inputs[0].producer()
        if node is None or not is_op(node, "Shape") or node.inputs[0] is None:
            return None
        known = self._known.get(node.inputs[0])
        whole = tuple(range(self.rank)) if without_casts(node.inputs[0]) is self._source else None
        layout = whole if known is None else known.layout
        if layout is None:
            return None
        named = list(layout)[attribute(node, "start", 0) : attribute(node, "end", None)]
        if picked is not None:
            places = [int(place) for place in np.asarray(picked).reshape(-1)]
            named = [named[place] for place in places if -len(named) <= place < len(named)]
        if len(named) > 1 and not any(item.op_type == "ReduceProd" for item in passed):
            return None
        self.shared.update(dict.fromkeys([*passed, node]))
        over = self._axes_of(axis for axis in named if axis is not None)
        return self._size(over, [self.x.shape[axis] for axis in over] if self.x.shape is not None else [None])

    # --- layouts -----------------------------------------------------------------------------------------------------

    def _axes_of(self, axes: Iterable[int]) -> set[int]:
        """Axes of x, with joined ones taken apart."""
        found: set[int] = set()
        for axis in axes:
            found |= {_POSITIONS: set(self.positions), _LAYER: {self.channel, *self.positions}}.get(axis, {axis})
        return found

    @staticmethod
    def aligned(first: Layout, second: Layout) -> Layout | None:
        """The layout of what broadcasting makes of two; None where two axes of x meet, or one of them twice."""
        length = max(len(first), len(second))
        left, right = ((None,) * (length - len(item)) + item for item in (first, second))
        merged: list[int | None] = []
        for a, b in zip(left, right, strict=True):
            if a is not None and b is not None and a != b:
                return None
            merged.append(b if a is None else a)
        axes = [axis for axis in merged if axis is not None]
        return tuple(merged) if len(set(axes)) == len(axes) else None

    # --- operators ---------------------------------------------------------------------------------------------------

    def _both(self, node: ir.Node, depth: int) -> tuple[Statistic, Statistic, Layout] | None:
        first, second = self.read(node.inputs[0], depth), self.read(node.inputs[1], depth)
        layout = None if first is None or second is None else self.aligned(first.layout, second.layout)
        return None if first is None or second is None or layout is None else (first, second, layout)

    def add(self, node: ir.Node, depth: int) -> Statistic | None:
        """Sum, Add and Sub."""
        total: Statistic | None = None
        for index, value in enumerate(node.inputs):
            part = self.read(value, depth)
            if part is None:
                return None
            sign = -1.0 if is_op(node, "Sub") and index else 1.0
            layout = part.layout if total is None else self.aligned(total.layout, part.layout)
            if layout is None:
                return None
            total = Statistic(plus({} if total is None else total.terms, part.terms, sign), layout)
        return total

    def mul(self, node: ir.Node, depth: int) -> Statistic | None:
        """A product."""
        found = self._both(node, depth)
        return None if found is None else Statistic(times(found[0].terms, found[1].terms), found[2])

    def div(self, node: ir.Node, depth: int) -> Statistic | None:
        """A quotient by a constant or a count."""
        found = self._both(node, depth)
        inverse = None if found is None else _inverse(found[1].terms)
        return None if found is None or inverse is None else Statistic(times(found[0].terms, inverse), found[2])

    def pow(self, node: ir.Node, depth: int) -> Statistic | None:
        """A square."""
        base = self.read(node.inputs[0], depth)
        if base is None or scalar_of(node.inputs[1], len(base.layout)) != 2.0:
            return None
        return Statistic(times(base.terms, base.terms), base.layout)

    def neg(self, node: ir.Node, depth: int) -> Statistic | None:
        """The negative."""
        base = self.read(node.inputs[0], depth)
        return None if base is None else Statistic(plus({}, base.terms, -1.0), base.layout)

    def reciprocal(self, node: ir.Node, depth: int) -> Statistic | None:
        """Of a constant or a count."""
        base = self.read(node.inputs[0], depth)
        inverse = None if base is None else _inverse(base.terms)
        return None if base is None or inverse is None else Statistic(inverse, base.layout)

    def passed(self, node: ir.Node, depth: int) -> Statistic | None:
        """Casts between floats that lose nothing."""
        source = node.inputs[0]
        return self.read(source, depth) if source is not None and holds(node.outputs[0].dtype, source.dtype) else None

    def expand(self, node: ir.Node, depth: int) -> Statistic | None:
        """To a shape that x has, or has with sizes of 1."""
        base, shape = self.read(node.inputs[0], depth), node.outputs[0].shape
        own = self.x.shape
        if base is None or shape is None or own is None or len(shape) < len(base.layout):
            return None
        layout = (None,) * (len(shape) - len(base.layout)) + base.layout
        for place, (size, axis) in enumerate(zip(shape, layout, strict=True)):
            fits = size == 1 or (axis is not None and axis >= 0 and same_size(size, own[axis]))
            wide = len(shape) == self.rank and same_size(size, own[place]) and axis in (None, place)
            if not fits and not wide and axis is None:
                return None
        self.shared.update(dict.fromkeys(shape_nodes(node)))
        return Statistic(base.terms, layout)

    def reshape(self, node: ir.Node, depth: int) -> Statistic | None:
        """Axes of size 1 put in or taken out, or the positions of x joined."""
        base, shape = self.read(node.inputs[0], depth), node.outputs[0].shape
        before = node.inputs[0].shape if node.inputs[0] is not None else None
        if base is None or shape is None or before is None or len(before) != len(base.layout):
            return None
        self.shared.update(dict.fromkeys(shape_nodes(node)))
        layout = _moved(base.layout, list(before), list(shape))
        layout = self._joined(base.layout, list(shape)) if layout is None else layout
        return None if layout is None else Statistic(base.terms, layout)

    def _joined(self, layout: Layout, shape: list[object]) -> Layout | None:
        """The layout of x with its positions, or its channels too, in one axis at the end."""
        own = self.x.shape
        if own is None or layout != tuple(range(self.rank)) or self.channels_last or self.rank < 3:
            return None
        for kept, last in ((2, _POSITIONS), (1, _LAYER)):
            if len(shape) == kept + 1 and same_sizes(list(own)[:kept], shape[:kept], 0):
                return (*range(kept), last)
        return None

    def mean(self, node: ir.Node, depth: int) -> Statistic | None:
        """ReduceMean and GlobalAveragePool, of a mean over other axes, too."""
        value, axes, left = self._reduced(node)
        base = self.read(value, depth) if value is not None else None
        if base is None or axes is None:
            return None
        over = self._axes_of(axis for axis in (base.layout[place] for place in axes) if axis is not None)
        terms = self._averaged(base.terms, over)
        if terms is None:
            return None
        layout = tuple(None if place in axes else base.layout[place] for place in left)
        return Statistic(terms, layout)

    def _reduced(self, node: ir.Node) -> tuple[ir.Value | None, set[int] | None, list[int]]:
        """What a chain of means averages, over which of its axes, and the axes that are still there."""
        value = node.inputs[0]
        if value is None or value.shape is None:
            return None, None, []
        axes = reduced_axes(node, self.opset, len(value.shape))
        if axes is None:
            return None, None, []
        keeps = is_op(node, "GlobalAveragePool") or attribute(node, "keepdims", 1)
        inner = value.producer()
        if inner is not None and is_op(inner, "ReduceMean") and is_op(node, "ReduceMean"):
            source, taken, there = self._reduced(inner)
            if source is not None and taken is not None:
                own = {there[axis] for axis in axes}
                self.nodes[inner] = None
                return source, taken | own, there if keeps else [axis for axis in there if axis not in own]
        there = list(range(len(value.shape)))
        return value, set(axes), there if keeps else [axis for axis in there if axis not in axes]

    def sum(self, node: ir.Node, depth: int) -> Statistic | None:
        """ReduceSum and ReduceSumSquare, as the mean times the count."""
        base, value = self.read(node.inputs[0], depth), node.inputs[0]
        if base is None or value is None or value.shape is None or len(value.shape) != len(base.layout):
            return None
        axes = reduced_axes(node, self.opset, len(value.shape))
        if axes is None:
            return None
        terms = times(base.terms, base.terms) if is_op(node, "ReduceSumSquare") else base.terms
        over = self._axes_of(axis for axis in (base.layout[place] for place in axes) if axis is not None)
        averaged = self._averaged(terms, over)
        count = self._size(over, [value.shape[axis] for axis in axes])
        if averaged is None or count is None:
            return None
        kept = attribute(node, "keepdims", 1)
        places = [place for place in range(len(value.shape)) if kept or place not in axes]
        return Statistic(
            times(averaged, count), tuple(None if place in axes else base.layout[place] for place in places)
        )

    def _size(self, over: set[int], sizes: list[object]) -> Polynomial | None:
        """The product of the sizes of those axes of x."""
        number = _product(sizes)
        if number is not None:
            return {(): np.array(float(number))}
        if not self.positions or over - {self.channel} != set(self.positions) or self.channels is None:
            return None
        return {("n",): np.array(float(self.channels if self.channel in over else 1))}

    def _averaged(self, terms: Polynomial, over: set[int]) -> Polynomial | None:
        """The mean over axes of x: all positions where it has values of x, and the channels."""
        if 0 in over and (self.x.shape is None or self.x.shape[0] != 1):
            return None
        here = set(self.positions)
        if here and any("x" in letters for letters in terms):
            if not here <= over:
                return None
            made: Polynomial = {}
            for letters, number in terms.items():
                part = _position_mean(letters)
                if part is None:
                    return None
                made = plus(made, times(part, {(): number}))
            terms = made
        return _channel_mean(terms) if self.channel in over else terms


# --- polynomials --------------------------------------------------------------------------------------------------


def plus(first: Polynomial, second: Polynomial, sign: float = 1.0) -> Polynomial:
    """``first + sign * second``."""
    total = dict(first)
    for letters, number in second.items():
        total[letters] = total[letters] + sign * number if letters in total else np.asarray(sign * number)
    return total


def times(first: Polynomial, second: Polynomial) -> Polynomial:
    """The product; n and 1 / n cancel out."""
    product: Polynomial = {}
    for left, a in first.items():
        for right, b in second.items():
            letters = [*left, *right]
            while "n" in letters and "i" in letters:
                letters.remove("n")
                letters.remove("i")
            product = plus(product, {tuple(sorted(letters)): np.asarray(a * b)})
    return product


def _inverse(terms: Polynomial) -> Polynomial | None:
    """1 / terms, where they are a constant without a zero, or a multiple of n or n - 1."""
    rest = {letters: number for letters, number in terms.items() if letters or number.any()}
    if list(rest) == [()]:
        return None if (rest[()] == 0).any() else {(): np.asarray(1.0 / rest[()])}
    number = rest.get(("n",))
    if number is None or number.ndim or number == 0 or not set(rest) <= {("n",), ()}:
        return None
    if () not in rest:
        return {("i",): np.asarray(1.0 / number)}
    return {("d",): np.asarray(1.0 / number)} if rest[()].ndim == 0 and rest[()] == -number else None


def _position_mean(letters: tuple[str, ...]) -> Polynomial | None:
    """The mean of a product over the positions."""
    rest = [letter for letter in letters if letter != "x"]
    degree = len(letters) - len(rest)
    return {tuple(sorted([*rest, *mean])): np.array(1.0) for mean in _MEANS[degree]} if degree in _MEANS else None


def _channel_mean(terms: Polynomial) -> Polynomial | None:
    """The mean over the channels."""
    made: Polynomial = {}
    for letters, number in terms.items():
        varying = [letter for letter in letters if letter in ("m", "v", "x")]
        rest = [letter for letter in letters if letter not in varying]
        if varying and number.ndim and (number != number[0]).any():
            return None
        mean = "Q" if varying == ["m", "m"] else _PER_CHANNEL.get("".join(varying), "") if varying else None
        if mean == "":
            return None
        made = plus(made, {tuple(sorted([*rest, *([mean] if mean else [])])): np.asarray(number.mean())})
    return made


# --- shapes -------------------------------------------------------------------------------------------------------


def _product(sizes: Iterable[object]) -> int | None:
    known = list(sizes)
    return math.prod(known) if all(isinstance(size, int) for size in known) else None  # type: ignore[arg-type]


def _moved(layout: Layout, before: list[object], after: list[object]) -> Layout | None:
    """The layout behind a Reshape that puts in and takes out axes of size 1 only."""
    axes = [(axis, size) for axis, size in zip(layout, before, strict=True) if axis is not None]
    found: list[int | None] = []
    doubtful = 0
    for size in after:
        if axes and same_size(size, axes[0][1]):
            found.append(axes.pop(0)[0])
        elif size == 1:
            found.append(None)
        elif axes and not isinstance(size, int) and not doubtful:
            doubtful += 1  # of one size the number of elements tells that it is the same
            found.append(axes.pop(0)[0])
        else:
            return None
    return None if axes else tuple(found)


_READERS: dict[str, Callable[[Reader, ir.Node, int], Statistic | None]] = {
    "Add": Reader.add,
    "Cast": Reader.passed,
    "CastLike": Reader.passed,
    "Div": Reader.div,
    "Expand": Reader.expand,
    "GlobalAveragePool": Reader.mean,
    "Mul": Reader.mul,
    "Neg": Reader.neg,
    "Pow": Reader.pow,
    "Reciprocal": Reader.reciprocal,
    "ReduceMean": Reader.mean,
    "ReduceSum": Reader.sum,
    "ReduceSumSquare": Reader.sum,
    "Reshape": Reader.reshape,
    "Squeeze": Reader.reshape,
    "Sub": Reader.add,
    "Sum": Reader.add,
    "Unsqueeze": Reader.reshape,
}
