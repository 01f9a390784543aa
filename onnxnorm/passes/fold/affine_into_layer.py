"""What the folds of an affine chain into the layer behind it share: layer(a * x + b) = layer'(x).

A layer that sums over its input channels with constant weights takes the scale a into the weights of each channel and
the shift b, which adds the same to every position, into its bias. Where the shift cannot go there, it stays as one Add
in front, if that is less than there was: a * x + b = a * (x + b / a), and the layer takes a. That is exact under zero
padding too, where the shift of the border is missing from the bias.

Where several layers read what the chain makes, each takes it if all of them do, so that nothing of it is left.

Refused, for every layer:
    1. No chain is legal, see ``onnxnorm.passes.fold.affine``.
    2. The layer's weight is a graph input that a caller may override. (A weight that is computed is no match.)
    3. Scale or shift differs along an axis that the layer does not sum over, or has another number of channels.
    4. A folded weight or bias would overflow, underflow or not be finite in the layer's type.
    5. The shift cannot go into the bias, and keeping it gains nothing (there is one map only, or a scale is 0, or the
       chain computes in a wider type). It cannot where the layer pads with zeros, where its bias is not constant, and
       where it is large: x' weights + bias then is a small difference of large numbers. The rounding of the layer's
       result grows by the shift's size in units of the data that the layer was made for, by its weights' root mean
       square; ``LARGEST_SHIFT`` is the most. Those units are 1 where there is a scale; a shift alone says nothing
       about them, so that the layer's result is taken to be of size 1 or less.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fold.affine import Chain, Map, chains, moves_only, path_to, subject_of
from onnxnorm.passes.fold.affine_layout import FloatArray, again, carries, full_rank, shape_nodes
from onnxnorm.passes.fold.affine_pad import is_pad, padded, value_of
from onnxnorm.passes.fold.layout_chain import before as layout_before
from onnxnorm.passes.fold.layout_chain import needed_by, reduced
from onnxnorm.passes.graph import constant_tensor, is_op, is_overridable, node_name, op_name
from onnxnorm.passes.large import exact, ones_like, together
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, constant_array
from onnxnorm.runtime.arrays import float_info

#: How many times a folded shift may magnify the rounding of a layer's result.
LARGEST_SHIFT = 16.0


@dataclass(frozen=True)
class _Plan:
    """A layer's new weight and its type, what comes on top of its bias, and the map whose shift stays in front."""

    weight: Any
    dtype: ir.DataType
    bias: FloatArray | None
    kept: Map | None


