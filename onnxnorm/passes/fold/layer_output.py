"""The channels of what a layer with constant weights makes, and the layer with an affine map of them in its weights.

    Conv, ConvTranspose   axis 1, also of groups
    Gemm                  columns where B is the weight, rows where A is
    MatMul                the last axis where the weight is on the right, the one before it where it is on the left;
                          each matrix of a stack has its own
    Gather                of rows of a table: all axes of a row

The channels are given as an array of their numbers that broadcasts over the output from the right, so that it can be
followed through operators that move elements (``affine_layout.moved``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.fold.affine_into_gemm import known, own_term
from onnxnorm.passes.fold.batch_norm import FloatArray, FoldBatchNormIntoLayer
from onnxnorm.passes.fold.batch_norm_into_conv import FoldBatchNormIntoConv
from onnxnorm.passes.fold.batch_norm_into_conv_transpose import FoldBatchNormIntoConvTranspose
from onnxnorm.passes.fold.batch_norm_into_gemm import FoldBatchNormIntoGemm
from onnxnorm.passes.graph import attribute, constant_tensor, is_op, is_overridable, node_name, rank_of
from onnxnorm.passes.large import exact
from onnxnorm.passes.rule import Context, check_underflow, constant_array

#: How a scale of the output goes into the second input, by operator.
_LAYERS: dict[str, FoldBatchNormIntoLayer] = {
    rule.layer: rule for rule in (FoldBatchNormIntoConv(), FoldBatchNormIntoConvTranspose(), FoldBatchNormIntoGemm())
}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
OPERATORS = frozenset({*_LAYERS, "MatMul"})
#: With those that read rows of a table.
WITH_TABLES = frozenset({*OPERATORS, "Gather"})


@dataclass(frozen=True)
class Output:
    """A layer's output.

    Attributes:
        channels: how many there are.
        index: the channel of each element, broadcasting over the output from the right.

    """

    channels: int
    index: FloatArray


def weight_input(layer: ir.Node) -> int:
    """Which input is the weight: the first of Gemm or MatMul where only that one is constant."""
    if is_op(layer, "Gather"):
        return 0
    if not (is_op(layer, "MatMul") or is_op(layer, "Gemm")):
        return 1
    return int(is_parameter(layer.inputs[1]) or not is_parameter(layer.inputs[0]))


def is_parameter(value: ir.Value | None) -> bool:
    """Whether the value is a constant, also one that a caller may override."""
    return value is not None and (is_overridable(value) or constant_tensor(value) is not None)


def output_of(layer: ir.Node) -> Output | None:
    """What is known of the layer's output, None where it has no weight of a known shape."""
    if not any(is_op(layer, name) for name in WITH_TABLES) or len(layer.inputs) < 2:
        return None
    side = weight_input(layer)
    weight = layer.inputs[side]
    shape = None if weight is None else weight.shape
    if weight is None or shape is None or not all(isinstance(size, int) and size > 0 for size in shape):
        return None
    sizes = [int(size) for size in shape if isinstance(size, int)]
    if is_op(layer, "Gather"):
        table = attribute(layer, "axis", 0) == 0 and is_parameter(weight) and weight.dtype in _FLOATS
        return _along(int(np.prod(sizes[1:])), tuple(sizes[1:])) if table and sizes else None
    if is_op(layer, "MatMul"):
        return _matmul_output(layer, sizes, side)
    if is_op(layer, "Gemm"):
        return _gemm_output(layer, sizes, side)
    if len(sizes) < 3:
        return None
    group = 1 if is_op(layer, "Conv") else attribute(layer, "group", 1)
    if group is None:
        return None
    return _along(sizes[0] if is_op(layer, "Conv") else group * sizes[1], (1, -1, *(1,) * (len(sizes) - 2)))


def _along(channels: int, shape: tuple[int, ...]) -> Output:
    return Output(channels, np.arange(channels, dtype=np.float64).reshape(shape))


