"""fold/affine-behind-branches: s * f(layer1(x), layer2(y), ...) + t = f(layer1'(x), layer2'(y), ...).

BatchNormalization, or a Mul, Div, Add, Sub, Neg by constants, behind operators through which a map may pass backwards
(``affine_back``: Concat, Add, Split, Slice, Gather, MaxPool, Resize and more) goes into the weights of all layers from
which its input comes, if all of them can take it: Conv, ConvTranspose, Gemm, MatMul with constant weights. Other maps
on the way are taken along. All is computed in float64 and rounded once.

Refused:
    1. The map is no legal one (``batch_norm``), or its constant may enlarge its input.
    2. Something else than such an operator or layer is on the way, as an activation or a graph input, or too much.
    3. A result on the way has another reader, is a graph output, or comes from another graph; but for the other results
       of a Split in a row of single operators, which stay as they are.
    4. An operator does not let this map pass, or two readers of a result would ask for different maps of it.
    5. A layer's weight or bias is not constant, is a graph input that a caller may override, or would overflow,
       underflow or not be finite; or a single map that is no BatchNormalization asks for a copy of a shared weight.

Left alone: what stands behind layers and operators that only move elements, for which there are other rules; and an
Add that would only move behind a MatMul.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fold.affine import OLDEST_OPSET, Map
from onnxnorm.passes.fold.affine_back import LAYOUT, OPERATORS, data_inputs, in_front
from onnxnorm.passes.fold.affine_behind import by_channel, own_map
from onnxnorm.passes.fold.affine_into_layer import forget
from onnxnorm.passes.fold.affine_layout import FloatArray, full_rank
from onnxnorm.passes.fold.batch_norm import tolerance_of
from onnxnorm.passes.fold.layer_output import is_parameter, mapped, output_of, weight_input
from onnxnorm.passes.graph import in_order, is_op, node_name, op_name, rank_of
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, constant_array

#: More nodes on the way are left alone.
_LARGEST = 128
_MAPS = ("Add", "BatchNormalization", "Div", "Mul", "Neg", "Sub")


@dataclass
class _Region:
    """What is between a map and the layers: ``moved`` in order, from the layers on, other ``maps`` among them."""

    layers: dict[ir.Node, None] = field(default_factory=dict)
    moved: list[ir.Node] = field(default_factory=list)


class FoldAffineBehindBranches(Rule):
    """See the module."""

    id: ClassVar[str] = "fold/affine-behind-branches"
    operators: ClassVar[frozenset[str]] = frozenset(_MAPS)
    general: ClassVar[bool] = True
    action: ClassVar[Action] = Action.FOLDED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A map behind an operator through which it may pass."""
        data = _data_of(node) if context.opset >= OLDEST_OPSET else None
        producer = None if data is None else data.producer()
        if data is None or producer is None or not any(is_op(producer, name) for name in OPERATORS):
            return None
        facts: dict[str, object] = {"data": data}
        try:
            region = _region(node, data, context)
        except Refusal as refusal:
            facts["refusal"] = refusal
            return Match({"map": node}, facts) if is_op(node, "BatchNormalization") else None
        plain = all(any(is_op(item, name) for name in LAYOUT) or _is_map(item) for item in region.moved)
        shift_only = any(is_op(node, name) for name in ("Add", "Sub"))
        if plain or (shift_only and any(is_op(layer, "MatMul") for layer in region.layers)):
            return None
        roles = {str(index): item for index, item in enumerate([*region.layers, *region.moved])}
        return Match({**roles, "map": node}, {**facts, "region": region})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 2, 3 and the weights of 5."""
        if "refusal" in match.facts:
            raise match.facts["refusal"]
        region: _Region = match.facts["region"]
        for layer in region.layers:
            weight = layer.inputs[weight_input(layer)]
            assert weight is not None
            constant_array(weight, f"{layer.op_type}'s weight")
            if len(weight.uses()) > 1 and not is_op(match["map"], "BatchNormalization"):
                raise Refusal(f"{layer.op_type}'s weight has another reader, would be stored twice", weight=weight.name)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The layers with new weights, and all operators between as they are."""
        node, region, data = match["map"], match.facts["region"], match.facts["data"]
        maps: dict[ir.Value, Map] = {data: _map_of(node, context)}
        for item in reversed(region.moved):
            if _is_map(item):
                inner, outer, source = _map_of(item, context), maps[item.outputs[0]], _data_of(item)
                assert source is not None
                _meet(maps, source, inner.then(outer.scale, outer.shift), item)
                continue
            for index, each in zip(data_inputs(item), in_front(item, maps, context), strict=True):
                value = item.inputs[index]
                assert value is not None
                _meet(maps, value, each, item)
        nodes, new = _rebuilt(region, maps, context)
        outputs = {node.outputs[0]: new[data]}
        others = _other_results(region, node)
        outputs.update({value: new[value] for value in others})
        removed = [*region.layers, *region.moved, node]
        if others:  # whose readers may come before the map
            split = next(item for item in region.moved if is_op(item, "Split"))
            removed.remove(split)
            removed.append(split)
        norms = [item for item in removed if is_op(item, "BatchNormalization")]
        return Replacement(
            nodes,
            outputs,
            removed,
            node,
            into=", ".join(map(node_name, region.layers)),
            tolerance=max([1e-9, *map(tolerance_of, norms)]),
        )


