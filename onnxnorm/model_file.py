"""Model files: loading with errors that say what is wrong, saving without leaving half a file behind."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.defs
import onnx_ir as ir

from onnxnorm.errors import ModelError, one_line
from onnxnorm.model_proto import check_proto
from onnxnorm.model_reader import LARGE_FILE, read_large
from onnxnorm.model_writer import message_of, write_beside, write_inside
from onnxnorm.spec.record import DOMAIN

#: Protobuf cannot hold 2 GB; beyond this size weights go to an external file.
_PROTOBUF_LIMIT = 1_900_000_000
_STANDARD = ("", "ai.onnx")
#: Model metadata: the files of its weights when it was loaded.
_DATA_FILES = "onnxnorm data files"
#: What ONNX Runtime adds to ai.onnx, LayerNormalization before ONNX had it (opset 17).
_ADDED = ("LayerNormalization", "SimplifiedLayerNormalization")


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
        proto = _read(path)
    except Exception as error:
        raise ModelError(f"{path} is not an ONNX file: {one_line(error, 300)}") from None
    model = _from_proto(proto, str(path))
    _attach_external_data(model, path)
    return model


def _read(path: Path) -> onnx.ModelProto:
    path = path.resolve()
    large = read_large(path) if path.stat().st_size >= LARGE_FILE else None
    return onnx.load(path, load_external_data=False) if large is None else large


def _from_proto(proto: onnx.ModelProto, name: str) -> ir.Model:
    if not proto.HasField("graph") or not proto.opset_import or proto.ir_version <= 0:
        raise ModelError(f"{name} is not an ONNX model: it has no graph, no opset import or no IR version")
    if proto.graph.sparse_initializer:  # onnx_ir would leave it out
        found = proto.graph.sparse_initializer[0].values.name
        raise ModelError(f"{name}: initializer {found!r} is sparse, which is not supported; store it dense")
    check_proto(proto, name)
    try:
        return ir.from_proto(proto)
    except Exception as error:
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__  # the outer ones say where onnx_ir was, not what is wrong
        raise ModelError(f"{name} cannot be read: {one_line(error, 300)}") from None


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
        if tensor.length is not None and tensor.length != tensor.nbytes:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} has {tensor.nbytes} bytes by its type and shape, but names "
                f"{tensor.length} of {tensor.location!r}"
            )
        end = (tensor.offset or 0) + tensor.nbytes
        if (tensor.offset or 0) < 0:
            raise ModelError(f"{path}: tensor {tensor.name!r} starts at {tensor.offset} of {tensor.location!r}")
        if end > target.stat().st_size:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} needs {end} bytes of {tensor.location!r}, which has "
                f"{target.stat().st_size}"
            )
        tensor.base_dir = folder
        model.meta.setdefault(_DATA_FILES, {})[str(target)] = None


def _roots(model: ir.Model) -> Iterator[tuple[ir.Graph, Mapping[str, int]]]:
    """Every graph with the opsets that hold in it: the main graph, functions, and the subgraphs of both."""
    for root, imports in (
        (model.graph, model.opset_imports),
        *((function.graph, function.opset_imports) for function in model.functions.values()),
    ):
        yield root, imports
        for graph in root.subgraphs():
            yield graph, imports


def _tensors(model: ir.Model) -> Iterator[Any]:
    for graph, _ in _roots(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.value
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from attribute.value


def _check_operators(model: ir.Model, name: str) -> None:
    """Every standard operator must exist at the opset that its graph imports, and read values that exist."""
    functions = {(function.domain, function.name) for function in model.functions.values()}
    for graph, imports in _roots(model):
        for value in graph.outputs:
            if value.producer() is None and not (value.is_graph_input() or value.is_initializer()):
                raise ModelError(f"{name}: nothing makes {value.name!r}, an output of the graph {graph.name!r}")
        for node in graph:
            _check_inputs(node, name)
            if (node.domain, node.op_type) not in functions:
                _check_operator(node, imports, name)


def _check_inputs(node: ir.Node, name: str) -> None:
    for value in node.inputs:
        if value is None or value.producer() is not None or value.is_graph_input() or value.is_initializer():
            continue
        raise ModelError(f"{name}: node {_called(node)} reads {value.name!r}, which nothing makes")


def _check_operator(node: ir.Node, imports: Mapping[str, int], name: str) -> None:
    where = f"{name}: node {_called(node)} is "
    if node.domain not in _STANDARD:
        if node.domain not in imports:
            raise ModelError(f"{where}{node.domain}.{node.op_type}, but no opset of {node.domain!r} is imported")
        return
    opset = imports.get("", imports.get("ai.onnx"))
    if opset is None:
        raise ModelError(f"{where}{node.op_type}, but no ai.onnx opset is imported")
    if _has_operator(node.op_type, opset) or node.op_type in _ADDED:
        return
    if onnx.defs.has(node.op_type):
        raise ModelError(f"{where}{node.op_type!r}: opset {opset} has no such operator; the model needs a newer opset")
    raise ModelError(
        f"{where}{node.op_type!r}: ONNX has no such operator; is its domain, {node.domain or 'ai.onnx'!r}, right?"
    )


@functools.cache
def _has_operator(op_type: str, opset: int) -> bool:
    return bool(onnx.defs.has(op_type, opset, ""))


def _called(node: ir.Node) -> str:
    """The node's name, or its first output's where it has none."""
    return repr(node.name or next((value.name for value in node.outputs if value.name), "?"))


def _check_order(model: ir.Model, name: str) -> None:
    """Sorts each graph; a cycle is an error that names a node on it."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        try:
            graph.sort()
        except ValueError:
            node = next((found for part in (graph, *graph.subgraphs()) if (found := _on_cycle(part))), None)
            where = "" if node is None else f": node {_called(node)} reads, through other nodes, its own output"
            raise ModelError(f"{name}: the graph {graph.name!r} has a cycle{where}") from None


