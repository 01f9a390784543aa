"""Writes models with their weights, each copied piece by piece from where it lies to where it belongs.

Protobuf makes a copy of all that it serializes; so it gets the model without its large weights. These go into the data
file, or, where the model is to be one file, into the bytes of the message at the place where protobuf would have them
(https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from onnxnorm.model_reader import varint

#: Tensors of fewer bytes stay in the message; onnx_ir's own limit.
_SMALLEST_BESIDE = 256
#: Smaller ones of a single file go through protobuf.
_SMALLEST_COPIED = 1 << 20
#: Where tensors start in a data file: SIMD's largest vectors, and pages for what is worth mapping by itself.
_ALIGNMENT, _PAGE, _LARGE = 64, 4096, 1 << 20
_CHUNK = 1 << 24
#: Field numbers of ModelProto.graph, GraphProto.initializer and TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9

Tensors = dict[str, ir.TensorProtocol]


def write_beside(model: ir.Model, graphs: list[ir.Graph], path: Path, data: Path) -> None:
    """The model to ``path`` and its weights to ``data``, which the model names by its file name.

    Args:
        model: not changed.
        graphs: all of its graphs.
        path: file to write.
        data: file to write.

    """
    with open(data, "wb") as file:

        def place(tensor: ir.TensorProtocol) -> ir.ExternalTensor:
            alignment = _PAGE if tensor.nbytes >= _LARGE else _ALIGNMENT
            file.write(bytes(-file.tell() % alignment))
            offset = file.tell()
            copy_tensor(tensor, file)
            return _reference(tensor, data.name, offset)

        with _without_weights(graphs, _SMALLEST_BESIDE, place):
            message = ir.to_proto(model).SerializeToString(deterministic=True)
    path.write_bytes(message)


def write_inside(model: ir.Model, graphs: list[ir.Graph], path: Path) -> None:
    """The model to ``path``, weights and all."""
    large: list[ir.TensorProtocol] = []

    def keep(tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        large.append(tensor)
        return _reference(tensor, str(len(large) - 1), 0)

    with _without_weights([model.graph], _SMALLEST_COPIED, keep):
        proto = message_of(model, [graph for graph in graphs if graph is not model.graph])
    with open(path, "wb") as file:
        if large:
            _write(proto, large, file)
        else:
            file.write(proto.SerializeToString(deterministic=True))


def message_of(model: ir.Model, graphs: list[ir.Graph]) -> onnx.ModelProto:
    """The model as one message, which needs no other file."""
    with _attributes_in_memory(graphs), _small_in_memory(graphs, set()):
        return ir.to_proto(model)


def copy_tensor(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    """The tensor's bytes, as ONNX stores them."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(file)
        return
    array = None if tensor.dtype.bitwidth < 8 else np.asarray(tensor.numpy())
    if array is None or not array.flags.c_contiguous or array.dtype.byteorder == ">" or not array.size:
        file.write(tensor.tobytes())
        return
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _CHUNK):
        file.write(flat[start : start + _CHUNK].data)


def _reference(tensor: ir.TensorProtocol, location: str, offset: int) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    name, text = tensor.name or "", tensor.doc_string
    return ir.ExternalTensor(
        location, offset, tensor.nbytes, tensor.dtype, shape=shape, name=name, doc_string=text,
        metadata_props=dict(tensor.metadata_props),
    )  # fmt: skip


@contextlib.contextmanager
def _without_weights(
    graphs: list[ir.Graph], smallest: int, place: Callable[[ir.TensorProtocol], ir.ExternalTensor]
) -> Iterator[None]:
    """Puts what ``place`` gives in the place of each initializer from that size on, for the time being."""
    kept: list[tuple[ir.Value, ir.TensorProtocol]] = []
    try:
        for graph in graphs:
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= smallest:
                    kept.append((value, tensor))
                    value.const_value = place(tensor)
        with _attributes_in_memory(graphs), _small_in_memory(graphs, {value for value, _ in kept}):
            yield
    finally:
        for value, tensor in kept:
            value.const_value = tensor


@contextlib.contextmanager
def _small_in_memory(graphs: list[ir.Graph], placed: set[ir.Value]) -> Iterator[None]:
    """Loads what lies in other files and is too small to have a place of its own."""
    kept = [
        (value, value.const_value)
        for graph in graphs
        for value in graph.initializers.values()
        if value not in placed and isinstance(value.const_value, ir.ExternalTensor)
    ]
    try:
        for value, tensor in kept:
            value.const_value = _loaded(tensor)
        yield
    finally:
        for value, tensor in kept:
            value.const_value = tensor


@contextlib.contextmanager
def _attributes_in_memory(graphs: list[ir.Graph]) -> Iterator[None]:
    """Loads the tensors of attributes that lie in other files: a message has them inside."""
    kept: list[tuple[ir.Node, ir.Attr]] = []
    try:
        for node in (node for graph in graphs for node in graph):
            for item in list(node.attributes.values()):
                if item.type == ir.AttributeType.TENSOR and isinstance(item.value, ir.ExternalTensor):
                    kept.append((node, item))
                    node.attributes[item.name] = ir.AttrTensor(item.name, _loaded(item.value))
        yield
    finally:
        for node, item in kept:
            node.attributes[item.name] = item


def _loaded(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    (loaded,) = ir.external_data.convert_tensors_from_external([tensor])
    return loaded


# --- one message ----------------------------------------------------------------------------------------------------


def _write(proto: onnx.ModelProto, large: list[ir.TensorProtocol], file: BinaryIO) -> None:
    """The message's bytes, with the weights where references stand."""
    parts: list[tuple[bytes, ir.TensorProtocol | None]] = []
    for item in proto.graph.initializer:
        tensor = large[int(_location(item))] if item.data_location == onnx.TensorProto.EXTERNAL else None
        parts.append(_head(item, tensor))
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    proto_bytes = proto.SerializeToString(deterministic=True)
    size = len(graph) + sum(len(head) + (0 if tensor is None else tensor.nbytes) for head, tensor in parts)
    file.write(proto_bytes)
    file.write(_tag(_GRAPH) + varint(size) + graph)
    for head, tensor in parts:
        file.write(head)
        if tensor is not None:
            copy_tensor(tensor, file)


def _head(item: onnx.TensorProto, tensor: ir.TensorProtocol | None) -> tuple[bytes, ir.TensorProtocol | None]:
    """All bytes of an initializer but those of its weights, which follow."""
    item.ClearField("data_location")
    del item.external_data[:]
    inside = item.SerializeToString(deterministic=True)
    if tensor is not None:
        inside += _tag(_RAW_DATA) + varint(tensor.nbytes)
    size = len(inside) + (0 if tensor is None else tensor.nbytes)
    return _tag(_INITIALIZER) + varint(size) + inside, tensor


def _location(item: Any) -> str:
    return str(next(entry.value for entry in item.external_data if entry.key == "location"))


def _tag(field: int) -> bytes:
    """Of a field that has its length in front."""
    return varint(field << 3 | 2)
