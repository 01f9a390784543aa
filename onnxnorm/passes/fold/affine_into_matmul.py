"""fold/affine-into-matmul: MatMul(a * x + b, W) [+ c] = MatMul(x, a * W by row) + (c + b W).

The features are the axis that the product sums over: the last one of the left factor, the one before the last of a
right factor (of rank 2 or more) whose left factor is constant; W may be a stack of matrices. What the shift adds goes
into the constant that an Add behind the product adds, if it is the product's only reader. Without such an Add the
layer becomes Gemm where everything has rank 2, or gets an Add in place of at least two maps.

Refused: the reasons of ``onnxnorm.passes.fold.affine_into_layer``, and
    6. The data have rank 1 on the right, or a rank that is not known there, or the weight has less than two axes.
    7. There is one map only, and no constant behind the product that takes the shift.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.fold.affine import Chain
from onnxnorm.passes.fold.affine_into_layer import FoldAffineIntoLayer
from onnxnorm.passes.fold.affine_layout import FloatArray
from onnxnorm.passes.graph import constant_tensor, is_op, is_overridable, node_name, rank_of, sole_consumer
from onnxnorm.passes.rule import Context, Refusal, constant_array


class FoldAffineIntoMatMul(FoldAffineIntoLayer):
    """See the module."""

    id: ClassVar[str] = "fold/affine-into-matmul"
    operators: ClassVar[frozenset[str]] = frozenset({"MatMul"})
    layer: ClassVar[str] = "MatMul"

    def data_input(self, layer: ir.Node) -> int:
        """The right factor where only the left one is constant."""
        return 1 if constant_tensor(layer.inputs[0]) is not None and constant_tensor(layer.inputs[1]) is None else 0

    def data_axis(self, layer: ir.Node, weight: FloatArray) -> int:
        """The last axis, or the one before it for data on the right."""
        if weight.ndim < 2:
            raise Refusal("MatMul's weight has less than two axes", shape=weight.shape)
        if self.data_input(layer) == 0:
            return -1
        data = layer.inputs[1]
        rank = None if data is None else rank_of(data)
        if rank is None or rank < 2:
            raise Refusal("the rank of MatMul's right factor is not known, or it is 1", rank=rank)
        return -2

    def channels(self, layer: ir.Node, weight: FloatArray) -> int:
        """The axis of the weight that is summed over."""
        return int(weight.shape[-2 if self.data_input(layer) == 0 else -1])

    def scaled(self, layer: ir.Node, weight: FloatArray, scale: FloatArray) -> FloatArray:
        """By row, or by column for data on the right."""
        return weight * (scale[:, None] if self.data_input(layer) == 0 else scale)

    def response(self, layer: ir.Node, weight: FloatArray, shift: FloatArray) -> FloatArray:
        """(..., out) or (..., 1, out) of a stack; (..., out, 1) for data on the right."""
        if self.data_input(layer) == 1:
            column: FloatArray = self.scaled(layer, weight, shift).sum(axis=-1, keepdims=True)
            return column
        row: FloatArray = self.scaled(layer, weight, shift).sum(axis=-2, keepdims=weight.ndim > 2)
        return row

    def output_axis(self, layer: ir.Node, weight: FloatArray) -> int:
        """The other one of the last two axes."""
        return weight.ndim - (1 if self.data_input(layer) == 0 else 2)

    def shift_problem(self, layer: ir.Node, weight: FloatArray, chain: Chain, context: Context) -> str | None:
        """Reason 7, or an added constant that a caller may override."""
        add, value = bias_add(layer, context)
        if add is not None and value is not None and is_overridable(value):
            return "the constant behind MatMul is a graph input that a caller may override"
        if add is not None or becomes_gemm(layer, weight) or len(chain.maps) > 1:
            return None
        if is_op(chain.maps[0], "BatchNormalization"):
            return None
        return "MatMul has no constant behind it that could take the shift"

    def build(
        self, layer: ir.Node, data: ir.Value, weight: ir.Value, bias: FloatArray | None, context: Context
    ) -> tuple[list[ir.Node], list[ir.Node]]:
        """MatMul, and Add where there is something to add; Gemm in place of both where there was no Add."""
        factors = [data, weight] if self.data_input(layer) == 0 else [weight, data]
        if bias is None:
            return [ir.node("MatMul", factors, name=layer.name)], [layer]
        assert weight.dtype is not None
        add, value = bias_add(layer, context)
        array = weight.meta["exact"]
        if add is None and becomes_gemm(layer, array):
            term = context.constant(f"{node_name(layer)}_bias", bias, weight.dtype)
            return [ir.node("Gemm", [data, weight, term], name=layer.name)], [layer]
        own = np.zeros(()) if value is None else constant_array(value, "added constant").astype(np.float64)
        wish = value.name if value is not None and value.name else f"{node_name(layer)}_bias"
        term = context.constant(f"{wish}_folded", own + bias, weight.dtype)
        product = ir.node("MatMul", factors, name=layer.name)
        product.outputs[0].type, product.outputs[0].shape = layer.outputs[0].type, layer.outputs[0].shape
        name = add.name if add is not None and add.name else context.fresh_name(f"{node_name(layer)}_add")
        total = ir.node("Add", [product.outputs[0], term], name=name)
        return [product, total], [layer] if add is None else [layer, add]


def bias_add(layer: ir.Node, context: Context) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add behind a product and the constant (or default that a caller may override) that it adds."""
    add = sole_consumer(layer.outputs[0])
    if add is None or not is_op(add, "Add") or add.graph is not context.graph:
        return None, None
    value = add.inputs[1] if add.inputs[0] is layer.outputs[0] else add.inputs[0]
    if value is None or not (is_overridable(value) or constant_tensor(value) is not None):
        return None, None
    return add, value


def becomes_gemm(layer: ir.Node, weight: FloatArray) -> bool:
    """Whether the product is one of matrices with the weight on the right."""
    data = layer.inputs[0]
    first = data is not None and constant_tensor(data) is None
    return first and weight.ndim == 2 and data is not None and rank_of(data) == 2
