"""Which tensors of a graph have equally many positions, also where the sizes are not known.

An element-wise operator may work on the blocked layout only if it does not broadcast, and with a dynamic batch or image
ONNX Runtime's shape inference does not say so. Each tensor (N, C, H, W) gets a token for (N, H, W): equal tokens mean
equal sizes. Where sizes are known they are the token; else the token is made from that of the operator's input.
"""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from onnxnorm.compilation.operators import BINARY, NCHWC, UNARY, kind, spec_of
from onnxnorm.passes.graph import attribute

_SIZES = "sizes"
_WINDOWS = ("Conv", "MaxPool", "AveragePool")
#: (padding - reach, stride) of a window that leaves a size as it is: size -> (size + padding - reach) // stride + 1.
_SAME = (-1, 1)


def position_tokens(graph: ir.Graph) -> dict[ir.Value, Hashable]:
    """A token for every tensor of the graph that may have rank 4; its nodes must be in order."""
    tokens: dict[ir.Value, Hashable] = {}
    for value in (*graph.inputs, *graph.initializers.values()):
        _enter(value, None, tokens)
    for node in graph:
        made = _token_of(node, tokens)
        for value in node.outputs:
            _enter(value, made, tokens)
    return tokens


def _enter(value: ir.Value, made: Hashable, tokens: dict[ir.Value, Hashable]) -> None:
    """Known sizes go before what was derived, as they do for every other tensor of these sizes; ONNX Runtime writes
    no shape of what is in blocks.
    """
    if value.shape is not None and len(value.shape) != 4:
        return
    sizes = [None] if value.shape is None else [value.shape[axis] for axis in (0, 2, 3)]
    known = all(isinstance(size, int) for size in sizes)
    tokens[value] = (_SIZES, *sizes) if known else made or ("made by", id(value))


def _token_of(node: ir.Node, tokens: dict[ir.Value, Hashable]) -> Hashable:
    """The token of what the node makes, from those of its inputs; None where they do not tell it."""
    full = [value for value in node.inputs if value in tokens]
    if not full or full[0] is not node.inputs[0]:
        return None
    first = tokens[full[0]]
    name = kind(node)
    if node.domain == NCHWC and node.op_type in ("ReorderInput", "ReorderOutput"):
        return first if attribute(node, "channels_last", 0) == 0 else None
    if node.op_type in _WINDOWS and node.domain in (NCHWC, "", "com.microsoft"):
        return _window(node, first)
    if name in UNARY or spec_of(node) is not None:
        return first
    if name in BINARY or (name == "Concat" and attribute(node, "axis", 0) in (1, -3)):
        return first if all(tokens[value] == first for value in full) else None
    return None


def _window(node: ir.Node, source: Hashable) -> Hashable:
    """A convolution's or pooling's: sizes become (size + padding - reach) // stride + 1."""
    kernel = attribute(node, "kernel_shape", None)
    plain = attribute(node, "auto_pad", "NOTSET") == "NOTSET" and not attribute(node, "ceil_mode", 0)
    if kernel is None or len(kernel) != 2 or not plain:
        return None
    pads = attribute(node, "pads", (0, 0, 0, 0))
    strides, dilations = (attribute(node, name, (1, 1)) for name in ("strides", "dilations"))
    steps = [(pads[axis] + pads[axis + 2] - dilations[axis] * (kernel[axis] - 1) - 1, strides[axis]) for axis in (0, 1)]
    if isinstance(source, tuple) and source[0] == _SIZES:
        _, items, *sizes = source
        return (_SIZES, items, *((size + rest) // step + 1 for size, (rest, step) in zip(sizes, steps, strict=True)))
    return source if steps == [_SAME, _SAME] else (source, *steps)
