"""Brings the chosen nodes to the blocked layout and takes out the reorders that are then idle."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxnorm.compilation.layout import is_reorder_input, is_reorder_output
from onnxnorm.compilation.operators import NCHWC, Candidate
from onnxnorm.passes.graph import all_names
from onnxnorm.spec.blocked import PREFIX


def rewrite(model: ir.Model, chosen: Sequence[Candidate], block: int) -> None:
    """Changes the model; ``chosen`` are nodes of its main graph, in order."""
    work = _Rewrite(model, block)
    for item in chosen:
        work.replace(item)
    work.finish()


class _Rewrite:
    """The blocked tensor of each plain one, where there is one."""

    def __init__(self, model: ir.Model, block: int) -> None:
        self._graph = model.graph
        self._block = block
        self._names = all_names(model)
        self._in_blocks: dict[ir.Value, ir.Value] = {}
        self._replaced: list[ir.Node] = []
        for node in self._graph:
            blocks = node.inputs[0] if is_reorder_output(node, block) else None
            if blocks is not None:
                self._in_blocks[node.outputs[0]] = blocks
                blocks.type, blocks.shape = node.outputs[0].type, node.outputs[0].shape  # ONNX Runtime writes none

    def replace(self, item: Candidate) -> None:
        """Adds the node's blocked form beside it."""
        old = item.node
        inputs = [
            self._blocks_of(value) if index in item.inputs and value is not None else value
            for index, value in enumerate(old.inputs)
        ]
        attributes = list(old.attributes.values())
        if item.blocked_type.startswith(PREFIX):
            attributes.append(ir.AttrInt64("block", self._block))
        new = ir.Node(
            old.domain,
            item.blocked_type,
            inputs,
            attributes,
            num_outputs=len(old.outputs),
            name=self._new_name(f"{old.name or old.op_type}_blocked"),
            doc_string=old.doc_string,
            metadata_props=dict(old.metadata_props),
        )
        self._graph.insert_before(old, new)
        for plain, blocks in zip(old.outputs, new.outputs, strict=True):
            if plain.name:
                self._describe(blocks, plain)
                self._in_blocks[plain] = blocks
            else:
                blocks.name = ""
        self._replaced.append(old)

    def finish(self) -> None:
        """Readers of blocks get them; the plain layout is made where somebody still reads it."""
        for node in list(self._graph):
            blocks = self._in_blocks.get(node.inputs[0]) if is_reorder_input(node) and node.inputs[0] else None
            if blocks is not None and blocks is not node.outputs[0]:
                ir.convenience.replace_all_uses_with(node.outputs[0], blocks)
                self._graph.remove(node, safe=True)
        for node in reversed(self._replaced):
            self._take_out(node)
        for node in list(self._graph):
            if is_reorder_output(node, self._block) and not _is_read(node.outputs[0]):
                self._graph.remove(node, safe=True)

    def _take_out(self, node: ir.Node) -> None:
        """Removes a node that has its blocked form; its results come from that, reordered if they are read."""
        for plain in node.outputs:
            blocks = self._in_blocks.get(plain)
            if blocks is None or not _is_read(plain):
                continue
            name, plain.name = plain.name, self._new_name(f"{plain.name}_before")
            made = self._reorder("ReorderOutput", blocks, ir.AttrInt64("channels", _channels(plain)))
            made.name, made.type, made.shape = name, plain.type, plain.shape
            self._graph.insert_after(node, _producer(made))
            ir.convenience.replace_all_uses_with(plain, made, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)

    def _blocks_of(self, plain: ir.Value) -> ir.Value:
        """The tensor in blocks; reordered after it is made where nothing makes it so."""
        if plain not in self._in_blocks:
            blocks = self._reorder("ReorderInput", plain)
            self._describe(blocks, plain)
            node = plain.producer()
            if node is None:
                self._graph.insert_before(self._graph[0], _producer(blocks))
            else:
                self._graph.insert_after(node, _producer(blocks))
            self._in_blocks[plain] = blocks
        return self._in_blocks[plain]

    def _reorder(self, op_type: str, value: ir.Value, *attributes: ir.Attr) -> ir.Value:
        name = self._new_name(f"{value.name}_{op_type}")
        node = ir.Node(NCHWC, op_type, [value], [ir.AttrInt64("channels_last", 0), *attributes], name=name)
        return node.outputs[0]

    def _describe(self, blocks: ir.Value, plain: ir.Value) -> None:
        """Type and shape are those of the plain tensor, as ONNX Runtime has it."""
        blocks.name, blocks.type, blocks.shape = self._new_name(f"{plain.name}_blocks"), plain.type, plain.shape

    def _new_name(self, wanted: str) -> str:
        name, count = wanted, 0
        while name in self._names:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        return name


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _channels(value: ir.Value) -> int:
    channels = None if value.shape is None else value.shape[1]
    assert isinstance(channels, int)
    return channels


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
