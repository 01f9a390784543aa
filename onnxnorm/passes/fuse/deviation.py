"""Reads what a graph computes as a power of the variance of groups of channels, in the shape of the tensor.

    factor * (var(x over group and positions) + epsilon)^exponent

The variance is spelled as ``variance`` reads it. The groups are cut out by a Reshape to (N, G, ...), or, with the
channels last, to (N, *, G, C / G), and put together by another one; without them x itself is reduced, over all
positions (a group per channel) or all channels and positions (one group).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxnorm.passes.fuse.product import same_shape
from onnxnorm.passes.fuse.rms_norm_power import Power, without_casts
from onnxnorm.passes.fuse.sizes import keeps_shape, position_axes, same_size, same_sizes, shape_nodes, sole_reader
from onnxnorm.passes.fuse.variance import VarianceWalk
from onnxnorm.passes.graph import is_op


@dataclass(frozen=True)
class Deviation:
    """See the module.

    Attributes:
        x: the tensor, (N, C, *) or (N, *, C).
        num_groups: G; None for one group per channel.
        channels_last: the layout.
        power: the power of the mean square of the centred values, with its nodes.
        nodes: what is computed besides the power's nodes, and is read by these alone.
        shared: what computes the shapes of the Reshapes.
        problem: why it is none, for a Refusal.

    """

    x: ir.Value
    num_groups: int | None
    channels_last: bool
    power: Power
    nodes: tuple[ir.Node, ...]
    problem: str | None = None
    shared: tuple[ir.Node, ...] = ()


def read_deviation(value: ir.Value, opset: int) -> Deviation | None:
    """What ``value`` is as a power of a variance, None when it is none."""
    nodes: list[ir.Node] = []
    inner = _behind_casts(value, nodes)
    joined = inner.producer()
    grouped = joined is not None and is_op(joined, "Reshape") and joined.inputs[0] is not None
    if grouped:
        assert joined is not None
        nodes.append(joined)
        inner = joined.inputs[0]  # type: ignore[assignment]
    power = VarianceWalk(opset).variance(inner)
    if power is None or power.source.shape is None:
        return None
    source = power.source
    problem = power.problem or (None if sole_reader(value) is not None else "an inner value has other readers")
    if not grouped:
        return _ungrouped(source, power, nodes, problem)
    assert joined is not None
    found = _grouped(power, joined, nodes, problem)
    if found is None:
        return None
    return replace(found, problem=found.problem or _broadcast_problem(power, power.source.shape, inner))


def read_group_deviation(value: ir.Value, divided: ir.Value, joined: ir.Node, opset: int) -> Deviation | None:
    """What ``value`` is, which meets ``divided``, a tensor in the shape of the groups, and is joined behind that."""
    power = VarianceWalk(opset).variance(value)
    if power is None or power.source.shape is None or divided.shape is None or power.expanded or not power.broadcasts:
        return None
    problem = power.problem or (None if sole_reader(value) is not None else "an inner value has other readers")
    if not same_sizes(list(divided.shape), list(power.source.shape)):
        problem = problem or "what the deviation divides is not known to have the shape of the groups"
    return _grouped(power, joined, [], problem)


def _grouped(power: Power, joined: ir.Node, nodes: list[ir.Node], problem: str | None) -> Deviation | None:
    """Of groups that a Reshape cuts out, and ``joined`` puts together."""
    source = power.source
    split = without_casts(source).producer()
    if split is None or not is_op(split, "Reshape") or split.inputs[0] is None or source.shape is None:
        return None
    x, widened = split.inputs[0], _casts_before(source, split)
    parts = len(source.shape)
    last = parts > 3 and power.axes == (*range(1, parts - 2), parts - 1)
    problem = problem or _cut_problem(x, split, joined, power, last)
    groups = source.shape[parts - 2 if last else 1] if parts > 2 else None
    if not isinstance(groups, int):
        return None
    shared = (*shape_nodes(split), *shape_nodes(joined))
    return Deviation(x, groups, last, power, (*nodes, *widened, split), problem, shared)


def _behind_casts(value: ir.Value, nodes: list[ir.Node]) -> ir.Value:
    """The value before casts between floats, which are added to ``nodes``."""
    producer = value.producer()
    while producer is not None and (is_op(producer, "Cast") or is_op(producer, "CastLike")):
        if producer.inputs[0] is None:
            break
        nodes.append(producer)
        value = producer.inputs[0]
        producer = value.producer()
    return value


def _casts_before(source: ir.Value, split: ir.Node) -> list[ir.Node]:
    """The casts between the Reshape and what is reduced."""
    nodes: list[ir.Node] = []
    node = source.producer()
    while node is not None and node is not split and node.inputs[0] is not None:
        nodes.append(node)
        node = node.inputs[0].producer()
    return nodes


def _ungrouped(source: ir.Value, power: Power, nodes: list[ir.Node], problem: str | None) -> Deviation | None:
    """A group per channel, or one group."""
    x = without_casts(source)
    rank = len(source.shape or ())
    for last in (False, True):
        if rank > 2 and power.axes == position_axes(rank, last):
            return Deviation(x, None, last, power, tuple(nodes), problem)
    if rank > 2 and power.axes == tuple(range(1, rank)):
        return Deviation(x, 1, False, power, tuple(nodes), problem)
    return None


def _cut_problem(x: ir.Value, split: ir.Node, joined: ir.Node, power: Power, last: bool) -> str | None:
    """Why the two Reshapes do not cut the channels into groups and put these together."""
    parts = split.outputs[0].shape
    if x.shape is None or parts is None or len(x.shape) < 2 or not same_size(parts[0], x.shape[0]):
        return "the number of items behind the Reshape is not known to be that of x"
    if last and not (len(parts) == len(x.shape) + 1 and all(map(same_size, parts[:-2], x.shape[:-1]))):
        return "the positions behind the Reshape are not known to be those of x"
    if not last and power.axes != tuple(range(2, len(parts))):
        return "the variance is not over all that is in a group"
    if not keeps_shape(joined, x):  # which also tells that there are as many elements
        return "the deviation is brought to a shape that is not known to be that of x"
    return None


def _broadcast_problem(power: Power, parts: ir.Shape | None, inner: ir.Value) -> str | None:
    """Why the deviation has not the shape of the groups before they are put together."""
    expanded = parts is not None and power.expanded and all(same_shape(shape, parts) for shape in power.expanded)
    if not expanded or inner.shape is None or not same_sizes(list(inner.shape), list(parts or ())):
        return "the deviation is not broadcast to the shape of the groups"
    return None
