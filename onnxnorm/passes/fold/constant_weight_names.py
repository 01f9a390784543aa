"""What a computed weight is called, and what is told of it: the parameters it comes from and the norm that it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_ir as ir

from onnxnorm.passes.canonicalize.chains import FLOATS, leaf, operands
from onnxnorm.passes.graph import is_norm, is_op

_MOST_NAMES = 6
#: How PyTorch names the parameters behind a weight: each gives the weight's own name.
_PLAIN = (
    re.compile(r"^(?P<head>.*)parametrizations\.(?P<name>\w+)\.original\d*$"),
    re.compile(r"^(?P<head>.*?)(?P<name>\w+)_(?:v|orig)$"),
)
_LENGTHS = ("ReduceL1", "ReduceL2", "LpNormalization")


def _parameters(chain: Sequence[ir.Node]) -> list[ir.Value]:
    """The floats that the chain starts from, without single numbers."""
    read = dict.fromkeys(item for node in chain for item in operands(node))
    return [item for item in read if (tensor := leaf(item)) is not None and tensor.dtype in FLOATS and tensor.size > 1]


def plain_name(chain: Sequence[ir.Node]) -> str:
    """The name of the weight: of the largest parameter, as it is called without the norm."""
    largest = max(_parameters(chain), key=lambda item: (leaf(item) or ir.tensor([0])).size, default=None)
    name = (largest.name if largest is not None else None) or chain[-1].outputs[0].name or "weight"
    for pattern in _PLAIN:
        found = pattern.match(name)
        if found is not None:
            return found["head"] + found["name"]
    return f"{name}_folded"


def describe(chain: Sequence[ir.Node]) -> str:
    """One phrase: "computed from g, v (weight norm)"."""
    names = sorted(item.name for item in _parameters(chain) if item.name)
    listed = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
    kind = _kind(chain)
    return f"computed from {listed or 'numbers'}" + (f" ({kind})" if kind else "")


def _kind(chain: Sequence[ir.Node]) -> str | None:
    """Which normalization the chain is, by its operators; None where they do not tell."""
    kinds = {node.op_type for node in chain}
    divides = bool(kinds & {"Div", "Reciprocal", "Pow"})
    if kinds & {"LpNormalization"} or (divides and kinds & set(_LENGTHS)):
        return "weight norm"
    if any(is_norm(node) for node in chain):
        return "weight standardization"
    roots = bool(kinds & {"Sqrt", "Pow"})
    if divides and roots and "Sub" in kinds and kinds & {"ReduceMean", "ReduceSum"}:
        return "weight standardization"
    if divides and roots and kinds & {"ReduceSum", "ReduceSumSquare"}:
        return "weight norm"
    return "spectral norm" if any(_divides_by_product(node) for node in chain) else None


def _divides_by_product(node: ir.Node) -> bool:
    """Whether the node divides by one number that is a product of constants, as u' W v is."""
    if not is_op(node, "Div") or node.inputs[1] is None:
        return False
    value = node.inputs[1]
    producer = value.producer()
    while producer is not None and producer.op_type in ("Cast", "Identity", "Reshape", "Squeeze"):
        value = producer.inputs[0] or value
        producer = value.producer()
    return producer is not None and producer.op_type in ("MatMul", "Gemm", "Einsum", "ReduceSum")
