"""Weights that are stored as whole numbers: DequantizeLinear of constants, and how a factor goes into its scales.

w = s * (q - z), with one scale s and zero point z for the tensor, for each index of one axis, or for each block along
an axis. A factor f for each element of w becomes s' = s * |f| where s' has a form that DequantizeLinear knows; where f
is negative, q' = 2 z - q, and where it is 0, q' = z. Nothing is quantized anew, so that w' = f * w but for the rounding
of s'. Of a fake-quantized weight, DequantizeLinear(QuantizeLinear(w)) of a constant w, the whole numbers are computed
first, as QuantizeLinear computes them.

Operators that move elements may stand between DequantizeLinear and the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.passes.canonicalize.evaluate import LAYOUT, compute
from onnxnorm.passes.graph import STANDARD, attribute, constant_tensor, is_op, node_name, tensor_of
from onnxnorm.passes.rule import Context, Refusal, check_underflow, constant_array

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

_WHOLE = frozenset(
    {ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16}
    | {ir.DataType.INT32}
)
#: ONNX Runtime had 16 and 4 bits in a domain of its own before ONNX had them.
_DOMAINS = (*STANDARD, "com.microsoft")
#: Since this opset the standard operator has an axis.
_AXIS_SINCE = 13


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight that DequantizeLinear makes of constants.

    Attributes:
        node: the DequantizeLinear.
        quantize: the QuantizeLinear of a constant in front of it.
        layout: what moves its elements on the way to the layer, in order.
        shape: of the weight as the layer reads it.
        dtype: the type of the weight's elements.

    """

    node: ir.Node
    quantize: ir.Node | None
    layout: tuple[ir.Node, ...]
    shape: tuple[int, ...]
    dtype: ir.DataType

    @property
    def nodes(self) -> list[ir.Node]:
        """All nodes that make the weight, in order."""
        return [*([self.quantize] if self.quantize is not None else []), self.node, *self.layout]


def is_quantize(node: ir.Node | None, op_type: str) -> bool:
    """Whether it is QuantizeLinear or DequantizeLinear, as named."""
    return node is not None and node.op_type == op_type and node.domain in _DOMAINS


def quantized_weight(value: ir.Value | None, context: Context) -> QuantizedWeight | None:
    """What is known of a weight, None where DequantizeLinear of constants does not make it."""
    layout: list[ir.Node] = []
    node = None if value is None else value.producer()
    while node is not None and node.domain in STANDARD and node.op_type in LAYOUT and node.inputs[0] is not None:
        layout.insert(0, node)
        node = node.inputs[0].producer()
    if node is None or not is_quantize(node, "DequantizeLinear") or len(node.inputs) < 2:
        return None
    stored = node.inputs[0]
    quantize = None if stored is None else stored.producer()
    source = quantize.inputs[0] if quantize is not None and is_quantize(quantize, "QuantizeLinear") else stored
    tensor = constant_tensor(source)
    dtype = node.outputs[0].dtype or _type_of(node)
    if tensor is None or dtype is None or (source is stored and tensor.dtype not in _WHOLE):
        return None
    weight = QuantizedWeight(node, quantize if source is not stored else None, tuple(layout), (), dtype)
    places = _places(weight, tuple(tensor.shape.numpy()), context)
    return None if places is None else QuantizedWeight(node, weight.quantize, weight.layout, places.shape, dtype)


def _type_of(node: ir.Node) -> ir.DataType | None:
    scale = constant_tensor(node.inputs[1])
    return None if scale is None else scale.dtype


def _places(weight: QuantizedWeight, stored: tuple[int, ...], context: Context) -> Array | None:
    """For each element that the layer reads, its place among those that are stored."""
    places: Array | None = np.arange(int(np.prod(stored, dtype=np.int64))).reshape(stored)
    for node in weight.layout:
        if places is None:
            return None
        rest = [tensor_of(value) for value in node.inputs[1:]]
        places = compute(node, [places, *rest], context.opset, places.size)
    return places


def dequantized(value: ir.Value, context: Context) -> FloatArray | None:
    """The numbers of DequantizeLinear of constants, None for anything else."""
    weight = quantized_weight(value, context)
    if weight is None or weight.layout:
        return None
    numbers, zero, scale = _parts(weight)
    return np.asarray((numbers.astype(np.float64) - zero) * scale)


