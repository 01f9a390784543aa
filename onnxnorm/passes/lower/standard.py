"""What the rules that lower onnxnorm ops to standard operators share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.graph import node_name, rank_of
from onnxnorm.passes.lower.function_bodies import ANY_ELEMENT
from onnxnorm.passes.rule import Context, Refusal, Replacement
from onnxnorm.spec.body import MIN_OPSET, BodyBuilder
from onnxnorm.spec.record import DOMAIN, NormSpec


def spec_of(node: ir.Node) -> NormSpec | None:
    """The norm of an onnxnorm node, None for any other node."""
    return all_specs().get(node.op_type) if node.domain == DOMAIN else None


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """The node's attributes as plain values; Refusal for references to a function's attributes."""
    for item in node.attributes.values():
        if item.is_ref():
            raise Refusal("an attribute is a reference to the function's", attribute=item.name)
    return {name: item.value for name, item in node.attributes.items()}


def known_type(node: ir.Node) -> ir.DataType:
    """X's element type; Refusal when it is not known."""
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    if dtype is None:
        raise Refusal("the element type of X is not known")
    return dtype


def first_axis(node: ir.Node, into: str) -> int:
    """The first of the node's ``axes``, counted from the end; Refusal unless they are the last ones, as ``into`` is."""
    axes = attributes_of(node)["axes"]
    rank = rank_of(node.inputs[0]) if node.inputs[0] is not None else None
    if rank is None and any(axis >= 0 for axis in axes):
        raise Refusal("the rank of X is not known", axes=list(axes))
    from_end = sorted(axis - rank if rank is not None and axis >= 0 else axis for axis in axes)
    if from_end != list(range(-len(axes), 0)):
        raise Refusal(f"{into} takes the last axes in a row", axes=list(axes))
    return -len(axes)


def builder_for(node: ir.Node, context: Context) -> BodyBuilder:
    """A builder that emits standard nodes in place of this node, for any element type where X's is not known."""
    if context.opset < MIN_OPSET:
        raise Refusal(f"standard form needs opset {MIN_OPSET} or newer", opset=context.opset)
    dtype = node.inputs[0].dtype if node.inputs[0] is not None and not context.in_function else None
    return BodyBuilder(context.opset, ANY_ELEMENT if dtype is None else (dtype,), attributes_of(node))


def replacement(
    node: ir.Node, builder: BodyBuilder, outputs: Sequence[ir.Value], context: Context, into: str
) -> Replacement:
    """The builder's nodes in the node's place, under names that are new to the model.

    A node may have fewer outputs than its norm: those at the end that nobody reads.
    """
    prefix = node_name(node)
    for new in builder.nodes:
        new.name = context.fresh_name(f"{prefix}/{new.name}")
        for value in new.outputs:
            value.name = context.fresh_name(f"{prefix}/{value.name}")
    results = dict(zip(node.outputs, outputs, strict=False))
    return Replacement(builder.nodes, results, [node], node, into=into)
