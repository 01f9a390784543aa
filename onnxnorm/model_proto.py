"""What a ModelProto must be before it is read: tensors whose data fit their type and shape, functions without a cycle.

Protobuf accepts any numbers; what follows would fail far from the tensor that is wrong, or ask for any amount of
memory. Nothing is copied here. What concerns files (external data) is checked where they are opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from onnxnorm.errors import ModelError, one_line

#: Where a tensor has its numbers when they are not raw bytes, and how many of them one element takes.
_FIELDS: dict[str, tuple[str, int]] = {
    "FLOAT": ("float_data", 1),
    "COMPLEX64": ("float_data", 2),
    "DOUBLE": ("double_data", 1),
    "COMPLEX128": ("double_data", 2),
    "INT64": ("int64_data", 1),
    "UINT32": ("uint64_data", 1),
    "UINT64": ("uint64_data", 1),
    "STRING": ("string_data", 1),
}
_OTHER = ("int32_data", 1)
#: Types below a byte, of which a byte, also one that is stored as a number, holds several.
_PACKED = frozenset(item.name for item in ir.DataType if item.name not in ("UNDEFINED", "STRING") and item.bitwidth < 8)
#: More axes than any operator takes.
_MOST_AXES = 64


def check_proto(proto: onnx.ModelProto, name: str) -> None:
    """ModelError, which starts with ``name``, for a tensor that is not what it says or a function that calls itself."""
    _check_texts(proto, name)
    for item in (*proto.opset_import, *(item for function in proto.functions for item in function.opset_import)):
        if not 0 <= item.version < 2**31:
            raise ModelError(f"{name}: it imports opset {item.version} of {item.domain!r}, which is no version")
    for tensor in _tensors(proto):
        problem = _problem(tensor)
        if problem is not None:
            raise ModelError(f"{name}: tensor {one_line(tensor.name, 100)!r} {problem}")
    _check_calls(proto, name)


def _graphs(proto: onnx.ModelProto) -> Iterator[GraphProto | onnx.FunctionProto]:
    """Every graph and function; a stack and no recursion, as files nest as deep as they like."""
    stack: list[GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            stack += _inner(node)


def _inner(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _check_texts(proto: onnx.ModelProto, name: str) -> None:
    """ModelError where a name is no UTF-8: protobuf gives it as bytes then, which nothing else takes."""
    for graph in _graphs(proto):
        texts = [graph.name, graph.doc_string, *_names_of_values(graph)]
        for node in graph.node:
            texts += [node.op_type, node.domain, node.name, node.doc_string, *node.input, *node.output]
            texts += [text for item in node.attribute for text in (item.name, item.ref_attr_name, item.doc_string)]
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise ModelError(f"{name}: {one_line(repr(wrong), 100)} in graph {graph.name!r} is no text in UTF-8")


def _names_of_values(graph: GraphProto | onnx.FunctionProto) -> Iterator[str]:
    if not isinstance(graph, GraphProto):
        yield from (*graph.input, *graph.output, *graph.attribute, graph.domain)
        return
    yield from (tensor.name for tensor in graph.initializer)
    for info in (*graph.input, *graph.output, *graph.value_info):
        yield info.name
        yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim)


def _tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    for graph in _graphs(proto):
        if isinstance(graph, GraphProto):
            yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                elif attribute.type == AttributeProto.TENSORS:
                    yield from attribute.tensors


def _problem(tensor: TensorProto) -> str | None:
    """What is wrong with the tensor, None when nothing is."""
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        return f"has the element type {tensor.data_type}, which ONNX has not"
    if dtype == ir.DataType.UNDEFINED:
        return "has no element type"
    shape = list(tensor.dims)
    if len(shape) > _MOST_AXES or any(size < 0 for size in shape):
        return f"has the shape {one_line(shape, 100)}; sizes are 0 or more, of at most {_MOST_AXES} axes"
    if tensor.HasField("segment"):
        return "is stored in segments, which is not supported; store it whole"
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external_problem(tensor)
    elements = math.prod(shape)
    if tensor.HasField("raw_data") and dtype != ir.DataType.STRING:
        found, wanted, unit = len(tensor.raw_data), -(-elements * dtype.bitwidth // 8), "bytes"
    else:
        field, each = _FIELDS.get(dtype.name, _OTHER)
        wanted = -(-elements * dtype.bitwidth // 8) if dtype.name in _PACKED else elements * each
        found, unit = len(getattr(tensor, field)), f"numbers of {field}"
    if found != wanted:
        return f"needs {wanted} {unit} by its type {dtype.name.lower()} and shape {shape}, but has {found}"
    return None


def _external_problem(tensor: TensorProto) -> str | None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not entries.get("location"):
        return "is stored in another file, but does not say in which"
    for key in ("offset", "length"):
        text = entries.get(key)
        if text is not None and not (text.lstrip("-").isascii() and text.lstrip("-").isdigit()):
            return f"has the {key} {one_line(text, 40)!r} in its file; it must be a number"
    return None


def _check_calls(proto: onnx.ModelProto, name: str) -> None:
    """ModelError where a function calls itself, directly or through others."""
    known = {(item.domain, item.name, item.overload): item for item in proto.functions}
    calls = {
        key: {called for node in _nodes(item) if (called := (node.domain, node.op_type, node.overload)) in known}
        for key, item in known.items()
    }
    callers: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {key: [] for key in calls}
    for key, found in calls.items():
        for called in found:
            callers[called].append(key)
    waiting = {key: len(found) for key, found in calls.items()}
    ready = [key for key, count in waiting.items() if not count]
    while ready:
        done = ready.pop()
        del waiting[done]
        for caller in callers[done]:
            waiting[caller] -= 1
            if not waiting[caller]:
                ready.append(caller)
    if waiting:
        key = min(key for key in waiting)
        raise ModelError(f"{name}: function {one_line(key[1], 100)!r} of {key[0]!r} calls itself, or one that does")


def _nodes(function: onnx.FunctionProto) -> Iterator[NodeProto]:
    stack: list[GraphProto | onnx.FunctionProto] = [function]
    while stack:
        graph = stack.pop()
        for node in graph.node:
            yield node
            stack += _inner(node)