def scaled_weight(weight: QuantizedWeight, factor: FloatArray, context: Context) -> list[ir.Node]:
    """Nodes that make factor * weight; the last one's output is that.

    Raises:
        Refusal: no scales and whole numbers of the given form and type make that.

    """
    numbers, zero, scale = _parts(weight)
    places = _places(weight, numbers.shape, context)
    assert places is not None
    flat = np.empty(numbers.size)
    flat[places.reshape(-1)] = np.broadcast_to(factor, places.shape).reshape(-1)
    own = flat.reshape(numbers.shape)
    mirrored = np.where(own < 0, 2 * zero - numbers.astype(np.float64), numbers.astype(np.float64))
    mirrored = np.where(own == 0, np.broadcast_to(zero, mirrored.shape), mirrored)
    whole = _stored(mirrored, numbers.dtype, weight)
    scales, axis = _scales(weight, np.where(own == 0, 1.0, np.abs(own)) * scale, context)
    check_underflow(scales.reshape(-1, 1), weight.dtype, 0)
    node = weight.node
    inputs: list[ir.Value | None] = [
        _whole_input(weight, whole, numbers, context),
        context.constant(f"{node.inputs[1].name if node.inputs[1] else 'scale'}_folded", scales, weight.dtype),
    ]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        inputs.append(_zero_point(node.inputs[2], scales.shape, context))
    attributes = {name: item for name, item in node.attributes.items() if name != "axis"}
    if axis is not None:
        attributes["axis"] = ir.AttrInt64("axis", axis)
    nodes = [ir.node(node.op_type, inputs, attributes, domain=node.domain, name=context.fresh_name(node_name(node)))]
    for old in weight.layout:
        name = context.fresh_name(node_name(old))
        nodes.append(ir.node(old.op_type, [nodes[-1].outputs[0], *old.inputs[1:]], dict(old.attributes), name=name))
    for new, old in zip(nodes, [node, *weight.layout], strict=True):
        new.outputs[0].type, new.outputs[0].shape = old.outputs[0].type, old.outputs[0].shape
    return nodes


def _parts(weight: QuantizedWeight) -> tuple[Array, FloatArray, FloatArray]:
    """(whole numbers, zero point, scale); the last two broadcast over the first."""
    node = weight.node
    source = node.inputs[0] if weight.quantize is None else weight.quantize.inputs[0]
    numbers = tensor_of(source)
    assert numbers is not None
    scale = _spread(node, 1, numbers.shape)
    if weight.quantize is not None:
        return _quantized(weight.quantize, numbers), _zero(node, numbers.shape), scale
    return numbers, _zero(node, numbers.shape), scale


def _zero(node: ir.Node, shape: tuple[int, ...]) -> FloatArray:
    present = len(node.inputs) > 2 and node.inputs[2] is not None
    return _spread(node, 2, shape) if present else np.zeros(())


def _spread(node: ir.Node, index: int, shape: tuple[int, ...]) -> FloatArray:
    """A scale or zero point as it broadcasts over a tensor of that shape."""
    value, role = node.inputs[index], ("", f"{node.op_type}'s scale", f"{node.op_type}'s zero point")[index]
    given = constant_array(value, role) if index == 1 else tensor_of(value)
    if given is None:
        raise Refusal(f"{role} is not constant", input=value.name if value is not None else None)
    array = given.astype(np.float64)
    if array.size == 1:
        return array.reshape(())
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    axis = None if axis is None else axis + len(shape) if axis < 0 else axis
    if axis is None or block is None or not 0 <= axis < len(shape):
        raise Refusal(f"the axis of {role} is not known", axis=axis)
    if block:
        spread = np.repeat(array, block, axis) if array.ndim == len(shape) else array
        spread = spread[(slice(None),) * axis + (slice(shape[axis]),)]
    else:
        spread = array.reshape([-1 if index == axis else 1 for index in range(len(shape))])
    if spread.ndim != len(shape) or any(
        size not in (1, whole) for size, whole in zip(spread.shape, shape, strict=True)
    ):
        raise Refusal(f"{role} does not fit the weight", shape=array.shape, weight=shape)
    return spread


def _quantized(node: ir.Node, numbers: Array) -> Array:
    """What QuantizeLinear makes: round(x / scale) to even in float32, plus the zero point, within the type's range."""
    scale, zero = _spread(node, 1, numbers.shape), _zero(node, numbers.shape)
    dtype = node.outputs[0].dtype
    if dtype not in _WHOLE or dtype == ir.DataType.INT32 or attribute(node, "precision", 0):
        raise Refusal("the type that QuantizeLinear makes is not known", type=str(dtype))
    low, high = _range(dtype)
    wide = np.float64 if numbers.dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        steps = np.rint(numbers.astype(wide) / scale.astype(wide)).astype(np.float64) + zero
    if not np.isfinite(steps).all():
        raise Refusal("QuantizeLinear of the weight is not finite")
    return np.asarray(np.clip(steps, low, high).astype(np.int64).astype(dtype.numpy()))


