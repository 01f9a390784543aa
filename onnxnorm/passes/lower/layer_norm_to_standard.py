"""lower/layer-norm-to-standard: onnxnorm LayerNorm becomes ai.onnx LayerNormalization and the activation's operators.

For the target "standard" wherever it can; for the target "onnxnorm" where the operator needs no activation and is the
best form (the table in choice.py: on CUDA, while on CPU onnxnorm's kernel takes half of the time), and else the node
stays as it is. A bias of zeros is left out.

The trade on CPU: without the native library the node's function body runs, which is slower than ONNX Runtime's own
LayerNormalization. The target "standard" is for those who deploy without the library.

Refused (for the target "standard" the general rule lower/body-to-standard then writes it in primitive operators):
    1. LayerNormalization came with opset 17.
    2. The axes are not the last ones in a row, or the rank of X is not known and axes are not all negative.
    3. The element type is not known, or one in which ONNX Runtime has no kernel of its own for the provider, or no
       exact one: the table in choice.py.
    4. A normalized axis has size 0, which ONNX Runtime does not take.
    5. It stands in a model-local function, whose element types differ from call to call.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import is_op, tensor_of
from onnxnorm.passes.lower.choice import STANDARD, ChoosingRule, has_exact_kernel, prefers_standard
from onnxnorm.passes.lower.standard import attributes_of, builder_for, first_axis, known_type, replacement
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement
from onnxnorm.spec.record import DOMAIN


class LowerLayerNormToStandard(ChoosingRule):
    """See the module."""

    id: ClassVar[str] = "lower/layer-norm-to-standard"
    operators: ClassVar[frozenset[str]] = frozenset({"LayerNorm"})
    action: ClassVar[Action] = Action.LOWERED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any onnxnorm LayerNorm; for the target "onnxnorm" one that nothing speaks against."""
        if node.domain != DOMAIN or node.op_type != "LayerNorm":
            return None
        match = Match({"norm": node})
        return match if self.target == "standard" or self._is_better(match, context) else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 5 of the module."""
        norm, standard = match["norm"], STANDARD["LayerNorm"]
        if context.in_function:
            raise Refusal("it stands in a model-local function")
        if context.opset < standard.since:
            raise Refusal(f"LayerNormalization came with opset {standard.since}", opset=context.opset)
        first = first_axis(norm, "LayerNormalization")
        dtype = known_type(norm)
        if not has_exact_kernel("LayerNorm", dtype, self.provider):
            reason = f"ONNX Runtime has no exact kernel of LayerNormalization in {dtype.name.lower()}"
            raise Refusal(reason, provider=self.provider)
        shape = norm.inputs[0].shape if norm.inputs[0] is not None else None
        if shape is not None and 0 in shape.dims[first:]:
            raise Refusal("a normalized axis has size 0", X=str(shape))

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """LayerNormalization, then the activation."""
        norm = match["norm"]
        builder = builder_for(norm, context)
        attributes = attributes_of(norm)
        x, scale, bias = norm.inputs
        assert x is not None
        assert scale is not None
        assert bias is not None
        y = builder.op(
            "LayerNormalization",
            *((x, scale) if _is_zero(bias) else (x, scale, bias)),
            axis=first_axis(norm, "LayerNormalization"),
            epsilon=attributes["epsilon"],
            stash_type=int(builder.compute),
        )
        if attributes["activation"] != "none":
            y = builder.narrow(builder.activation(builder.widen(y)), like=x)
        return replacement(norm, builder, [y], context, "LayerNormalization")

    def _is_better(self, match: Match, context: Context) -> bool:
        norm = match["norm"]
        try:
            self.check(match, context)
            best = prefers_standard("LayerNorm", known_type(norm), self.provider)
            return best and bool(attributes_of(norm)["activation"] == "none")
        except Refusal:
            return False


def _is_zero(bias: ir.Value) -> bool:
    """Whether it is a constant of zeros, or one that is expanded."""
    producer = bias.producer()
    if producer is not None and is_op(producer, "Expand") and producer.inputs[0] is not None:
        bias = producer.inputs[0]
    array = tensor_of(bias)
    return array is not None and not np.any(array.astype(np.float64))
