"""What every fold of BatchNormalization shares: its affine map, and the fold into the layer that feeds it.

In inference BatchNormalization is y = a[c] * x + b[c] with a = gamma / sqrt(var + epsilon), b = beta - a * mean. A
layer that is linear in its weights takes a into them and a, b into its bias. All of it is computed in float64 and
rounded once to the layer's type.

Refused, for every layer:
    1. It computes statistics of its own: training_mode is 1, an output besides Y is used or, before opset 14, there
       (spatial 0, before opset 9, has one scale per position, and before opset 7 is_test must be 1).
    2. gamma, beta, mean, var, the layer's weight or bias is not constant, or is a graph input that a caller may
       override.
    3. The layer's output has another consumer, is a graph output, or the layer stands in another graph.
    4. var + epsilon is not positive and finite in some channel, or a parameter, the weight or the bias has not the
       shape that the operator asks for.
    5. A folded weight or bias would overflow, underflow or not be finite in the layer's type.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import attribute, is_op, node_name, op_name, sole_consumer
from onnxnorm.passes.large import exact
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, check_underflow, constant_array

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """y = scale[c] * x + shift[c], in float64."""

    scale: FloatArray
    shift: FloatArray


def affine_of(norm: ir.Node, context: Context) -> Affine:
    """The affine map of an inference BatchNormalization; Refusal for the reasons 1, 2 and 4."""
    _check_inference(norm, context)
    epsilon = attribute(norm, "epsilon", 1e-5)
    if epsilon is None:
        raise Refusal("its epsilon is an attribute of the function that it stands in")
    roles = ("gamma", "beta", "mean", "variance")
    gamma, beta, mean, var = (
        constant_array(value, role).astype(np.float64) for value, role in zip(norm.inputs[1:5], roles, strict=True)
    )
    if not gamma.shape == beta.shape == mean.shape == var.shape or gamma.ndim != 1:
        raise Refusal("its parameters differ in shape", gamma=gamma.shape, mean=mean.shape)
    epsilon = _epsilon(epsilon, norm)
    spread = var + epsilon
    wrong = ~(np.isfinite(spread) & (spread > 0))
    if wrong.any():
        channel = int(np.argmax(wrong))
        raise Refusal("variance + epsilon is not positive and finite", channel=channel, value=float(spread[channel]))
    with np.errstate(all="ignore"):  # what is not finite is for the rules to refuse
        scale = gamma / np.sqrt(spread)
        return Affine(scale, beta - scale * mean)


def _check_inference(norm: ir.Node, context: Context) -> None:
    """Refusal (reason 1) where it computes statistics of its own."""
    training = attribute(norm, "training_mode", 0)
    if training != 0:
        raise Refusal("training_mode is 1: it normalizes by the statistics of each batch", training_mode=training)
    if context.opset < 7 and attribute(norm, "is_test", 0) != 1:
        raise Refusal("is_test is 0: it normalizes by the statistics of each batch", is_test=0)
    if attribute(norm, "spatial", 1) != 1:
        raise Refusal("spatial is 0: it has one scale per position", spatial=attribute(norm, "spatial", 1))
    for value in norm.outputs[1:]:
        if value.uses() or value.is_graph_output():
            raise Refusal("its statistics outputs are used", output=value.name)
        if value.name and context.opset < 14:
            raise Refusal("it has statistics outputs, which before opset 14 means training", output=value.name)


def tolerance_of(norm: ir.Node) -> float:
    """By how much the fold may differ from the node when verified: in a float64 model by epsilon's rounding."""
    return 1e-7 if norm.inputs[0] is not None and norm.inputs[0].dtype == ir.DataType.DOUBLE else 1e-9


def _epsilon(epsilon: float, norm: ir.Node) -> float:
    """ONNX stores float32; a float64 model means the decimal that was written down."""
    if norm.inputs[0] is not None and norm.inputs[0].dtype == ir.DataType.DOUBLE:
        return float(f"{np.float32(epsilon):.6e}")
    return float(np.float32(epsilon))


