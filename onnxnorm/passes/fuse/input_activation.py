"""fuse/input-activation: norm(act(x)) = norm(x) with the attribute input_activation, for every onnxnorm op that has it.

GlobalResponseNorm, for the GELU in front of it in ConvNeXt V2. Activations are recognized as by fuse/activation.

Refused:
    1. The norm already has an activation of its input.
    2. The activation's result has other readers, or is a graph output.
    3. A part of the activation stands in another graph, or has other readers.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.activation import constants_precision, read_activation
from onnxnorm.passes.fuse.product import check_graph, check_private_nodes
from onnxnorm.passes.graph import attribute, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN

_ATTRIBUTE = "input_activation"
_OPERATORS = frozenset(
    name for name, spec in all_specs().items() if any(item.name == _ATTRIBUTE for item in spec.attributes)
)


class FuseInputActivation(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/input-activation"
    operators: ClassVar[frozenset[str]] = _OPERATORS
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A norm that reads an activation's result."""
        last = node.inputs[0].producer() if node.domain == DOMAIN and node.inputs[0] is not None else None
        found = None if last is None else read_activation(last)
        if last is None or found is None:
            return None
        name, x, inner = found
        nodes = {f"inner{index}": item for index, item in enumerate(inner)} | {"activation": last, "norm": node}
        return Match(nodes, {"activation": name, "x": x})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        present = attribute(match["norm"], _ATTRIBUTE, "none")
        if present != "none":
            raise Refusal("the norm already has an activation of its input", input_activation=present)
        check_graph(match.nodes.values(), context)
        check_private_nodes(match.nodes.values(), match["norm"])

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The norm with the attribute."""
        norm, name = match["norm"], match.facts["activation"]
        attributes = {**norm.attributes, _ATTRIBUTE: ir.AttrString(_ATTRIBUTE, name)}
        inputs = [match.facts["x"], *norm.inputs[1:]]
        new = ir.node(norm.op_type, inputs, attributes, domain=DOMAIN, num_outputs=len(norm.outputs), name=norm.name)
        outputs = dict(zip(norm.outputs, new.outputs, strict=True))
        removed = [*dict.fromkeys(node for node in match.nodes.values() if node is not norm), norm]
        result = Replacement([new], outputs, removed, norm, into=node_name(norm), values={_ATTRIBUTE: name})
        result.tolerance = max(result.tolerance, constants_precision(match.facts["x"]) if len(match.nodes) > 3 else 0.0)
        return result
