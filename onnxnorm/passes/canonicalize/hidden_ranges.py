"""Hides Range from ONNX's shape inference, which makes every number of one to follow them through the graph.

A file can ask for any number of numbers. What is constant and small is computed anyway (``constants``); of the others
only the type is known, and that there is one axis.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import AttributeProto, GraphProto

#: No operator has this name: the inference passes over it.
_HIDDEN = "onnxnorm.Range"


def hide_ranges(proto: onnx.ModelProto) -> None:
    """Changes ``proto``, which only the inference sees; the order and number of nodes stay."""
    _hide(proto.graph, {})
    for function in proto.functions:
        for node in function.node:
            if node.op_type == "Range" and node.domain in ("", "ai.onnx"):
                node.op_type = _HIDDEN


def _hide(graph: GraphProto, outer: Mapping[str, int]) -> None:
    types = dict(outer)
    types.update((item.name, item.data_type) for item in graph.initializer)
    infos = (*graph.input, *graph.value_info)
    types.update((info.name, info.type.tensor_type.elem_type) for info in infos if info.type.HasField("tensor_type"))
    told = {info.name for info in graph.value_info}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR and node.op_type == "Constant":
                types[node.output[0]] = attribute.t.data_type
            elif attribute.type == AttributeProto.GRAPH:
                _hide(attribute.g, types)
            elif attribute.type == AttributeProto.GRAPHS:
                for inner in attribute.graphs:
                    _hide(inner, types)
        if node.op_type != "Range" or node.domain not in ("", "ai.onnx"):
            continue
        node.op_type = _HIDDEN
        kind = next((types[name] for name in node.input if types.get(name)), 0)
        if kind and node.output and node.output[0] not in told:
            graph.value_info.append(onnx.helper.make_tensor_value_info(node.output[0], kind, [None]))
