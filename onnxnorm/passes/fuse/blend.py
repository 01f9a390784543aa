"""Finds a tensor that is brought to mean 0 and variance 1 by polynomials in its moments: what switchable norm does.

    weights * (x - mean) / sqrt(variance + epsilon)

as a product in any grouping, and as ``x * k + (bias - mean * k)`` with ``k = weights / sqrt(variance + epsilon)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxnorm.passes.fuse.factors import addends_of, factors_of
from onnxnorm.passes.fuse.moments import Layout, Polynomial, Reader, plus
from onnxnorm.passes.graph import constant_tensor, is_op, scalar_of

#: A factor, and whether it is divided by.
Side = tuple[ir.Value, bool]
#: What stands under a root, and the nodes that take it.
_Root = tuple[ir.Value, tuple[ir.Node, ...]]


@dataclass(frozen=True)
class Blend:
    """``weights * mean / sqrt(spread + epsilon) + bias``, two polynomials in the moments of x.

    Attributes:
        reader: what was read.
        mean: the numerator, x with a mean taken away.
        spread: the variance.
        epsilon: a number that is added to it.
        weights: other factors, and those that it is divided by.
        nodes: what computes it besides the reader's nodes, the root last.
        bias: what is added in the end.

    """

    reader: Reader
    mean: Polynomial
    spread: Polynomial
    epsilon: float
    weights: tuple[Side, ...]
    nodes: tuple[ir.Node, ...]
    bias: ir.Value | None = None


def find_blend(node: ir.Node, opset: int) -> Blend | None:
    """What the node completes; None where it is nothing of the kind."""
    if is_op(node, "Mul") or is_op(node, "Div"):
        return _product(node, opset)
    return _affine(node, opset) if is_op(node, "Add") or is_op(node, "Sub") else None


def _sides(node: ir.Node) -> tuple[list[Side], list[ir.Node]]:
    """The factors of a product, and its nodes."""
    factors = factors_of(node)
    return [*((value, False) for value in factors.above), *((value, True) for value in factors.below)], factors.nodes


def _product(node: ir.Node, opset: int) -> Blend | None:
    """The centred tensor times the inverse root."""
    sides, products = _sides(node)
    for divisor, below in sides:
        root = _under_root(divisor, below)
        if root is None:
            continue
        for centred, upside_down in sides:
            if upside_down or centred is divisor or not _is_difference(centred):
                continue
            weights = tuple(item for item in sides if item[0] not in (centred, divisor))
            if any(value in node.inputs for value, _ in weights):
                continue  # the other operand is the whole norm, and was asked
            found = _blend(_tensors(centred), [centred], root, opset)
            if found is not None:
                return replace(found, weights=weights, nodes=(*found.nodes, *products[1:], node))
    return None


def _affine(node: ir.Node, opset: int) -> Blend | None:
    """``x * k + (bias - mean * k)``, with no bias ``x * k - mean * k``."""
    pairs = [tuple(node.inputs)] if is_op(node, "Sub") else [tuple(node.inputs), tuple(reversed(node.inputs))]
    for top, rest in pairs:
        scaled, shifted = (None if value is None else value.producer() for value in (top, rest))
        bias, between = None, []
        if is_op(node, "Add"):
            if shifted is None or not is_op(shifted, "Sub") or shifted.inputs[1] is None:
                continue
            between, bias, shifted = [shifted], shifted.inputs[0], shifted.inputs[1].producer()
        if scaled is None or shifted is None or not (is_op(scaled, "Mul") and is_op(shifted, "Mul")):
            continue
        for x, factor in (tuple(scaled.inputs), tuple(reversed(scaled.inputs))):
            if x is None or factor is None or factor not in shifted.inputs:
                continue
            mean = shifted.inputs[1] if shifted.inputs[0] is factor else shifted.inputs[0]
            found = None if mean is None else _scaled(x, mean, factor, opset)
            if found is not None:
                return replace(found, nodes=(*found.nodes, scaled, shifted, *between, node), bias=bias)
    return None


def _scaled(x: ir.Value, mean: ir.Value, factor: ir.Value, opset: int) -> Blend | None:
    """``(x - mean) * factor``."""
    node = factor.producer()
    joined = node is not None and (is_op(node, "Mul") or is_op(node, "Div"))
    sides, products = _sides(node) if node is not None and joined else ([(factor, False)], [])
    if node is not None and is_op(node, "Reciprocal") and node.inputs[0] is not None:
        sides, products = [(node.inputs[0], True)], [node]
    for divisor, below in sides:
        root = _under_root(divisor, below)
        found = None if root is None else _blend([x], [x, mean], root, opset)
        if found is not None:
            weights = tuple(item for item in sides if item[0] is not divisor)
            return replace(found, weights=weights, nodes=(*found.nodes, *products))
    return None


def _under_root(value: ir.Value, below: bool) -> _Root | None:
    """What the value is the root of, or, above the line, the inverse root; with the nodes."""
    node = value.producer()
    if node is None or not node.inputs or node.inputs[0] is None:
        return None
    if is_op(node, "Pow"):
        exponent = scalar_of(node.inputs[1], 8)
        return (node.inputs[0], (node,)) if exponent == (0.5 if below else -0.5) else None
    if not is_op(node, "Sqrt"):
        return None
    inner = node.inputs[0].producer()
    if below:
        return node.inputs[0], (node,)
    if inner is not None and is_op(inner, "Reciprocal") and inner.inputs[0] is not None:
        return inner.inputs[0], (inner, node)
    if (
        inner is not None
        and is_op(inner, "Div")
        and scalar_of(inner.inputs[0], 0) == 1.0
        and inner.inputs[1] is not None
    ):
        return inner.inputs[1], (inner, node)
    return None


def _is_difference(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and (is_op(node, "Sub") or is_op(node, "Add"))


def _blend(tensors: Iterable[ir.Value], parts: Sequence[ir.Value], root: _Root, opset: int) -> Blend | None:
    """The two polynomials, where they blend statistics of one of the tensors.

    Args:
        tensors: what x may be.
        parts: what the numerator is, less those behind the first.
        root: what is under the root.
        opset: version of the standard domain.

    """
    for x in tensors:
        rank = len(x.shape or ())
        for last in (False, True) if rank > 2 else (False,):
            reader, whole = Reader(x, last, opset), tuple(range(rank))
            mean = _numerator(reader, parts)
            if rank < 2 or mean is None or mean[1] != whole:
                continue
            spread = _spread(reader, root[0])
            if spread is None or not _is_blend(mean[0], spread[0]):
                continue
            if Reader.aligned(spread[3], whole) == whole:
                nodes = tuple(dict.fromkeys([*root[1], *spread[2]]))
                return Blend(reader, mean[0], spread[0], spread[1], (), nodes)
    return None


def _numerator(reader: Reader, parts: Sequence[ir.Value]) -> tuple[Polynomial, Layout] | None:
    """The first part less the others."""
    terms: Polynomial = {}
    layout: Layout | None = ()
    for index, value in enumerate(parts):
        part = reader.read(value)
        layout = None if part is None or layout is None else Reader.aligned(layout, part.layout)
        if part is None or layout is None:
            return None
        terms = plus(terms, part.terms, -1.0 if index else 1.0)
    return None if layout is None else (terms, layout)


def _tensors(centred: ir.Value) -> Iterator[ir.Value]:
    """What a mean may have been taken away from: the first operands of differences, the operands of sums."""
    waiting, seen = [centred], 0
    while waiting and seen < 12:
        value, seen = waiting.pop(0), seen + 1
        node = value.producer()
        if node is not None and is_op(node, "Sub") and node.inputs[0] is not None:
            waiting.append(node.inputs[0])
        elif node is not None and is_op(node, "Add"):
            waiting += [item for item in node.inputs if item is not None]
        if value is not centred and value.shape is not None and constant_tensor(value) is None:
            yield value


def _spread(reader: Reader, value: ir.Value) -> tuple[Polynomial, float, list[ir.Node], Layout] | None:
    """The variance, the numbers added to it, the Adds that do it, and the layout."""
    node = value.producer()
    addends, adds = addends_of(node) if node is not None and is_op(node, "Add") else ([value], [])
    terms: Polynomial = {}
    layout: Layout | None = ()
    epsilon = 0.0
    for addend in addends:
        number = scalar_of(addend, reader.rank)
        if number is not None:
            epsilon += number
            continue
        part = reader.read(addend)
        layout = None if part is None or layout is None else Reader.aligned(layout, part.layout)
        if part is None or layout is None:
            return None
        terms = plus(terms, part.terms)
    return None if layout is None else (terms, epsilon, adds, layout)


def _is_blend(mean: Polynomial, spread: Polynomial) -> bool:
    """Whether x was centred, and mean or variance is of more than one kind."""
    centre = ("x",) if ("x",) in mean else ("m",)
    kinds = [{_kind(letters) for letters in terms if letters != ("x",)} for terms in (mean, spread)]
    if centre == ("m",):  # of rank 2: x itself is no mean
        kinds[0].discard("instance")
    return centre in mean and any(len(found) > 1 for found in kinds) and not any("x" in letters for letters in spread)


def _kind(letters: tuple[str, ...]) -> str:
    if not letters:
        return "batch"
    return "instance" if {"m", "v"} & set(letters) else "layer"
