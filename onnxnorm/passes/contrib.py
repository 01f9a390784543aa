"""What the rules for ONNX Runtime's own operators share: com.microsoft, and what ONNX Runtime adds to ai.onnx.

ONNX Runtime's optimizer for transformers and diffusion models writes them for CUDA. For the CPU provider they become
onnxnorm's ops and standard operators where it has no kernel for them (the table in ``lower/contrib_kernels``), for
the target "standard" always, and for CUDA with the target "onnxnorm" never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.graph import STANDARD, all_graphs, constant_tensor, has_references, node_name
from onnxnorm.passes.lower.choice import ChoosingRule
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement
from onnxnorm.runtime.arrays import is_float
from onnxnorm.spec.body import MIN_OPSET

CONTRIB = "com.microsoft"
#: Operators of com.microsoft that become onnxnorm's ops and standard operators.
REWRITTEN = frozenset(
    {
        *("GroupNorm", "SkipGroupNorm", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
        *("BiasAdd", "BiasSplitGelu", "MultiHeadAttention", "NhwcConv"),
    }
)
#: Operators of ai.onnx that ONNX Runtime alone knows -> the opset from which ONNX has them, None for never.
ADDED_TO_STANDARD: dict[str, int | None] = {"LayerNormalization": 17, "SimplifiedLayerNormalization": None}


def is_contrib(node: ir.Node | None, op_type: str) -> bool:
    """Whether the node is that operator of com.microsoft."""
    return node is not None and node.op_type == op_type and node.domain == CONTRIB


def is_added(node: ir.Node, opset: int | None) -> bool:
    """Whether the node is an operator that ONNX Runtime adds to ai.onnx, at an opset where ONNX has none of it."""
    if node.domain not in STANDARD or node.op_type not in ADDED_TO_STANDARD:
        return False
    since = ADDED_TO_STANDARD[node.op_type]
    return since is None or (opset or 0) < since


def holds_contrib(model: ir.Model) -> bool:
    """Whether any node of the model is one of ONNX Runtime's own operators that there are rules for."""
    return any(
        (node.domain == CONTRIB and node.op_type in REWRITTEN) or is_added(node, opset)
        for graph, opset, _ in all_graphs(model)
        for node in graph
    )


class ContribRule(ChoosingRule):
    """A rule for an operator of ONNX Runtime's own; ``check`` refuses what all of them refuse.

    Its refusals are told, norm or not: the model does not run where they stand.
    """

    recognizes: ClassVar[bool] = True

    def applies(self) -> bool:
        """Whether the model is made for something that has no kernel for these operators."""
        return self.target == "standard" or self.provider == "cpu"

    def check(self, match: Match, context: Context) -> None:
        """Refusal in a model-local function (its element types differ from call to call) and before opset 15.

        Models from opset 13 on have been raised by then, unless ``canonicalize/opset`` says why not.
        """
        node = self.subject(match)
        if context.in_function:
            raise Refusal("it stands in a model-local function")
        if context.opset < MIN_OPSET:
            raise Refusal(f"it can be written from opset {MIN_OPSET} on", opset=context.opset)
        if has_references(node):
            raise Refusal("an attribute is a reference to the function's")


def element_type(value: ir.Value | None, role: str = "X") -> ir.DataType:
    """The value's element type; Refusal when it is not known or no float."""
    dtype = None if value is None else value.dtype
    if dtype is None or not dtype.is_floating_point():
        raise Refusal(f"the element type of {role} is not known" if dtype is None else f"{role} is no float")
    return dtype


def rank(value: ir.Value, role: str = "X") -> int:
    """The value's rank; Refusal when it is not known."""
    if value.shape is None:
        raise Refusal(f"the rank of {role} is not known")
    return len(value.shape)


