"""Raises a model's opset to one that has the operators that rules make.

Models that ONNX Runtime optimized for CUDA often have opset 14, onnxnorm's ops need 15, and LayerNormalization came
with 17. From opset 13 to 17 operators got further element types and attributes, with defaults that mean what was
before, but for two: BatchNormalization's further outputs asked for training before opset 14, and RoiAlign samples
elsewhere from 16. Operators of opset 7 to 12 are written as opset 13 has them (``older_opset``).
"""

from __future__ import annotations

import onnx_ir as ir

from onnxnorm.passes.canonicalize.constants import lift_constants
from onnxnorm.passes.canonicalize.older_opset import OLDEST, TO, convert, convertible
from onnxnorm.passes.graph import all_graphs, is_op
from onnxnorm.passes.names import Names
from onnxnorm.spec.record import DOMAIN

#: Opset -> the IR version that it came with, which runtimes ask for.
_IR_VERSIONS = {15: 8, 16: 8, 17: 8}


def raise_opset(model: ir.Model, to: int) -> bool:
    """Changes ``model`` to opset ``to`` (15 to 17) where it is older; whether it has that or a newer one now."""
    if not can_have_opset(model, to):
        return False
    name = _standard(model)
    opset = model.opset_imports[name]
    if opset < to:
        if opset < TO:
            _convert(model, opset)
        model.opset_imports[name] = to
        model.ir_version = max(model.ir_version, _IR_VERSIONS[to])
        lift_constants(model)
    return True


def can_have_opset(model: ir.Model, to: int) -> bool:
    """Whether the model has opset ``to`` or a newer one, or can be raised to it.

    It cannot before opset 7, with functions of its own (which name their opset), with one of the two operators, and
    with one of before opset 13 that cannot be written as the newer one.
    """
    opset = model.opset_imports.get(_standard(model))
    if opset is None or opset >= to:
        return opset is not None
    if opset < OLDEST or any(key[0] != DOMAIN for key in model.functions):
        return False
    nodes = [node for graph, _, _ in all_graphs(model) for node in graph]
    if opset < TO and not all(convertible(node, opset) for node in nodes):
        return False
    return not any(_changes(node, opset, to) for node in nodes)


def _convert(model: ir.Model, opset: int) -> None:
    names = Names.of(model)
    for graph, _, _ in list(all_graphs(model)):
        for node in list(graph):
            convert(node, opset, graph, names)


def _standard(model: ir.Model) -> str:
    """The name under which the model imports the standard domain."""
    return "ai.onnx" if "ai.onnx" in model.opset_imports else ""


def _changes(node: ir.Node, opset: int, to: int) -> bool:
    """Whether the operator means something else from then on."""
    if is_op(node, "BatchNormalization"):
        return opset < 14 and len(node.outputs) > 1
    return is_op(node, "RoiAlign") and opset < 16 <= to and "coordinate_transformation_mode" not in node.attributes
