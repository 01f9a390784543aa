"""Tells the shapes that a Reshape or Expand gives where the exporter joined them from sizes of other tensors.

ONNX's inference follows such shapes in the newer operators only, and gives up at a choice between a size and 1.
"""

from __future__ import annotations

import math
from collections import Counter

import onnx_ir as ir

from onnxnorm.passes.canonicalize.size_entries import Entry, entries_of, sizes_of
from onnxnorm.passes.graph import STANDARD, all_graphs, attribute, is_op

#: How names start that ONNX's inference gives to sizes which it does not know.
_MADE = "unk__"


def tell_joined_shapes(model: ir.Model) -> bool:
    """Sets what becomes known, and forgets names of sizes that follow from it; whether there was anything."""
    changed = False
    for graph, _, in_function in all_graphs(model):
        if in_function:
            continue
        anew: set[ir.Value] = set()
        for node in graph:
            if node.domain not in STANDARD or not node.outputs or node.outputs[0].is_graph_output():
                continue
            output = node.outputs[0]
            if _tell(node, output):
                anew.add(output)
            elif any(value in anew for value in node.inputs) and _has_names(output, _MADE):
                output.shape = None
                anew.add(output)
        changed = changed or bool(anew)
    return changed


def _has_names(value: ir.Value, prefix: str = "") -> bool:
    """Whether a size is no number: with a prefix, whether its name starts like that."""
    names = [size.value for size in value.shape or () if not isinstance(size, int)]
    return any(not prefix or (name is not None and str(name).startswith(prefix)) for name in names)


def _tell(node: ir.Node, output: ir.Value) -> bool:
    """Sets the output's shape; whether it is another one than before."""
    if output.shape is not None and not _has_names(output):
        return False
    if is_op(node, "Reshape"):
        entries = _reshaped(node)
    elif is_op(node, "Expand"):
        entries = _expanded(node)
    else:
        return False
    if entries is None:
        return False
    old = [None] * len(entries) if output.shape is None else list(output.shape)
    if len(old) != len(entries):
        return False
    sizes = [size if entry is None else entry for size, entry in zip(old, entries, strict=True)]
    known = [size for size in sizes if isinstance(size, int | str)]
    before = [size if isinstance(size, int) else getattr(size, "value", None) for size in old]
    if not known or before == [size if isinstance(size, int | str) else getattr(size, "value", None) for size in sizes]:
        return False
    output.shape = ir.Shape(sizes)
    return True


def _reshaped(node: ir.Node) -> list[int | str | None] | None:
    """The sizes that a Reshape gives; None for each that is not known."""
    x = node.inputs[0]
    wanted = entries_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if wanted is None or x is None or attribute(node, "allowzero", 0):
        return None
    own = sizes_of(x)
    entries: list[Entry | None] = []
    for axis, entry in enumerate(wanted):
        copied = entry == 0 and own is not None and axis < len(own)
        entries.append(own[axis] if copied and own is not None else None if entry == 0 else entry)
    if entries.count(-1) == 1 and own is not None:
        entries[entries.index(-1)] = _rest(own, [entry for entry in entries if entry != -1])
    return [entry if isinstance(entry, str) or (isinstance(entry, int) and entry > 0) else None for entry in entries]


def _rest(own: list[Entry], others: list[Entry | None]) -> Entry | None:
    """The size that fills up the number of elements; None where it is not a number or a single name."""
    if None in others:
        return None
    names = Counter(entry for entry in own if not isinstance(entry, int))
    names.subtract(entry for entry in others if entry is not None and not isinstance(entry, int))
    left = [entry for entry, times in names.items() if times]
    over = math.prod(entry for entry in own if isinstance(entry, int))
    under = math.prod(entry for entry in others if isinstance(entry, int))
    if under <= 0 or over % under:
        return None
    if not left:
        return over // under
    return left[0] if len(left) == 1 and names[left[0]] == 1 and over == under else None


def _expanded(node: ir.Node) -> list[int | str | None] | None:
    """The sizes that an Expand gives."""
    x, wanted = node.inputs[0], entries_of(node.inputs[1])
    own = None if x is None else sizes_of(x)
    if wanted is None or own is None:
        return None
    rank = max(len(own), len(wanted))
    first = [*[1] * (rank - len(own)), *own]
    second = [*[1] * (rank - len(wanted)), *wanted]
    sizes: list[int | str | None] = []
    for one, other in zip(first, second, strict=True):
        joined = other if one in (1, other) else one if other == 1 or isinstance(one, int) else None
        sizes.append(joined if isinstance(joined, int | str) else None)
    return sizes