def _gemm_output(layer: ir.Node, sizes: list[int], side: int) -> Output | None:
    transposed = attribute(layer, ("transA", "transB")[side], 0)
    if len(sizes) != 2 or transposed is None:
        return None
    return _along(sizes[side == 1 if not transposed else side == 0], (1, -1) if side == 1 else (-1, 1))


def _matmul_output(layer: ir.Node, sizes: list[int], side: int) -> Output | None:
    """With a vector as data, an axis is missing: then only a matrix on the right is followed."""
    data = layer.inputs[1 - side]
    rank = None if data is None else rank_of(data)
    plain = len(sizes) == 2 and side == 1
    if len(sizes) < 2 or (not plain and (rank is None or rank < 2)):
        return None
    channels = int(np.prod(sizes)) // sizes[-2 if side == 1 else -1]
    if plain:
        return _along(channels, (-1,))
    return _along(channels, (*sizes[:-2], 1, sizes[-1]) if side == 1 else (*sizes[:-1], 1))


def mapped(layer: ir.Node, output: Output, scale: FloatArray, shift: FloatArray, context: Context) -> list[ir.Node]:
    """Nodes that make scale * layer + shift, (channels,) each; Refusal where weight or bias cannot take them.

    MatMul gets an Add behind it where there is something to add.
    """
    side = weight_input(layer)
    value = layer.inputs[side]
    assert value is not None
    array = constant_array(value, f"{layer.op_type}'s weight")
    weight, dtype = exact(array), ir.DataType.from_numpy(array.dtype)
    if is_op(layer, "Gather"):
        table = weight * scale.reshape(output.index.shape)
        table = table + shift.reshape(output.index.shape) if shift.any() else table
        folded = context.constant(f"{value.name}_folded", table, dtype)
        return [ir.node("Gather", [folded, layer.inputs[1]], dict(layer.attributes), name=layer.name)]
    if is_op(layer, "MatMul"):
        scaled = weight * scale.reshape(output.index.shape)
        if scaled.ndim == 2:
            check_underflow(scaled, dtype, side)
        else:
            columns = np.asarray(scaled).swapaxes(-1, -2) if side == 1 else np.asarray(scaled)
            check_underflow(columns.reshape(-1, columns.shape[-1]), dtype, 0)
        bias = shift.reshape(output.index.shape)
    elif is_op(layer, "Gemm") and side == 0:
        axis = 1 if known(layer, "transA", 0) else 0
        scaled = weight * np.expand_dims(scale, 1 - axis)
        check_underflow(scaled, dtype, axis)
        bias = own_term(layer) * scale[:, None] + shift[:, None]
    else:
        how = _LAYERS[layer.op_type]
        scaled, axis = how.scale_weight(layer, weight, scale)
        check_underflow(scaled, dtype, axis)
        bias = how.bias(layer, scale.size, context) * scale + shift
    return _made(layer, side, context.constant(f"{value.name}_folded", scaled, dtype), bias, context)


def _made(layer: ir.Node, side: int, weight: ir.Value, bias: FloatArray, context: Context) -> list[ir.Node]:
    inputs: list[ir.Value | None] = [layer.inputs[0], layer.inputs[1]]
    inputs[side] = weight
    assert weight.dtype is not None
    if is_op(layer, "MatMul"):
        new = [ir.node("MatMul", inputs, name=layer.name)]
        if bias.any():
            term = context.constant(f"{weight.name}_bias", bias, weight.dtype)
            name = context.fresh_name(f"{node_name(layer)}_bias")
            new.append(ir.node("Add", [new[0].outputs[0], term], name=name))
    else:
        attributes = _LAYERS[layer.op_type].attributes(layer)
        term = context.constant(f"{weight.name}_bias", bias, weight.dtype)
        new = [ir.node(layer.op_type, [*inputs, term], attributes, name=layer.name)]
    for node in new:
        node.outputs[0].type, node.outputs[0].shape = layer.outputs[0].type, layer.outputs[0].shape
    return new
