"""fold/affine-into-conv: Conv(a * x + b, W, B) = Conv(x, W', B') with W' = a * W by input channel, B' = B + sum W b.

W is (out channels, in channels / group, *kernel), 1d, 2d, 3d or more; column j of a row of group g reads input channel
g * (in channels / group) + j. With zero padding the border sees 0 where the chain made b, so that B' would be wrong
there: the shift then stays in front, Conv(x + b / a, W', B), whose padded zeros are zeros of the sum as well. auto_pad
SAME pads wherever the kernel is larger than 1.

Refused: the reasons of ``onnxnorm.passes.fold.affine_into_layer``, and
    6. group or the padding is an attribute of the function that the layer stands in, or group does not divide the
       channels.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.fold.affine import Chain
from onnxnorm.passes.fold.affine_into_layer import FoldAffineIntoLayer, bias_problem, with_bias
from onnxnorm.passes.fold.affine_layout import FloatArray
from onnxnorm.passes.graph import attribute
from onnxnorm.passes.rule import Context, Refusal


class FoldAffineIntoConv(FoldAffineIntoLayer):
    """See the module."""

    id: ClassVar[str] = "fold/affine-into-conv"
    operators: ClassVar[frozenset[str]] = frozenset({"Conv"})
    layer: ClassVar[str] = "Conv"

    def data_axis(self, layer: ir.Node, weight: FloatArray) -> int:
        """Axis 1 of an input of the weight's rank."""
        if weight.ndim < 3:
            raise Refusal("Conv's weight has less than three axes", shape=weight.shape)
        return 1 - weight.ndim

    def channels(self, layer: ir.Node, weight: FloatArray) -> int:
        """Of all groups."""
        return group_of(layer, weight.shape[0]) * int(weight.shape[1])

    def scaled(self, layer: ir.Node, weight: FloatArray, scale: FloatArray) -> FloatArray:
        """Each group by its own channels."""
        group = group_of(layer, weight.shape[0])
        grouped = weight.reshape(group, -1, *weight.shape[1:])
        factors = scale.reshape(group, 1, weight.shape[1], *(1,) * (weight.ndim - 2))
        return (grouped * factors).reshape(weight.shape)

    def response(self, layer: ir.Node, weight: FloatArray, shift: FloatArray) -> FloatArray:
        """(out channels,)."""
        product: FloatArray = self.scaled(layer, weight, shift).sum(axis=tuple(range(1, weight.ndim)))
        return product

    def output_axis(self, layer: ir.Node, weight: FloatArray) -> int:
        """Axis 0."""
        return 0

    def shift_problem(self, layer: ir.Node, weight: FloatArray, chain: Chain, context: Context) -> str | None:
        """Padding, or a bias that is not constant."""
        if pads(layer, weight.shape[2:]):
            return "Conv pads with zeros, which the shift would not reach"
        return bias_problem(layer)

    def build(
        self, layer: ir.Node, data: ir.Value, weight: ir.Value, bias: FloatArray | None, context: Context
    ) -> tuple[list[ir.Node], list[ir.Node]]:
        """The same node with other inputs."""
        return [with_bias(layer, data, weight, bias, context)], [layer]


def group_of(layer: ir.Node, divided: int) -> int:
    """The group attribute; Refusal (reason 6) unless it divides that many channels."""
    group = attribute(layer, "group", 1)
    if group is None or group < 1 or divided % group:
        raise Refusal("group does not divide the channels", group=group, channels=divided)
    return int(group)


def pads(layer: ir.Node, kernel: tuple[int, ...]) -> bool:
    """Whether the layer may add zeros around its input; an attribute of a function (reason 6) may."""
    given, auto = attribute(layer, "pads", ()), attribute(layer, "auto_pad", "NOTSET")
    if given is None or auto is None or any(given):
        return True
    return auto not in ("NOTSET", "VALID") and any(size != 1 for size in kernel)
