"""A small training loop: AdamW, one cycle of the learning rate, shuffled batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.data import Digits
from models.record import ReferenceModel
from models.threads import threads

SEED = 0
BATCH = 64


@dataclass(frozen=True)
class Trained:
    """A trained network in eval mode and the mean training loss of each epoch."""

    module: nn.Module
    losses: tuple[float, ...]


def train(
    model: ReferenceModel,
    digits: Digits,
    *,
    epochs: int | None = None,
    on_epoch: Callable[[int, int], None] = lambda done, total: None,
) -> Trained:
    """Trains a fresh network of ``model``; the same numbers come out on every run on one machine.

    On one thread: on images this small a second one gains a fifth, and makes training ten times slower when another
    program uses the same core, since threads wait for each other actively. Nor can the core count change the result.

    Args:
        model: what to train.
        digits: the data, raw for a model that takes raw pixels.
        epochs: another number of epochs than the model's own.
        on_epoch: told after each epoch how many are done, of how many.

    """
    total = model.epochs if epochs is None else epochs
    # The caller's random state is left alone: a library user may train these among other things.
    with torch.random.fork_rng(devices=[]), threads(1):
        torch.manual_seed(SEED)
        module = model.factory().train()
        if model.fit_input is not None:
            model.fit_input(module, digits.train_images)
        optimizer = torch.optim.AdamW(module.parameters(), lr=model.learning_rate, weight_decay=1e-2)
        batches = -(-len(digits.train_images) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, model.learning_rate, total_steps=total * batches)
        losses = []
        for epoch in range(total):
            losses.append(_epoch(module, digits, optimizer, schedule))
            on_epoch(epoch + 1, total)
    return Trained(module.eval(), tuple(losses))


def _epoch(
    module: nn.Module,
    digits: Digits,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    order = torch.randperm(len(digits.train_images))
    loss_sum = 0.0
    for rows in torch.split(order, BATCH):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(digits.train_images[rows]), digits.train_labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        loss_sum += loss.item() * len(rows)
    return loss_sum / len(order)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of the rows whose largest logit is that of their class, from 0 to 1."""
    return float((logits.argmax(1) == labels).double().mean())
