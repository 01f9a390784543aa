"""What was done to a normalization, and why not more."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


class Action(enum.StrEnum):
    """What happened to a node."""

    FOLDED = "folded"
    FUSED = "fused"
    LOWERED = "lowered"
    KEPT = "kept"
    REFUSED = "refused"
    REVERTED = "reverted"
    REMOVED = "removed"
    RECALIBRATED = "recalibrated"


@dataclass(frozen=True)
class Decision:
    """One line of the optimizer's account.

    Attributes:
        node: name of the node (of its first output where it has none).
        op: its operator, with the domain unless it is the standard one.
        action: what was done.
        rule: id of the rule that did or refused it (several, in order, where several did); None where none had a say.
        module: the PyTorch module that the node comes from, where the exporter noted it.
        into: name of the node that it became part of.
        reason: why it was refused, kept or taken back.
        values: the values that decided, by name.

    """

    node: str
    op: str
    action: Action
    rule: str | None = None
    module: str | None = None
    into: str | None = None
    reason: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """One readable line."""
        where = f"{self.module} ({self.op} {self.node})" if self.module else f"{self.op} {self.node}"
        line = f"{where}: {self.action.value}"
        if self.into is not None:
            line += f" into {self.into}"
        if self.rule is not None:
            line += f" by {self.rule}"
        if self.reason is not None:
            line += f": {self.reason}"
        if self.values:
            line += " (" + ", ".join(f"{name} = {value}" for name, value in self.values.items()) + ")"
        return line

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        result = asdict(self)
        result["action"] = self.action.value
        result["values"] = {name: str(value) for name, value in self.values.items()}
        return result
