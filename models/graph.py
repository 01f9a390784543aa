"""What a reader wants to know of a network or an ONNX file: its layers, how many nodes, how many of them normalize."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from onnxnorm.passes.graph import NORM_OPERATORS, STANDARD
from onnxnorm.spec.record import DOMAIN


@dataclass(frozen=True)
class Layer:
    """One leaf module of a network, as it ran on the example input."""

    name: str
    kind: str
    options: str
    output: tuple[int, ...]
    parameters: int

    @property
    def normalizes(self) -> bool:
        """Whether it is a normalization layer."""
        return "Norm" in self.kind


def layers_of(module: nn.Module, example: Tensor) -> tuple[Layer, ...]:
    """The leaf modules in the order in which they first run."""
    names = {child: name for name, child in module.named_modules() if not list(child.children())}
    found: dict[nn.Module, Layer] = {}

    def note(child: nn.Module, _: Any, output: Any) -> None:
        if child not in found:
            count = sum(parameter.numel() for parameter in child.parameters())
            found[child] = Layer(names[child], type(child).__name__, child.extra_repr(), tuple(output.shape), count)

    hooks = [child.register_forward_hook(note) for child in names]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found.values())


def norm_layers(module: nn.Module) -> int:
    """How many normalization layers a network has."""
    return sum("Norm" in type(child).__name__ and not list(child.children()) for child in module.modules())


@dataclass(frozen=True)
class FileFacts:
    """Counts of an ONNX file.

    Attributes:
        nodes: nodes of the graph and of its subgraphs; constants and the insides of functions do not count.
        norms: those among them that normalize.
        size: bytes of the file.

    """

    nodes: int
    norms: int
    size: int


def file_facts(path: str, size: int) -> FileFacts:
    """Counts the nodes of a file."""
    nodes = list(_nodes(onnx.load(path).graph))
    return FileFacts(len(nodes), sum(map(_is_norm, nodes)), size)


def _is_norm(node: onnx.NodeProto) -> bool:
    domain = "" if node.domain in STANDARD else node.domain
    return domain == DOMAIN or (domain, node.op_type) in NORM_OPERATORS


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        if node.op_type != "Constant":
            yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
            for subgraph in attribute.graphs:
                yield from _nodes(subgraph)
