"""Expands what a value computes to a sum of products of a tensor, its mean, the power of its variance, and all else."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from onnxnorm.passes.fuse.mean import read_mean
from onnxnorm.passes.fuse.product import same_shape
from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES, Power, given_axes, widening_casts, without_casts
from onnxnorm.passes.fuse.variance import VarianceWalk, fits, read_centred
from onnxnorm.passes.graph import is_op, scalar_of

#: Longer chains of operators, and longer sums, are not taken apart.
_DEEPEST = 10
_MOST_TERMS = 8


@dataclass(frozen=True)
class Term:
    """``factor * x^x * mean^mean * (var + epsilon)^exponent * others``; each of the others perhaps inverted."""

    factor: float = 1.0
    x: int = 0
    mean: int = 0
    exponent: float = 0.0
    others: tuple[tuple[ir.Value, bool], ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it has nothing of the tensor and its statistics."""
        return not (self.x or self.mean or self.exponent)

    def times(self, other: Term) -> Term:
        """The product."""
        return Term(
            self.factor * other.factor,
            self.x + other.x,
            self.mean + other.mean,
            self.exponent + other.exponent,
            (*self.others, *other.others),
        )

    def inverse(self) -> Term | None:
        """The inverse; None where x or its mean would be below."""
        if self.x or self.mean or not self.factor:
            return None
        below = tuple((value, not inverted) for value, inverted in self.others)
        return Term(1.0 / self.factor, exponent=-self.exponent, others=below)

    def same_others(self, other: Term) -> bool:
        """Whether both have the same other factors, in any order."""
        return Counter(self.others) == Counter(other.others)


@dataclass
class Expanded:
    """A sum of terms.

    Attributes:
        terms: its terms.
        power: the power of the variance in them; its factor and exponent are the terms'.
        nodes: what computes it, from x, its statistics and the others.
        shared: what others may read, too.
        dtypes: element types on the way.
        inputs: x as it stands there, before or behind casts.

    """

    terms: list[Term]
    power: Power | None = None
    nodes: dict[ir.Node, None] = field(default_factory=dict)
    shared: dict[ir.Node, None] = field(default_factory=dict)
    dtypes: set[ir.DataType] = field(default_factory=set)
    inputs: dict[ir.Value, None] = field(default_factory=dict)


