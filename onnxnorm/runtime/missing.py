"""What a library lacks that a model needs, and which version has it: ONNX Runtime's own errors name neither."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxnorm.errors import ModelError
from onnxnorm.runtime.library import op_table
from onnxnorm.spec.record import DOMAIN
from onnxnorm.version import WRITER_KEY, installed_version

if TYPE_CHECKING:
    import onnx

#: ONNX Runtime 1.20 to 1.32: a name that is neither registered nor a function of the file.
_UNKNOWN_OP = re.compile(rf"\b{DOMAIN}:(\w+)\(-?\d+\) is not a registered function/op")
#: The same: an element type that no registered op of that name takes; it hides the function of the file.
_UNKNOWN_TYPE = re.compile(
    r"Type 'tensor\((\w+)\)' of input parameter \((\w+)\) of operator \((\w+)\) in node \((.*?)\) is invalid"
)
#: ONNX Runtime's names of element types that differ from the specs'.
_TYPE_NAMES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True)
class _Lack:
    """The op, and the element type where that is what is lacking, that ONNX Runtime complains of."""

    op: str
    node: str | None
    dtype: str | None


def explain(text: str, model: Any, library: Path | None) -> ModelError | None:
    """ModelError for ONNX Runtime's error ``text`` if an onnxnorm op or its element type is lacking, else None.

    Args:
        text: the error, on one line.
        model: what the session was to be made from: a path, bytes, or a model object.
        library: the native library of the session, None if it has none.

    """
    lack = _lack(text)
    if lack is None:
        return None
    proto = _proto(model)
    node = None if proto is None else _node(proto, lack)
    if lack.dtype is not None and (node is None or library is None):
        return None  # an operator of another domain that has the same name
    source = os.fspath(model) if isinstance(model, str | os.PathLike) else "the model"
    named = lack.node if node is None else node.name or next(iter(node.output), "?")
    where = f"{source}: node {named!r}" if named else f"{source}: a node"
    if lack.dtype is not None and library is not None:
        return _type_error(where, lack.op, lack.dtype, library, has_body=_has_body(proto, lack.op))
    of_type = "" if proto is None or node is None else _input_type(proto, node)
    return ModelError(
        f"{where} is {DOMAIN}.{lack.op}{of_type}, which has no function body in the file and no kernel in "
        f"{_described(library)}; {_who_has(lack.op, None, proto)}"
    )


def _lack(text: str) -> _Lack | None:
    found = _UNKNOWN_OP.search(text)
    if found is not None:
        return _Lack(found[1], None, None)
    found = _UNKNOWN_TYPE.search(text)
    if found is not None:
        return _Lack(found[3], found[4], _TYPE_NAMES.get(found[1], found[1]))
    return None


def _type_error(where: str, op: str, dtype: str, library: Path, *, has_body: bool) -> ModelError | None:
    held = next((row["dtypes"] for row in op_table(library)["ops"] if row["name"] == op), None)
    if held is None or dtype in held:
        return None
    way = (
        "library=False runs the model through its function bodies"
        if has_body
        else "the file has no function body for it, which 'onnxnorm optimize' attaches if the type has one"
    )
    return ModelError(
        f"{where} is {DOMAIN}.{op} in {dtype}; {_described(library)} has it in {', '.join(held)} only; "
        f"{_who_has(op, dtype, None)}; {way}"
    )


def _described(library: Path | None) -> str:
    if library is None:
        return "this session, which has no native library (library=False, or none is installed)"
    return f"the native library {library} (version {op_table(library)['version']})"


def _who_has(op: str, dtype: str | None, proto: onnx.ModelProto | None) -> str:
    """Which version of onnxnorm has the op, as far as this one knows, and what to do."""
    from onnxnorm.norms import all_specs

    spec, current = all_specs().get(op), installed_version()
    if spec is None:
        writer = None if proto is None else {item.key: item.value for item in proto.metadata_props}.get(WRITER_KEY)
        wrote = "and the file does not say which" if writer is None else f"the file was written by onnxnorm {writer}"
        return f"onnxnorm {current} does not know this op: it needs a newer version ({wrote})"
    if dtype is None:
        body = "'onnxnorm optimize' attaches the body to the file"
        return f"the library of onnxnorm {spec.since} and newer has it; {body}" if spec.native else body
    if dtype in spec.dtypes:
        return f"the library of onnxnorm {spec.since_for(dtype)} and newer has it"
    return f"no version up to {current} has it"


def _proto(model: Any) -> Any:
    """The model as a ModelProto without its weights; None if it cannot be read, as ONNX Runtime's error then says."""
    import onnx

    with contextlib.suppress(Exception):
        if isinstance(model, str | os.PathLike):
            return onnx.load(model, load_external_data=False)
        if isinstance(model, bytes):
            return onnx.ModelProto.FromString(model)
        if isinstance(model, onnx.ModelProto):
            return model
        import onnx_ir as ir

        return ir.to_proto(model)
    return None


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _node(proto: onnx.ModelProto, lack: _Lack) -> onnx.NodeProto | None:
    """The first onnxnorm node of that op, and of that name where ONNX Runtime gives one."""
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in _nodes(nodes):
            if node.domain == DOMAIN and node.op_type == lack.op and lack.node in (None, node.name):
                return node
    return None


def _has_body(proto: onnx.ModelProto | None, op: str) -> bool:
    return proto is not None and any(item.domain == DOMAIN and item.name == op for item in proto.functions)


def _input_type(proto: onnx.ModelProto, node: onnx.NodeProto) -> str:
    """The node's element type as " in float16" where the graph says it, else nothing."""
    import onnx

    graph = proto.graph
    types = {item.name: item.data_type for item in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        types[info.name] = info.type.tensor_type.elem_type
    element = next((types[name] for name in (*node.input, *node.output) if types.get(name)), None)
    if element is None:
        return ""
    name = onnx.TensorProto.DataType.Name(element).lower()
    return f" in {_TYPE_NAMES.get(name, name)}"
