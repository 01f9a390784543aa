"""fuse/group-norm: group normalization in primitive operators between two Reshapes becomes onnxnorm GroupNorm.

    Reshape((x' - mean(x')) / sqrt(var(x') + epsilon) * w + b, shape of x),   x' = Reshape(x, (N, G, ...))
      =  GroupNorm_G(x, scale, bias)

also channels last, (N, ..., G, C / G), and with the groups as items of their own, (N * G, ...); w and b have one value
per channel or per group. What stands behind the second Reshape is for fuse/channel-affine.

Refused as for fuse/layer-norm; and where scale or bias overflows the element type, or a scale loses digits in it.
Left to fuse/instance-norm and fuse/layer-norm: what has other operators, or a run-time scale, between the Reshapes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir as ir

from onnxnorm.passes.fuse.group_split import Split, find_split
from onnxnorm.passes.fuse.product import attribute_of_epsilon, put
from onnxnorm.passes.fuse.rms_norm_power import is_exact
from onnxnorm.passes.fuse.rms_norm_weight import check_digits
from onnxnorm.passes.fuse.standardized import Standardized
from onnxnorm.passes.fuse.standardized_rule import StandardizedRule, input_of, parameters, result_of
from onnxnorm.passes.rule import Context, Match, Replacement
from onnxnorm.spec.record import DOMAIN


class FuseGroupNorm(StandardizedRule):
    """See the module."""

    id: ClassVar[str] = "fuse/group-norm"

    def take(self, found: Standardized, context: Context) -> Match | None:
        """What stands between two Reshapes, the second of which is the last node."""
        split = find_split(found)
        if split is None:
            return None
        nodes = [*found.matched.values(), *split.nodes]
        return Match({str(index): node for index, node in enumerate(nodes)}, {"found": found, "split": split})

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op on what the first Reshape reads."""
        found: Standardized = match.facts["found"]
        split: Split = match.facts["split"]
        root = split.nodes[-1]
        result = root.outputs[0]
        dtype = _work_type(found, split)
        nodes: list[ir.Node] = []
        x = input_of((), split.x, dtype, nodes)
        check_digits(split.factor, dtype)
        attributes: dict[str, Any] = {
            "num_groups": split.layout.groups,
            "epsilon": attribute_of_epsilon(found.power.epsilon, dtype),
            "activation": "none",
            "channels_last": int(split.layout.channels_last),
        }
        inputs = [x, *parameters(root, split.factor, split.shift, dtype, context)]
        nodes.append(ir.node("GroupNorm", inputs, attributes, domain=DOMAIN, name=root.name))
        nodes[-1].outputs[0].dtype, nodes[-1].outputs[0].shape = dtype, split.x.shape
        if result.dtype is not None and result.dtype != dtype:
            nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": int(result.dtype)}))
            nodes[-1].outputs[0].dtype, nodes[-1].outputs[0].shape = result.dtype, split.x.shape
        return put(nodes, match.nodes.values(), [*found.shared, *split.shared], root)


def _work_type(found: Standardized, split: Split) -> ir.DataType:
    """X's own type where the result has it and all numbers keep their digits in it; else that of the norm."""
    own, norm = split.x.dtype, result_of(found).dtype
    assert own is not None
    assert norm is not None
    if own == split.nodes[-1].outputs[0].dtype and all(is_exact(part, own) for part in (split.factor, split.shift)):
        return own
    return norm