class FoldAffineIntoLayer(Rule):
    """Base of the folds; a subclass says how its layer sums."""

    action: ClassVar[Action] = Action.FOLDED
    recognizes: ClassVar[bool] = True
    layer: ClassVar[str]

    # --- what a layer says ---

    def data_input(self, layer: ir.Node) -> int:
        """Which of its first two inputs is the data; the other one is the weight."""
        return 0

    @abc.abstractmethod
    def data_axis(self, layer: ir.Node, weight: FloatArray) -> int:
        """The axis of the data that it sums over, counted from the end. Refusal for a weight of another form."""

    @abc.abstractmethod
    def channels(self, layer: ir.Node, weight: FloatArray) -> int:
        """The size of that axis."""

    @abc.abstractmethod
    def scaled(self, layer: ir.Node, weight: FloatArray, scale: FloatArray) -> FloatArray:
        """The weight times the scale (channels,) of each data channel."""

    @abc.abstractmethod
    def response(self, layer: ir.Node, weight: FloatArray, shift: FloatArray) -> FloatArray:
        """What the weight makes of the constant input ``shift`` (channels,); broadcasts over the result."""

    @abc.abstractmethod
    def output_axis(self, layer: ir.Node, weight: FloatArray) -> int:
        """The axis of the weight that makes the result's channels (for range checks)."""

    def shift_problem(self, layer: ir.Node, weight: FloatArray, chain: Chain, context: Context) -> str | None:
        """Why the layer cannot take a shift, None when it can; may raise Refusal as well."""
        return None

    @abc.abstractmethod
    def build(
        self, layer: ir.Node, data: ir.Value, weight: ir.Value, bias: FloatArray | None, context: Context
    ) -> tuple[list[ir.Node], list[ir.Node]]:
        """(new nodes, the nodes that they replace); ``bias`` is what comes on top of the layer's own."""

    # --- what they share ---

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A layer with a weight, behind at least one map."""
        if not is_op(node, self.layer) or len(node.inputs) < 2:
            return None
        data = self.data_input(node)
        weight = node.inputs[1 - data]
        if weight is None or not (is_overridable(weight) or constant_tensor(weight) is not None):
            return None
        path = path_to(node.inputs[data], context)
        maps = [item for item in path if not moves_only(item)]
        if not maps or (len(maps) == 1 and self._left_by(maps[0], node)):
            return None
        roles = {f"map {index}": item for index, item in enumerate(path)}
        return Match({"layer": node, **roles}, {"path": path})

    def subject(self, match: Match) -> ir.Node:
        """The normalization: its BatchNormalization or its first map."""
        path: list[ir.Node] = match.facts["path"]
        return subject_of([node for node in path if not moves_only(node)])

    def check(self, match: Match, context: Context) -> None:
        """Reason 2 of this module; the others need the numbers."""
        layer = match["layer"]
        constant_array(layer.inputs[1 - self.data_input(layer)], f"{self.layer}'s weight")

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The layer with the longest chain that it can take; the reason that stopped the longest one otherwise."""
        layer: ir.Node = match["layer"]
        first: Refusal | None = None
        for chain in chains(match.facts["path"], layer, context):
            try:
                return self._fold(layer, chain, context)
            except Refusal as refusal:
                first = first or refusal
        assert first is not None
        raise first

    def _left_by(self, node: ir.Node, layer: ir.Node) -> bool:
        """Whether the one map is the Add that this rule put there."""
        made = all(self.id in item.metadata_props.get("onnxnorm.rule", "").split(",") for item in (node, layer))
        return made and is_op(node, "Add")

    def _fold(self, layer: ir.Node, chain: Chain, context: Context) -> Replacement:
        plan = self._plan(layer, chain, context)
        for other in chain.others:
            _check_other(other, chain, context)
        value = layer.inputs[1 - self.data_input(layer)]
        assert value is not None
        folded = context.constant(f"{value.name}_folded", plan.weight, plan.dtype)
        front: list[ir.Node] = []
        passed, way = _way(chain, plan.kept, context)
        source = passed[0].inputs[0] if passed else chain.source
        assert source is not None
        try:
            data = _front(front, source, chain, way, plan.kept, plan.dtype, layer, context)
            new, replaced = self.build(layer, data, folded, plan.bias, context)
        except Refusal:
            forget(front)
            raise
        last = replaced[-1].outputs[0]
        gone = [] if chain.others else [*needed_by(passed, chain.nodes[0]), *chain.nodes]
        return Replacement(
            [*front, *new],
            {last: new[-1].outputs[0]},
            [*gone, *replaced],
            chain.subject(),
            into=node_name(layer),
            values={}
            if plan.kept is None
            else {"the shift stays as Add": ", ".join(map(node_name, filter(_is_add, front)))},
            before=_before([*passed, *chain.nodes], replaced, context),
            tolerance=1e-7 if plan.dtype == ir.DataType.DOUBLE else 1e-9,
        )

    def _plan(self, layer: ir.Node, chain: Chain, context: Context) -> _Plan:
        """What the layer becomes; Refusal where it cannot take the chain."""
        array = constant_array(layer.inputs[1 - self.data_input(layer)], f"{self.layer}'s weight")
        dtype = ir.DataType.from_numpy(array.dtype)
        weight = exact(array)
        axis, channels = self.data_axis(layer, weight), self.channels(layer, weight)
        scale, shift = (_vector(each, axis, channels) for each in (chain.map.scale, chain.map.shift))
        kept: Map | None = None
        bias: FloatArray | None = None
        if shift.any() or chain.blocked is not None:
            problem = chain.blocked or self.shift_problem(layer, weight, chain, context)
            problem = problem or self._too_large(layer, weight, scale, shift)
            kept = _kept(chain, problem) if problem is not None else None
            bias = self.response(layer, weight, shift) if kept is None else None
        scaled = self.scaled(layer, weight, scale)
        factor = self.scaled(layer, ones_like(weight), scale)
        check_scaled(weight, scaled, factor, dtype, self.output_axis(layer, weight))
        return _Plan(scaled, dtype, bias, kept)

    def check_whole(self, layer: ir.Node, chain: Chain, context: Context) -> None:
        """Refusal unless the layer takes the chain and leaves nothing of it."""
        self.check(Match({"layer": layer}), context)
        if self._plan(layer, chain, context).kept is not None:
            raise Refusal(f"of its readers {layer.op_type} {node_name(layer)} would leave the shift in front")

    def _too_large(self, layer: ir.Node, weight: FloatArray, scale: FloatArray, shift: FloatArray) -> str | None:
        """Reason 5's last case."""
        squares = np.square(weight)
        output = float(self.response(layer, squares, np.ones_like(shift)).max(initial=0.0))
        moved = float(self.response(layer, squares, np.square(shift)).max(initial=0.0))
        if np.all(np.abs(scale) == 1.0):
            output = min(output, 1.0)
        times = float(np.sqrt(moved / output)) if output > 0.0 else 0.0
        if times <= LARGEST_SHIFT:
            return None
        return f"the shift is large against the data: in the bias it would magnify rounding {times:.3g} times"


