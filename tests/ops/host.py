"""Sessions in the test host (``ops/testing``) in place of ONNX Runtime, which has no sanitizers in it.

The variable ONNXNORM_TEST_HOST holds the command that starts the host: its program and the library to test. With it
the tests of this folder make their sessions here. ``python ops/sanitize.py`` builds both and sets it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import shlex
import struct
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

VARIABLE = "ONNXNORM_TEST_HOST"
NUMPY: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
}
_TABLE, _REGISTER, _CREATE, _RUN, _DESTROY = 1, 2, 3, 4, 5


class NodeRefused(Exception):
    """The library's error for a node, or the host's own: two runs that differ, an output left out."""


class HostDied(Exception):
    """A sanitizer stopped the host, or it crashed; the text is what it wrote."""


class Request:
    """One request, as ``ops/testing/host.cc`` reads it."""

    def __init__(self, kind: int) -> None:
        self.parts = [struct.pack("q", kind)]

    def put_int(self, value: int) -> None:
        self.parts.append(struct.pack("q", value))

    def put_ints(self, values: Sequence[int]) -> None:
        self.parts.append(struct.pack(f"{len(values) + 1}q", len(values), *values))

    def put_text(self, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else value
        self.parts += [struct.pack("q", len(content)), content]

    def put_attribute(self, attribute: onnx.AttributeProto) -> None:
        value = helper.get_attribute_value(attribute)
        self.put_text(attribute.name)
        if attribute.type == onnx.AttributeProto.INT:
            self.parts.append(struct.pack("qq", 0, value))
        elif attribute.type == onnx.AttributeProto.FLOAT:
            self.parts.append(struct.pack("qd", 1, value))
        elif attribute.type == onnx.AttributeProto.STRING:
            self.put_int(2)
            self.put_text(value)
        else:
            self.put_int(3)
            self.put_ints(value)


class Host:
    """The process; it is started by the first request and answers one at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        #: Held from a request to the end of its answer.
        self.lock = threading.RLock()
        #: Nodes that nobody needs any more, to be destroyed with the next request.
        self.unused: list[int] = []
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=_environment()
        )

    def ask(self, request: Request) -> None:
        """Sends a request; the answer's values can be read next.

        Raises:
            NodeRefused: the library, or the host, refuses.

        """
        while self.unused:
            ending = Request(_DESTROY)
            ending.put_int(self.unused.pop())
            self._exchange(ending)
        self._exchange(request)

    def _exchange(self, request: Request) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"".join(request.parts))
            self._process.stdin.flush()
        except OSError:
            self._died()
        if self.get_int() != 0:
            raise NodeRefused(self.get_text())

    def read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        content = self._process.stdout.read(size)
        if len(content) < size:
            self._died()
        return content

    def get_int(self) -> int:
        (value,) = struct.unpack("q", self.read(8))
        return int(value)

    def get_text(self) -> str:
        return self.read(self.get_int()).decode()

    def get_ints(self) -> list[int]:
        return list(struct.unpack(f"{(count := self.get_int())}q", self.read(8 * count)))

    def close(self) -> None:
        """Ends the process, which then looks for leaks.

        Raises:
            HostDied: it does not end well.

        """
        self._process.communicate()
        if self._process.returncode != 0:
            self._died()
        self._close_files()

    def _close_files(self) -> None:
        for file in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(OSError):  # what a dead process did not read
                if file is not None:
                    file.close()

    def _died(self) -> None:
        global _host  # noqa: PLW0603
        if _host is self:
            _host = None
        code = self._process.wait()
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        self._close_files()
        raise HostDied(f"the test host ended with status {code}:\n{text[:20_000]}")


def _environment() -> dict[str, str]:
    """The first report of a sanitizer ends the host."""
    defaults = {
        "ASAN_OPTIONS": "halt_on_error=1:detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
    }
    return {**defaults, **os.environ}


_host: Host | None = None


def wanted() -> bool:
    """Whether the tests are to run in the host."""
    return bool(os.environ.get(VARIABLE))


def host() -> Host:
    """The process of this worker, started on first use and again after it died."""
    global _host  # noqa: PLW0603
    if _host is None:
        _host = Host(shlex.split(os.environ[VARIABLE]))
        atexit.register(close)  # collecting the tests asks for the levels, without any fixture that would end it
    return _host


def close() -> None:
    """Ends the process of this worker, if there is one."""
    global _host
    if _host is not None:
        ending, _host = _host, None
        ending.close()


def _level() -> str:
    return os.environ.get("ONNXNORM_CPU_TARGET", "")


def op_table() -> dict[str, Any]:
    """The op table of the library in the host."""
    request = Request(_TABLE)
    request.put_text(_level())
    with host().lock:
        host().ask(request)
        table: dict[str, Any] = json.loads(host().get_text())
    return table


@dataclass(frozen=True)
class Declared:
    """Type and shape of a value as a graph declares it; None stands for a rank or a size that is not known."""

    name: str
    element: int
    shape: tuple[int | str | None, ...] | None

    @classmethod
    def of(cls, info: onnx.ValueInfoProto) -> Declared:
        tensor = info.type.tensor_type
        if not tensor.HasField("shape"):
            return cls(info.name, tensor.elem_type, None)
        sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
        return cls(info.name, tensor.elem_type, tuple(sizes))

    def write(self, request: Request) -> None:
        request.put_int(self.element)
        request.put_int(self.shape is not None)
        request.put_ints([size if isinstance(size, int) else -1 for size in self.shape or ()])
        for size in self.shape or ():
            request.put_text(size if isinstance(size, str) else "")

    @classmethod
    def read(cls, name: str, answer: Host) -> Declared:
        element, ranked = answer.get_int(), answer.get_int()
        sizes = answer.get_ints()
        names = [answer.get_text() for _ in sizes]
        shape = tuple(size if size >= 0 else text or None for size, text in zip(sizes, names, strict=True))
        return cls(name, element, shape if ranked else None)


