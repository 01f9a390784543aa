"""Inlines calls of model-local functions that hold what normalizations are folded into, or are spelled in.

A function that takes the parameters of a norm, or a layer's weight, as inputs is called with other constants each time:
only at its call they are known, and so are types and shapes. A function that is only a norm, or only a layer, has its
counterpart outside. Each call gets its own copy of the nodes; what is left of other functions stays, and rules look
into it as it is.

Inlined is a function that holds a normalization, a layer, a reduction or nothing but elementwise arithmetic, also one
that calls such a function. Kept are
    1. functions of domains that ONNX Runtime has kernels for, and onnxnorm's own: their bodies are the second choice;
    2. functions whose opsets differ from the model's in what one of their operators means;
    3. functions with a graph among the attributes of a call, with calls that do not fit, or that give an input, or one
       value twice, as output;
    4. everything where the copies would be many more nodes, or copies of constants many bytes: a file of a few lines
       can ask for any number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx.defs
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxnorm.passes.graph import STANDARD, all_graphs, is_norm
from onnxnorm.passes.names import Names
from onnxnorm.spec.record import DOMAIN

_LAYERS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
_REDUCTIONS = frozenset({"ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare"})
_ELEMENTWISE = frozenset(
    {"Add", "Cast", "CastLike", "Clip", "Constant", "Div", "Erf", "Exp", "HardSigmoid", "Identity", "Mul", "Neg", "Pow"}
    | {"Reciprocal", "Relu", "Reshape", "Sigmoid", "Softplus", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose"}
    | {"Flatten", "Unsqueeze"}
)
#: Domains with kernels of their own, whatever body a model has for them.
_WITH_KERNELS = frozenset(
    {DOMAIN, *STANDARD, "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)
_MOST_NODES = 100_000
_MOST_COPIED_BYTES = 1 << 20

Key = tuple[str, str, str]


def own_functions(model: ir.Model) -> bool:
    """Whether the model has functions besides the bodies of operators that have kernels."""
    return any(key[0] not in _WITH_KERNELS for key in model.functions)


def inline_functions(model: ir.Model) -> bool:
    """Changes ``model``; whether a call was inlined."""
    chosen = _chosen(model)
    if not chosen:
        return False
    known = {value for graph, _, _ in all_graphs(model) for value in _values(graph)}
    nodes = {node for graph, _, _ in all_graphs(model) for node in graph}
    for key in chosen:
        _take_opsets(model.functions[key], model)
        for node in model.functions[key].all_nodes():
            node.name = node.name or next((value.name for value in node.outputs if value.name), None)
    kept = {key: function for key, function in model.functions.items() if key not in chosen}
    InlinePass(criteria=lambda function: function.identifier() in chosen)(model)
    model.functions.update((key, function) for key, function in kept.items() if key not in model.functions)
    _rename(model, known, nodes)
    return True


def _chosen(model: ir.Model) -> set[Key]:
    """Reasons 1 to 4."""
    calls = {key: Counter(_calls(function.graph, model)) for key, function in model.functions.items()}
    order = _callees_first(calls)
    related: set[Key] = set()
    for key in order:
        function = model.functions[key]
        legal = key[0] not in _WITH_KERNELS and _fits(function, model)
        if legal and (_is_related(function, model) or calls[key].keys() & related):
            related.add(key)
    bad = {node.op_identifier() for graph, _, _ in all_graphs(model) for node in graph if _unfit(node, model)}
    related -= bad
    return related if _is_small(model, calls, order, related) else set()


def _calls(graph: ir.Graph, model: ir.Model) -> Iterator[Key]:
    return (node.op_identifier() for node in graph.all_nodes() if node.op_identifier() in model.functions)


def _callees_first(calls: dict[Key, Counter[Key]]) -> list[Key]:
    """Each function after those that it calls; there are no cycles in a model that was loaded."""
    ordered: dict[Key, None] = {}
    for root in calls:
        stack = [(root, False)]
        while stack:
            key, done = stack.pop()
            if key in ordered:
                continue
            if done:
                ordered[key] = None
            else:
                stack.append((key, True))
                stack += [(called, False) for called in calls[key] if called not in ordered]
    return list(ordered)


def _is_related(function: ir.Function, model: ir.Model) -> bool:
    only_elementwise = True
    for node in function.all_nodes():
        if is_norm(node) or (node.domain in STANDARD and node.op_type in _LAYERS | _REDUCTIONS):
            return True
        elementwise = node.domain in STANDARD and node.op_type in _ELEMENTWISE
        only_elementwise = only_elementwise and (elementwise or node.op_identifier() in model.functions)
    return only_elementwise


def _fits(function: ir.Function, model: ir.Model) -> bool:
    """Whether it means the same under the model's opsets (reason 2), and each output is a result of its own (3)."""
    outputs = function.outputs
    if len(set(outputs)) != len(outputs) or any(value.producer() is None for value in outputs):
        return False
    for domain, version in function.opset_imports.items():
        if domain not in STANDARD and model.opset_imports.get(domain, version) != version:
            return False
    inside, outside = _standard(function.opset_imports), _standard(model.opset_imports)
    if inside == outside or inside is None:
        return True
    if outside is None:
        return False
    return all(_means_the_same(node, inside, outside) for node in function.all_nodes() if node.domain in STANDARD)


