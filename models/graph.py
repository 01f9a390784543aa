"""What a reader wants to know of a network or an ONNX file: its layers, how many nodes, how many of them normalize."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from onnxnorm.passes.graph import NORM_OPERATORS, STANDARD
from onnxnorm.spec.record import DOMAIN

#: Parts of the class names of modules that normalize.
_NORMALIZING = ("norm", "standardiz", "whitening")
_PARAMETRIZED = "Parametrized"


@dataclass(frozen=True)
class Layer:
    """One layer of a network, as it ran on the example input.

    Attributes:
        parametrization: what its weight is computed by, such as "WeightNorm"; "" for an ordinary weight.

    """

    name: str
    kind: str
    options: str
    output: tuple[int, ...]
    parameters: int
    parametrization: str = ""

    @property
    def normalizes(self) -> bool:
        """Whether it, or what its weight is computed by, is a normalization."""
        return _normalizes(f"{self.kind} {self.parametrization}")


def layers_of(module: nn.Module, example: Tensor) -> tuple[Layer, ...]:
    """The layers in the order in which they first run."""
    names = {child: name for name, child in _layers(module)}
    found: dict[nn.Module, Layer] = {}

    def note(child: nn.Module, _: Any, output: Any) -> None:
        if child not in found:
            count = sum(parameter.numel() for parameter in child.parameters())
            kind = type(child).__name__.removeprefix(_PARAMETRIZED)
            found[child] = Layer(
                names[child], kind, child.extra_repr(), tuple(output.shape), count, _parametrization(child)
            )

    hooks = [child.register_forward_hook(note) for child in names]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found.values())


def norm_layers(module: nn.Module) -> int:
    """How many normalizations a network has: layers, and normalized weights of layers."""
    return sum(_normalizes(f"{type(layer).__name__} {_parametrization(layer)}") for _, layer in _layers(module))


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Submodules without submodules of their own; what a weight is computed by is part of its layer."""
    for name, child in module.named_modules():
        if "parametrizations" in name.split("."):
            continue
        if all(part == "parametrizations" for part, _ in child.named_children()):
            yield name, child


def _parametrization(layer: nn.Module) -> str:
    if not parametrize.is_parametrized(layer):
        return ""
    lists: Any = layer.parametrizations
    return ", ".join(type(item).__name__.strip("_") for each in lists.values() for item in each)


def _normalizes(kind: str) -> bool:
    return any(part in kind.lower() for part in _NORMALIZING)


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
