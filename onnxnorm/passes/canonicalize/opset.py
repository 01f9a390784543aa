"""Raises a model's opset where that changes the number only.

Models that ONNX Runtime optimized for CUDA often have opset 14, onnxnorm's ops need 15, and LayerNormalization came
with 17. From opset 13 to 17 operators got further element types and attributes, with defaults that mean what was
before, but for two: BatchNormalization's further outputs asked for training before opset 14, and RoiAlign samples
elsewhere from 16.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxnorm.passes.graph import all_graphs, is_op
from onnxnorm.spec.record import DOMAIN

#: From this opset on it can be done; opset 13 changed Softmax, Squeeze, Split and others.
OLDEST = 13
#: Opset -> the IR version that it came with, which runtimes ask for.
_IR_VERSIONS = {15: 8, 16: 8, 17: 8}


def raise_opset(model: ir.Model, to: int) -> bool:
    """Changes ``model`` to opset ``to`` (15 to 17) where it is older; whether it has that or a newer one now."""
    if not can_have_opset(model, to):
        return False
    name = _standard(model)
    if model.opset_imports[name] < to:
        model.opset_imports[name] = to
        model.ir_version = max(model.ir_version, _IR_VERSIONS[to])
    return True


def can_have_opset(model: ir.Model, to: int) -> bool:
    """Whether the model has opset ``to`` or a newer one, or can be raised to it.

    It cannot before opset 13, with functions of its own (which name their opset), and with one of the two operators.
    """
    opset = model.opset_imports.get(_standard(model))
    if opset is None or opset >= to:
        return opset is not None
    if opset < OLDEST or any(key[0] != DOMAIN for key in model.functions):
        return False
    return not any(_changes(node, opset, to) for graph, _, _ in all_graphs(model) for node in graph)


def _standard(model: ir.Model) -> str:
    """The name under which the model imports the standard domain."""
    return "ai.onnx" if "ai.onnx" in model.opset_imports else ""


def _changes(node: ir.Node, opset: int, to: int) -> bool:
    """Whether the operator means something else from then on."""
    if is_op(node, "BatchNormalization"):
        return opset < 14 and len(node.outputs) > 1
    return is_op(node, "RoiAlign") and opset < 16 <= to and "coordinate_transformation_mode" not in node.attributes
