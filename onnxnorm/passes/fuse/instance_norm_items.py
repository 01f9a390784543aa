"""fuse/instance-norm-items: a batch norm over items that became channels is an instance norm, GroupNorm of C groups.

    Reshape(batch norm(Reshape(x, (1, N C, *))), shape of x)  =  GroupNorm(x) of one group per channel

where the batch norm takes the statistics of what it normalizes: BatchNormalization with training_mode=1 or onnxnorm
BatchNormTraining, of which only the first result is read, or BatchNormalization in inference whose mean and variance
are computed from its own input. In this way PyTorch's ``F.batch_norm(x.view(1, N * C, ...), training=True)`` computes
instance norm (AdaIN, batch-instance norm). scale and bias are constants of C numbers that repeat: as a constant of N C
numbers, by Tile, or one number for all.

Refused:
    1. The Reshape in front is not known to join items and channels, or the one behind not to give the shape of x.
    2. What is in between has other readers, is a graph output, or stands in an outer graph.
    3. The number of channels is not known.
    4. scale or bias is no constant that repeats for each item, or differs from x in element type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.instance_normalization import group_norm_of_channels
from onnxnorm.passes.fuse.moments import Reader
from onnxnorm.passes.fuse.product import check_graph, check_private_nodes, put
from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES
from onnxnorm.passes.fuse.sizes import FloatArray, channel_count, keeps_shape, same_size, shape_nodes
from onnxnorm.passes.graph import attribute, constant_tensor, is_op, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN


class FuseInstanceNormItems(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/instance-norm-items"
    operators: ClassVar[frozenset[str]] = frozenset({"Reshape"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A Reshape behind a BatchNormalization of one item, with its own statistics, behind a Reshape."""
        norm = node.inputs[0].producer() if is_op(node, "Reshape") and node.inputs[0] is not None else None
        if norm is None or not is_batch_norm(norm) or norm.inputs[0] is None or context.in_function:
            return None
        source = norm.inputs[0]
        split = source.producer()
        if split is None or not is_op(split, "Reshape") or split.inputs[0] is None or source.shape is None:
            return None
        x = split.inputs[0]
        if x.shape is None or len(x.shape) < 3 or x.dtype not in FLOAT_TYPES or source.shape[0] != 1:
            return None
        statistics = own_statistics(norm, context.opset)
        if statistics is None:
            return None
        inner, shared = statistics
        nodes = {"split": split, **{str(index): item for index, item in enumerate(inner)}, "norm": norm, "joined": node}
        return Match(nodes, {"x": x, "shared": [*shared, *shape_nodes(split), *shape_nodes(node)]})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        split, norm, joined, x = match["split"], match["norm"], match["joined"], match.facts["x"]
        check_graph(match.nodes.values(), context)
        parts = split.outputs[0].shape
        if parts is None or len(parts) != len(x.shape) or not all(map(same_size, parts[2:], x.shape[2:])):
            raise Refusal("the Reshape in front is not known to join items and channels", after=str(parts))
        if not keeps_shape(joined, x):
            raise Refusal("the Reshape behind is not known to give the shape of x", x=str(x.shape))
        for role, value in zip(("scale", "bias"), norm.inputs[1:3], strict=True):
            match.facts[role], nodes = _repeated(value, channel_count(x, False), x, role)
            match.facts["shared"] += nodes
        check_private_nodes(match.nodes.values(), joined, match.facts["shared"])

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op."""
        norm, joined, x = match["norm"], match["joined"], match.facts["x"]
        parts = {role: match.facts[role] for role in ("scale", "bias")}
        parameters = [context.constant(f"{node_name(norm)}_{role}", part, x.dtype) for role, part in parts.items()]
        new = group_norm_of_channels(norm, x, parameters)
        shared = [item for item in match.facts["shared"] if item.graph is context.graph]
        result = put([new], match.nodes.values(), shared, joined)
        result.subject, result.into = norm, node_name(norm)
        return result

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]


def is_batch_norm(node: ir.Node) -> bool:
    """Whether the node is one that may have the statistics of its own input."""
    training = node.domain == DOMAIN and node.op_type == "BatchNormTraining"
    return training or is_op(node, "BatchNormalization")


def own_statistics(norm: ir.Node, opset: int) -> tuple[list[ir.Node], list[ir.Node]] | None:
    """What computes mean and variance of the norm's own input, and what others may read; None where others are used."""
    if any(value.uses() or value.is_graph_output() for value in norm.outputs[1:]):
        return None
    if not is_op(norm, "BatchNormalization") or attribute(norm, "training_mode", 0) == 1:
        return [], list(shape_nodes(norm))
    source = norm.inputs[0]
    assert source is not None
    reader = Reader(source, False, opset)
    mean, var = (reader.read(value) for value in norm.inputs[3:5])
    if mean is None or var is None or reader.problem is not None or (mean.layout, var.layout) != ((1,), (1,)):
        return None
    for statistic, letter in ((mean, "m"), (var, "v")):
        terms = {letters: number for letters, number in statistic.terms.items() if number.any()}
        if set(terms) != {(letter,)} or (terms[(letter,)] != 1.0).any():
            return None
    return list(reader.nodes), list(reader.shared)


def _repeated(value: ir.Value | None, channels: int, x: ir.Value, role: str) -> tuple[FloatArray, Sequence[ir.Node]]:
    """The numbers of one item, and what repeats them; Refusal (reason 4) where they do not repeat."""
    nodes: list[ir.Node] = []
    while value is not None and constant_tensor(value) is None:
        node = value.producer()
        if node is None or not any(is_op(node, name) for name in ("Expand", "Reshape", "Squeeze", "Tile", "Unsqueeze")):
            break
        nodes += [node, *shape_nodes(node)]
        value = node.inputs[0]
    tensor = None if value is None else constant_tensor(value)
    if value is None or tensor is None:
        raise Refusal(f"its {role} is not constant", input=None if value is None else value.name)
    if value.dtype != x.dtype:
        raise Refusal(f"x and its {role} differ in element type", x=x.dtype, other=value.dtype)
    array = np.asarray(tensor.numpy()).astype(np.float64).reshape(-1)
    if array.size == 1:
        return np.full(channels, array[0]), nodes
    items = array.reshape(-1, channels) if array.size % channels == 0 else np.zeros((0, 0))
    stretched = any(is_op(node, "Expand") for node in nodes) or (nodes and array.size != channels)
    if not items.size or stretched or (items != items[0]).any():
        raise Refusal(f"its {role} does not repeat for each item", size=array.size, channels=channels)
    return items[0], nodes