def check_private(value: ir.Value, consumer: ir.Node, context: Context) -> None:
    """Refusal unless ``consumer`` is the only reader of ``value`` and its producer stands in the same graph."""
    producer = value.producer()
    assert producer is not None
    who = f"the output of {op_name(producer)} {node_name(producer)}"
    if producer.graph is not context.graph:
        raise Refusal(f"{who} comes from an outer graph")
    if value.is_graph_output():
        raise Refusal(f"{who} is also a graph output", output=value.name)
    if sole_consumer(value) is not consumer:
        raise Refusal(f"{who} has {len(value.uses())} readers", value=value.name)


class FoldBatchNormIntoLayer(Rule):
    """Base of the folds into a layer with weight and bias inputs; a subclass says where its output channels are."""

    operators: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})
    action: ClassVar[Action] = Action.FOLDED
    layer: ClassVar[str]

    @abc.abstractmethod
    def scale_weight(self, layer: ir.Node, weight: FloatArray, scale: FloatArray) -> tuple[FloatArray, int]:
        """The weight with each output channel scaled, and the axis of the channels in it (for range checks).

        Refusal when ``scale`` has not as many channels as the layer.
        """

    def bias(self, layer: ir.Node, channels: int, context: Context) -> FloatArray:
        """The layer's bias as it is added, zeros where there is none."""
        if len(layer.inputs) < 3 or layer.inputs[2] is None:
            return np.zeros(channels)
        bias = constant_array(layer.inputs[2], f"{self.layer}'s bias").astype(np.float64)
        if bias.shape != (channels,):
            raise Refusal(f"{self.layer}'s bias has not one value per channel", shape=bias.shape, channels=channels)
        return bias

    def attributes(self, layer: ir.Node) -> dict[str, ir.Attr]:
        """The attributes of the layer that takes its place."""
        return dict(layer.attributes)

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """BatchNormalization whose input is this layer's output."""
        if not is_op(node, "BatchNormalization") or not node.inputs or node.inputs[0] is None:
            return None
        layer = node.inputs[0].producer()
        return Match({"layer": layer, "norm": node}) if layer is not None and is_op(layer, self.layer) else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 4 of this module."""
        norm, layer = match["norm"], match["layer"]
        affine_of(norm, context)
        check_private(layer.outputs[0], norm, context)
        constant_array(layer.inputs[1], f"{self.layer}'s weight")

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The layer with new weight and bias, in BatchNormalization's place."""
        norm, layer = match["norm"], match["layer"]
        affine = affine_of(norm, context)
        weight_value = layer.inputs[1]
        assert weight_value is not None
        weight = constant_array(weight_value, "weight")
        if weight.ndim < 2:
            raise Refusal(f"{self.layer}'s weight has less than two axes", shape=weight.shape)
        dtype = ir.DataType.from_numpy(weight.dtype)
        with np.errstate(all="ignore"):  # what is not finite is refused when it is rounded
            scaled, axis = self.scale_weight(layer, exact(weight), affine.scale)
            check_underflow(scaled, dtype, axis)
            bias = self.bias(layer, affine.scale.size, context) * affine.scale + affine.shift
        inputs = [
            layer.inputs[0],
            context.constant(f"{weight_value.name}_folded", scaled, dtype),
            context.constant(f"{_bias_name(layer)}_folded", bias, dtype),
        ]
        new = ir.node(self.layer, inputs, self.attributes(layer), name=layer.name)
        return Replacement(
            [new],
            {norm.outputs[0]: new.outputs[0]},
            [layer, norm],
            norm,
            into=node_name(layer),
            tolerance=tolerance_of(norm),
        )


def _bias_name(layer: ir.Node) -> str:
    if len(layer.inputs) > 2 and layer.inputs[2] is not None and layer.inputs[2].name:
        return layer.inputs[2].name
    return f"{node_name(layer)}_bias"


def check_channels(scale: FloatArray, channels: int, layer: ir.Node) -> None:
    """Refusal (reason 4) unless BatchNormalization has the layer's channel count."""
    if scale.size != channels:
        raise Refusal(
            f"{op_name(layer)} {node_name(layer)} has {channels} output channels", batch_norm_channels=scale.size
        )


def along(axis: int, vector: FloatArray, rank: int) -> Any:
    """A vector shaped to broadcast along one axis of an array of that rank."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)
