"""lower/unsupported-type: operators for which ONNX Runtime's CPU provider has no kernel in their element type.

bfloat16: op(x) = Cast(op(Cast(x, float32)), bfloat16), which is how PyTorch computes it, too; a result is rounded
after every operator, as before. float64: operators that have kernels take its place (``unsupported_types_float64``);
where there are none, the account says so. float16 is left to ONNX Runtime, which casts by itself.

Changed are operators of the standard domain, and of ONNX Runtime's own (com.microsoft) those that have a float32
kernel and no bfloat16 one, in the main graph and its subgraphs; model-local functions are inlined first where the model
holds bfloat16, since their types differ from call to call. onnxnorm's ops are left alone: they have kernels, and their
bodies cast. A model without bfloat16 and float64 is not touched.

Norms whose statistics are asked for in bfloat16 get them in float32 before the other rules look at the model
(``widen_statistics``): what a rule refuses for their sake would else be fused by a second run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx.defs
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxnorm.passes.canonicalize.shapes import infer_shapes
from onnxnorm.passes.contrib import CONTRIB
from onnxnorm.passes.decision import Action, Decision
from onnxnorm.passes.engine import RULE_KEY
from onnxnorm.passes.graph import STANDARD, all_graphs, attribute, is_norm, module_name, node_name, op_name
from onnxnorm.passes.lower.contrib_kernels import CPU_TYPES, runs_on_cpu
from onnxnorm.passes.lower.kernels import NO_FLOAT64, runs_bfloat16
from onnxnorm.passes.lower.unsupported_types_float64 import composed
from onnxnorm.passes.names import Names
from onnxnorm.spec.body import MIN_OPSET

RULE = "lower/unsupported-type"
_HALF, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT
#: Attributes that name the type of a result or of the arithmetic inside.
_TYPE_ATTRIBUTES = ("dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision")


def widen_statistics(model: ir.Model) -> None:
    """Makes ``stash_type`` float32 where it is bfloat16, for which the operator has no kernel; changes ``model``."""
    for graph, opset, _ in all_graphs(model):
        for node in graph:
            asked = node.attributes.get("stash_type")
            if node.domain not in STANDARD or opset is None or asked is None or not _names_bfloat16(asked):
                continue
            if not runs_bfloat16(node.op_type, opset):
                node.attributes[asked.name] = ir.AttrInt64(asked.name, int(_WIDE))
                _mark(node)


def holds_lowered_types(model: ir.Model) -> bool:
    """Whether any node has to do with bfloat16 or float64; all others stay as they are."""
    return any(
        _in_bfloat16(node) or any(_is(value, ir.DataType.DOUBLE) for value in node.inputs)
        for graph, _, _ in all_graphs(model)
        for node in graph
    )


def lower_unsupported_types(model: ir.Model) -> list[Decision]:
    """Changes ``model``; returns what was done to normalizations, and each operator that will not run."""
    if _holds_bfloat16(model) and model.functions:
        InlinePass()(model)
        infer_shapes(model)
    decisions: list[Decision] = []
    names = Names.of(model)
    for graph, opset, in_function in list(all_graphs(model)):
        if in_function:
            continue
        widened: dict[ir.Value, ir.Value] = {}
        for node in list(graph):
            if node.domain == CONTRIB and _in_bfloat16(node) and _runs_in_float32_only(node):
                decisions += [_decision(node, Action.LOWERED, into="float32")] if is_norm(node) else []
                _wrap(node, opset or 0, graph, names, widened)
            if node.domain not in STANDARD or opset is None:
                continue
            if _in_float64(node):
                decisions += _lower_float64(node, opset, graph, names)
            elif _in_bfloat16(node) and not runs_bfloat16(node.op_type, opset, attribute(node, "reduction", "none")):
                decisions += [_decision(node, Action.LOWERED, into="float32")] if is_norm(node) else []
                _wrap(node, opset, graph, names, widened)
    return decisions


def with_lowered(decisions: Sequence[Decision], lowered: Sequence[Decision]) -> list[Decision]:
    """The account so far, in which a normalization that was kept is now lowered."""
    replaced = {item.node for item in lowered}
    return [item for item in decisions if item.node not in replaced or item.action != Action.KEPT] + list(lowered)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph, _, _ in all_graphs(model):
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _is(value: ir.Value | None, dtype: ir.DataType) -> bool:
    """Whether the value is a tensor of that element type; a sequence of them is none."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == dtype


def _holds_bfloat16(model: ir.Model) -> bool:
    return any(_is(value, _HALF) for value in _values(model))


def _in_float64(node: ir.Node) -> bool:
    return node.op_type in NO_FLOAT64 and any(_is(value, ir.DataType.DOUBLE) for value in node.inputs)


def _in_bfloat16(node: ir.Node) -> bool:
    """Whether the node takes, makes or names bfloat16."""
    named = any(_names_bfloat16(item) for item in node.attributes.values())
    return named or any(_is(value, _HALF) for value in (*node.inputs, *node.outputs))