def _range(dtype: ir.DataType) -> tuple[int, int]:
    bits = dtype.bitwidth
    return (0, 2**bits - 1) if dtype.name.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _stored(numbers: FloatArray, dtype: np.dtype[Any], weight: QuantizedWeight) -> Array:
    """The whole numbers in their type; Refusal where the negative of one has no place in it."""
    kind = ir.DataType.from_numpy(dtype)
    low, high = _range(kind)
    wrong = (numbers < low) | (numbers > high)
    if wrong.any():
        raise Refusal(
            f"a negative scale would make {numbers[wrong][0]:.0f} of a weight, beyond {kind.name.lower()}",
            weight=node_name(weight.node),
            count=int(wrong.sum()),
        )
    return numbers.astype(np.int64).astype(dtype)


def _scales(weight: QuantizedWeight, full: FloatArray, context: Context) -> tuple[FloatArray, int | None]:
    """(scales in a form that DequantizeLinear takes, their axis); ``full`` has one for each element.

    The given form where it is enough, one scale per index of an axis where that was one for all.
    """
    node = weight.node
    given = constant_array(node.inputs[1], "scale")
    full = np.broadcast_to(full, weight_shape(weight))
    written = attribute(node, "axis", 1)
    axis = written + full.ndim if written < 0 else written
    if (full == full.flat[0]).all() and given.size == 1:
        return np.full(given.shape, full.flat[0]), written if "axis" in node.attributes else None
    block = attribute(node, "block_size", 0)
    if block:
        first = full[(slice(None),) * axis + (slice(None, None, block),)]
        again = np.repeat(first, block, axis)[(slice(None),) * axis + (slice(full.shape[axis]),)]
        if (again == full).all():
            return first, written
        raise Refusal("the scale differs within the blocks of a quantized weight", axis=axis, block_size=block)
    for along in [axis] if given.size > 1 else range(full.ndim):
        lines = np.moveaxis(full, along, 0).reshape(full.shape[along], -1)
        if (lines == lines[:, :1]).all():
            if node.domain in STANDARD and context.opset < _AXIS_SINCE:
                raise Refusal("DequantizeLinear has one scale before opset 13", opset=context.opset)
            return lines[:, 0].copy(), along
    raise Refusal(
        "the scale differs along another axis than that of the quantized weight's scales",
        weight=node_name(node),
        axis=axis if given.size > 1 else None,
    )


def weight_shape(weight: QuantizedWeight) -> tuple[int, ...]:
    """The shape in which it is stored."""
    source = weight.node.inputs[0] if weight.quantize is None else weight.quantize.inputs[0]
    tensor = constant_tensor(source)
    assert tensor is not None
    return tuple(tensor.shape.numpy())


def _whole_input(weight: QuantizedWeight, whole: Array, numbers: Array, context: Context) -> ir.Value | None:
    """The stored numbers where they stay, new ones otherwise."""
    value = weight.node.inputs[0]
    assert value is not None
    if weight.quantize is None and np.array_equal(whole, numbers):
        return value
    return _constant(f"{value.name}_folded", whole, context)


def _zero_point(value: ir.Value, shape: tuple[int, ...], context: Context) -> ir.Value:
    """The zero point, once for each scale."""
    array = tensor_of(value)
    assert array is not None
    if array.shape == shape:
        return value
    return _constant(f"{value.name}_folded", np.broadcast_to(array.reshape(-1)[:1], shape).copy(), context)


def _constant(wish: str, array: Array, context: Context) -> ir.Value:
    name, dtype = context.fresh_name(wish), ir.DataType.from_numpy(array.dtype)
    tensor = ir.tensor(array, dtype=dtype, name=name)
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=tensor)


def quantized_behind(norm: ir.Node) -> ir.Node | None:
    """The node that rounds to whole numbers what BatchNormalization reads, when a layer is behind it."""
    value = norm.inputs[0] if norm.inputs else None
    node = None if value is None else value.producer()
    while node is not None and node.domain in STANDARD and node.op_type in ("Cast", "Mul", "Add", *LAYOUT):
        node = next((item.producer() for item in node.inputs if item is not None and item.producer()), None)
    if node is not None and node.op_type in ("ConvInteger", "MatMulInteger"):
        return node
    if node is None or not is_quantize(node, "DequantizeLinear") or node.inputs[0] is None:
        return None
    source = node.inputs[0].producer()
    if source is None:
        return None
    if source.op_type.startswith("QLinear"):
        return source
    layer = source.inputs[0].producer() if is_quantize(source, "QuantizeLinear") and source.inputs[0] else None
    named = layer is not None and any(is_op(layer, name) for name in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add"))
    return source if named else None
