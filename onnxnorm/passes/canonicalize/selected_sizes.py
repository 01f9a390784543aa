"""The sizes that a Gather or Slice takes out of a Shape, where these are known: other sizes need not be.

That is how the exporters count the values of a mean in a model with a dynamic batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.passes.graph import attribute, is_op, tensor_of


def selected_sizes(node: ir.Node) -> npt.NDArray[Any] | None:
    """What the node gives, as int64; None where it takes nothing out of a Shape, or a size that is not known."""
    sizes = _sizes(node.inputs[0]) if node.inputs else None
    if sizes is None:
        return None
    places = np.arange(len(sizes))
    if is_op(node, "Gather"):
        index = tensor_of(node.inputs[1])
        if index is None or attribute(node, "axis", 0) not in (0, -1) or np.any(np.abs(index + 0.5) > len(sizes)):
            return None
        chosen = places[index]
    elif is_op(node, "Slice"):
        bounds = _slice(node)
        if bounds is None:
            return None
        chosen = places[bounds]
    else:
        return None
    found = [sizes[place] for place in chosen.reshape(-1)]
    if any(not isinstance(size, int) for size in found):
        return None
    return np.array(found, np.int64).reshape(chosen.shape)


def _sizes(value: ir.Value | None) -> list[Any] | None:
    """The entries of a Shape."""
    node = value.producer() if value is not None else None
    x = node.inputs[0] if node is not None and is_op(node, "Shape") else None
    if node is None or x is None or x.shape is None:
        return None
    return list(x.shape)[attribute(node, "start", 0) : attribute(node, "end", None)]


def _slice(node: ir.Node) -> slice | None:
    """The part that a Slice takes along its only axis; None where its bounds are not constant."""
    if "starts" in node.attributes:  # before opset 10
        bounds = [attribute(node, name, None) for name in ("starts", "ends", "axes")]
        steps: Any = None
    else:
        given = [tensor_of(value) for value in node.inputs[1:]]
        if any(array is None and value is not None for array, value in zip(given, node.inputs[1:], strict=True)):
            return None
        starts, ends, axes, steps = [*given, None, None, None, None][:4]
        bounds = [starts, ends, axes]
    start, end = (None if bound is None or np.size(bound) != 1 else int(np.reshape(bound, ())) for bound in bounds[:2])
    step = 1 if steps is None else int(np.reshape(steps, ()))
    if start is None or end is None or step != 1:
        return None
    return slice(start, end)
