"""Model files: loading with errors that say what is wrong, saving without leaving half a file behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx.defs
import onnx_ir as ir

from onnxnorm.errors import ModelError
from onnxnorm.spec.record import DOMAIN

#: Protobuf cannot hold 2 GB; beyond this size weights go to an external file.
_PROTOBUF_LIMIT = 1_900_000_000
_STANDARD = ("", "ai.onnx")


def load_model(source: str | os.PathLike[str] | ir.Model | onnx.ModelProto | Any) -> ir.Model:
    """A model as onnx_ir, from a path, an onnx_ir.Model (copied), a ModelProto, or an object with ``.model``.

    Raises:
        ModelError: no such file, not ONNX, external data outside the model's folder or missing, a cycle, an operator
            that the standard does not have at the model's opset.

    """
    if isinstance(source, ir.Model):
        model, name = source.clone(), "the model"
    elif isinstance(source, onnx.ModelProto):
        model, name = _from_proto(source, "the model"), "the model"
    elif isinstance(source, str | os.PathLike):
        model, name = _load_file(Path(source)), os.fspath(source)
    elif isinstance(getattr(source, "model", None), ir.Model):
        model, name = source.model.clone(), "the model"
    else:
        raise ModelError(f"{type(source).__name__} is no model; give a path, an onnx_ir.Model or an onnx.ModelProto")
    _check_operators(model, name)
    _check_order(model, name)
    return model


def _load_file(path: Path) -> ir.Model:
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give the .onnx file in it")
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty; an ONNX file was expected")
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise ModelError(f"{path} is not an ONNX file: {_one_line(error)}") from None
    model = _from_proto(proto, str(path))
    _attach_external_data(model, path)
    return model


def _from_proto(proto: onnx.ModelProto, name: str) -> ir.Model:
    if not proto.HasField("graph") or not proto.opset_import or proto.ir_version <= 0:
        raise ModelError(f"{name} is not an ONNX model: it has no graph, no opset import or no IR version")
    try:
        return ir.from_proto(proto)
    except Exception as error:
        raise ModelError(f"{name} cannot be read: {_one_line(error)}") from None


def _attach_external_data(model: ir.Model, path: Path) -> None:
    """Gives every external tensor its folder; refuses what lies outside it or is not there."""
    folder = path.resolve().parent
    for tensor in _tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        target = (folder / os.fspath(tensor.location)).resolve()
        if not target.is_relative_to(folder):
            raise ModelError(f"{path}: tensor {tensor.name!r} has its data in {tensor.location!r}, outside {folder}")
        if not target.is_file():
            raise ModelError(f"{path}: tensor {tensor.name!r} has its data in {tensor.location!r}, which is not there")
        end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
        if end > target.stat().st_size:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} needs {end} bytes of {tensor.location!r}, which has "
                f"{target.stat().st_size}"
            )
        tensor.base_dir = folder


def _tensors(model: ir.Model) -> Iterator[Any]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.value


def _check_operators(model: ir.Model, name: str) -> None:
    """Every standard operator must exist at the opset that the model imports."""
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    functions = {(function.domain, function.name) for function in model.functions.values()}
    for graph in model.graphs():
        for node in graph:
            if (node.domain, node.op_type) in functions:
                continue
            if node.domain not in _STANDARD:
                if node.domain not in model.opset_imports:
                    raise ModelError(
                        f"{name}: node {node.name!r} is {node.domain}.{node.op_type}, but the model imports no opset "
                        f"of {node.domain!r}"
                    )
                continue
            if opset is None:
                raise ModelError(
                    f"{name}: node {node.name!r} is {node.op_type}, but the model imports no ai.onnx opset"
                )
            if not onnx.defs.has(node.op_type, opset, ""):
                known = onnx.defs.has(node.op_type)
                why = f"opset {opset} has no such operator" if known else "ONNX has no such operator"
                raise ModelError(
                    f"{name}: node {node.name!r} is {node.op_type!r}: {why}"
                    + ("; the model needs a newer opset" if known else f"; is its domain, {node.domain!r}, right?")
                )


def _check_order(model: ir.Model, name: str) -> None:
    """Sorts each graph; a cycle is an error that names a node on it."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        try:
            graph.sort()
        except ValueError as error:
            where = _node_on_cycle(graph)
            raise ModelError(
                f"{name}: the graph {graph.name!r} has a cycle: node {where!r} reads, through other nodes, its own "
                f"output ({_one_line(error)})"
            ) from None


def _node_on_cycle(graph: ir.Graph) -> str:
    """A node that no order can place: what is left when nodes whose inputs are known are taken away, walked back."""
    waiting = {node: {value.producer() for value in node.inputs if value is not None} - {None} for node in graph}
    ready = [node for node, needs in waiting.items() if not needs]
    readers: dict[ir.Node, list[ir.Node]] = {}
    for node, needs in waiting.items():
        for needed in needs:
            if needed is not None:
                readers.setdefault(needed, []).append(node)
    while ready:
        done = ready.pop()
        waiting.pop(done, None)
        for reader in readers.get(done, ()):
            waiting[reader].discard(done)
            if not waiting[reader]:
                ready.append(reader)
    seen: set[ir.Node] = set()
    current = next(iter(waiting), None)
    while current is not None and current not in seen:
        seen.add(current)
        current = next((needed for needed in waiting[current] if needed in waiting), None)
    return "?" if current is None else current.name or current.outputs[0].name or current.op_type


def weight_bytes(model: ir.Model) -> int:
    """Bytes that all tensors of the model take."""
    return sum(tensor.nbytes for tensor in _tensors(model))


def too_large(model: ir.Model) -> bool:
    """Whether the model does not fit into one protobuf message."""
    return weight_bytes(model) > _PROTOBUF_LIMIT


def serialized(model: ir.Model) -> bytes:
    """The model as bytes, the same bytes for the same model."""
    result: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return result


def save_model(model: ir.Model, path: str | os.PathLike[str], external_data: str | None = None) -> None:
    """Writes the model under a temporary name, then renames: a failure leaves nothing behind.

    Args:
        model: what to write; it is not changed.
        path: the file to write.
        external_data: file name, in the same folder, for the weights. Models over 1.9 GB get ``<name>.data``.

    Raises:
        ModelError: the folder does not exist, or ``external_data`` is more than a file name.

    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ModelError(f"{path.parent} is no folder; make it before saving {path.name}")
    if external_data is None and too_large(model):
        external_data = path.name + ".data"
    if external_data is not None and Path(external_data).name != external_data:
        raise ModelError(f"external_data is {external_data!r}; it must be a file name in the folder of {path}")
    folder = Path(tempfile.mkdtemp(prefix=".onnxnorm-", dir=path.parent))
    try:
        if external_data is None:
            (folder / path.name).write_bytes(serialized(model))
        else:
            ir.save(model, folder / path.name, external_data=external_data)
            os.replace(folder / external_data, path.parent / external_data)
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def uses_onnxnorm(model: ir.Model) -> bool:
    """Whether any node of the model, in any of its graphs, is of the domain onnxnorm."""
    return any(node.domain == DOMAIN for graph in model.graphs() for node in graph)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