def _standard(imports: dict[str, int]) -> int | None:
    return imports.get("", imports.get("ai.onnx"))


def _means_the_same(node: ir.Node, inside: int, outside: int) -> bool:
    if not (onnx.defs.has(node.op_type, inside, "") and onnx.defs.has(node.op_type, outside, "")):
        return False
    versions = [onnx.defs.get_schema(node.op_type, opset, "").since_version for opset in (inside, outside)]
    return versions[0] == versions[1]


def _take_opsets(function: ir.Function, model: ir.Model) -> None:
    """Makes its opset the model's, where both mean the same."""
    for domain in STANDARD:
        function.opset_imports.pop(domain, None)
    for domain in STANDARD:
        if domain in model.opset_imports:
            function.opset_imports[domain] = model.opset_imports[domain]


def _unfit(node: ir.Node, model: ir.Model) -> bool:
    """Whether a call does not fit its function (reason 3)."""
    function = model.functions.get(node.op_identifier())
    if function is None:
        return False
    graphs = any(item.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for item in node.attributes.values())
    return graphs or len(node.inputs) > len(function.inputs) or len(node.outputs) != len(function.outputs)


def expands_too_far(model: ir.Model) -> bool:
    """Whether all calls together stand for more nodes than anything should look at one by one."""
    calls = {key: Counter(_calls(function.graph, model)) for key, function in model.functions.items()}
    times = _copies(model, calls, _callees_first(calls), set(calls))
    return sum(times[key] * len(model.functions[key].graph) for key in calls) > _MOST_NODES


def _copies(model: ir.Model, calls: dict[Key, Counter[Key]], order: list[Key], chosen: set[Key]) -> Counter[Key]:
    """How often each function's nodes would be there with the chosen ones inlined."""
    times: Counter[Key] = Counter(_calls(model.graph, model))
    for key in reversed(order):
        if key not in chosen:
            times[key] = 1  # its own calls are inlined into it, wherever it is called from
        for called, count in calls[key].items():
            times[called] += count * times[key]
    return times


def _is_small(model: ir.Model, calls: dict[Key, Counter[Key]], order: list[Key], chosen: set[Key]) -> bool:
    """Reason 4."""
    times = _copies(model, calls, order, chosen)
    nodes = {key: sum(1 for _ in model.functions[key].all_nodes()) for key in order}
    now = sum(1 for _ in model.graph.all_nodes()) + sum(nodes.values())
    later = sum(times[key] * nodes[key] for key in chosen)
    copied = sum((times[key] - 1) * _constant_bytes(model.functions[key]) for key in chosen if times[key] > 1)
    return later <= max(_MOST_NODES, 4 * now) and copied <= _MOST_COPIED_BYTES


def _constant_bytes(function: ir.Function) -> int:
    return sum(
        item.as_tensor().nbytes
        for node in function.all_nodes()
        for item in node.attributes.values()
        if not item.is_ref() and item.type == ir.AttributeType.TENSOR
    )


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _rename(model: ir.Model, known: set[ir.Value], nodes: set[ir.Node]) -> None:
    """Gives what came in names that nothing else has; a body's names must not hide those around it."""
    outputs = set(model.graph.outputs)
    now = [value for graph, _, _ in all_graphs(model) for value in _values(graph)]
    names = Names(value.name for value in now if value.name and (value in known or value in outputs))
    for value in now:
        if value.name and value not in known and value not in outputs:
            value.name = names.fresh(value.name)
    there = [node for graph, _, _ in all_graphs(model) for node in graph]
    names = Names(node.name for node in there if node.name and node in nodes)
    for node in there:
        if node.name and node not in nodes:
            node.name = names.fresh(node.name)
