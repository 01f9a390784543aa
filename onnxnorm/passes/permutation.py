"""Orders of axes: channels first (N, C, *) and channels last (N, *, C)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from onnxnorm.passes.graph import attribute, is_op, rank_of

Order = tuple[int, ...]


def to_first(rank: int) -> Order:
    """The order that Transpose takes from (N, *, C) to (N, C, *)."""
    return (0, rank - 1, *range(1, rank - 1))


def to_last(rank: int) -> Order:
    """The order that Transpose takes from (N, C, *) to (N, *, C)."""
    return (0, *range(2, rank), 1)


def combined(first: Sequence[int], second: Sequence[int]) -> Order:
    """The order of one Transpose that does what two in a row do."""
    return tuple(first[axis] for axis in second)


def is_identity(order: Sequence[int]) -> bool:
    """Whether the order leaves every axis where it is."""
    return list(order) == list(range(len(order)))


def order_of(node: ir.Node | None) -> Order | None:
    """The order of a Transpose, None for any other node or where it is not known."""
    if node is None or not is_op(node, "Transpose") or node.inputs[0] is None:
        return None
    order = attribute(node, "perm", ())
    if order is None:
        return None
    if not order:
        rank = rank_of(node.inputs[0])
        return None if rank is None else tuple(reversed(range(rank)))
    return tuple(order)


def permuted(shape: ir.Shape | None, order: Sequence[int]) -> list[Any] | None:
    """The sizes in that order, None where they are not known."""
    if shape is None or len(shape) != len(order):
        return None
    return [shape[axis] for axis in order]
