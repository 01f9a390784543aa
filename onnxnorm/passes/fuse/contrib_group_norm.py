"""fuse/contrib-group-norm: com.microsoft GroupNorm becomes onnxnorm GroupNorm with the same meaning.

    Y = act(gamma * (X - mean) / sqrt(variance + epsilon) + beta)

with act none (0) or SiLU (1), and X (N, H, W, C) or, with channels_last = 0, (N, C, H, W).

gamma and beta may be float32 beside a float16 X: constants are rounded once to float16, which costs at most half a unit
in the last place; what float16 cannot hold, and what is no constant, has the norm computed in float32. ONNX Runtime has
no CPU kernel of the operator.

Refused:
    1. As every rule for ONNX Runtime's own operators: in a model-local function, before opset 15.
    2. The element type of X, gamma or beta is not known.
    3. activation is neither 0 nor 1, or groups does not divide the channels.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.passes.contrib import ContribRule, Emitter, Parameters, element_type, is_contrib
from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import attribute, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement
from onnxnorm.spec.record import DOMAIN

ACTIVATIONS = {0: "none", 1: "silu"}


class FuseContribGroupNorm(ContribRule):
    """See the module."""

    id: ClassVar[str] = "fuse/contrib-group-norm"
    operators: ClassVar[frozenset[str]] = frozenset({"GroupNorm"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """Any GroupNorm of com.microsoft with its three inputs."""
        if not self.applies() or not is_contrib(node, "GroupNorm") or len(node.inputs) != 3 or None in node.inputs:
            return None
        return Match({"norm": node})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        super().check(match, context)
        norm = match["norm"]
        for value, role in zip(norm.inputs, ("X", "gamma", "beta"), strict=True):
            element_type(value, role)
        check_group_norm(norm)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op."""
        norm = match["norm"]
        x, gamma, beta = norm.inputs
        assert x is not None
        assert gamma is not None
        assert beta is not None
        emit = Emitter(context, node_name(norm))
        y = group_norm(norm, x, gamma, beta, emit, context)
        return emit.replacement(norm, [y], node_name(norm), tolerance=ROUNDED)


#: By how much both sides may differ in float64 where parameters were rounded to float16.
ROUNDED = 2.0**-9


def check_group_norm(norm: ir.Node) -> None:
    """Refusal (reason 3) for attributes that onnxnorm's op cannot say."""
    activation = attribute(norm, "activation", 0)
    if activation not in ACTIVATIONS:
        raise Refusal("its activation is neither 0 (none) nor 1 (SiLU)", activation=activation)
    groups, gamma = attribute(norm, "groups", 0), norm.inputs[1]
    channels = gamma.shape[0] if gamma is not None and gamma.shape is not None and len(gamma.shape) == 1 else None
    if groups < 1 or (isinstance(channels, int) and channels % groups):
        raise Refusal("groups does not divide the channels", groups=groups, channels=channels)


def group_norm(
    norm: ir.Node, x: ir.Value, gamma: ir.Value, beta: ir.Value, emit: Emitter, context: Context
) -> ir.Value:
    """Emits onnxnorm GroupNorm of ``x`` with the attributes of com.microsoft's operator; in X's element type."""
    parameters = Parameters(norm, x, (gamma, beta), emit, context)
    y = emit.op(
        "GroupNorm",
        parameters.x,
        *parameters.values,
        like=parameters.x,
        domain=DOMAIN,
        num_groups=attribute(norm, "groups", 0),
        epsilon=attribute(norm, "epsilon", 1e-5),
        activation=ACTIVATIONS[attribute(norm, "activation", 0)],
        channels_last=attribute(norm, "channels_last", 1),
    )
    emit.name_last(norm)
    return emit.cast(y, element_type(x))
