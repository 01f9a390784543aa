"""Numbers in the code of a float64 model, which PyTorch's exporter writes in float32.

``y.add(x, alpha=0.1)`` comes out as the float32 constant 0.1 cast to float64: 0.10000000149. Such a constant stands for
the number that was written down: a fraction of small whole numbers (1/3, 0.1), else a decimal of 7 digits. Tensors of
the model are initializers and stay as they are.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset18

from onnxnorm.passes.canonicalize.shapes import infer_shapes
from onnxnorm.passes.graph import STANDARD, all_graphs, attribute, constant_tensor, is_op

_LARGEST_DENOMINATOR = 1000


def restore_scalars(model: ir.Model) -> None:
    """Replaces float32 Constant scalars that meet float64 values by the float64 numbers that were meant."""
    if not any(value.dtype == ir.DataType.DOUBLE for value in _given(model)):
        return
    infer_shapes(model)
    for graph, _, _ in all_graphs(model):
        for node in list(graph):
            if is_op(node, "Pow") and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.DOUBLE:
                _restore(graph, node, 1)  # an exponent may have a type of its own
            elif _casts_to_double(node):
                _restore(graph, node, 0)


def _restore(graph: ir.Graph, node: ir.Node, index: int) -> None:
    """Gives the node a float64 Constant in place of a float32 one of one element."""
    value = node.inputs[index]
    tensor = constant_tensor(value) if value is not None and is_op(value.producer(), "Constant") else None
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size != 1:
        return
    array = tensor.numpy()
    meant = np.array(as_written(float(array.reshape(()))), np.float64).reshape(array.shape)
    constant = ir.node("Constant", [], {"value": ir.tensor(meant)}, name=f"{node.name}_float64")
    constant.outputs[0].name = f"{node.name}_float64_value"
    constant.outputs[0].type, constant.outputs[0].shape = ir.TensorType(ir.DataType.DOUBLE), ir.Shape(array.shape)
    graph.insert_before(node, constant)
    node.replace_input_with(index, constant.outputs[0])


def _given(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *model.graph.initializers.values()]


def _casts_to_double(node: ir.Node) -> bool:
    if node.domain not in STANDARD or node.op_type not in ("Cast", "CastLike"):
        return False
    if node.op_type == "Cast":
        return bool(attribute(node, "to", None) == ir.DataType.DOUBLE)
    like = node.inputs[1]
    return like is not None and like.dtype == ir.DataType.DOUBLE


def as_written(number: float) -> float:
    """The float64 number that rounds to this float32 number and is the simplest to write."""
    if not np.isfinite(number):
        return number
    fraction = Fraction(number).limit_denominator(_LARGEST_DENOMINATOR)
    for candidate in (float(fraction), float(f"{number:.6e}")):
        if np.float32(candidate) == np.float32(number):
            return candidate
    return number


def scalar_tensor(s: Any, dtype: int = int(ir.DataType.FLOAT), **_: Any) -> Any:
    """``aten::scalar_tensor``; the exporter's own rounds the number to float32 on its way to ``dtype``."""
    element = ir.DataType(dtype)
    if not isinstance(s, bool | int | float):  # the value of a symbolic size
        return opset18.Cast(s, to=int(element))
    constant: Any = ir.tensor(np.array(s).astype(element.numpy()), dtype=element)
    return opset18.Constant(value=constant)
