"""fold/affine-into-conv-transpose: ConvTranspose(a * x + b, W, B) = ConvTranspose(x + b / a, a * W, B).

W is (in channels, out channels / group, *kernel): a runs along axis 0 whatever the group. A shift adds to each position
of the result as many kernel elements as overlap there, which is the same everywhere only for kernel 1 and stride 1
without padding; then it goes into the bias. Otherwise it stays in front.

Refused: the reasons of ``onnxnorm.passes.fold.affine_into_layer``, and a group that does not divide the channels.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.fold.affine import Chain
from onnxnorm.passes.fold.affine_into_conv import group_of
from onnxnorm.passes.fold.affine_into_layer import FoldAffineIntoLayer, bias_problem, with_bias
from onnxnorm.passes.fold.affine_layout import FloatArray
from onnxnorm.passes.graph import attribute
from onnxnorm.passes.rule import Context, Refusal


class FoldAffineIntoConvTranspose(FoldAffineIntoLayer):
    """See the module."""

    id: ClassVar[str] = "fold/affine-into-conv-transpose"
    operators: ClassVar[frozenset[str]] = frozenset({"ConvTranspose"})
    layer: ClassVar[str] = "ConvTranspose"

    def data_axis(self, layer: ir.Node, weight: FloatArray) -> int:
        """Axis 1 of an input of the weight's rank."""
        if weight.ndim < 3:
            raise Refusal("ConvTranspose's weight has less than three axes", shape=weight.shape)
        return 1 - weight.ndim

    def channels(self, layer: ir.Node, weight: FloatArray) -> int:
        """Axis 0 of the weight."""
        return int(weight.shape[0])

    def scaled(self, layer: ir.Node, weight: FloatArray, scale: FloatArray) -> FloatArray:
        """Along axis 0."""
        return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))

    def response(self, layer: ir.Node, weight: FloatArray, shift: FloatArray) -> FloatArray:
        """(out channels,), for kernel 1."""
        group = group_of(layer, weight.shape[0])
        moved = self.scaled(layer, weight, shift).reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        total: FloatArray = moved.sum(axis=(1, 3)).reshape(-1)
        return total

    def output_axis(self, layer: ir.Node, weight: FloatArray) -> int:
        """Axis 1, within each group."""
        return 1

    def shift_problem(self, layer: ir.Node, weight: FloatArray, chain: Chain, context: Context) -> str | None:
        """Anything but kernel 1, stride 1 and no padding; or a bias that is not constant."""
        plain = all(size == 1 for size in weight.shape[2:])
        plain &= not any(name in layer.attributes for name in ("output_shape", "auto_pad"))
        for name, neutral in (("strides", 1), ("pads", 0), ("output_padding", 0)):
            given = attribute(layer, name, ())
            plain &= given is not None and all(size == neutral for size in given)
        if not plain:
            return (
                "the kernels of ConvTranspose do not overlap in the same number everywhere, so that the shift differs"
            )
        return bias_problem(layer)

    def build(
        self, layer: ir.Node, data: ir.Value, weight: ir.Value, bias: FloatArray | None, context: Context
    ) -> tuple[list[ir.Node], list[ir.Node]]:
        """The same node with other inputs."""
        return [with_bias(layer, data, weight, bias, context)], [layer]
