"""Training forwards in a row, as PyTorch computes them: what the exported training graph must give, step by step, when
its state is fed back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.record import ReferenceModel

#: Images in the batch of each step; a graph that had fixed the first size would not take the others.
BATCHES = (16, 24, 8)


def training_batches(model: ReferenceModel, images: Tensor) -> tuple[Tensor, ...]:
    """A batch for each step, of other sizes each time: the last one also of larger, oblong images where these fit."""
    batches = list(torch.split(images[: sum(BATCHES)], list(BATCHES)))
    if model.any_image_size:
        batches[-1] = F.interpolate(batches[-1], size=(12, 10), mode="bilinear", align_corners=False)
    return tuple(batches)


class TrainingSteps(nn.Module):
    """Several training forwards as one function, which leaves the module as it was.

    Args:
        module: the module in training; whoever puts this one into evaluation does not reach it.
        batches: one for each step. The buffers that change over them are the state.

    Attributes:
        keys: of the state, as in ``state_dict()``.
        batches: as given.

    """

    def __init__(self, module: nn.Module, batches: Sequence[Tensor]) -> None:
        super().__init__()
        self.module = module
        self.batches = tuple(batches)
        self.keys = tuple(key for key, _ in module.named_buffers())
        self.keys = self._changed()

    def _changed(self) -> tuple[str, ...]:
        """Keys of the buffers that the steps change."""
        before = [value.clone() for _, value in self.module.named_buffers()]
        after = self(*self.batches)[-len(before) :] if before else []
        pairs = zip(self.keys, before, after, strict=True)
        return tuple(key for key, old, new in pairs if not torch.equal(old, new))

    @property
    def names(self) -> list[str]:
        """A name for each value of ``forward``, as ``run_training_graph`` has them."""
        return [f"step {step}: {what}" for step in range(1, len(self.batches) + 1) for what in ("output", *self.keys)]

    def train(self, mode: bool = True) -> Self:
        """Nothing: the flags of the module are what is asked about."""
        return self

    def forward(self, *batches: Tensor) -> list[Tensor]:
        """For each batch its output and then the state after it, in the order of the keys."""
        before = {key: value.clone() for key, value in self.module.named_buffers()}
        found: list[Tensor] = []
        with torch.no_grad():
            for batch in batches:
                found.append(self.module(batch))
                found += [self.module.get_buffer(key).clone() for key in self.keys]
            for key, value in before.items():
                self.module.get_buffer(key).copy_(value)
        return found
