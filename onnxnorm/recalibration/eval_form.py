"""recalibrate/eval-form: a training op becomes what it is in evaluation, its state being fixed.

Algebra: none; the op's own record says what evaluation computes (``NormSpec.eval_form``). In evaluation a state does
not move, so that whoever reads its next value reads the state itself.

Refused: the model's opset is older than bodies can be written for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import is_norm, op_name
from onnxnorm.passes.lower.standard import builder_for, replacement
from onnxnorm.passes.rule import Context, Match, Replacement, Rule
from onnxnorm.recalibration.layers import Layer


class RecalibrateEvalForm(Rule):
    """See the module.

    Args:
        layers: the training ops to replace.
        values: what the Decision about each of them tells.

    """

    id: ClassVar[str] = "recalibrate/eval-form"
    operators: ClassVar[frozenset[str]] = frozenset(name for name, spec in all_specs().items() if spec.eval_form)
    action: ClassVar[Action] = Action.RECALIBRATED

    def __init__(self, layers: Mapping[ir.Node, Layer], values: Mapping[ir.Node, Mapping[str, Any]]) -> None:
        self._layers = layers
        self._values = values

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """One of the layers."""
        return Match({"norm": node}) if node in self._layers else None

    def check(self, match: Match, context: Context) -> None:
        """The builder refuses what it cannot write."""
        builder_for(match["norm"], context)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The evaluation form on the node's own inputs; next states are the states."""
        norm = match["norm"]
        layer = self._layers[norm]
        assert layer.spec.eval_form is not None
        builder = builder_for(norm, context)
        inputs = [value for value in norm.inputs if value is not None]
        outputs = [layer.spec.eval_form(builder, inputs)]
        slots = {item.output: item.input for item in layer.moved}
        names = [item.name for item in layer.spec.inputs]
        for index, item in enumerate(layer.spec.outputs[1:], start=1):
            slot = slots.get(index, names.index(item.name.removeprefix("next_")))
            outputs.append(builder.op("Identity", inputs[slot]))
        kind = next((op_name(node) for node in builder.nodes if is_norm(node)), "primitive operators")
        result = replacement(norm, builder, outputs, context, kind)
        result.values.update(self._values[norm])
        return result