def _runs_in_float32_only(node: ir.Node) -> bool:
    """Whether an operator of com.microsoft has a float32 kernel and no bfloat16 one, in the table."""
    return node.op_type in CPU_TYPES and runs_on_cpu(node.op_type, _WIDE) and not runs_on_cpu(node.op_type, _HALF)


def _names_bfloat16(item: ir.Attr) -> bool:
    return item.name in _TYPE_ATTRIBUTES and not item.is_ref() and item.value == _HALF


def _result_types(node: ir.Node, opset: int) -> list[ir.DataType | None]:
    """The element types of the outputs; where inference knew none, that of the inputs of the same type parameter."""
    types = [value.dtype for value in node.outputs]
    if node.domain == CONTRIB:  # what they give has the type of what they take, but for statistics, which are told
        return [_HALF if dtype is None else dtype for dtype in types]
    if None not in types or not onnx.defs.has(node.op_type, opset, ""):
        return types
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    bound: dict[str, ir.DataType] = {}
    formal = [*schema.inputs]
    while formal and formal[-1].option == variadic and len(formal) < len(node.inputs):
        formal.append(formal[-1])
    for parameter, value in zip(formal, node.inputs, strict=False):
        if value is not None and value.dtype is not None:
            bound.setdefault(parameter.type_str, value.dtype)
    results = [*schema.outputs]
    while results and results[-1].option == variadic and len(results) < len(types):
        results.append(results[-1])
    return [
        bound.get(parameter.type_str) if dtype is None else dtype
        for parameter, dtype in zip(results, types, strict=False)
    ]


def _wrap(node: ir.Node, opset: int, graph: ir.Graph, names: Names, widened: dict[ir.Value, ir.Value]) -> None:
    """Puts casts around the node; a value that was widened for another one is widened once."""
    before: list[ir.Node] = []
    inputs: list[ir.Value | None] = []
    for value in node.inputs:
        if value is None or not _is(value, _HALF):
            inputs.append(value)
            continue
        if value not in widened:
            before.append(_cast(value, _WIDE, f"{value.name}_float32", value.shape, names))
            widened[value] = before[-1].outputs[0]
        inputs.append(widened[value])
    attributes = {
        name: ir.AttrInt64(name, int(_WIDE)) if _names_bfloat16(item) else item
        for name, item in node.attributes.items()
    }
    new = ir.node(
        node.op_type,
        inputs,
        attributes,
        domain=node.domain,
        overload=node.overload,
        num_outputs=len(node.outputs),
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
    )
    _mark(new)
    after: list[ir.Node] = []
    results: list[ir.Value] = []
    for old, made, dtype in zip(node.outputs, new.outputs, _result_types(node, opset), strict=True):
        made.shape, made.type = old.shape, None if dtype is None else ir.TensorType(dtype)
        if dtype != _HALF or not old.name:
            results.append(made)
            continue
        made.name, made.type = names.fresh(f"{old.name}_float32"), ir.TensorType(_WIDE)
        after.append(_cast(made, _HALF, old.name, old.shape, names))
        results.append(after[-1].outputs[0])
    _replace(graph, node, [*before, new, *after], results)


def _cast(value: ir.Value, to: ir.DataType, wish: str, shape: ir.Shape | None, names: Names) -> ir.Node:
    node = ir.node("Cast", [value], {"to": to}, name=names.fresh(f"{wish}_cast"))
    node.outputs[0].name, node.outputs[0].dtype = names.fresh(wish), to
    node.outputs[0].shape = shape.copy() if shape is not None else None
    _mark(node)
    return node


def _mark(node: ir.Node) -> None:
    history = node.metadata_props.get(RULE_KEY, "")
    node.metadata_props[RULE_KEY] = f"{history},{RULE}" if history else RULE


def _replace(graph: ir.Graph, node: ir.Node, new: Sequence[ir.Node], results: Sequence[ir.Value]) -> None:
    ir.convenience.replace_nodes_and_values(graph, node, [node], list(new), list(node.outputs), list(results))


def _lower_float64(node: ir.Node, opset: int, graph: ir.Graph, names: Names) -> list[Decision]:
    """Puts operators that have kernels in the place of the node, or says that there are none."""
    made = composed(node, opset) if opset >= MIN_OPSET else None
    if made is None:
        reason = f"ONNX Runtime's CPU provider has no float64 {node.op_type}; the model does not load there"
        return [_decision(node, Action.REFUSED, reason=reason)]
    nodes, result = made
    for item in nodes:
        item.name = names.fresh(f"{node_name(node)}/{item.name}")
        _mark(item)
        for value in item.outputs:
            value.name = names.fresh(f"{node_name(node)}/{value.name}")
    decisions = [_decision(node, Action.LOWERED, into="primitive operators")] if is_norm(node) else []
    _replace(graph, node, nodes, [result])
    return decisions


def _decision(node: ir.Node, action: Action, reason: str | None = None, into: str | None = None) -> Decision:
    return Decision(node_name(node), op_name(node), action, RULE, module_name(node), into=into, reason=reason)
