"""fold/batch-norm-into-conv-transpose: BatchNormalization(ConvTranspose(x, W, B)) = ConvTranspose(x, W', a * B + b).

W is (in channels, out channels / group, *kernel). Input channel i belongs to group i // (in / group), and its column j
feeds output channel (group index) * (out / group) + j: W'[i, j] = a[that channel] * W[i, j]. Overlapping kernels add
up, which a scale of the output leaves linear.

Refused: the reasons of ``onnxnorm.passes.fold.batch_norm``, and a group that does not divide the input channels.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.fold.batch_norm import FloatArray, FoldBatchNormIntoLayer, check_channels
from onnxnorm.passes.graph import attribute
from onnxnorm.passes.rule import Refusal


class FoldBatchNormIntoConvTranspose(FoldBatchNormIntoLayer):
    """See the module."""

    id: ClassVar[str] = "fold/batch-norm-into-conv-transpose"
    layer: ClassVar[str] = "ConvTranspose"

    def scale_weight(self, layer: ir.Node, weight: FloatArray, scale: FloatArray) -> tuple[FloatArray, int]:
        """Scales axis 1 within each group."""
        group = attribute(layer, "group", 1)
        if group is None or group < 1 or weight.shape[0] % group:
            raise Refusal("group does not divide the input channels", group=group, channels=weight.shape[0])
        check_channels(scale, group * weight.shape[1], layer)
        factors = scale.reshape(group, weight.shape[1], *[1] * (weight.ndim - 2))
        return weight * np.repeat(factors, weight.shape[0] // group if group > 1 else 1, axis=0), 1
