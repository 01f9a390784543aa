"""Emits a norm's body in standard ONNX operators, as a model-local function or straight into a graph.

A norm writes its body once, against this builder. In *function* mode attributes are references to the calling node's
attributes and branches on them are ``If`` nodes, which ONNX Runtime folds away; in *inline* mode (lowering to standard
operators) attributes are known, so that only the branch that is taken is emitted.

Bodies use primitive operators only: the reference evaluator fails on GroupNormalization inside a function, and ONNX
Runtime inlines a body under the model's own opset, for which it is therefore written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxnorm.spec.erf import normal_distribution
from onnxnorm.spec.record import ACTIVATIONS, DOMAIN, VERSION, Attributes, NormSpec

BodyValue: TypeAlias = ir.Value

#: Below this opset a body cannot be written: CastLike came with 15.
MIN_OPSET = 15


def compute_type(elements: Sequence[ir.DataType]) -> ir.DataType:
    """The type in which a body works: float64 when a float64 node calls it, float32 otherwise (also for half types)."""
    return ir.DataType.DOUBLE if ir.DataType.DOUBLE in elements else ir.DataType.FLOAT


class BodyBuilder:
    """Collects nodes in ``self.nodes``.

    Args:
        opset: version of the standard domain that the nodes are written for, at least 15.
        elements: element types of X that the body will meet (one when it is emitted in place of one node).
        attributes: the node's attributes (inline mode), or None (function mode).
        activations: those that the body will meet.

    """

    def __init__(
        self,
        opset: int,
        elements: Sequence[ir.DataType],
        attributes: Attributes | None = None,
        activations: Sequence[str] = ACTIVATIONS,
    ) -> None:
        if opset < MIN_OPSET:
            raise ValueError(f"a function body needs opset {MIN_OPSET} or newer; the model has opset {opset}")
        self.opset = opset
        self.elements = tuple(dict.fromkeys(elements)) or (ir.DataType.FLOAT,)
        self.compute = compute_type(self.elements)
        self.attributes = attributes
        self.activations = tuple(activations)
        self.nodes: list[ir.Node] = []
        self._count = 0
        self._integers: dict[tuple[int, ...], ir.Value] = {}

    # --- nodes and constants ---

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Adds a node with one output and returns that output."""
        return self.ops(op_type, *inputs, outputs=1, **attributes)[0]

    def ops(self, op_type: str, *inputs: ir.Value, outputs: int, **attributes: Any) -> Sequence[ir.Value]:
        """Adds a node with several outputs and returns them."""
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs)
        self._count += 1
        node.name = f"{op_type.lower()}_{self._count}"
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}_out{index}" if outputs > 1 else f"{node.name}_out"
        self.nodes.append(node)
        return node.outputs

    def norm(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Adds an onnxnorm node and returns its first output; for eval forms only, never in a body."""
        value = self.op(op_type, *inputs, **attributes)
        node = value.producer()
        assert node is not None
        node.domain = DOMAIN
        return value

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        """A constant tensor."""
        return self.op("Constant", value=ir.tensor(np.ascontiguousarray(array) if array.ndim else array))

    def ints(self, *values: int) -> ir.Value:
        """A one-dimensional int64 constant; equal ones are shared."""
        if values not in self._integers:
            self._integers[values] = self.constant(np.array(values, np.int64))
        return self._integers[values]

    def scalar(self, value: float) -> ir.Value:
        """A scalar of the type that the body computes in."""
        return self.constant(np.array(value, self.compute.numpy()))

    # --- attributes ---

    def _reference(self, name: str, constant_attribute: str, kind: ir.AttributeType) -> ir.Value:
        node = ir.node("Constant", [], num_outputs=1)
        node.attributes[constant_attribute] = ir.RefAttr(constant_attribute, name, kind)
        self._count += 1
        node.name = f"{name}_{self._count}"
        node.outputs[0].name = f"{node.name}_out"
        self.nodes.append(node)
        return node.outputs[0]

    def int_attribute(self, name: str) -> ir.Value:
        """An int attribute as a tensor of shape [1]."""
        if self.attributes is not None:
            return self.ints(int(self.attributes[name]))
        return self.reshape(self._reference(name, "value_int", ir.AttributeType.INT), self.ints(1))

    def ints_attribute(self, name: str) -> ir.Value:
        """An ints attribute as a one-dimensional int64 tensor."""
        if self.attributes is not None:
            return self.ints(*(int(value) for value in self.attributes[name]))
        return self._reference(name, "value_ints", ir.AttributeType.INTS)

    def float_attribute(self, name: str) -> ir.Value:
        """A float attribute as a scalar of the compute type; in float64 the nearest decimal of 7 digits.

        ONNX stores float attributes in float32, where 1e-5 is 9.99999974e-06; a float64 model means 1e-5.
        """
        if self.attributes is not None:
            value = np.float32(self.attributes[name])
            return self.scalar(float(f"{value:.6e}") if self.compute == ir.DataType.DOUBLE else float(value))
        value_f32 = self._reference(name, "value_float", ir.AttributeType.FLOAT)
        if self.compute != ir.DataType.DOUBLE:
            return value_f32
        wide = self.op("Cast", value_f32, to=ir.DataType.DOUBLE)
        exponent = self.op("Floor", self.op("Div", self.op("Log", wide), self.scalar(math.log(10.0))))
        shift = self.op("Pow", self.scalar(10.0), self.op("Sub", self.scalar(6.0), exponent))
        decimal = self.op("Div", self.op("Round", self.op("Mul", wide, shift)), shift)
        zero = self.op("Equal", wide, self.scalar(0.0))
        return self.op("Where", zero, wide, decimal)

    # --- types ---

    def widen(self, x: ir.Value) -> ir.Value:
        """X in the compute type."""
        return x if self.elements == (self.compute,) else self.op("Cast", x, to=self.compute)

    def narrow(self, y: ir.Value, like: ir.Value) -> ir.Value:
        """Y back in X's own type."""
        if self.elements == (self.compute,):
            return y
        if len(self.elements) == 1:
            return self.op("Cast", y, to=self.elements[0])
        return self.op("CastLike", y, like)

    # --- shapes ---

    def slice(self, vector: ir.Value, start: int, end: int) -> ir.Value:
        """vector[start:end] of a one-dimensional tensor."""
        return self.op("Slice", vector, self.ints(start), self.ints(end), self.ints(0))

    def reshape(self, x: ir.Value, shape: ir.Value) -> ir.Value:
        """Reshape in which a 0 in the shape means 0, so that empty tensors keep their shape."""
        return self.op("Reshape", x, shape, allowzero=1)

    def product(self, vector: ir.Value) -> ir.Value:
        """The product of a one-dimensional tensor, shape [1]; 1 for an empty one."""
        if self.opset >= 18:
            return self.op("ReduceProd", vector, self.ints(0), keepdims=1)
        return self.op("ReduceProd", vector, axes=[0], keepdims=1)

    def positions(self, shape: ir.Value, channels: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The number of positions before and after the channels, each of shape [1].

        (1, S) for channels-first and (S, 1) for channels-last, with S the product of the spatial sizes: one body
        then serves both layouts, over (N, before, C, after).
        """
        count = self.product(self.slice(shape, 1, np.iinfo(np.int64).max))
        count = self.op("Div", count, self.op("Max", channels, self.ints(1)))
        one = self.ints(1)
        if self.attributes is not None:
            return (count, one) if self.attributes["channels_last"] else (one, count)
        last = self.op("Equal", self.int_attribute("channels_last"), one)
        return self.op("Where", last, count, one), self.op("Where", last, one, count)

    def normalized_axes(self, x: ir.Value) -> ir.Value:
        """The attribute ``axes`` as ascending non-negative numbers."""
        if self.attributes is not None and x.shape is not None:
            return self.ints(*sorted(int(axis) % len(x.shape) for axis in self.attributes["axes"]))
        rank = self.op("Shape", self.op("Shape", x))
        return self.ascending(self.op("Mod", self.op("Add", self.ints_attribute("axes"), rank), rank))

    def spread_shape(self, x: ir.Value, axes: ir.Value, parameter: ir.Value) -> ir.Value:
        """The shape that makes a parameter of the axes' sizes broadcast against X: ones elsewhere."""
        if self.attributes is not None and x.shape is not None and parameter.shape is not None:
            positions = sorted(int(axis) % len(x.shape) for axis in self.attributes["axes"])
            sizes = dict(zip(positions, parameter.shape, strict=True))
            spread = [sizes.get(axis, 1) for axis in range(len(x.shape))]
            known = [size for size in spread if isinstance(size, int)]
            if len(known) == len(spread):
                return self.ints(*known)
        ones = self.op("Expand", self.ints(1), self.op("Shape", self.op("Shape", x)))
        return self.op("ScatterElements", ones, axes, self.op("Shape", parameter), axis=0)

    def ascending(self, vector: ir.Value) -> ir.Value:
        """A one-dimensional int64 tensor in ascending order."""
        return self.ops("TopK", vector, self.op("Shape", vector), outputs=2, axis=0, largest=0, sorted=1)[0]

    # --- statistics ---

    def mean(self, x: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Mean over the axes one after the other, keeping them as size 1.

        One reduction over several axes adds in one long chain in some runtimes: ONNX Runtime is off by 66 % at 1e8
        values. The mean of equally many means is the mean.
        """
        for axis in axes:
            if self.opset >= 18:
                x = self.op("ReduceMean", x, self.ints(axis), keepdims=1)
            else:
                x = self.op("ReduceMean", x, axes=[axis], keepdims=1)
        return x

    def exact_mean(self, x: ir.Value, axes: Sequence[int] | ir.Value) -> ir.Value:
        """The mean plus the mean of what is left: the long sum of squares loses digits in one chain."""
        return self.op("Add", *self._mean_and_rest(x, axes))

    def _mean_and_rest(self, x: ir.Value, axes: Sequence[int] | ir.Value) -> tuple[ir.Value, ir.Value]:
        """The mean, and the mean of x minus that."""

        def reduce(value: ir.Value) -> ir.Value:
            return self.mean_over(value, axes) if isinstance(axes, ir.Value) else self.mean(value, axes)

        mean = reduce(x)
        return mean, reduce(self.op("Sub", x, mean))

    def mean_square(self, x: ir.Value, axes: Sequence[int] | ir.Value) -> ir.Value:
        """The exact mean of x * x, infinite where that is: there is nothing left to add then, but inf - inf."""
        mean, rest = self._mean_and_rest(self.op("Mul", x, x), axes)
        infinite = self.op("Equal", mean, self.scalar(math.inf))
        return self.op("Where", infinite, mean, self.op("Add", mean, rest))

    def long_mean(self, x: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Mean over the axes in float64, back in the compute type: right over any number of values.

        Statistics of a batch run over N * H * W, of which there may be 1e8 in one axis; added up in one chain of
        float32 they are off by two thirds.
        """
        wide = x if self.compute == ir.DataType.DOUBLE else self.op("Cast", x, to=ir.DataType.DOUBLE)
        mean = self.mean(wide, axes)
        return mean if self.compute == ir.DataType.DOUBLE else self.op("Cast", mean, to=self.compute)

    def centre(self, x: ir.Value, axes: Sequence[int]) -> ir.Value:
        """X - mean(x), twice: the second time takes away what rounding of a large mean left."""
        x = self.op("Sub", x, self.mean(x, axes))
        return self.op("Sub", x, self.mean(x, axes))

    def mean_over(self, x: ir.Value, axes: ir.Value) -> ir.Value:
        """Mean over axes that are a tensor of ascending numbers: first the last of them, then the others."""
        if self.attributes is not None and "axes" in self.attributes:
            return self.mean(x, sorted((int(axis) for axis in self.attributes["axes"]), reverse=True))
        if self.opset < 18:
            node = ir.node("ReduceMean", [x], {"keepdims": 1}, num_outputs=1)
            node.attributes["axes"] = ir.RefAttr("axes", "axes", ir.AttributeType.INTS)
            self._count += 1
            node.name, node.outputs[0].name = f"reducemean_{self._count}", f"reducemean_{self._count}_out"
            self.nodes.append(node)
            return node.outputs[0]
        last = self.slice(axes, -1, np.iinfo(np.int64).max)
        others = self.slice(axes, 0, -1)
        x = self.op("ReduceMean", x, last, keepdims=1)
        return self.op("ReduceMean", x, others, keepdims=1, noop_with_empty_axes=1)

    # --- activation ---

    def activation(self, y: ir.Value, attribute: str = "activation") -> ir.Value:
        """Applies the activation that the attribute names."""
        if self.attributes is not None:
            return self._activate(y, str(self.attributes[attribute]))
        *rest, last = sorted(self.activations, key=lambda item: item == "none")  # which is what is left
        if not rest:
            return self._activate(y, last)
        return self._branch(y, self._reference(attribute, "value_string", ir.AttributeType.STRING), rest, last)

    def _branch(self, y: ir.Value, chosen: ir.Value, rest: Sequence[str], last: str) -> ir.Value:
        if not rest:
            return self.op("Identity", y) if last == "none" else self._activate(y, last)
        same = self._same_string(chosen, rest[0])
        then_branch = self._subgraph(f"{rest[0]}_branch", lambda inner: inner._activate(y, rest[0]))
        else_branch = self._subgraph(f"not_{rest[0]}_branch", lambda inner: inner._branch(y, chosen, rest[1:], last))
        return self.op("If", same, then_branch=then_branch, else_branch=else_branch)

    def _same_string(self, chosen: ir.Value, name: str) -> ir.Value:
        """Whether a string scalar equals a name. Equal takes strings from opset 19; before, Unique does it."""
        if self.opset >= 19:
            return self.op("Equal", chosen, self.op("Constant", value_string=name))
        both = self.op("Concat", self.reshape(chosen, self.ints(1)), self.op("Constant", value_strings=[name]), axis=0)
        different = self.op("Shape", self.ops("Unique", both, outputs=1)[0])
        return self.op("Reshape", self.op("Equal", different, self.ints(1)), self.constant(np.zeros(0, np.int64)))

    def _subgraph(self, name: str, emit: Any) -> ir.Graph:
        inner = BodyBuilder(self.opset, self.elements, self.attributes, self.activations)
        inner._count = self._count
        result = emit(inner)
        self._count = inner._count
        result = inner.op("Identity", result) if not inner.nodes else result
        return ir.Graph([], [result], nodes=inner.nodes, opset_imports={"": self.opset}, name=name)

    def _activate(self, y: ir.Value, activation: str) -> ir.Value:
        if activation == "relu":
            return self.op("Relu", y)
        if activation == "silu" and self.compute == ir.DataType.DOUBLE:
            # ONNX Runtime 1.20 to 1.28 fuses the form below into QuickGelu, for which it has no kernel in float64.
            return self.op("Div", y, self.op("Add", self.op("Exp", self.op("Neg", y)), self.scalar(1.0)))
        if activation == "silu":
            return self.op("Mul", y, self.op("Sigmoid", y))
        if activation == "gelu":
            if self.compute == ir.DataType.DOUBLE:
                return self.op("Mul", y, normal_distribution(self, y))
            erf = self.op("Erf", self.op("Mul", y, self.scalar(math.sqrt(0.5))))
            return self.op("Mul", self.op("Mul", y, self.scalar(0.5)), self.op("Add", erf, self.scalar(1.0)))
        return y


def function_body(
    spec: NormSpec,
    opset: int,
    elements: Sequence[ir.DataType],
    outputs_used: int | None = None,
    activations: Sequence[str] = ACTIVATIONS,
) -> ir.Function:
    """The model-local function of a norm, for a model of that opset in which X has those element types.

    Args:
        spec, opset, elements: as above.
        outputs_used: as many outputs as the nodes that call it write, where that is not all: ONNX Runtime loads no
            node that has fewer outputs than its function.
        activations: those that the nodes name; a body for all of them branches.

    """
    builder = BodyBuilder(opset, elements, activations=activations)
    inputs = [ir.Value(name=item.name) for item in spec.inputs]
    outputs = spec.body(builder, inputs)[:outputs_used]
    for value, item in zip(outputs, spec.outputs[:outputs_used], strict=True):
        value.name = item.name
    kinds = {
        "int": ir.AttributeType.INT,
        "float": ir.AttributeType.FLOAT,
        "string": ir.AttributeType.STRING,
        "ints": ir.AttributeType.INTS,
    }
    graph = ir.Graph(inputs, outputs, nodes=builder.nodes, opset_imports={"": opset}, name=spec.name)
    graph.doc_string = spec.summary
    attributes = [ir.Attr(item.name, kinds[item.kind], None) for item in spec.attributes]
    function = ir.Function(DOMAIN, spec.name, graph=graph, attributes=attributes)
    function.metadata_props["onnxnorm.version"] = str(VERSION)
    return function
