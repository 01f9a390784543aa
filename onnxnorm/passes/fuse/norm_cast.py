"""fuse/norm-cast: Cast(norm(Cast(x, float32), s), T) = norm(x, s) in T, the half type of x, for every onnxnorm op.

The op computes in float32 and rounds once, as the casts do. A cast of the norm's result to the type that it has goes
away, too (``type_as`` in a float32 model).

Refused:
    1. The norm's own result has other readers, or is a graph output, or the norm stands in another graph.
    2. A parameter is not constant, or loses digits in the half type (Gemma's 1 + w): it stays in float32.

An op with several results (training graphs) is left alone.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.rms_norm_power import is_exact
from onnxnorm.passes.fuse.rms_norm_weight import check_private
from onnxnorm.passes.graph import is_op, node_name, tensor_of
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class FuseNormCast(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/norm-cast"
    operators: ClassVar[frozenset[str]] = frozenset({"Cast", "CastLike"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A cast to x's half type of a float32 norm of the widened x."""
        norm = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if (
            norm is None
            or norm.domain != DOMAIN
            or norm.op_type not in all_specs()
            or len(norm.outputs) > 1
            or norm.inputs[0] is None
        ):
            return None
        if node.outputs[0].dtype is not None and node.outputs[0].dtype == norm.inputs[0].dtype:
            return Match({"norm": norm, "cast": node}, {"x": norm.inputs[0]})
        widen = norm.inputs[0].producer()
        if widen is None or not (is_op(widen, "Cast") or is_op(widen, "CastLike")):
            return None
        x, wide, narrow = widen.inputs[0], norm.inputs[0].dtype, node.outputs[0].dtype
        if x is None or narrow not in _HALVES or x.dtype != narrow or wide != ir.DataType.FLOAT:
            return None
        return Match({"norm": norm, "cast": node}, {"x": x})

    def check(self, match: Match, context: Context) -> None:
        """Both reasons of the module."""
        norm, cast, spec = match["norm"], match["cast"], all_specs()[match["norm"].op_type]
        check_private(norm, cast, context)
        for value, item in zip(norm.inputs[1:], spec.inputs[1:], strict=True):
            array = tensor_of(value)
            if array is None:
                raise Refusal(f"the {item.name} is not constant", input=value.name if value is not None else None)
            if not is_exact(array, match.facts["x"].dtype):
                raise Refusal(f"the {item.name} would lose digits in the half type", dtype=match.facts["x"].dtype)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The norm in the half type."""
        norm, cast, x = match["norm"], match["cast"], match.facts["x"]
        inputs = [x]
        for value, item in zip(norm.inputs[1:], all_specs()[norm.op_type].inputs[1:], strict=True):
            array = tensor_of(value)
            assert array is not None
            name = f"{node_name(norm)}_{item.name}"
            inputs.append(context.constant(name, array.astype(np.float64), x.dtype, infinite=True))
        new = ir.node(norm.op_type, inputs, norm.attributes, domain=DOMAIN, name=norm.name)
        result = Replacement([new], {cast.outputs[0]: new.outputs[0]}, [norm, cast], norm, into=node_name(norm))
        source = norm.inputs[0]
        widen = source.producer() if source is not None and source is not x else None
        result.before = [norm, cast] if widen is None else [widen, norm, cast]  # which relates both sides' inputs
        return result

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the norm."""
        return match["norm"]
