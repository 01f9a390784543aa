"""Small questions about an onnx_ir graph that several rules ask."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.spec.record import DOMAIN

STANDARD = ("", "ai.onnx")

#: Operators that normalize, by domain; what ``inspect`` counts and Decisions are about.
NORM_OPERATORS = frozenset(
    [
        *(
            ("", name)
            for name in (
                "BatchNormalization",
                "GroupNormalization",
                "InstanceNormalization",
                "LayerNormalization",
                "LpNormalization",
                "MeanVarianceNormalization",
                "RMSNormalization",
                "SimplifiedLayerNormalization",
            )
        ),
        *(
            ("com.microsoft", name)
            for name in (
                "GroupNorm",
                "SkipGroupNorm",
                "SkipLayerNormalization",
                "SkipSimplifiedLayerNormalization",
            )
        ),
    ]
)


_OF_GRAPHS = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})


def is_op(node: ir.Node | None, op_type: str) -> bool:
    """Whether the node is that operator of the standard domain."""
    return node is not None and node.op_type == op_type and node.domain in STANDARD


def is_norm(node: ir.Node) -> bool:
    """Whether the node is a normalization in its own right."""
    domain = "" if node.domain in STANDARD else node.domain
    return domain == DOMAIN or (domain, node.op_type) in NORM_OPERATORS


def op_name(node: ir.Node) -> str:
    """The operator's name, with its domain unless that is the standard one."""
    return node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"


def node_name(node: ir.Node) -> str:
    """The node's name, or its first output's where it has none."""
    return node.name or next((value.name for value in node.outputs if value.name), None) or "?"


def module_name(node: ir.Node) -> str | None:
    """The PyTorch module that the node comes from, as PyTorch's exporter notes it ("layer1.0.bn2")."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    except (ValueError, SyntaxError):
        return None
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) >= 2 and scopes[-2] else None


def all_graphs(model: ir.Model) -> Iterator[tuple[ir.Graph, int | None, bool]]:
    """(graph, opset of the standard domain, inside a function) for the main graph, functions and all subgraphs."""
    roots = [(model.graph, model.opset_imports, False)]
    roots += [(function.graph, function.opset_imports, True) for function in model.functions.values()]
    for root, imports, in_function in roots:
        opset = imports.get("", imports.get("ai.onnx"))
        yield root, opset, in_function
        for graph in subgraphs(root):
            yield graph, opset, in_function


def subgraphs(root: ir.Graph) -> list[ir.Graph]:
    """The graphs in the nodes of a graph, at any depth, each before those inside it.

    As ``ir.Graph.subgraphs``, which takes several times as long.
    """
    found: dict[ir.Graph, None] = {}
    waiting = [root]
    while waiting:
        graph = waiting.pop()
        if graph is not root:
            found[graph] = None
        holders = (item for node in graph for item in node.attributes.data.values() if item.type in _OF_GRAPHS)
        inner = [part for item in holders for part in graphs_of(item)]
        waiting += [part for part in reversed(inner) if part not in found]
    return list(found)


def graphs_of(item: ir.Attr) -> Sequence[ir.Graph]:
    """The graphs that an attribute holds."""
    if item.type == ir.AttributeType.GRAPH and not item.is_ref():
        return (item.as_graph(),)
    if item.type == ir.AttributeType.GRAPHS and not item.is_ref():
        return item.as_graphs()
    return ()


def all_names(model: ir.Model) -> set[str]:
    """The names of all values and nodes, initializers and graph inputs included."""
    names: set[str] = set()
    for graph, _, _ in all_graphs(model):
        names.update(graph.initializers)
        names.update(value.name for value in graph.inputs if value.name)
        for node in graph:
            names.update(output.name for output in node.outputs if output.name)
            if node.name:
                names.add(node.name)
    return names


def holds_initializers(model: ir.Model, in_function: bool) -> bool:
    """Whether new constants of a graph can be initializers.

    A function has none, and before IR version 4 each initializer was a graph input that a caller may override.
    """
    return not in_function and model.ir_version >= 4


def has_references(node: ir.Node) -> bool:
    """Whether an attribute of the node is a reference to one of the function that it stands in."""
    return any(item.is_ref() for item in node.attributes.values())


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The value's tensor when it is a dense constant that no caller can override, else None."""
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value
    producer = value.producer()
    if producer is None or not is_op(producer, "Constant") or len(producer.attributes) != 1:
        return None
    content = next(iter(producer.attributes.values()))
    if content.is_ref() or content.name == "sparse_value":
        return None
    if content.name == "value":  # onnx_ir's own function renames this tensor, in the caller's model too
        return content.as_tensor()
    return ir.convenience.get_const_tensor(value)


def tensor_of(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The value's array when it is a constant that no caller can override, else None."""
    tensor = constant_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def is_overridable(value: ir.Value) -> bool:
    """Whether the value is an initializer that is also a graph input: a caller may pass another one."""
    return value.is_graph_input() and value.const_value is not None


def scalar_of(value: ir.Value | None, rank: int) -> float | None:
    """The number when the value is a constant with one element that leaves a tensor of that rank in its shape."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size != 1 or len(tensor.shape) > rank:
        return None
    array = np.asarray(tensor.numpy())
    if array.dtype.kind not in "fiuV":
        return None
    return float(array.reshape(()).astype(np.float64))


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The attribute's value, or ``default`` where it is not written. A reference (in a function) gives None."""
    found = node.attributes.get(name)
    if found is None:
        return default
    return None if found.is_ref() else found.value


def rank_of(value: ir.Value) -> int | None:
    """The value's rank, None where it is not known."""
    return None if value.shape is None else len(value.shape)


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, None when there are several reads or it is a graph output."""
    if value.is_graph_output():
        return None
    first = [node for node, _ in itertools.islice(_uses(value), 2)]
    return first[0] if len(first) == 1 else None


def count_uses(value: ir.Value) -> int:
    """How many uses the value has, without a copy of them."""
    return len(_uses(value))


def is_needed(value: ir.Value) -> bool:
    """Whether something reads the value or it is a graph output."""
    return value.is_graph_output() or bool(_uses(value))


def _uses(value: ir.Value) -> Collection[tuple[ir.Node, int]]:
    """``uses()`` copies them all: to ask each of 50,000 readers who else reads its input takes quadratic time then."""
    found: Collection[tuple[ir.Node, int]] | None = getattr(value, "_uses", None)
    return value.uses() if found is None else found


def in_order(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """The nodes so that each comes after those of them that it reads, else in the order given.

    ValueError where that cannot be: they form a cycle.
    """
    given = dict.fromkeys(nodes)
    done: dict[ir.Node, None] = {}
    for start in given:
        stack, open_nodes = [start], dict[ir.Node, None]()
        while stack:
            node = stack[-1]
            if node in done:
                stack.pop()
                continue
            sources = [] if node in open_nodes else _sources_among(node, given, done)
            open_nodes[node] = None
            if any(source in open_nodes for source in sources):
                raise ValueError("the nodes form a cycle")
            if sources:
                stack += reversed(sources)
                continue
            done[node] = None
            open_nodes.pop(node)
            stack.pop()
    return list(done)


def _sources_among(node: ir.Node, given: dict[ir.Node, None], done: dict[ir.Node, None]) -> list[ir.Node]:
    producers = (value.producer() for value in node.inputs if value is not None)
    return [item for item in producers if item is not None and item in given and item not in done]
