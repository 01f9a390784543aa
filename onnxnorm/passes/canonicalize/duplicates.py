"""One computation of a weight where a model holds several equal ones.

A layer that is called twice computes its weight twice when its norm is a hook or a parametrization. As constants these
would be two weights; the plain layer has one. Two nodes are equal when they have the same operator and attributes and
read equal values; small constants are compared by content, others must be the same.
"""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from onnxnorm.passes.canonicalize.chains import Chains, leaf
from onnxnorm.passes.graph import STANDARD, all_graphs

_SMALL = 64


def share_equal_weights(model: ir.Model) -> None:
    """Readers of the later of two equal computations read the first one; the later is left without readers."""
    chains = Chains()
    for graph, _, _ in all_graphs(model):
        known: dict[Hashable, ir.Node] = {}
        for node in graph:
            if not chains.makes_weight(node) or any(value.is_graph_output() for value in node.outputs):
                continue
            first = known.setdefault(_key(node), node)
            if first is not node:
                for old, new in zip(node.outputs, first.outputs, strict=True):
                    old.replace_all_uses_with(new)


def _key(node: ir.Node) -> Hashable:
    domain = "" if node.domain in STANDARD else node.domain
    attributes = tuple(
        sorted(
            (name, ir.serde.serialize_attribute(item).SerializeToString(deterministic=True))
            for name, item in node.attributes.items()
        )
    )
    return domain, node.op_type, attributes, tuple(map(_value_key, node.inputs)), len(node.outputs)


def _value_key(value: ir.Value | None) -> Hashable:
    tensor = leaf(value)
    if tensor is None or tensor.size > _SMALL:
        return id(value)
    return tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes()
