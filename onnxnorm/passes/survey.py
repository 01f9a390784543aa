"""Which normalizations a model holds, what would be done to each, and what they are of the whole."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from onnxnorm.model_file import load_model
from onnxnorm.passes.canonicalize.shapes import infer_shapes
from onnxnorm.passes.decision import Action, Decision
from onnxnorm.passes.graph import constant_tensor, is_norm, node_name, op_name, subgraphs
from onnxnorm.passes.pipeline import Provider, Target, optimize
from onnxnorm.spec.record import DOMAIN


@dataclass(frozen=True)
class Share:
    """How much of something the normalizations have."""

    norms: int
    total: int

    @property
    def fraction(self) -> float:
        """From 0 to 1."""
        return self.norms / self.total if self.total else 0.0


@dataclass(frozen=True)
class Group:
    """Normalizations with the same operator and fate.

    Attributes:
        op: the operator.
        count: how many.
        action: what would be done.
        becomes: the operator that they would be (in).
        rule: by which rule.
        why: why not more, names left out.
        example: the first one: its module, or its node.

    """

    op: str
    count: int
    action: Action
    becomes: str | None
    rule: str | None
    why: str | None
    example: str


@dataclass(frozen=True)
class Survey:
    """What ``inspect`` tells of a model.

    Attributes:
        opset: version of the standard domain.
        decisions: one for each normalization.
        becomes: for each of them, the operator that it would be (in), None where it would be gone or stay.
        groups: the same, put together.
        nodes: the nodes that decisions are about, as the model is. (Of a norm in primitive operators: one.)
        parameters: elements of the constants of floats that they alone read.
        elements: of the results of nodes, where unknown sizes count as 1.
        nodes_after: how many nodes the optimized model has.

    """

    opset: int | None
    decisions: tuple[Decision, ...]
    becomes: tuple[str | None, ...]
    groups: tuple[Group, ...]
    nodes: Share
    parameters: Share
    elements: Share
    nodes_after: int

    @property
    def headline(self) -> str:
        """Opset, nodes and parameters in words."""
        opset = "no opset" if self.opset is None else f"opset {self.opset}"
        return f"{opset}, {self.nodes.total:,} nodes, {self.parameters.total:,} parameters"

    @property
    def actions(self) -> dict[str, int]:
        """How many had which fate."""
        return dict(Counter(item.action.value for item in self.decisions))

    def to_json(self) -> dict[str, Any]:
        """All of it, for ``--json``."""
        records = [
            {**item.to_json(), "becomes": becomes} for item, becomes in zip(self.decisions, self.becomes, strict=True)
        ]
        shares = {
            name: {**asdict(part), "fraction": part.fraction}
            for name, part in (("nodes", self.nodes), ("parameters", self.parameters), ("elements", self.elements))
        }
        groups = [{**asdict(item), "action": item.action.value} for item in self.groups]
        return {
            "opset": self.opset,
            **shares,
            "nodes_after": self.nodes_after,
            "actions": self.actions,
            "groups": groups,
            "normalizations": records,
        }


def survey(
    model: str | os.PathLike[str] | ir.Model | Any,
    *,
    target: Target = "onnxnorm",
    provider: Provider = "cpu",
    disable: Iterable[str] = (),
) -> Survey:
    """Optimizes a copy of the model and compares; errors as ``optimize``."""
    before = load_model(model)
    result = optimize(before, target=target, provider=provider, disable=disable)
    infer_shapes(before)
    operators = {node_name(node): op_name(node) for one in (before, result.model) for node in _nodes(one)}
    decisions = result.decisions
    becomes = tuple(_becomes(item, operators) for item in decisions)
    subjects = {item.node for item in decisions}
    nodes = list(_nodes(before))
    norms = [node for node in nodes if is_norm(node) or node_name(node) in subjects]
    return Survey(
        opset=before.opset_imports.get("", before.opset_imports.get("ai.onnx")),
        decisions=decisions,
        becomes=becomes,
        groups=tuple(_groups(decisions, becomes, _names(before))),
        nodes=Share(len(norms), len(nodes)),
        parameters=Share(_parameters(norms, alone=True), _parameters(nodes, alone=False)),
        elements=Share(sum(map(_elements, norms)), sum(map(_elements, nodes))),
        nodes_after=sum(1 for _ in _nodes(result.model)),
    )


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes but constants and those of onnxnorm's function bodies."""
    own = [function.graph for key, function in model.functions.items() if key[0] != DOMAIN]
    for root in (model.graph, *own):
        for graph in (root, *subgraphs(root)):
            yield from (node for node in graph if op_name(node) != "Constant")


def _names(model: ir.Model) -> set[str]:
    values = (value.name for node in _nodes(model) for value in (*node.inputs, *node.outputs) if value is not None)
    return {name for name in (*values, *(node.name for node in _nodes(model))) if name}


def _becomes(item: Decision, operators: dict[str, str]) -> str | None:
    """The operator that a normalization would be (in)."""
    if item.action in (Action.KEPT, Action.REFUSED, Action.REVERTED):
        return None
    return operators.get(item.into or item.node, item.into)


def _groups(decisions: Iterable[Decision], becomes: Iterable[str | None], names: set[str]) -> Iterator[Group]:
    """In the order in which the first of each came."""
    found: dict[tuple[Any, ...], list[Decision]] = {}
    for item, into in zip(decisions, becomes, strict=True):
        why = None if item.reason is None else _without_names(item.reason, names)
        found.setdefault((item.op, item.action, into, item.rule, why), []).append(item)
    for (op, action, into, rule, why), items in found.items():
        yield Group(op, len(items), action, into, rule, why, items[0].module or items[0].node)


def _without_names(text: str, names: set[str]) -> str:
    """Reasons that differ in names only are one."""
    return " ".join("*" if word.strip("',:;()") in names else word for word in text.split())


def _parameters(nodes: Iterable[ir.Node], *, alone: bool) -> int:
    """Elements of the distinct constants of floats that the nodes read, with ``alone`` that no others read."""
    own = set(nodes)
    values = {value for node in own for value in node.inputs if value is not None}
    total = 0
    for value in values:
        tensor = constant_tensor(value)
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        if not alone or all(use.node in own for use in value.uses()):
            total += tensor.size
    return total


def _elements(node: ir.Node) -> int:
    """Of the node's first result, where its shape is known."""
    shape = node.outputs[0].shape if node.outputs else None
    return 0 if shape is None else math.prod(size if isinstance(size, int) else 1 for size in shape)
