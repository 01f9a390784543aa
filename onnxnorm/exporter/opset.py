"""Opsets that PyTorch's exporter does not write itself."""

from __future__ import annotations

from collections.abc import Callable

import onnx.defs
import onnx_ir as ir

from onnxnorm.errors import ExportError

OLDEST_OPSET = 18


def export_at(run: Callable[[int | None], ir.Model], opset: int | None) -> ir.Model:
    """``run(opset)``; for an opset beyond the exporter's own, the newest that it writes, raised to ``opset``.

    The exporter silently writes opset 18 when it cannot write what it is asked for, so its answer is compared.

    Raises:
        ExportError: an operator of the model changed its meaning in between.

    """
    for version in (opset,) if opset is None else range(opset, OLDEST_OPSET - 1, -1):
        try:
            model = run(version)
        except ValueError as error:  # the converter, where a graph holds no standard operator
            if "Target opset version" not in str(error) or version == OLDEST_OPSET:
                raise
            continue
        written = model.opset_imports.get("", 0)
        if version is None or written == version:
            if opset is not None and written != opset:
                _raise_opset(model, written, opset)
            return model
    raise ExportError(f"PyTorch's exporter writes no opset from {OLDEST_OPSET} to {opset}")


def _raise_opset(model: ir.Model, written: int, opset: int) -> None:
    """Changes the model's opset where every operator in it is the same in both."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in graph:
            if node.domain not in ("", "ai.onnx"):
                continue
            before = onnx.defs.get_schema(node.op_type, written).since_version
            after = onnx.defs.get_schema(node.op_type, opset).since_version
            if before != after:
                raise ExportError(
                    f"opset {opset} was asked for, PyTorch's exporter writes up to {written}, and {node.op_type} "
                    f"(node {node.name!r}) changed in opset {after}; ask for opset {after - 1} or older"
                )
    model.opset_imports[""] = opset
