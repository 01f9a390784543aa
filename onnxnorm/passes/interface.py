"""What a caller sees of a model: its inputs and outputs, which no pass may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class _Declared:
    name: str | None
    kind: ir.TypeProtocol | None
    shape: ir.Shape | None
    doc_string: str | None
    metadata: dict[str, str]

    @classmethod
    def of(cls, value: ir.Value) -> _Declared:
        shape = None if value.shape is None else value.shape.copy()
        return cls(value.name, value.type, shape, value.doc_string, dict(value.metadata_props))

    def restore(self, value: ir.Value) -> None:
        value.name = self.name
        value.type, value.shape, value.doc_string = self.kind, self.shape, self.doc_string
        value.metadata_props.clear()
        value.metadata_props.update(self.metadata)


class Interface:
    """The declared names, types, shapes, texts and metadata of the main graph's inputs and outputs."""

    def __init__(self, model: ir.Model) -> None:
        self._inputs = [_Declared.of(value) for value in model.graph.inputs]
        self._outputs = [_Declared.of(value) for value in model.graph.outputs]

    def restore(self, model: ir.Model) -> None:
        """Takes back what shape inference and rewrites changed in them."""
        _restore(self._inputs, model.graph.inputs)
        _restore(self._outputs, model.graph.outputs)


def _restore(declared: Sequence[_Declared], values: Sequence[ir.Value]) -> None:
    for item, value in zip(declared, values, strict=True):
        item.restore(value)
