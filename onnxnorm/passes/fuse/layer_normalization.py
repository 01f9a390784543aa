"""fuse/layer-normalization: ai.onnx LayerNormalization becomes onnxnorm LayerNorm over axes axis .. last.

Where LayerNormalization is the best form it stays (the table in choice.py): on CUDA. On CPU onnxnorm's kernel takes
half of the time, and ONNX Runtime has none in bfloat16. The trade: without the native library the function body runs,
which is slower than ONNX Runtime's own LayerNormalization. The target "standard", which keeps LayerNormalization, is
for those who deploy without the library. One that lower/unsupported-type made float32 stays, so that a second run
changes nothing.

Refused, which is told only in element types that ONNX Runtime has no kernel for; in the others the node runs well as
it is:
    1. The rank of X is not known, or scale or bias has not exactly the sizes of the normalized axes (ONNX lets them
       broadcast), or these are not known.
    2. X, scale and bias differ in element type, which ONNX allows.
    3. Its outputs Mean or InvStdDev are read, or are graph outputs.
    4. It has no bias, and the sizes of the one that LayerNorm needs are not known.
    5. As for fuse/group-normalization: stash_type, functions.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.engine import RULE_KEY
from onnxnorm.passes.fuse.group_normalization import FLOAT_TYPES, check_standard_norm
from onnxnorm.passes.graph import attribute, is_op, node_name, rank_of
from onnxnorm.passes.lower.choice import ChoosingRule, has_standard_kernel, prefers_standard
from onnxnorm.passes.lower.unsupported_types import RULE as UNSUPPORTED_TYPE
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement
from onnxnorm.spec.record import DOMAIN


class FuseLayerNormalization(ChoosingRule):
    """See the module."""

    id: ClassVar[str] = "fuse/layer-normalization"
    operators: ClassVar[frozenset[str]] = frozenset({"LayerNormalization"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A LayerNormalization of the standard domain for which ONNX Runtime has no kernel, or ours is faster."""
        if not is_op(node, "LayerNormalization") or node.inputs[0] is None or node.inputs[1] is None:
            return None
        dtype = node.inputs[0].dtype
        if dtype not in FLOAT_TYPES:
            return None
        if prefers_standard("LayerNorm", dtype, self.provider):
            return None
        match = Match({"norm": node})
        runs = has_standard_kernel("LayerNorm", dtype, self.provider)
        if runs and (_was_widened(node) or not self._can_be_taken(match, context)):
            return None
        return match

    def _can_be_taken(self, match: Match, context: Context) -> bool:
        try:
            self.check(match, context)
        except Refusal:
            return False
        return True

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 5 of the module."""
        norm = match["norm"]
        check_standard_norm(norm, context)
        x, scale, bias = _inputs(norm)
        for role, value in (("scale", scale), ("bias", bias)):
            if value is not None:
                _check_parameter(norm, x, role, value)
        for output in norm.outputs[1:]:
            if output.uses() or output.is_graph_output():
                raise Refusal("its Mean or InvStdDev is used", output=output.name)
        if bias is None and not _static_sizes(scale):
            raise Refusal("it has no bias, and the sizes of one are not known", scale=str(scale.shape))

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op."""
        norm = match["norm"]
        x, scale, bias = _inputs(norm)
        if bias is None:
            assert x.dtype is not None
            bias = context.constant(f"{node_name(norm)}_bias", np.zeros(_static_sizes(scale)), x.dtype)
        attributes = {"axes": _axes(norm), "epsilon": attribute(norm, "epsilon", 1e-5), "activation": "none"}
        new = ir.node("LayerNorm", [x, scale, bias], attributes, domain=DOMAIN, name=norm.name)
        return Replacement([new], {norm.outputs[0]: new.outputs[0]}, [norm], norm, into=node_name(norm))


def _was_widened(norm: ir.Node) -> bool:
    """Whether a run before this one made it float32."""
    return UNSUPPORTED_TYPE in norm.metadata_props.get(RULE_KEY, "").split(",")


def _inputs(norm: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """X, scale, and bias where there is one."""
    x, scale = norm.inputs[:2]
    assert x is not None
    assert scale is not None
    return x, scale, norm.inputs[2] if len(norm.inputs) > 2 else None


def _check_parameter(norm: ir.Node, x: ir.Value, role: str, value: ir.Value) -> None:
    """Refusal (reasons 1 and 2) unless the parameter is what LayerNorm takes."""
    if rank_of(x) is None or value.shape is None:
        raise Refusal(f"the rank of X or the shape of {role} is not known")
    if value.dtype is not None and value.dtype != x.dtype:
        raise Refusal(f"X and {role} differ in element type", X=x.dtype, **{role: value.dtype})
    sizes = [x.shape[axis] for axis in _axes(norm) if x.shape]
    if list(value.shape) != sizes or any(isinstance(size, ir.SymbolicDim) and size.value is None for size in sizes):
        raise Refusal(f"{role} has not the sizes of the normalized axes", **{role: str(value.shape), "X": str(x.shape)})


def _static_sizes(scale: ir.Value) -> tuple[int, ...]:
    """The sizes of scale; none where one is not known."""
    sizes = tuple(size for size in scale.shape or () if isinstance(size, int))
    return sizes if scale.shape is not None and len(sizes) == len(scale.shape) else ()


def _axes(norm: ir.Node) -> list[int]:
    """The normalized axes, counted from the end."""
    rank = rank_of(norm.inputs[0]) if norm.inputs[0] is not None else None
    assert rank is not None
    axis = attribute(norm, "axis", -1)
    return list(range(axis - rank if axis >= 0 else axis, 0))
