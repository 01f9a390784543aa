"""fold/batch-norm-into-conv: BatchNormalization(Conv(x, W, B)) = Conv(x, a * W, a * B + b).

W is (out channels, in channels / group, *kernel): a runs along axis 0 whatever the group. Padding does not matter,
since the map is applied to the output.

Refused: the reasons of ``onnxnorm.passes.fold.batch_norm``.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.fold.batch_norm import FloatArray, FoldBatchNormIntoLayer, along, check_channels


class FoldBatchNormIntoConv(FoldBatchNormIntoLayer):
    """See the module."""

    id: ClassVar[str] = "fold/batch-norm-into-conv"
    layer: ClassVar[str] = "Conv"

    def scale_weight(self, layer: ir.Node, weight: FloatArray, scale: FloatArray) -> tuple[FloatArray, int]:
        """Scales axis 0."""
        check_channels(scale, weight.shape[0], layer)
        return weight * along(0, scale, weight.ndim), 0
