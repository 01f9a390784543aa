"""fuse/layer-norm: layer normalization in primitive operators becomes onnxnorm LayerNorm.

    (x - mean(x over axes)) / sqrt(var(x over axes) + epsilon) * w + b  =  LayerNorm(x, ones, zeros) * w + b

over any axes, in every spelling that ``standardized`` finds; fuse/channel-affine takes in w and b. A variance with a
factor, as the unbiased one over n values, goes into scale and epsilon:

    (f * var + epsilon)^(-1/2) = f^(-1/2) * (var + epsilon / f)^(-1/2),   f = n / (n - 1)

A variance computed as E[x^2] - E[x]^2 is the same function, and centring is nearer to the truth.

With ``target="standard"`` this is a step on the way to LayerNormalization (opset 17), and what could not become that
is left alone: other axes than the last ones, and element types without an exact kernel. So is group norm of one group
over many values, which would need a scale for each of them.

Refused:
    1. epsilon is added outside the root, or the deviation is clamped: other functions.
    2. A value in between has other readers, is a graph output, or stands in an outer graph.
    3. The power is not the inverse square root.
    4. E[x^2] - E[x]^2 without an epsilon: rounding decides whether that is NaN.
    5. A statistic is kept in a type that is narrower than x, or wider than the op computes in.
    6. The size of a normalized axis is not known, or is 0: the op needs a scale of that size.
    7. epsilon is negative, or not a number that the op's attribute, a float32, can say.
    8. A weight or shift and the result differ in element type.
    9. The variance has a factor that is computed at run time: the unbiased one of a number of values that is not known.
"""

from __future__ import annotations

from typing import ClassVar

from onnxnorm.passes.fuse.group_split import find_split
from onnxnorm.passes.fuse.norm_kind import kind_of
from onnxnorm.passes.fuse.product import known_sizes
from onnxnorm.passes.fuse.rms_norm_power import count_of
from onnxnorm.passes.fuse.standardized import Standardized
from onnxnorm.passes.fuse.standardized_rule import StandardizedRule, put_norm, result_of
from onnxnorm.passes.lower.choice import STANDARD, has_exact_kernel
from onnxnorm.passes.rule import Context, Match, Replacement

#: As many numbers may a scale have that has but one value per channel.
_FEW = 4096


class FuseLayerNorm(StandardizedRule):
    """See the module."""

    id: ClassVar[str] = "fuse/layer-norm"

    def take(self, found: Standardized, context: Context) -> Match | None:
        """What is neither group norm nor instance norm."""
        if self.target == "standard":
            taken = self._becomes_standard(found, context)
        else:
            taken = find_split(found) is None and not kind_of(found).per_channel
        return Match(found.matched, {"found": found}) if taken else None

    def _becomes_standard(self, found: Standardized, context: Context) -> bool:
        rank, dtype = len(found.x.shape or ()), result_of(found).dtype
        last = found.axes == tuple(range(found.axes[0], rank))
        exact = dtype is not None and has_exact_kernel("LayerNorm", dtype, self.provider)
        if not last or not exact or context.opset < STANDARD["LayerNorm"].since:
            return False
        return not kind_of(found).per_channel or (count_of(found.x, found.axes) or 0) <= _FEW

    def check(self, match: Match, context: Context) -> None:
        """All reasons of the module."""
        super().check(match, context)
        found: Standardized = match.facts["found"]
        known_sizes(found.x, found.axes)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op, then the weights and shifts."""
        found: Standardized = match.facts["found"]
        rank = len(found.x.shape or ())
        attributes = {"axes": [axis - rank for axis in found.axes]}
        return put_norm("LayerNorm", found, attributes, known_sizes(found.x, found.axes), context)
