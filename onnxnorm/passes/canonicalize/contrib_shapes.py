"""Types and shapes of what ONNX Runtime's own operators make, for ONNX's shape inference, which does not know them.

Each operator is shown to the inference as a model-local function that has its types and shapes; that it computes
something else does not matter there.
"""

from __future__ import annotations

import functools
import itertools

import onnx
import onnx.parser

from onnxnorm.passes.contrib import CONTRIB

_HEAD = f'<domain: "{CONTRIB}", opset_import: ["" : 18]>'
_STATISTICS = "wide = Cast <to = 1> (X) axes = Constant <value_ints = [-1]> () mean = ReduceMean (wide, axes)"
_CONV = ", ".join(
    f"{name}: {kind} = @{name}"
    for name, kind in (
        ("group", "int"),
        ("pads", "ints"),
        ("auto_pad", "string"),
        ("strides", "ints"),
        ("dilations", "ints"),
        ("kernel_shape", "ints"),
    )
)
#: Operator -> (the attributes that matter, inputs and outputs; nodes).
_FUNCTIONS: dict[str, tuple[str, str]] = {
    "GroupNorm": ("(X, gamma, beta) => (Y)", "Y = Identity (X)"),
    "SkipGroupNorm": ("(X, gamma, beta, skip, bias) => (Y, S)", "Y = Identity (X) S = Identity (X)"),
    "SkipLayerNormalization": (
        "(X, skip, gamma, beta, bias) => (Y, mean, inv, S)",
        f"{_STATISTICS} inv = Identity (mean) Y = Identity (X) S = Identity (X)",
    ),
    "SkipSimplifiedLayerNormalization": (
        "(X, skip, gamma, bias) => (Y, mean, inv, S)",
        f"{_STATISTICS} inv = Identity (mean) Y = Identity (X) S = Identity (X)",
    ),
    "NhwcConv": (
        "<group, pads, auto_pad, strides, dilations, kernel_shape> (X, W, B) => (Y)",
        "x = Transpose <perm = [0, 3, 1, 2]> (X) w = Transpose <perm = [0, 3, 1, 2]> (W) "
        f"y = Conv <{_CONV}> (x, w, B) Y = Transpose <perm = [0, 2, 3, 1]> (y)",
    ),
    "BiasAdd": ("(X, bias, skip) => (Y)", "Y = Identity (X)"),
    "BiasSplitGelu": ("(X, bias) => (Y)", "Y, other = Split <axis = -1, num_outputs = 2> (X)"),
    "Gelu": ("(X) => (Y)", "Y = Identity (X)"),
    "QuickGelu": ("(X) => (Y)", "Y = Identity (X)"),
    "FastGelu": ("(X, bias) => (Y)", "Y = Identity (X)"),
    "BiasGelu": ("(X, bias) => (Y)", "Y = Identity (X)"),
    "RotaryEmbedding": ("(X, position_ids, cos, sin) => (Y)", "Y = Identity (X)"),
    "MultiHeadAttention": ("(X, key, value, bias, mask, attention_bias) => (Y)", "Y = Identity (X)"),
    "PackedMultiHeadAttention": (
        "(X, key, value, bias, mask, attention_bias) => (Y)",
        "first, two, three = Split <axis = 3, num_outputs = 3> (X) "
        "shape = Constant <value_ints = [0, 0, -1]> () Y = Reshape (first, shape)",
    ),
    "Attention": (
        "(X, weights, bias, mask, past, attention_bias) => (Y)",
        "h = MatMul (X, weights) Y, key, value = Split <axis = -1, num_outputs = 3> (h)",
    ),
    "FusedMatMul": ("(A, B) => (Y)", "Y = MatMul (A, B)"),
}
#: Names of the function for an operator in another form.
_PACKED = "PackedMultiHeadAttention"


def show_contrib(model: onnx.ModelProto) -> None:
    """Gives a copy of a model, made for the inference, the functions that its nodes of com.microsoft need."""
    own = {(function.domain, function.name) for function in model.functions}
    counter, used = itertools.count(), set()
    for node in _nodes(model.graph):
        if node.domain != CONTRIB or (CONTRIB, node.op_type) in own:
            continue
        name = _form(node)
        if name is None:
            continue
        node.op_type = name
        count = len(_function(name).output)
        if len(node.output) > count or len(node.input) > len(_function(name).input):
            continue
        # The inference stops at outputs that a node leaves out, so that it gets some.
        named = [output or f"unused output {next(counter)}" for output in node.output]
        node.output[:] = [*named, *(f"unused output {next(counter)}" for _ in range(len(named), count))]
        used.add(name)
    model.functions.extend(_function(name) for name in sorted(used))


def _form(node: onnx.NodeProto) -> str | None:
    """The name of the function for the node, None where there is none."""
    if node.op_type == "MultiHeadAttention" and not any(node.input[1:3]):
        return _PACKED
    if node.op_type == "FusedMatMul":
        turned = any(item.name.startswith("trans") and item.i for item in node.attribute)
        return None if turned else node.op_type
    if node.op_type == "Attention" and any(item.name == "qkv_hidden_sizes" for item in node.attribute):
        return None
    return node.op_type if node.op_type in _FUNCTIONS else None


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """All nodes of the graph and its subgraphs."""
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found += _nodes(inner)
    return found


@functools.cache
def _function(name: str) -> onnx.FunctionProto:
    signature, nodes = _FUNCTIONS[name]
    return onnx.parser.parse_function(f"{_HEAD} {name} {signature} {{ {nodes} }}")