class Node:
    """One node of the domain onnxnorm in the host."""

    def __init__(self, proto: onnx.NodeProto, inputs: Sequence[Declared], threads: int) -> None:
        request = Request(_CREATE)
        request.put_text(_level())
        request.put_int(threads)
        request.put_text(proto.op_type)
        request.put_text(proto.name)
        request.put_int(len(inputs))
        for declared in inputs:
            declared.write(request)
        request.put_int(len(proto.attribute))
        for attribute in proto.attribute:
            request.put_attribute(attribute)
        request.put_ints([bool(name) for name in proto.output])
        self._host = host()
        with self._host.lock:
            self._host.ask(request)
            self._id = self._host.get_int()
            count = self._host.get_int()
            self.outputs = [Declared.read(name, self._host) for name, _ in zip(proto.output, range(count), strict=True)]

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        request = Request(_RUN)
        request.put_int(self._id)
        request.put_int(len(inputs))
        for value in inputs:
            request.put_int(helper.np_dtype_to_tensor_dtype(value.dtype))
            request.put_ints(value.shape)
            request.put_text(value.tobytes())
        with self._host.lock:
            self._host.ask(request)
            return [self._output() if self._host.get_int() else None for _ in range(self._host.get_int())]

    def _output(self) -> np.ndarray:
        dtype = NUMPY[self._host.get_int()]
        shape = self._host.get_ints()
        return np.frombuffer(self._host.read(self._host.get_int()), dtype).reshape(shape)

    def __del__(self) -> None:
        if hasattr(self, "_id"):
            self._host.unused.append(self._id)  # a request now could come into the middle of another


class Session:
    """What the tests use of ``onnxruntime.InferenceSession``; nodes of other domains run in ONNX's evaluator."""

    def __init__(self, content: bytes, threads: int) -> None:
        request = Request(_REGISTER)
        request.put_text(_level())
        with host().lock:
            host().ask(request)
        self._graph = onnx.ModelProto.FromString(content).graph
        self._opset = onnx.ModelProto.FromString(content).opset_import
        self._inputs = [Declared.of(info) for info in self._graph.input]
        self._outputs = {info.name: Declared.of(info) for info in self._graph.output}
        known = {declared.name: declared for declared in self._inputs}
        known |= {item.name: Declared(item.name, item.data_type, tuple(item.dims)) for item in self._graph.initializer}
        self._nodes: list[Node | None] = []
        for proto in self._graph.node:
            first = known[proto.input[0]]
            node = None
            if proto.domain == "onnxnorm":
                unknown = Declared("", first.element, None)
                node = Node(proto, [known.get(name, unknown) for name in proto.input], threads)
                known |= {item.name: item for item in node.outputs}
            else:
                known |= {name: Declared(name, first.element, None) for name in proto.output}
            self._nodes.append(node)
        self._outputs |= {name: known[name] for name in self._outputs if known[name].shape is not None}

    def get_inputs(self) -> list[Declared]:
        return self._inputs

    def get_outputs(self) -> list[Declared]:
        return list(self._outputs.values())

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        values = {item.name: onnx.numpy_helper.to_array(item) for item in self._graph.initializer}
        values |= feeds
        for proto, node in zip(self._graph.node, self._nodes, strict=True):
            inputs = [values[name] for name in proto.input]
            outputs = node.run(inputs) if node is not None else self._evaluate(proto, inputs)
            values |= {name: out for name, out in zip(proto.output, outputs, strict=True) if out is not None}
        return [values[name] for name in names or self._outputs]

    def run_with_ort_values(self, names: Sequence[str] | None, feeds: Mapping[str, ort.OrtValue]) -> list[Value]:
        return [Value(array) for array in self.run(names, {name: _array(value) for name, value in feeds.items()})]

    def _evaluate(self, proto: onnx.NodeProto, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        infos = [
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(inputs[0].dtype), None)
                for name in side
            ]
            for side in (proto.input, proto.output)
        ]
        graph = helper.make_graph([proto], "node", *infos)
        evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=self._opset))
        return evaluator.run(None, dict(zip(proto.input, inputs, strict=True)))


def _array(value: ort.OrtValue) -> np.ndarray:
    """A copy of what an OrtValue holds, bfloat16 too, which NumPy does not know."""
    dtype = np.dtype(NUMPY[value.element_type()])
    count = int(np.prod(value.shape(), dtype=np.int64))
    content = ctypes.string_at(value.data_ptr(), count * dtype.itemsize) if count else b""
    return np.frombuffer(content, dtype).reshape(value.shape())


class Value:
    """What the tests use of an ``onnxruntime.OrtValue``, which would not keep the array alive."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = np.array(array)

    def numpy(self) -> np.ndarray:
        return self._array

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def element_type(self) -> int:
        return int(helper.np_dtype_to_tensor_dtype(self._array.dtype))