def _on_cycle(graph: ir.Graph) -> ir.Node | None:
    """A node of the graph that needs its own result, None when there is none."""
    needs = {node: {source for source in _sources(node) if source.graph is graph} for node in graph}
    readers: dict[ir.Node, list[ir.Node]] = {node: [] for node in needs}
    for node, sources in needs.items():
        for source in sources:
            readers[source].append(node)
    waiting = {node: len(sources) for node, sources in needs.items()}
    ready = [node for node, count in waiting.items() if not count]
    while ready:
        done = ready.pop()
        del waiting[done]
        for reader in readers[done]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    current, seen = next(iter(waiting), None), set[ir.Node]()
    while current is not None and current not in seen:  # each of these needs another of them: it comes around
        seen.add(current)
        current = next(source for source in needs[current] if source in waiting)
    return current


def _sources(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes whose results a node reads, itself or in its subgraphs."""
    inner = [part for attribute in node.attributes.values() for part in _graphs_of(attribute)]
    for reader in (node, *(item for graph in inner for part in (graph, *graph.subgraphs()) for item in part)):
        for value in reader.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None:
                yield producer


def _graphs_of(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.is_ref():
        return []
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def weight_bytes(model: ir.Model) -> int:
    """Bytes that all tensors of the model take."""
    return sum(tensor.nbytes for tensor in _tensors(model))


def too_large(model: ir.Model) -> bool:
    """Whether the model does not fit into one protobuf message."""
    return weight_bytes(model) > _PROTOBUF_LIMIT


def serialized(model: ir.Model) -> bytes:
    """The model as bytes that need no other file, the same bytes for the same model."""
    result: bytes = message_of(model, _graphs(model)).SerializeToString(deterministic=True)
    return result


def save_model(model: ir.Model, path: str | os.PathLike[str], external_data: str | None = None) -> Path | None:
    """Writes the model under a temporary name, then renames: a failure leaves nothing behind.

    The model may be read from the files that are replaced: it goes on reading what was there before.

    Args:
        model: what to write; it is not changed.
        path: the file to write.
        external_data: file name, in the same folder, for the weights. Models over 1.9 GB get ``<name>.data``, or the
            file that ``path`` had them in when the model was read from it.

    Returns:
        The file with the weights, None where the model holds them.

    Raises:
        ModelError: the folder does not exist, ``external_data`` is more than a file name, or it is a file that another
            model's weights are read from.

    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ModelError(f"{path.parent} is no folder; make it before saving {path.name}")
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give the name of the file to write")
    read = _files_read(model)
    if external_data is None and too_large(model):
        external_data = _own_data(path, read) or path.name + ".data"
    if external_data is None:
        _write(model, read, path, None)
        return None
    if Path(external_data).name != external_data or external_data == path.name:
        raise ModelError(f"external_data is {external_data!r}; it must be a file name in the folder of {path}")
    data = path.parent / external_data
    if data.resolve() in read and external_data not in _locations(path):
        raise ModelError(f"{data} holds weights of the model that was read, which needs them; give another file name")
    _write(model, read, path, data)
    return data


def _write(model: ir.Model, read: Mapping[Path, list[ir.ExternalTensor]], path: Path, data: Path | None) -> None:
    folder = Path(tempfile.mkdtemp(prefix=".onnxnorm-", dir=path.parent))
    try:
        if data is None:
            write_inside(model, _graphs(model), folder / path.name)
        else:
            write_beside(model, _graphs(model), folder / path.name, folder / data.name)
        for target in (path, *([] if data is None else [data])):
            for tensor in read.get(target.resolve(), ()):
                tensor.numpy()  # mapped by now, it stays what it is when another file gets the name
        if data is not None:
            os.replace(folder / data.name, data)
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _graphs(model: ir.Model) -> list[ir.Graph]:
    return [graph for graph, _ in _roots(model)]


def _files_read(model: ir.Model) -> dict[Path, list[ir.ExternalTensor]]:
    """The files that the model was read from, with the tensors that still lie in them."""
    found: dict[str, list[ir.ExternalTensor]] = {name: [] for name in model.meta.get(_DATA_FILES, ())}
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            found.setdefault(tensor.path, []).append(tensor)
    return {Path(name).resolve(): tensors for name, tensors in found.items()}


def _own_data(path: Path, read: Mapping[Path, list[ir.ExternalTensor]]) -> str | None:
    """The one file in which a model that is there already has its weights, when these are read."""
    names = sorted(_locations(path))
    own = len(names) == 1 and Path(names[0]).name == names[0] and (path.parent / names[0]).resolve() in read
    return names[0] if own else None


def _locations(path: Path) -> set[str]:
    """The files that a model file names as those of its weights; none where it is no model."""
    if not path.is_file():
        return set()
    try:
        model = ir.from_proto(_read(path))
    except Exception:  # whatever it is, it will be replaced
        return set()
    return {os.fspath(item.location) for item in _tensors(model) if isinstance(item, ir.ExternalTensor)}


def uses_onnxnorm(model: ir.Model) -> bool:
    """Whether any node of the model, in any of its graphs, is of the domain onnxnorm."""
    return any(node.domain == DOMAIN for graph, _ in _roots(model) for node in graph)
