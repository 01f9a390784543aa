"""Runs a rewrite's before and after in float64 on sampled inputs.

Both sides are cut out of the graph as small models with every float turned to float64, and the new constants as they
were before rounding; what is compared is therefore the algebra, at 1e-9 of the output's scale, and not the rounding (a
rule that recognizes rounded constants, as those of a decomposed gelu, states a wider tolerance). The
ONNX reference evaluator runs them: ONNX Runtime CPU has no float64 Conv.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxnorm.norms import all_specs
from onnxnorm.passes.graph import constant_tensor, in_order, tensor_of
from onnxnorm.passes.reference_ops import REFERENCE_OPS
from onnxnorm.passes.rule import Context, Match, Replacement
from onnxnorm.spec.body import MIN_OPSET, function_body
from onnxnorm.spec.record import DOMAIN, VERSION

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_LARGEST_SAMPLE = 200_000
#: Both sides hold their constants in float64: with more elements than this (128 MB) they are not run.
_LARGEST_WEIGHT = 1 << 24
#: Sizes that unknown dimensions get, and to which large spatial ones are cut.
_SIZES = (3, 5, 7, 2, 4)


def verify_replacement(match: Match, replacement: Replacement, context: Context) -> str | None:
    """None when both sides agree; otherwise what differs, or why they could not be run."""
    largest = _largest_constant((*match.nodes.values(), *replacement.nodes))
    if largest > _LARGEST_WEIGHT:
        replacement.values["not verified"] = f"a constant has {largest} elements"
        return None
    outputs = list(replacement.outputs)
    new_outputs = [replacement.outputs[value] for value in outputs]
    old_nodes = in_order(replacement.removed if replacement.before is None else replacement.before)
    inputs = _outer_inputs((*old_nodes, *replacement.nodes))
    removed = set(replacement.removed)
    kept = [node for node in old_nodes if node not in removed]
    problem, differs = "the rewrite could not be run on sampled inputs", False
    # Sizes of different names may have to be equal: where nothing else runs, they are, axis by axis.
    for shrink, by_axis in ((9, False), (40, False), (None, False), (9, True), (None, True)):
        try:
            feeds = _sample(inputs, shrink, by_axis)
            before = _run(old_nodes, inputs, outputs, feeds, context)
            after = _after(replacement, kept, inputs, new_outputs, feeds, context)
        except Exception as error:
            if not differs:
                problem = f"the rewrite could not be run on sampled inputs: {' '.join(str(error).split())[:200]}"
            continue
        found = _difference(before, after, replacement.tolerance)
        if found is None or shrink is None:
            return found
        problem, differs = found, True  # if it is not the size: a constant may be the number of values of a whole axis
    return problem


def _largest_constant(nodes: Iterable[ir.Node]) -> int:
    """The number of elements of the largest constant that the nodes read."""
    values = {value for node in nodes for value in node.inputs if value is not None}
    tensors = (value.const_value or constant_tensor(value) for value in values)
    return max((tensor.size for tensor in tensors if tensor is not None), default=0)


def _after(
    replacement: Replacement,
    kept: Sequence[ir.Node],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    feeds: Sequence[npt.NDArray[Any]],
    context: Context,
) -> list[npt.NDArray[Any]]:
    """What the new side gives, behind what stays of the old one: constants as they are where it has no nodes."""
    if replacement.nodes:
        return _run([*kept, *replacement.nodes], inputs, outputs, feeds, context)
    return [_wide(array) for value in outputs if (array := _constant(value)) is not None]


def _outer_inputs(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """Values that both sides read from outside and that are not constants."""
    inside = {value for node in nodes for value in node.outputs}
    found: dict[ir.Value, None] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in inside and _constant(value) is None:
                found[value] = None
    return list(found)


def _constant(value: ir.Value) -> npt.NDArray[Any] | None:
    if "exact" in value.meta and value.graph is None:
        return np.asarray(value.meta["exact"])
    return tensor_of(value)


def _sample(inputs: Sequence[ir.Value], shrink: int | None, by_axis: bool = False) -> list[npt.NDArray[Any]]:
    """One array for each input; equal symbols have equal sizes, or all of an axis. ``shrink`` cuts static sizes after
    the second.
    """
    sizes: dict[str, int] = {}
    feeds = []
    for value in inputs:
        if value.shape is None or value.dtype is None:
            raise ValueError(f"the shape or type of {value.name!r} is not known")
        shape = [_size(dim, axis, shrink, sizes, by_axis) for axis, dim in enumerate(value.shape)]
        if int(np.prod(shape)) > _LARGEST_SAMPLE:
            raise ValueError(f"{value.name!r} is too large to sample: {shape}")
        seed = int.from_bytes(hashlib.sha256(str((value.name, shape)).encode()).digest()[:4], "little")
        rng = np.random.default_rng(seed)
        if value.dtype in _FLOATS:
            feeds.append(rng.standard_normal(shape) + rng.standard_normal())
        else:
            feeds.append(rng.integers(0, 2, shape).astype(value.dtype.numpy()))
    return feeds


def _size(dim: Any, axis: int, shrink: int | None, sizes: dict[str, int], by_axis: bool) -> int:
    if isinstance(dim, int):
        return min(dim, shrink) if shrink is not None and axis >= 2 else dim
    name = str(dim.value) if dim.value is not None and not by_axis else f"?{axis}"
    return sizes.setdefault(name, _SIZES[len(sizes) % len(_SIZES)] if axis < 2 else 8 + len(sizes))


def _run(
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    feeds: Sequence[npt.NDArray[Any]],
    context: Context,
) -> list[npt.NDArray[Any]]:
    """Evaluates the nodes in float64."""
    names: dict[ir.Value, str] = {}

    def name_of(value: ir.Value) -> str:
        return names.setdefault(value, f"v{len(names)}")

    initializers: dict[str, npt.NDArray[Any]] = {}
    protos: list[onnx.NodeProto] = []
    for node in nodes:
        for value in node.inputs:
            array = None if value is None else _constant(value)
            if value is not None and array is not None:
                initializers[name_of(value)] = _wide(array)
        proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        proto.input.extend("" if value is None else name_of(value) for value in node.inputs)
        proto.output.extend(name_of(value) for value in node.outputs)
        for attribute in node.attributes.values():
            proto.attribute.append(_wide_attribute(ir.serde.serialize_attribute(attribute), node))
        protos.append(proto)
    graph = onnx.helper.make_graph(
        protos,
        "part",
        [onnx.helper.make_tensor_value_info(name_of(value), onnx.TensorProto.UNDEFINED, None) for value in inputs],
        [onnx.helper.make_tensor_value_info(name_of(value), onnx.TensorProto.UNDEFINED, None) for value in outputs],
    )
    evaluator = ReferenceEvaluator(_model(graph, nodes, context), new_ops=REFERENCE_OPS)
    given = {name_of(value): array for value, array in zip(inputs, feeds, strict=True)}
    with np.errstate(all="ignore"):
        result = evaluator.run([name_of(value) for value in outputs], {**initializers, **given})
    return [np.asarray(array) for array in result]


def _model(graph: onnx.GraphProto, nodes: Sequence[ir.Node], context: Context) -> onnx.ModelProto:
    imports = {"": context.opset}
    functions = []
    for name in sorted({node.op_type for node in nodes if node.domain == DOMAIN}):
        imports[DOMAIN] = VERSION
        body = function_body(all_specs()[name], max(context.opset, MIN_OPSET), [ir.DataType.DOUBLE])
        functions.append(ir.serde.serialize_function(body))
    for node in nodes:
        imports.setdefault(node.domain, 1)
    return onnx.helper.make_model(
        graph,
        functions=functions,
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in imports.items()],
    )


def _wide(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Floats of any kind (bfloat16's NumPy kind is V) as float64."""
    return array.astype(np.float64) if array.dtype.kind in "fV" else array


