"""A model of one node, made from a norm's sample: what tests, doctor and benchmark run."""

from __future__ import annotations

import onnx_ir as ir

from onnxnorm.spec.body import function_body
from onnxnorm.spec.record import DOMAIN, VERSION, NormSpec, Sample

#: The spec's dtype names -> onnx_ir's.
ELEMENT_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "float64": ir.DataType.DOUBLE,
    "bfloat16": ir.DataType.BFLOAT16,
}


def sample_model(
    spec: NormSpec,
    sample: Sample,
    dtype: str = "float32",
    opset: int = 20,
    *,
    body: bool = True,
    dynamic: bool = False,
    unused: bool = False,
) -> ir.Model:
    """The norm's op on the sample's shapes and attributes.

    Args:
        spec, sample: the norm and what to run it on.
        dtype: element type of all inputs, as in ``spec.dtypes``.
        opset: version of the standard domain.
        body: attach the function body, so that the model runs without the native library too.
        dynamic: leave all sizes of the inputs unknown.
        unused: leave out the optional outputs.

    """
    element = ELEMENT_TYPES[dtype]
    inputs = [
        ir.Value(
            name=item.name,
            type=ir.TensorType(element),
            shape=ir.Shape([f"{item.name}{axis}" if dynamic else size for axis, size in enumerate(array.shape)]),
        )
        for item, array in zip(spec.inputs, sample.inputs, strict=True)
    ]
    outputs = [item for item in spec.outputs if not (unused and item.optional)]
    node = ir.node(spec.name, inputs, dict(sample.attributes), domain=DOMAIN, name="norm", num_outputs=len(outputs))
    channels = spec.channels([list(array.shape) for array in sample.inputs], sample.attributes)
    for value, item in zip(node.outputs, outputs, strict=True):
        of_channels = ir.Shape([item.name if dynamic or channels is None else channels])
        value.name, value.type = item.name, ir.TensorType(element)
        value.shape = inputs[0].shape if item.shape == "X" else of_channels
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": opset, DOMAIN: VERSION}, name=spec.name)
    functions = [function_body(spec, opset, [element], len(outputs))] if body else []
    return ir.Model(graph, ir_version=10, functions=functions)
