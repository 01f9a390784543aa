"""Products and sums of several constants in float64 NumPy, by operator name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.passes.graph import attribute

Array: TypeAlias = npt.NDArray[Any]


def _matmul(node: ir.Node, inputs: Sequence[Array | None], largest: int) -> Array | None:
    a, b = inputs
    assert a is not None
    assert b is not None
    left = a[None, :] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    stack = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    size = math.prod(stack) * left.shape[-2] * right.shape[-1]
    return np.asarray(a @ b) if size <= max(largest, a.size, b.size) else None


def _gemm(node: ir.Node, inputs: Sequence[Array | None], largest: int) -> Array | None:
    a, b = inputs[:2]
    assert a is not None
    assert b is not None
    a = a.T if attribute(node, "transA", 0) else a
    b = b.T if attribute(node, "transB", 0) else b
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] * b.shape[1] > max(largest, a.size, b.size):
        return None
    product = attribute(node, "alpha", 1.0) * (a @ b)
    c = inputs[2] if len(inputs) > 2 else None
    return np.asarray(product if c is None else product + attribute(node, "beta", 1.0) * c)


def _einsum(node: ir.Node, inputs: Sequence[Array | None], largest: int) -> Array | None:
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    operands = [value for value in inputs if value is not None]
    if len(operands) != len(inputs) or _einsum_size(equation, operands) > max(largest, *(x.size for x in operands)):
        return None
    return np.asarray(np.einsum(equation, *operands, optimize=True))


def _einsum_size(equation: str, operands: Sequence[Array]) -> float:
    """How many elements the result has at most: an ellipsis counts with all axes that it may stand for."""
    terms, _, result = equation.partition("->")
    sizes: dict[str, int] = {}
    rest = 1
    for term, operand in zip(terms.split(","), operands, strict=True):
        head, dots, tail = term.partition("...")
        named = [*zip(head, operand.shape, strict=False)]
        if dots:
            named += [*zip(reversed(tail), reversed(operand.shape), strict=False)]
            rest *= math.prod(operand.shape[len(head) : operand.ndim - len(tail)])
        sizes.update(named)
    kept = result.replace("...", "") if "->" in equation else "".join(sizes)
    return rest * math.prod(sizes[letter] for letter in kept)


def _combined(combine: Callable[[Array, Array], Array], mean: bool = False) -> Callable[..., Array | None]:
    def run(node: ir.Node, inputs: Sequence[Array | None], largest: int) -> Array | None:
        operands = [value for value in inputs if value is not None]
        size = math.prod(np.broadcast_shapes(*(value.shape for value in operands)))
        if size > max(largest, *(value.size for value in operands)):
            return None
        total = operands[0]
        for operand in operands[1:]:
            total = combine(total, operand)
        return total / len(operands) if mean else total

    return run


#: operator -> f(node, inputs, how many elements a result may have); None where it would have more.
OPERATORS: dict[str, Callable[[ir.Node, Sequence[Array | None], int], Array | None]] = {
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Mean": _combined(np.add, mean=True),
    "Sum": _combined(np.add),
}
