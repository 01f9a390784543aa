"""fold/affine-into-gemm: Gemm(a * x + b, W, C) = alpha * op(x) W' + (beta * C + alpha * b W), W' = a * op(W) by row.

The scale runs along the axis that the product sums over: the columns of op(A), or where A is the constant factor the
rows of op(B). alpha, transA and transB stay; where a shift goes into C, beta becomes 1. C may be a scalar, (N,),
(1, N), (M, 1), (M, N) or missing.

Refused: the reasons of ``onnxnorm.passes.fold.affine_into_layer``, and
    6. alpha, beta, transA or transB is an attribute of the function that the layer stands in, or the weight is no
       matrix.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.fold.affine import Chain
from onnxnorm.passes.fold.affine_into_layer import FoldAffineIntoLayer, bias_problem
from onnxnorm.passes.fold.affine_layout import FloatArray
from onnxnorm.passes.graph import attribute, constant_tensor, node_name
from onnxnorm.passes.rule import Context, Refusal, constant_array


class FoldAffineIntoGemm(FoldAffineIntoLayer):
    """See the module."""

    id: ClassVar[str] = "fold/affine-into-gemm"
    operators: ClassVar[frozenset[str]] = frozenset({"Gemm"})
    layer: ClassVar[str] = "Gemm"

    def data_input(self, layer: ir.Node) -> int:
        """B where only A is constant."""
        return 1 if constant_tensor(layer.inputs[0]) is not None and constant_tensor(layer.inputs[1]) is None else 0

    def data_axis(self, layer: ir.Node, weight: FloatArray) -> int:
        """Columns of op(A) or rows of op(B)."""
        if weight.ndim != 2:
            raise Refusal("Gemm's weight is not a matrix", shape=weight.shape)
        first = self.data_input(layer) == 0
        transposed = known(layer, "transA" if first else "transB", 0)
        return -2 if bool(transposed) == first else -1

    def channels(self, layer: ir.Node, weight: FloatArray) -> int:
        """Rows of op(B) or columns of op(A)."""
        return int(weight.shape[1 - self.output_axis(layer, weight)])

    def scaled(self, layer: ir.Node, weight: FloatArray, scale: FloatArray) -> FloatArray:
        """Along the axis that is summed over."""
        return weight * np.expand_dims(scale, self.output_axis(layer, weight))

    def response(self, layer: ir.Node, weight: FloatArray, shift: FloatArray) -> FloatArray:
        """(N,), or (M, 1) where the data are B; without alpha."""
        total: FloatArray = self.scaled(layer, weight, shift).sum(axis=1 - self.output_axis(layer, weight))
        return total if self.data_input(layer) == 0 else total[:, None]

    def output_axis(self, layer: ir.Node, weight: FloatArray) -> int:
        """Columns of op(B) or rows of op(A)."""
        first = self.data_input(layer) == 0
        transposed = bool(known(layer, "transB" if first else "transA", 0))
        return int(transposed != first)

    def shift_problem(self, layer: ir.Node, weight: FloatArray, chain: Chain, context: Context) -> str | None:
        """A C that is not constant."""
        return bias_problem(layer)

    def build(
        self, layer: ir.Node, data: ir.Value, weight: ir.Value, bias: FloatArray | None, context: Context
    ) -> tuple[list[ir.Node], list[ir.Node]]:
        """The same node with other inputs; beta 1 where C changes."""
        factors = [data, weight] if self.data_input(layer) == 0 else [weight, data]
        attributes = dict(layer.attributes)
        added = list(layer.inputs[2:])
        if bias is not None:
            name = added[0].name if added and added[0] is not None else f"{node_name(layer)}_bias"
            total = own_term(layer) + number(layer, "alpha") * bias
            assert weight.dtype is not None
            added = [context.constant(f"{name}_folded", total, weight.dtype)]
            attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        return [ir.node("Gemm", [*factors, *added], attributes, name=layer.name)], [layer]


def own_term(layer: ir.Node) -> FloatArray:
    """Gemm's beta * C, 0 where there is none; Refusal where it is not known."""
    if len(layer.inputs) < 3 or layer.inputs[2] is None:
        return np.zeros(())
    added = constant_array(layer.inputs[2], "Gemm's C").astype(np.float64)
    if added.ndim > 2:
        raise Refusal("Gemm's C has more than two axes", shape=added.shape)
    return np.asarray(added * number(layer, "beta"))


def number(layer: ir.Node, name: str) -> float:
    """Alpha or beta as ONNX stores it."""
    return float(np.float32(known(layer, name, 1.0)))


def known(layer: ir.Node, name: str, default: Any) -> Any:
    """The attribute's value; Refusal (reason 6) where a function's caller decides it."""
    value = attribute(layer, name, default)
    if value is None:
        raise Refusal(f"Gemm's {name} is an attribute of the function that it stands in")
    return value