def _data_of(node: ir.Node) -> ir.Value | None:
    """What the node maps, where it is the only input that is computed."""
    if not any(is_op(node, name) for name in _MAPS) or not node.inputs:
        return None
    if is_op(node, "BatchNormalization"):
        return node.inputs[0]
    computed = [value for value in node.inputs if value is not None and not is_parameter(value)]
    return computed[0] if len(computed) == 1 else None


def _is_map(node: ir.Node) -> bool:
    return _data_of(node) is not None


def _region(start: ir.Node, data: ir.Value, context: Context) -> _Region:
    """All between the map and the layers; Refusal for the reasons 2 and 3."""
    region = _Region()
    found: dict[ir.Node, None] = {}
    waiting = [data]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        what = "a graph input" if node is None else f"{op_name(node)} {node_name(node)}"
        if node is None or node.graph is not context.graph:
            raise Refusal(f"its input comes from {what}, which takes no map", value=value.name)
        if node in found or node in region.layers:
            continue
        if _is_map(node):
            found[node] = None
            source = _data_of(node)
            assert source is not None
            waiting.append(source)
        elif any(is_op(node, name) for name in OPERATORS):
            found[node] = None
            inputs = [node.inputs[index] for index in data_inputs(node)]
            waiting += [item for item in inputs if item is not None]
        elif output_of(node) is not None:
            region.layers[node] = None
        else:
            raise Refusal(f"its input comes from {what}, which takes no map", value=value.name)
        if len(found) > _LARGEST:
            raise Refusal("too many operators are on the way", most=_LARGEST)
    region.moved = in_order(found)
    _check_private(region, start)
    return region


def _check_private(region: _Region, start: ir.Node) -> None:
    inside = {start, *region.moved}
    row = len(region.layers) == 1 and all(len(data_inputs(item)) == 1 or _is_map(item) for item in region.moved)
    splits = [item for item in region.moved if is_op(item, "Split")]
    for node in (*region.layers, *region.moved):
        for value in node.outputs:
            what = f"the output of {op_name(node)} {node_name(node)}"
            readers = value.uses()
            if row and splits == [node] and all(use.node not in inside for use in readers):
                continue
            if value.is_graph_output():
                raise Refusal(f"{what} is also a graph output", output=value.name)
            if any(use.node not in inside for use in readers):
                raise Refusal(f"{what} has another reader", value=value.name)