def _check_other(layer: ir.Node, chain: Chain, context: Context) -> None:
    """Refusal unless another reader of the chain is a layer that takes all of it as well."""
    rule = next((each() for each in FoldAffineIntoLayer.__subclasses__() if is_op(layer, each.layer)), None)
    if rule is None or layer.inputs[rule.data_input(layer)] is not chain.nodes[-1].outputs[0]:
        raise Refusal(f"its result is read by {op_name(layer)} {node_name(layer)} as well", reader=node_name(layer))
    rule.check_whole(layer, chain, context)


def _vector(array: FloatArray, axis: int, channels: int) -> FloatArray:
    """The values along that axis (counted from the end); Refusal (reason 3) where they differ along another one."""
    full = full_rank(array, max(array.ndim, -axis))
    differs = [index - full.ndim for index, size in enumerate(full.shape) if size != 1 and index - full.ndim != axis]
    if differs:
        raise Refusal(
            f"the values differ along axis {differs[0]}, which the layer does not sum over", shape=array.shape
        )
    vector = full.reshape(-1)
    if vector.size not in (1, channels):
        raise Refusal("the layer has another number of input channels", values=vector.size, channels=channels)
    return np.broadcast_to(vector, (channels,)).astype(np.float64)


def _kept(chain: Chain, problem: str) -> Map:
    """The map whose shift stays as one Add; Refusal (reason 5) where that gains nothing."""
    if len(chain.maps) < 2 and not is_op(chain.maps[0], "BatchNormalization"):
        raise Refusal(problem)
    if chain.casts:
        raise Refusal(f"{problem}; and the map is computed in a wider type, in which it stays")
    kept = chain.map if chain.before_layout is None else chain.before_layout
    if (kept.scale == 0).any():
        raise Refusal(f"{problem}; and it cannot come before a scale that is 0")
    return kept


def forget(nodes: list[ir.Node]) -> None:
    """Ends the reading of nodes that were made for nothing; they would count as readers."""
    for node in nodes:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)


def _before(nodes: list[ir.Node], replaced: list[ir.Node], context: Context) -> list[ir.Node]:
    """All that computes what is replaced: shapes that are computed, too."""
    shapes = [item for node in nodes if is_op(node, "Reshape") for item in shape_nodes(node, context)]
    return [*dict.fromkeys(shapes), *nodes, *replaced]


def _is_add(node: ir.Node) -> bool:
    return is_op(node, "Add")


def _way(chain: Chain, kept: Map | None, context: Context) -> tuple[list[ir.Node], list[ir.Node]]:
    """(operators in front of the chain that go as well, those of the chain that stay): what moves nothing goes."""
    stay = reduced([node for node in chain.nodes if carries(node)])
    if kept is not None and kept is chain.before_layout:
        return [], stay
    front = layout_before(chain.source, context.graph)
    for start in range(len(front)):
        for end in range(1, len(stay) + 1):
            if not reduced([*front[start:], *stay[:end]]):
                return front[start:], stay[end:]
    return [], stay


