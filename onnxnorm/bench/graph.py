"""The ONNX models that a case is run as. Parameters are constants, as in a trained model; X (and skip) are inputs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from onnxnorm.bench.case import Case, Data
from onnxnorm.spec.body import function_body
from onnxnorm.spec.record import DOMAIN, VERSION
from onnxnorm.spec.sample_model import ELEMENT_TYPES

#: Inputs of the op that change from call to call.
VARYING = ("X", "skip")
#: Opset of the models with an onnxnorm op.
OPSET = 21


def varying(case: Case, data: Data) -> list[Any]:
    """The arrays that are the model's inputs, in order."""
    return [array for item, array in zip(case.spec.inputs, data.inputs, strict=True) if item.name in VARYING]


def op_model(case: Case, data: Data) -> ir.Model:
    """The onnxnorm op with its function body."""
    spec, element = case.spec, ELEMENT_TYPES[case.dtype]
    inputs = [
        ir.Value(name=item.name, type=ir.TensorType(element), shape=ir.Shape(array.shape))
        for item, array in zip(spec.inputs, data.inputs, strict=True)
    ]
    node = ir.node(spec.name, inputs, case.attributes, domain=DOMAIN, name="norm", num_outputs=len(spec.outputs))
    for value, item in zip(node.outputs, spec.outputs, strict=True):
        value.name, value.type, value.shape = item.name, ir.TensorType(element), ir.Shape(case.shape)
    constants = []
    for value, array in zip(inputs, data.inputs, strict=True):
        if value.name not in VARYING:
            value.const_value = ir.Tensor(array, name=value.name)
            constants.append(value)
    graph = ir.Graph(
        [value for value in inputs if value.name in VARYING],
        node.outputs,
        nodes=[node],
        initializers=constants,
        opset_imports={"": OPSET, DOMAIN: VERSION},
        name=spec.name,
    )
    return ir.Model(graph, ir_version=10, functions=[function_body(spec, OPSET, [element])])


def exported(module: Any, inputs: Sequence[Any], opset: int) -> ir.Model:
    """What ``torch.onnx.export`` writes for a PyTorch module at that opset."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(module, tuple(inputs), dynamo=True, opset_version=opset, verbose=False)
    model: ir.Model = program.model
    return model


def operators(model: ir.Model) -> list[str]:
    """Names of the model's operators, in the order of the graph."""
    return [f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph]


def summary(names: Sequence[str]) -> str:
    """Up to six operators by name, more of them by number."""
    return ", ".join(names) if len(names) <= 6 else f"{len(names)} operators"
