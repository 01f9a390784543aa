"""Chains of elementwise affine maps in front of a layer: y = scale * x + shift with constant arrays.

Input normalizations are such chains, however they are spelled: Sub and Div by constants of a channel, a feature or all,
with the constant on either side (c - x, but not c / x), Mul, Add, Neg, BatchNormalization in inference, and among them
operators that only move elements, or that take means over axes along which the map is the same (``affine_layout``). A
Cast between float types belongs to a chain that ends in the type in which it starts, when nothing in between is
narrower: its roundings are those that a fold leaves out.

What a normalization with statistics of its own computes is left to the rules for it: a chain whose source is such an
operator's output, or the product, quotient or difference of two tensors, is none (its scale and shift are gamma and
beta, which the norm's own kernel applies at no cost).

A chain is used from the node that is farthest from the layer and still legal; refused, for every node of it:
    1. Its constant is a graph input that a caller may override.
    2. Its output has another reader (the last one's: that is no layer), is a graph output, or it stands in another
       graph than the layer.
    3. Its constant may enlarge the tensor: by ONNX's broadcasting from the right it has more axes, or a size where the
       tensor has 1 or a size that is not known.
    4. What it computes cannot be followed through the operators behind it (see ``affine_layout``).
    5. The map is not finite, as a division by zero makes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.fold import affine_pad
from onnxnorm.passes.fold.affine_layout import FloatArray, carries, full_rank, is_mean, moved
from onnxnorm.passes.fold.batch_norm import affine_of, check_private
from onnxnorm.passes.graph import STANDARD, constant_tensor, is_norm, is_op, is_overridable, node_name, op_name
from onnxnorm.passes.rule import Context, Refusal, constant_array
from onnxnorm.runtime.arrays import is_float

_ELEMENTWISE = ("Add", "Div", "Mul", "Sub")
#: What takes a chain in front of it.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_WIDE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
#: From this opset on the operators broadcast as NumPy does.
OLDEST_OPSET = 7


@dataclass(frozen=True)
class Map:
    """y = scale * x + shift; both arrays broadcast from the right over x."""

    scale: FloatArray
    shift: FloatArray

    def then(self, scale: FloatArray, shift: FloatArray) -> Map:
        """The given map after this one."""
        with np.errstate(all="ignore"):  # what is not finite is refused at the end
            return Map(np.asarray(self.scale * scale), np.asarray(self.shift * scale + shift))


@dataclass(frozen=True)
class Chain:
    """A legal chain.

    Attributes:
        nodes: from the first map to the node that feeds the layer.
        source: what the first map reads.
        map: all of it, over the layer's input.
        before_layout: all of it over the source, where every map comes before the first operator that moves elements,
            and none takes means (behind which there is less to compute) or pads with another number than 0.
        blocked: why the shift must stay in front; it is not in ``map`` then.
        pad_values: what the Pads among the nodes add where the map comes behind them.
        others: layers besides the one that was asked for that read the result.

    """

    nodes: tuple[ir.Node, ...]
    source: ir.Value
    map: Map
    before_layout: Map | None
    blocked: str | None
    pad_values: dict[ir.Node, float]
    others: tuple[ir.Node, ...]

    @property
    def maps(self) -> list[ir.Node]:
        """The nodes that compute."""
        return [node for node in self.nodes if not moves_only(node)]

    @property
    def casts(self) -> bool:
        """Whether types change on the way."""
        return any(is_op(node, "Cast") for node in self.nodes)

    def subject(self) -> ir.Node:
        """BatchNormalization when it is among the nodes, the first map otherwise."""
        return subject_of(self.maps)


def subject_of(maps: list[ir.Node]) -> ir.Node:
    """What a Decision about these nodes (in order) is about."""
    return next((node for node in maps if is_op(node, "BatchNormalization")), maps[0])


def moves_only(node: ir.Node) -> bool:
    """Whether the node is on the way but no map."""
    return carries(node) or is_op(node, "Cast")


def path_to(value: ir.Value | None, context: Context) -> list[ir.Node]:
    """The nodes of the longest chain that looks like one, up to the one that makes ``value``.

    The first is a map, or a Cast in front of it. Empty where there is none; whether they are legal is for ``chains``.
    """
    nodes: list[ir.Node] = []
    while value is not None and context.opset >= OLDEST_OPSET:
        node = value.producer()
        operand = None if node is None else _data_input(node, context)
        if node is None or operand is None:
            break
        nodes.insert(0, node)
        value = node.inputs[operand]
    if is_normalized(value):
        return []
    while nodes and carries(nodes[0]):
        nodes.pop(0)
    return nodes if any(not moves_only(node) for node in nodes) else []


def is_normalized(value: ir.Value | None) -> bool:
    """Whether a normalization, or the last step of one that is spelled out, made the value."""
    node = None if value is None else value.producer()
    if node is None:
        return False
    return is_norm(node) or (node.domain in STANDARD and node.op_type in ("Div", "Mul", "Sub"))


def chains(path: list[ir.Node], layer: ir.Node, context: Context) -> Iterator[Chain]:
    """The legal chains, longest first.

    Raises:
        Refusal: at the end, when not one was legal.

    """
    refusal: Refusal | None = None
    found = False
    for start, node in enumerate(path):
        if carries(node) or all(map(moves_only, path[start:])):
            continue
        try:
            chain = _chain(path[start:], layer, context)
        except Refusal as reason:
            refusal = refusal or reason
            continue
        found = True
        yield chain
    if refusal is not None and not found:
        raise refusal


def reads_input(value: ir.Value | None) -> bool:
    """Whether the value is a graph input that is no default, but for maps and operators that move elements."""
    while value is not None and (node := value.producer()) is not None:
        on_the_way = moves_only(node) or (node.domain in STANDARD and node.op_type in _ELEMENTWISE)
        if not on_the_way or not node.inputs:
            return False
        value = next((item for item in node.inputs if not _is_parameter(item)), None)
    return value is not None and value.is_graph_input() and value.const_value is None


def _data_input(node: ir.Node, context: Context) -> int | None:
    """Which input carries the data, None where the node belongs to no chain."""
    if carries(node) or is_op(node, "Neg"):
        return 0
    if is_op(node, "Cast"):
        return 0 if _is_float(node.inputs[0]) and _is_float(node.outputs[0]) else None
    if is_op(node, "BatchNormalization"):
        try:
            affine_of(node, context)
        except Refusal:
            return None
        return 0
    if node.domain not in STANDARD or node.op_type not in _ELEMENTWISE:
        return None
    constant = [_is_parameter(value) for value in node.inputs]
    if constant == [False, True]:
        return 0
    return 1 if constant == [True, False] and node.op_type != "Div" else None


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype in (*_WIDE, *_HALF)


def _is_parameter(value: ir.Value | None) -> bool:
    """A constant of floats, or a default of that kind that a caller may override."""
    if value is None:
        return False
    tensor = value.const_value if is_overridable(value) else constant_tensor(value)
    return tensor is not None and is_float(tensor.dtype.numpy())


def _chain(nodes: list[ir.Node], layer: ir.Node, context: Context) -> Chain:
    for node, reader in itertools.pairwise(nodes):
        check_private(node.outputs[0], reader, context)
    others = _other_layers(nodes[-1].outputs[0], layer)
    if not others:
        check_private(nodes[-1].outputs[0], layer, context)
    operand = _data_input(nodes[0], context)
    assert operand is not None
    source = nodes[0].inputs[operand]
    assert source is not None
    _check_casts(nodes, source)
    whole = Map(np.ones(()), np.zeros(()))
    before: Map | None = whole
    in_place = True
    blocked: str | None = None
    values: dict[ir.Node, float] = {}
    for node in nodes:
        if affine_pad.is_pad(node):
            in_place = False
            whole, stays, values[node] = _padded(whole, node, context)
            before = before if affine_pad.repeats(node) or affine_pad.value_of(node, context) == 0.0 else None
            blocked = blocked or stays
        elif carries(node):
            in_place = False
            before = None if is_mean(node) else before
            whole = Map(moved(whole.scale, node, context), moved(whole.shift, node, context))
        elif not is_op(node, "Cast"):
            whole = whole.then(*_map_of(node, context))
            before = whole if in_place else None
    if not (np.isfinite(whole.scale).all() and np.isfinite(whole.shift).all()):
        raise Refusal("the map is not finite: it divides by zero or overflows")
    if blocked is not None and before is None:
        raise Refusal(blocked)
    return Chain(tuple(nodes), source, whole, before, blocked, values, others)


def _other_layers(value: ir.Value, layer: ir.Node) -> tuple[ir.Node, ...]:
    """The other readers of the value where all of them are layers of the same graph, which the value belongs to."""
    readers = list(dict.fromkeys(use.node for use in value.uses()))
    producer = value.producer()
    here = producer is not None and all(reader.graph is producer.graph for reader in readers)
    known = all(any(is_op(reader, name) for name in LAYERS) for reader in readers)
    if value.is_graph_output() or not here or not known or len(readers) != len(value.uses()):
        return ()
    return tuple(reader for reader in readers if reader is not layer)


def _padded(whole: Map, node: ir.Node, context: Context) -> tuple[Map, str | None, float]:
    """(the map behind a Pad, why its shift cannot pass, what the Pad adds in front of the map)."""
    value = affine_pad.value_of(node, context)
    scale = affine_pad.behind(whole.scale, node, context)
    shift = affine_pad.behind(whole.shift, node, context)
    if affine_pad.repeats(node):
        return Map(scale, shift), None, value
    added = affine_pad.in_front(value, *np.broadcast_arrays(whole.scale, whole.shift))
    if added is not None:
        return Map(scale, shift), None, added
    what = f"Pad {node_name(node)} adds {value:g} around what the shift reaches"
    if value != 0.0:
        raise Refusal(what)
    return Map(scale, np.zeros(())), what, value


def _check_casts(nodes: list[ir.Node], source: ir.Value) -> None:
    """Refusal unless the types end as they start, with nothing narrower in between."""
    casts = [node for node in nodes if is_op(node, "Cast")]
    end = nodes[-1].outputs[0].dtype
    if not casts:
        return
    if source.dtype != end or any(cast.outputs[0].dtype not in allowed_types(end) for cast in casts):
        raise Refusal("types change on the way", start=str(source.dtype), end=str(end))


def allowed_types(end: ir.DataType | None) -> set[ir.DataType | None]:
    """The types in which a chain that starts and ends in ``end`` may compute: none narrower."""
    return {end, ir.DataType.DOUBLE} | ({ir.DataType.FLOAT} if end in _HALF else set())


def _map_of(node: ir.Node, context: Context) -> tuple[FloatArray, FloatArray]:
    """(scale, shift) of one node."""
    if is_op(node, "BatchNormalization"):
        return _batch_norm(node, context)
    operand, found = _data_input(node, context), constant_map(node, context)
    assert operand is not None
    assert found is not None
    data = node.inputs[operand]
    assert data is not None
    for constant in found:
        _check_broadcast(constant, data, node)
    return found


def constant_map(node: ir.Node, context: Context) -> tuple[FloatArray, FloatArray] | None:
    """(scale, shift) of a Neg, or of a Mul, Div, Add or Sub by a constant; None for others.

    Whether the arrays broadcast over the data without enlarging it is for the caller to check.

    Raises:
        Refusal: a caller may override the constant.

    """
    one, zero = np.ones(()), np.zeros(())
    if is_op(node, "Neg"):
        return -one, zero
    operand = _data_input(node, context) if node.op_type in _ELEMENTWISE else None
    if operand is None:
        return None
    constant = constant_array(node.inputs[1 - operand], f"{op_name(node)}'s constant").astype(np.float64)
    with np.errstate(all="ignore"):
        if is_op(node, "Mul"):
            return constant, zero
        if is_op(node, "Div"):
            return np.asarray(1.0 / constant), zero
        if is_op(node, "Add"):
            return one, constant
        return (one, -constant) if operand == 0 else (-one, constant)


def _batch_norm(node: ir.Node, context: Context) -> tuple[FloatArray, FloatArray]:
    """Along axis 1 of an input whose rank must be known."""
    affine = affine_of(node, context)
    data = node.inputs[0]
    assert data is not None
    if data.shape is None or len(data.shape) < 2:
        raise Refusal("the rank of its input is not known", input=data.name)
    shape = (-1, *(1,) * (len(data.shape) - 2))
    return affine.scale.reshape(shape), affine.shift.reshape(shape)


def _check_broadcast(constant: FloatArray, data: ir.Value, node: ir.Node) -> None:
    """Refusal (reason 3) unless the result certainly has the data's shape."""
    if constant.ndim == 0:
        return
    what = f"the constant of {op_name(node)} {node_name(node)}"
    if data.shape is None:
        raise Refusal(f"{what} may enlarge its input, whose rank is not known", constant=constant.shape)
    if constant.ndim > len(data.shape):
        raise Refusal(f"{what} has more axes than its input", constant=constant.shape, input=str(data.shape))
    for size, known in zip(full_rank(constant, len(data.shape)).shape, data.shape, strict=True):
        if size not in (1, known):
            raise Refusal(f"{what} may enlarge its input", constant=constant.shape, input=str(data.shape))
