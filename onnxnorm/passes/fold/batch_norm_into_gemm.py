"""fold/batch-norm-into-gemm: BatchNormalization(alpha * A' B' + beta * C) with a on the columns of B' and C.

Gemm's output is (N, channels), so BatchNormalization's axis 1 is its columns: B' = op(B) is scaled by column (rows of B
with transB), C becomes a * beta * C + b with beta 1. alpha, transA and transB stay.

Refused: the reasons of ``onnxnorm.passes.fold.batch_norm``, and transB or beta that is an attribute of a function.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.fold.batch_norm import FloatArray, FoldBatchNormIntoLayer, along, check_channels
from onnxnorm.passes.graph import attribute
from onnxnorm.passes.rule import Context, Refusal, constant_array


class FoldBatchNormIntoGemm(FoldBatchNormIntoLayer):
    """See the module."""

    id: ClassVar[str] = "fold/batch-norm-into-gemm"
    layer: ClassVar[str] = "Gemm"

    def scale_weight(self, layer: ir.Node, weight: FloatArray, scale: FloatArray) -> tuple[FloatArray, int]:
        """Scales the columns of op(B)."""
        transposed = attribute(layer, "transB", 0)
        if transposed is None:
            raise Refusal("Gemm's transB is an attribute of the function that it stands in")
        if weight.ndim != 2:
            raise Refusal("Gemm's B is not a matrix", shape=weight.shape)
        axis = 0 if transposed else 1
        check_channels(scale, weight.shape[axis], layer)
        return weight * along(axis, scale, 2), axis

    def bias(self, layer: ir.Node, channels: int, context: Context) -> FloatArray:
        """Beta * C, which may be (channels,), (1, channels), (N, channels), (N, 1) or a scalar."""
        if len(layer.inputs) < 3 or layer.inputs[2] is None:
            return np.zeros(channels)
        beta = attribute(layer, "beta", 1.0)
        if beta is None:
            raise Refusal("Gemm's beta is an attribute of the function that it stands in")
        added = constant_array(layer.inputs[2], "Gemm's C").astype(np.float64)
        if added.ndim > 2 or added.shape[-1:] not in ((), (1,), (channels,)):
            raise Refusal("Gemm's C does not broadcast to its output", shape=added.shape, channels=channels)
        return added * float(np.float32(beta))

    def attributes(self, layer: ir.Node) -> dict[str, ir.Attr]:
        """Beta is in the new C."""
        return {**layer.attributes, "beta": ir.AttrFloat32("beta", 1.0)}