def _other_results(region: _Region, start: ir.Node) -> list[ir.Value]:
    """Results of a Split that others read."""
    inside = {start, *region.moved}
    values = [value for node in region.moved if is_op(node, "Split") for value in node.outputs]
    outside = [value for value in values if any(use.node not in inside for use in value.uses())]
    return [*outside, *(value for value in values if value.is_graph_output() and value not in outside)]


def _map_of(node: ir.Node, context: Context) -> Map:
    """The node's own map; Refusal (reason 1) where it may enlarge its input."""
    data = _data_of(node)
    assert data is not None
    found = own_map(node, data, context)
    for constant in () if is_op(node, "BatchNormalization") else found:
        if constant.ndim == 0:
            continue
        sizes = [] if data.shape is None else list(data.shape)[-constant.ndim :]
        fits = len(sizes) == constant.ndim and all(
            size in (1, known) for size, known in zip(constant.shape, sizes, strict=True)
        )
        if not fits:
            raise Refusal("its constant may enlarge its input", constant=constant.shape, input=str(data.shape))
    return Map(*found)


def _meet(maps: dict[ir.Value, Map], value: ir.Value, each: Map, reader: ir.Node) -> None:
    """Notes what a reader asks of a value; Refusal where another one asks for something else."""
    if value not in maps:
        maps[value] = each
        return
    old = maps[value]
    maps[value] = Map(*(_both(getattr(old, name), getattr(each, name), reader) for name in ("scale", "shift")))


def _both(old: FloatArray, new: FloatArray, reader: ir.Node) -> FloatArray:
    one, other = np.broadcast_arrays(old, new)
    same = np.isnan(one) | np.isnan(other) | (one == other)
    if not same.all():
        raise Refusal(f"another reader of what {op_name(reader)} {node_name(reader)} reads asks for another map")
    return np.where(np.isnan(one), other, one)


def _rebuilt(
    region: _Region, maps: dict[ir.Value, Map], context: Context
) -> tuple[list[ir.Node], dict[ir.Value, ir.Value]]:
    """(new nodes, old value -> new one)."""
    nodes: list[ir.Node] = []
    new: dict[ir.Value, ir.Value] = {}
    try:
        for layer in region.layers:
            nodes += _layer(layer, maps[layer.outputs[0]], context)
            new[layer.outputs[0]] = nodes[-1].outputs[0]
        for item in region.moved:
            if _is_map(item):
                source = _data_of(item)
                assert source is not None
                new[item.outputs[0]] = new[source]
                continue
            inputs = [None if value is None else new.get(value, value) for value in item.inputs]
            made = ir.node(item.op_type, inputs, dict(item.attributes), num_outputs=len(item.outputs), name=item.name)
            nodes.append(made)
            for old, value in zip(item.outputs, made.outputs, strict=True):
                value.type, value.shape = old.type, old.shape
                new[old] = value
    except Refusal:
        forget(nodes)
        raise
    return nodes, new


def _layer(layer: ir.Node, whole: Map, context: Context) -> list[ir.Node]:
    output = output_of(layer)
    assert output is not None
    rank = rank_of(layer.outputs[0])
    parts = [_by_channel(part, free, output.index, output.channels, rank)
             for part, free in ((whole.scale, 1.0), (whole.shift, 0.0))]  # fmt: skip
    if not all(np.isfinite(part).all() for part in parts):
        raise Refusal("the map is not finite: it divides by zero or overflows")
    return mapped(layer, output, parts[0], parts[1], context)


def _by_channel(array: FloatArray, free: float, index: FloatArray, channels: int, rank: int | None) -> FloatArray:
    """One value per channel; what nothing reads stays."""
    values = np.where(np.isnan(array), free, array)
    return by_channel(values if values.ndim == 0 or rank is None else full_rank(values, rank)
                      if values.ndim <= rank else values, index, channels, rank)  # fmt: skip
