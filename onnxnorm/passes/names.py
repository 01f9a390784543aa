"""Names that a model does not have yet."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxnorm.passes.graph import all_names


class Names:
    """All names of a model, and new ones; each takes constant time, however many have the same wish.

    Args:
        taken: names that exist.

    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._counts: dict[str, int] = {}  # names are never given back, so that a search goes on where it ended

    @classmethod
    def of(cls, model: ir.Model) -> Names:
        """Those of all values and nodes of the model."""
        return cls(all_names(model))

    def fresh(self, wish: str) -> str:
        """A name that nothing has, as near to ``wish`` as possible."""
        name, count = wish, self._counts.get(wish, 0)
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        self._counts[wish] = count
        return name