class Expansion:
    """Expands values around one tensor and axes.

    Args:
        x: the tensor, before casts that widen it.
        axes: of its statistics.
        walk: reads powers of variances.

    """

    def __init__(self, x: ir.Value, axes: tuple[int, ...], walk: VarianceWalk) -> None:
        self.x = x
        self.axes = axes
        self._walk = walk
        self._rank = len(x.shape or ())
        self._known: dict[tuple[ir.Value, bool], Expanded] = {}

    def of(self, value: ir.Value, depth: int = 0, dropped: bool = False) -> Expanded:
        """The sum that the value is: of the value alone, where nothing is known of it.

        With ``dropped`` it stands where the axes of the statistics have been taken away.
        """
        if (value, dropped) not in self._known:
            found = self._read(value, depth, dropped)
            if found is None or _is_of_others(found.terms):
                found = Expanded([Term(others=((value, False),))])
            self._known[value, dropped] = found
        return self._known[value, dropped]

    def _read(self, value: ir.Value, depth: int, dropped: bool) -> Expanded | None:
        if without_casts(value) is self.x and not dropped:
            shared = dict.fromkeys(widening_casts(value))
            return Expanded([Term(x=1)], shared=shared, inputs={value: None})
        number = scalar_of(value, self._rank - len(self.axes) if dropped else self._rank)
        if number is not None:
            return Expanded([Term(number)])
        node = value.producer()
        if node is None or value.dtype not in FLOAT_TYPES or depth > _DEEPEST or not is_op(node, node.op_type):
            return None
        if is_op(node, "Unsqueeze") and not dropped:
            found = self._mean(value, False) or self._power(value, False)
            return found or self._put_back(node, depth + 1)
        return self._mean(value, dropped) or self._power(value, dropped) or self._joined(node, depth + 1, dropped)

    def _put_back(self, node: ir.Node, depth: int) -> Expanded | None:
        """Statistics that were joined without their axes, which an Unsqueeze puts back."""
        if node.inputs[0] is None or given_axes(node, self._walk.opset, node.outputs[0]) != self.axes:
            return None
        inner = self.of(node.inputs[0], depth, True)
        if any(term.others for term in inner.terms):
            return None
        return replace(inner, nodes={node: None, **inner.nodes})

    def _mean(self, value: ir.Value, dropped: bool) -> Expanded | None:
        """The mean of x; and that of x less its mean, which is 0."""
        mean = read_mean(value, self._walk.opset)
        if mean is None or mean.axes != self.axes or mean.total:
            return None
        if not (mean.dropped if dropped else fits(mean, self.x)):
            return None
        found = Expanded([Term(mean.factor, mean=1)], dtypes=set(mean.dtypes))
        found.nodes.update(dict.fromkeys(mean.nodes))
        found.shared.update(dict.fromkeys(mean.shared))
        if mean.source is self.x:
            return found
        centred = read_centred(mean.source, self._walk.opset)
        if centred is None or centred.x is not self.x or centred.axes != self.axes:
            return None
        found.terms = []
        found.nodes.update(dict.fromkeys(centred.nodes))
        found.shared.update(dict.fromkeys(centred.shared))
        return found

    def _power(self, value: ir.Value, dropped: bool) -> Expanded | None:
        power = self._walk.variance(value)
        if power is None or power.source is not self.x or power.axes != self.axes:
            return None
        if not (power.dropped if dropped else power.broadcasts):
            return None
        if any(not same_shape(shape, self.x.shape) for shape in power.expanded):
            return None
        found = Expanded([Term(power.factor, exponent=power.exponent)], power, dtypes=set(power.dtypes))
        found.nodes.update(dict.fromkeys(power.nodes))
        found.shared.update(dict.fromkeys(power.shared))
        return found

    def _joined(self, node: ir.Node, depth: int, dropped: bool) -> Expanded | None:
        """Sums, products, quotients and casts."""
        parts = [self.of(value, depth, dropped) for value in node.inputs if value is not None]
        terms = _terms(node, [part.terms for part in parts])
        if terms is None or len(terms) > _MOST_TERMS:
            return None
        dtype = node.outputs[0].dtype
        found = Expanded(terms, nodes={node: None}, dtypes={dtype} if dtype is not None else set())
        for part in parts if node.op_type != "CastLike" else parts[:1]:
            if found.power is not None and part.power is not None and not _same_base(found.power, part.power):
                return None
            found.power = _worse(found.power, part.power)
            found.nodes.update(part.nodes)
            found.shared.update(part.shared)
            found.dtypes |= part.dtypes
            found.inputs.update(part.inputs)
        return found


def _is_of_others(terms: list[Term]) -> bool:
    """Whether nothing of the tensor and its statistics is in the sum, and more than a number."""
    return all(term.is_plain for term in terms) and any(term.others for term in terms)


def _terms(node: ir.Node, parts: list[list[Term]]) -> list[Term] | None:
    """The terms of what a node computes from operands with these terms; None for any other operator."""
    if node.op_type in ("Cast", "CastLike"):
        return parts[0]
    if node.op_type == "Neg":
        return _negative(parts[0])
    if node.op_type == "Reciprocal":
        return _inverse(parts[0])
    if len(parts) != 2:
        return None
    first, second = parts
    if node.op_type == "Add":
        return [*first, *second]
    if node.op_type == "Sub":
        return [*first, *_negative(second)]
    if node.op_type == "Mul":
        return _product(first, second)
    inverse = _inverse(second) if node.op_type == "Div" else None
    return None if inverse is None else _product(first, inverse)


def _negative(terms: list[Term]) -> list[Term]:
    return [replace(term, factor=-term.factor) for term in terms]


def _inverse(terms: list[Term]) -> list[Term] | None:
    inverse = terms[0].inverse() if len(terms) == 1 else None
    return None if inverse is None else [inverse]


def _product(first: list[Term], second: list[Term]) -> list[Term] | None:
    if len(first) * len(second) > _MOST_TERMS:
        return None
    return [one.times(other) for one in first for other in second]


def _same_base(first: Power, second: Power) -> bool:
    """Whether both are powers of the same sum of variance and epsilon."""
    return (first.epsilon, first.floor) == (second.epsilon, second.floor)


def _worse(first: Power | None, second: Power | None) -> Power | None:
    """The one that has a problem, or else the first."""
    if first is None or second is None:
        return first or second
    return first if first.problem is not None or second.problem is None else second
