"""fold/batch-norm-into-matmul: BatchNormalization(MatMul(x, W) [+ c]) = MatMul(x, W') + c'.

BatchNormalization's channels are axis 1. They are MatMul's columns only where its output has rank 2, so that W (in,
channels) is scaled by column and c' = a * c + b. With a constant on the left, W (channels, in) times x (N, in, L), they
are its rows; W is scaled by row and c' is a column.

Refused: the reasons of ``onnxnorm.passes.fold.batch_norm``, and
    6. The output's rank is not known, or axis 1 is not the axis that the constant factor makes.
    7. The added c is not constant, or enlarges the output.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fold.batch_norm import (
    FloatArray,
    affine_of,
    along,
    check_channels,
    check_private,
    tolerance_of,
)
from onnxnorm.passes.graph import is_op, node_name, rank_of, tensor_of
from onnxnorm.passes.large import exact
from onnxnorm.passes.rule import (
    Context,
    Match,
    Refusal,
    Replacement,
    Rule,
    check_underflow,
    constant_array,
)


class FoldBatchNormIntoMatMul(Rule):
    """See the module."""

    id: ClassVar[str] = "fold/batch-norm-into-matmul"
    operators: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})
    action: ClassVar[Action] = Action.FOLDED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """BatchNormalization of MatMul, or of MatMul plus something."""
        if not is_op(node, "BatchNormalization") or not node.inputs or node.inputs[0] is None:
            return None
        producer = node.inputs[0].producer()
        if producer is not None and is_op(producer, "MatMul"):
            return Match({"matmul": producer, "norm": node})
        if producer is None or not is_op(producer, "Add"):
            return None
        for value in producer.inputs:
            matmul = value.producer() if value is not None else None
            if matmul is not None and is_op(matmul, "MatMul"):
                return Match({"matmul": matmul, "add": producer, "norm": node})
        return None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 6."""
        norm, matmul, add = match["norm"], match["matmul"], match.nodes.get("add")
        affine_of(norm, context)
        check_private(matmul.outputs[0], add or norm, context)
        if add is not None:
            check_private(add.outputs[0], norm, context)
        _constant_side(matmul)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """MatMul and Add with new constants."""
        norm, matmul, add = match["norm"], match["matmul"], match.nodes.get("add")
        affine = affine_of(norm, context)
        side = _constant_side(matmul)
        factor = matmul.inputs[side]
        assert factor is not None
        weight = constant_array(factor, "MatMul's weight")
        dtype = ir.DataType.from_numpy(weight.dtype)
        axis = weight.ndim - 1 if side == 1 else weight.ndim - 2
        check_channels(affine.scale, weight.shape[axis], matmul)
        scaled = exact(weight) * along(axis, affine.scale, weight.ndim)
        check_underflow(scaled, dtype, axis)
        column = affine.scale if side == 1 else affine.scale[:, None]
        shift = affine.shift if side == 1 else affine.shift[:, None]
        bias = _added(add, matmul, column.shape) * column + shift

        inputs = list(matmul.inputs)
        inputs[side] = context.constant(f"{factor.name}_folded", scaled, dtype)
        product = ir.node("MatMul", inputs, name=matmul.name)
        product.outputs[0].type, product.outputs[0].shape = matmul.outputs[0].type, matmul.outputs[0].shape
        name = add.name if add is not None and add.name else context.fresh_name(f"{node_name(matmul)}_bias")
        total = ir.node("Add", [product.outputs[0], context.constant(f"{name}_folded", bias, dtype)], name=name)
        removed = [matmul, *([add] if add is not None else []), norm]
        return Replacement(
            [product, total],
            {norm.outputs[0]: total.outputs[0]},
            removed,
            norm,
            into=node_name(matmul),
            tolerance=tolerance_of(norm),
        )


def _constant_side(matmul: ir.Node) -> int:
    """1 when the right factor is the weight, 0 when the left is; Refusal (reasons 2 and 6) otherwise."""
    rank = rank_of(matmul.outputs[0])
    if rank is None:
        ranks = [rank_of(value) for value in matmul.inputs if value is not None]
        if None not in ranks:
            rank = max(known for known in ranks if known is not None)
    if rank is None:
        raise Refusal("the rank of MatMul's output is not known, so neither is which axis BatchNormalization scales")
    if tensor_of(matmul.inputs[1]) is not None and tensor_of(matmul.inputs[0]) is None:
        if rank != 2:
            raise Refusal("BatchNormalization scales axis 1, MatMul's features are the last axis", rank=rank)
        _check_rank_2(matmul.inputs[1])
        return 1
    if tensor_of(matmul.inputs[0]) is not None and tensor_of(matmul.inputs[1]) is None:
        if rank != 3:
            raise Refusal("BatchNormalization scales axis 1, which is not the axis of MatMul's left factor", rank=rank)
        _check_rank_2(matmul.inputs[0])
        return 0
    constant_array(matmul.inputs[1], "MatMul's weight")
    raise Refusal("both factors of MatMul are constant")


def _check_rank_2(factor: ir.Value | None) -> None:
    array = tensor_of(factor)
    assert array is not None
    if array.ndim != 2:
        raise Refusal("MatMul's weight is not a matrix", shape=array.shape)


def _added(add: ir.Node | None, matmul: ir.Node, shape: tuple[int, ...]) -> FloatArray:
    """The constant that Add adds, as it broadcasts over the channels; Refusal (reason 7)."""
    if add is None:
        return np.zeros(shape)
    value = add.inputs[1] if add.inputs[0] is matmul.outputs[0] else add.inputs[0]
    added = constant_array(value, "added term").astype(np.float64)
    rank = rank_of(matmul.outputs[0]) or 0
    if added.ndim > rank:
        raise Refusal("the added term has more axes than MatMul's output", shape=added.shape, rank=rank)
    target = matmul.outputs[0].shape
    padded = (1,) * (rank - added.ndim) + added.shape
    for axis, size in enumerate(padded):
        known = target[axis] if target is not None else None
        if size not in (1, known) and not (axis == rank - len(shape) and size == shape[0]):
            raise Refusal("the added term may enlarge MatMul's output", shape=added.shape, output=str(target))
    return added