def _front(
    nodes: list[ir.Node],
    source: ir.Value,
    chain: Chain,
    way: list[ir.Node],
    kept: Map | None,
    dtype: ir.DataType,
    layer: ir.Node,
    context: Context,
) -> ir.Value:
    """The layer's input; ``nodes`` gets what makes it: the kept shift and the operators on the way."""
    value = source
    early = kept is not None and kept is chain.before_layout
    if kept is not None and early:
        nodes.append(_add(value, kept, dtype, layer, context))
        value = nodes[-1].outputs[0]
    for old in way:
        if is_pad(old):
            new = padded(old, value, value_of(old, context) if early else chain.pad_values[old], context)
        else:
            new = again(old, value, context)
        value = _typed(new, source, old.outputs[0].shape)
        nodes.append(new)
    if kept is not None and not early:
        nodes.append(_add(value, kept, dtype, layer, context))
        value = nodes[-1].outputs[0]
    return value


def _add(value: ir.Value, kept: Map, dtype: ir.DataType, layer: ir.Node, context: Context) -> ir.Node:
    name = context.fresh_name(f"{node_name(layer)}_shift")
    node = ir.node("Add", [value, context.constant(f"{name}_value", kept.shift / kept.scale, dtype)], name=name)
    _typed(node, value, value.shape)
    return node


def _typed(node: ir.Node, like: ir.Value, shape: ir.Shape | None) -> ir.Value:
    node.outputs[0].type, node.outputs[0].shape = like.type, shape
    return node.outputs[0]


def check_scaled(weight: FloatArray, scaled: FloatArray, factor: FloatArray, dtype: ir.DataType, axis: int) -> None:
    """Refusal when rounding ``scaled`` = factor * weight loses more than the type's precision of an output channel.

    A weight of a data channel that is scaled by a meets data that are 1 / a as large: what counts is the loss over
    the factor, relative to the largest weight before scaling along ``axis``.
    """
    info = float_info(dtype.numpy())
    others = tuple(index for index in range(weight.ndim) if index != axis)
    worst, largest, smallest = np.zeros(weight.shape[axis]), np.zeros(weight.shape[axis]), np.inf
    for index, (before, after, times) in together(weight, scaled, factor):
        with np.errstate(all="ignore"):
            lost = np.abs(after.astype(dtype.numpy()).astype(np.float64) - after)
            lost = np.where(np.isfinite(lost) & (times != 0), lost / np.abs(times), 0.0)
        place = index[axis]
        worst[place] = np.maximum(worst[place], lost.max(axis=others, initial=0.0))
        largest[place] = np.maximum(largest[place], np.abs(before).max(axis=others, initial=0.0))
        smallest = min(smallest, np.abs(times[times != 0]).min(initial=np.inf))
    wrong = worst > float(info.eps) * largest
    if wrong.any():
        channel = int(np.argmax(wrong))
        raise Refusal(
            f"a folded weight would underflow {dtype.name.lower()}",
            channel=channel,
            smallest_scale=f"{smallest:.6g}",
            smallest_normal=f"{float(info.smallest_normal):.3g}",
        )


def with_bias(layer: ir.Node, data: ir.Value, weight: ir.Value, bias: FloatArray | None, context: Context) -> ir.Node:
    """A convolution with another input and weight, and ``bias`` on top of its own (left as it is where None)."""
    own: Sequence[Any] = layer.inputs[2:]
    if bias is not None:
        old = layer.inputs[2] if len(layer.inputs) > 2 else None
        total = bias if old is None else bias + constant_array(old, f"{layer.op_type}'s bias").astype(np.float64)
        name = old.name if old is not None and old.name else f"{node_name(layer)}_bias"
        assert weight.dtype is not None
        own = [context.constant(f"{name}_folded", total, weight.dtype)]
    return ir.node(layer.op_type, [data, weight, *own], dict(layer.attributes), name=layer.name)


def bias_problem(layer: ir.Node) -> str | None:
    """Why a layer's own bias, its third input, cannot take a shift."""
    value = layer.inputs[2] if len(layer.inputs) > 2 else None
    try:
        if value is not None:
            constant_array(value, f"{layer.op_type}'s bias")
    except Refusal as refusal:
        return f"{refusal.reason}, so that it cannot take the shift"
    return None
