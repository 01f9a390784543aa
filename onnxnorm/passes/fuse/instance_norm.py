"""fuse/instance-norm: instance norm, or group norm of one group, in primitive operators becomes onnxnorm GroupNorm.

    (x - mean(x over positions)) / sqrt(var(x over positions) + epsilon) * w + b  =  GroupNorm_C(x, ones, zeros) * w + b

with one group for each channel of (N, C, *) or (N, *, C); with statistics over the channels and positions together it
is one group (MobileViT, PoolFormer). fuse/channel-affine takes in w and b. What has the statistics of layer norm, too,
is told from it by its scale (``norm_kind``).

Refused as for fuse/layer-norm; and where the number of channels is not known: it is the size of the op's scale.
"""

from __future__ import annotations

from typing import ClassVar

from onnxnorm.passes.fuse.group_split import find_split
from onnxnorm.passes.fuse.norm_kind import kind_of
from onnxnorm.passes.fuse.sizes import channel_count
from onnxnorm.passes.fuse.standardized import Standardized
from onnxnorm.passes.fuse.standardized_rule import StandardizedRule, put_norm
from onnxnorm.passes.rule import Context, Match, Replacement


class FuseInstanceNorm(StandardizedRule):
    """See the module."""

    id: ClassVar[str] = "fuse/instance-norm"

    def take(self, found: Standardized, context: Context) -> Match | None:
        """What has one scale per channel, and is not between two Reshapes."""
        kind = kind_of(found)
        if not kind.per_channel or find_split(found) is not None:
            return None
        return Match(found.matched, {"found": found, "kind": kind})

    def check(self, match: Match, context: Context) -> None:
        """All reasons of the module."""
        super().check(match, context)
        channel_count(match.facts["found"].x, match.facts["kind"].channels_last)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op, then the weights and shifts."""
        found, kind = match.facts["found"], match.facts["kind"]
        channels = channel_count(found.x, kind.channels_last)
        attributes = {
            "num_groups": 1 if kind.one_group else channels,
            "channels_last": int(kind.channels_last),
        }
        return put_norm("GroupNorm", found, attributes, [channels], context)
