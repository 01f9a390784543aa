"""Reads large model files without their weights, which are then mapped from the file as external data are.

Protobuf holds a model twice while it is read, and copies each weight when it is asked for it. Here the message is
walked through first (https://protobuf.dev/programming-guides/encoding/): initializers with large ``raw_data`` become
references to their place in the file, and protobuf parses the rest.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx

#: Files from this size on are read so; smaller ones are held in memory.
LARGE_FILE = 1 << 28
_SMALLEST = 1 << 16
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


class _Malformed(Exception):
    """The bytes are no message, or one of a kind that is left to protobuf."""


def read_large(path: Path) -> onnx.ModelProto | None:
    """The model with references to ``path`` itself; None where protobuf shall read the file: it says what is wrong.

    Args:
        path: without symbolic links, since the references name the file.

    """
    if path.stat().st_nlink > 1:  # onnx_ir maps no file with several names
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            message = _without_weights(data, path.name)
        except (_Malformed, IndexError):
            return None
        model = onnx.ModelProto()
        model.ParseFromString(message)
        return model


def _without_weights(data: mmap.mmap, location: str) -> bytes:
    rest, graph = bytearray(), None
    for field, kind, start, body, end in _fields(data, 0, len(data)):
        if field != _GRAPH:
            rest += data[start:end]
        elif kind != _BYTES or graph is not None:
            raise _Malformed
        else:
            graph = _graph(data, body, end, location)
    if graph is None:
        raise _Malformed
    return bytes(rest + varint(_GRAPH << 3 | _BYTES) + varint(len(graph)) + graph)


def _graph(data: mmap.mmap, start: int, end: int, location: str) -> bytearray:
    result = bytearray()
    for field, kind, first, body, last in _fields(data, start, end):
        if field == _INITIALIZER and kind == _BYTES and last - body >= _SMALLEST:
            tensor = _tensor(data, body, last, location)
            result += varint(_INITIALIZER << 3 | _BYTES) + varint(len(tensor)) + tensor
        else:
            result += data[first:last]
    return result


def _tensor(data: mmap.mmap, start: int, end: int, location: str) -> bytes:
    """The tensor as it is, or with a reference in the place of its raw data."""
    rest, raw = bytearray(), None
    for field, kind, first, body, last in _fields(data, start, end):
        if field == _RAW_DATA and kind == _BYTES and last - body >= _SMALLEST and raw is None:
            raw = (body, last - body)
        else:
            rest += data[first:last]
    if raw is None:
        return bytes(rest)
    proto = onnx.TensorProto()
    proto.MergeFromString(bytes(rest))
    if proto.HasField("raw_data") or proto.data_location == onnx.TensorProto.EXTERNAL:
        raise _Malformed
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", raw[0]), ("length", raw[1])):
        proto.external_data.add(key=key, value=str(value))
    return bytes(proto.SerializeToString())


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(number, kind, start of the tag, start of the content, end) of each field of a message."""
    at = start
    while at < end:
        tag, body = _number(data, at, end)
        kind = tag & 7
        if kind == _VARINT:
            _, last = _number(data, body, end)
        elif kind == _BYTES:
            size, body = _number(data, body, end)
            last = body + size
        elif kind in (_EIGHT, _FOUR):
            last = body + (8 if kind == _EIGHT else 4)
        else:
            raise _Malformed
        if last > end:
            raise _Malformed
        yield tag >> 3, kind, at, body, last
        at = last


def _number(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A varint and where it ends."""
    number = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
    raise _Malformed


def varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