def _wide_attribute(attribute: onnx.AttributeProto, node: ir.Node) -> onnx.AttributeProto:
    """Tensors in float64, and casts to a float type as casts to float64."""
    floats = {int(dtype) for dtype in _FLOATS}
    if attribute.name == "to" and attribute.i in floats and node.op_type == "Cast":
        attribute.i = onnx.TensorProto.DOUBLE
    if attribute.name == "stash_type":
        attribute.i = onnx.TensorProto.DOUBLE
    if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in floats:
        attribute.t.CopyFrom(onnx.numpy_helper.from_array(_wide(onnx.numpy_helper.to_array(attribute.t))))
    return attribute


def _difference(before: Sequence[npt.NDArray[Any]], after: Sequence[npt.NDArray[Any]], tolerance: float) -> str | None:
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if old.shape != new.shape:
            return f"output {index} has shape {list(new.shape)} after the rewrite, {list(old.shape)} before"
        finite = np.isfinite(old)
        if not np.array_equal(finite, np.isfinite(new)):
            return f"output {index} has other non-finite values after the rewrite"
        scale = float(np.abs(old[finite]).max(initial=1e-300))
        distance = float(np.abs(old[finite] - new[finite]).max(initial=0.0)) / scale
        if distance > tolerance:
            return f"output {index} differs by {distance:.3g} of its scale on sampled inputs"
    return None
