"""Registers the norms with ``onnx.defs``, so that checker, shape inference and exporter know them."""

from __future__ import annotations

import functools
from typing import Any

import onnx
import onnx.defs
import onnx.shape_inference

from onnxnorm.norms import all_specs
from onnxnorm.spec.record import DOMAIN, FLOAT_DTYPES, VERSION, NormSpec, NormValueError, OutputSpec, PartialShape

_TYPE_NAMES = {"float32": "float", "float16": "float16", "float64": "double", "bfloat16": "bfloat16"}
_KINDS = {"int": "INT", "float": "FLOAT", "string": "STRING", "ints": "INTS"}


@functools.cache
def register_schemas() -> None:
    """Registers every norm once. A schema without an inference function would hide the function body's, so each has
    one; it also refuses shapes and attributes that do not fit, with the norm's own words.
    """
    for spec in all_specs().values():
        onnx.defs.register_schema(schema_of(spec))


def schema_of(spec: NormSpec) -> onnx.defs.OpSchema:
    """The ``onnx.defs`` schema of a norm."""
    make, option = onnx.defs.OpSchema, onnx.defs.OpSchema.FormalParameterOption
    schema = make(
        spec.name,
        DOMAIN,
        VERSION,
        doc=f"{spec.summary}\n\n{spec.citation}",
        inputs=[make.FormalParameter(item.name, "T", item.shape) for item in spec.inputs],
        outputs=[
            make.FormalParameter(
                item.name, "T", item.shape, param_option=option.Optional if item.optional else option.Single
            )
            for item in spec.outputs
        ],
        type_constraints=[("T", [f"tensor({_TYPE_NAMES[dtype]})" for dtype in FLOAT_DTYPES], "element type")],
        attributes=[
            make.Attribute(item.name, getattr(make.AttrType, _KINDS[item.kind]), item.doc, required=True)
            for item in spec.attributes
        ],
    )
    schema.set_type_and_shape_inference_function(functools.partial(_infer, spec))
    return schema


def _infer(spec: NormSpec, context: Any) -> None:
    types = [context.get_input_type(index) for index in range(context.get_num_inputs())]
    shapes = [_shape_of(value) for value in types]
    attributes = {}
    for item in spec.attributes:
        attribute = context.get_attribute(item.name)
        if attribute is not None:
            value = onnx.helper.get_attribute_value(attribute)
            attributes[item.name] = value.decode() if isinstance(value, bytes) else value
    try:
        spec.validate(shapes, attributes)
    except NormValueError as error:
        raise onnx.shape_inference.InferenceError(f"{DOMAIN}.{spec.name}: {error}") from None
    if types and types[0] is not None:
        context.set_output_type(0, types[0])
        for index, output in enumerate(spec.outputs[1:], start=1):
            if index < context.get_num_outputs():
                context.set_output_type(index, _type_of(output, types[0], spec.channels(shapes, attributes)))


def _type_of(item: OutputSpec, of_x: onnx.TypeProto, channels: int | None) -> onnx.TypeProto:
    """The type of an output, which has X's element type."""
    if item.shape == "X":
        return of_x
    return onnx.helper.make_tensor_type_proto(of_x.tensor_type.elem_type, [channels])


def _shape_of(value: onnx.TypeProto | None) -> PartialShape | None:
    if value is None or not value.HasField("tensor_type") or not value.tensor_type.HasField("shape"):
        return None
    return [size.dim_value if size.HasField("dim_value") else None for size in value.tensor_type.shape.dim]
