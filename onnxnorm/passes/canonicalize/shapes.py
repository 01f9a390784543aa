"""Types and shapes of all values, by ONNX's own shape inference.

onnx_ir's pass is not used: it takes time quadratic in the number of initializers, reorders them, gives up on the whole
model at the first node that it cannot infer, and prints a traceback then.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import onnx
import onnx.helper
import onnx.shape_inference
import onnx_ir as ir

from onnxnorm.errors import one_line
from onnxnorm.passes.canonicalize.contrib_shapes import show_contrib
from onnxnorm.passes.canonicalize.functions import expands_too_far
from onnxnorm.passes.canonicalize.hidden_ranges import hide_ranges
from onnxnorm.passes.graph import STANDARD, all_graphs, graphs_of, subgraphs
from onnxnorm.spec.record import DOMAIN, VERSION

logger = logging.getLogger(__name__)

#: Operators that keep type and shape, but that ONNX's inference knows nothing about: shown to it as Identity.
_KEEP_SHAPE = frozenset({"GroupNormalization", "SimplifiedLayerNormalization"})
#: Value metadata: inference ran and could not tell type and shape.
_UNKNOWN = "onnxnorm unknown shape"
#: Initializers up to this size (shapes, axes) are shown to the inference, larger ones by type and shape only.
_SMALL = 1024
#: Constants of outer graphs up to so many elements are shown inside.
_FEW = 16


def infer_missing_shapes(model: ir.Model) -> None:
    """The same where rewrites left values without type or shape; not for those that inference knew nothing about."""
    graphs = (model.graph, *subgraphs(model.graph))
    if any(_is_missing(value) for graph in graphs for node in graph for value in node.outputs):
        infer_shapes(model)


def _is_missing(value: ir.Value) -> bool:
    return bool(value.name) and (value.type is None or value.shape is None) and not value.meta.get(_UNKNOWN)


def infer_shapes(model: ir.Model) -> None:
    """Completes types and shapes of the values that nodes make; the graph's inputs stay as they are."""
    try:
        with _without_data(model):
            proto = ir.to_proto(model)
        _show_as_identity(proto.graph, model.opset_imports.get("", 0))
        if expands_too_far(model):  # the inference goes into every call
            del proto.functions[:]
        _show_constants_inside(proto.graph, {})
        show_contrib(proto)
        hide_ranges(proto)
        _forget_types_of_norms(proto.graph)
        if DOMAIN not in model.opset_imports:  # fused ops come before their bodies, and these bring the import
            proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
    except Exception as error:  # only less is known then: rules that need a shape refuse
        logger.info("shape inference failed: %s", one_line(error, 300))
        return
    _merge(model.graph, inferred.graph)


@contextlib.contextmanager
def _without_data(model: ir.Model) -> Iterator[None]:
    """Puts an empty reference in the place of each large initializer, and of each that a caller may override."""
    kept: list[tuple[ir.Value, ir.TensorProtocol]] = []
    for graph, _, _ in all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or isinstance(tensor, ir.ExternalTensor):
                continue
            if tensor.nbytes <= _SMALL and not value.is_graph_input():
                continue
            kept.append((value, tensor))
            value.const_value = ir.ExternalTensor(
                "none", None, None, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or ""
            )
    try:
        yield
    finally:
        for value, tensor in kept:
            value.const_value = tensor


def _show_constants_inside(proto: onnx.GraphProto, outer: dict[str, onnx.TensorProto]) -> None:
    """Puts copies of small constants of outer graphs, such as axes, where inner graphs read them: the inference does
    not look for their numbers outside.
    """
    known = dict(outer)
    for tensor in proto.initializer:
        small = tensor.data_location != onnx.TensorProto.EXTERNAL and sum(tensor.dims) <= _FEW
        known[tensor.name] = tensor if small else onnx.TensorProto()
    for info in proto.input:
        known.pop(info.name, None)
    for node in proto.node:
        for attribute in node.attribute:
            for inner in _protos_of(attribute):
                own = {name for item in inner.node for name in item.output} | {item.name for item in inner.initializer}
                own |= {item.name for item in inner.input}
                read = dict.fromkeys(name for item in inner.node for name in item.input)
                shown = [known[name] for name in read if name in known and name not in own and known[name].name]
                _show_constants_inside(inner, known)
                inner.initializer.extend(shown)


def _show_as_identity(proto: onnx.GraphProto, opset: int) -> None:
    """Of several outputs the first is shown; before opset 17 LayerNormalization is ONNX Runtime's own."""
    for node in proto.node:
        unknown = node.op_type in _KEEP_SHAPE or (node.op_type == "LayerNormalization" and opset < 17)
        if unknown and node.domain in STANDARD and node.input:
            node.op_type = "Identity"
            del node.input[1:]
            del node.output[1:]
            node.ClearField("attribute")
        for attribute in node.attribute:
            for inner in _protos_of(attribute):
                _show_as_identity(inner, opset)


def _forget_types_of_norms(proto: onnx.GraphProto) -> None:
    """Has the results of onnxnorm's ops inferred: PyTorch notes float32 for statistics over half inputs."""
    results = {name for node in proto.node if node.domain == DOMAIN for name in node.output}
    kept = [info for info in proto.value_info if info.name not in results]
    if len(kept) < len(proto.value_info):
        del proto.value_info[:]
        proto.value_info.extend(kept)


def _merge(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    """Copies what was inferred; nodes of the graph and of its proto stand in the same order."""
    known = {info.name: info.type for info in (*proto.value_info, *proto.output)}
    for node, node_proto in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            if value.name in known:
                _set_type(value, known[value.name])
            if value.type is None or value.shape is None:
                value.meta[_UNKNOWN] = True
        for attribute in node_proto.attribute:
            for inner, inner_proto in zip(
                graphs_of(node.attributes[attribute.name]), _protos_of(attribute), strict=True
            ):
                _merge(inner, inner_proto)


def _set_type(value: ir.Value, inferred: onnx.TypeProto) -> None:
    kind = ir.serde.deserialize_type_proto_for_type(inferred)
    shape = ir.serde.deserialize_type_proto_for_shape(inferred)
    if kind is not None:
        value.type = kind
    if shape is not None:
        value.shape = shape


def _protos_of(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    if attribute.type == onnx.AttributeProto.GRAPH:
        return [attribute.g]
    return list(attribute.graphs)