class Emitter:
    """Collects standard nodes, and types and shapes of what they make.

    Args:
        context: the graph that they are for.
        prefix: what their names begin with, the name of the node that they take the place of.

    """

    def __init__(self, context: Context, prefix: str) -> None:
        self.nodes: list[ir.Node] = []
        self._context = context
        self._prefix = prefix

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        like: ir.Value | None = None,
        dtype: ir.DataType | None = None,
        shape: Sequence[Any] | ir.Shape | None = None,
        domain: str = "",
        outputs: int = 1,
        copied: Mapping[str, ir.Attr] | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Adds a node and returns its first output, with the type and shape of ``like`` or as given.

        Its attributes are ``copied`` from another node, and those that are given by name.
        """
        node = ir.node(op_type, inputs, {**(copied or {}), **attributes}, domain=domain, num_outputs=outputs)
        node.name = self._context.fresh_name(f"{self._prefix}/{op_type.lower()}")
        for index, value in enumerate(node.outputs):
            value.name = self._context.fresh_name(f"{node.name}_out{index}" if index else f"{node.name}_out")
        result = node.outputs[0]
        source = like.shape if shape is None and like is not None else shape
        result.shape = None if source is None else ir.Shape(list(source))
        found = dtype if dtype is not None or like is None else like.dtype
        result.type = None if found is None else ir.TensorType(found)
        self.nodes.append(node)
        return result

    def name_last(self, old: ir.Node) -> None:
        """The last node takes over the name of the one that it stands for."""
        if old.name:
            self.nodes[-1].name = old.name

    def ints(self, wish: str, *values: int) -> ir.Value:
        """A one-dimensional int64 constant."""
        name = self._context.fresh_name(f"{self._prefix}/{wish}")
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([len(values)]))
        value.const_value = ir.tensor(np.array(values, np.int64), name=name)
        return value

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in that element type; itself where it has it."""
        return value if value.dtype == dtype else self.op("Cast", value, like=value, dtype=dtype, to=int(dtype))

    def replacement(
        self, node: ir.Node, results: Sequence[ir.Value | None], into: str, tolerance: float = 1e-9
    ) -> Replacement:
        """These nodes in the node's place; ``results`` are its outputs in order, None where it had none."""
        outputs = {
            old: new for old, new in zip(node.outputs, results, strict=False) if new is not None and is_used(old)
        }
        return Replacement(self.nodes, outputs, [node], node, into=into, tolerance=tolerance)


def is_used(value: ir.Value) -> bool:
    """Whether anything reads the value, or it is a graph output."""
    return bool(value.uses()) or value.is_graph_output()


def output(node: ir.Node, index: int) -> ir.Value | None:
    """The node's output of that index when it is used, else None."""
    return node.outputs[index] if index < len(node.outputs) and is_used(node.outputs[index]) else None


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    """The node's input of that index, None where it has none."""
    return node.inputs[index] if index < len(node.inputs) else None


class Parameters:
    """Scale and bias of a norm in X's element type, which onnxnorm's ops ask for.

    com.microsoft.GroupNorm has float32 parameters beside a float16 X. A constant is rounded once, which costs at most
    half a unit in the last place of float16; where X's type cannot hold it (beyond its range), or a caller may give
    another value, the norm is computed in float32 instead.
    """

    def __init__(self, norm: ir.Node, x: ir.Value, values: Sequence[ir.Value], emit: Emitter, context: Context) -> None:
        dtype = element_type(x)
        widest = max((element_type(value, "gamma or beta") for value in values), key=lambda item: item.bitwidth)
        narrow = all(value.dtype == dtype or _fits(value, dtype) or dtype == widest for value in values)
        #: The element type that the norm is computed in.
        self.dtype = dtype if narrow else widest
        self.x = emit.cast(x, self.dtype)
        self.values = [self._in_type(value, emit, context, node_name(norm)) for value in values]

    def _in_type(self, value: ir.Value, emit: Emitter, context: Context, prefix: str) -> ir.Value:
        if value.dtype == self.dtype:
            return value
        if _fits(value, self.dtype):
            tensor = constant_tensor(value)
            assert tensor is not None
            return context.constant(f"{value.name or prefix}_{self.dtype.name.lower()}", _wide(tensor), self.dtype)
        return emit.cast(value, self.dtype)


def _wide(tensor: ir.TensorProtocol) -> Any:
    return np.asarray(tensor.numpy()).astype(np.float64)


def _fits(value: ir.Value, dtype: ir.DataType) -> bool:
    """Whether the value is a constant whose numbers are in the range of the type."""
    tensor = constant_tensor(value)
    if tensor is None:
        return False
    array = np.asarray(tensor.numpy())
    if not is_float(array.dtype):
        return False
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(dtype.numpy()).astype(np.float64)).all())
