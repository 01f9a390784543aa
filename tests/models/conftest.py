"""What the tests of the main job share: one real run with a small budget."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn

from models import all_models
from models.data import load
from models.job import Budget, run_model
from models.record import ReferenceModel
from models.result import JobResult, ModelResult
from models.train import train


class Silent:
    """A watcher that only keeps what it was told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.problems: list[str] = []

    def begin(self, model: str, step: str) -> None:
        self.steps.append(step)

    def advance(self, share: float) -> None:
        assert 0 <= share <= 1

    def end(self, note: str) -> None:
        pass

    def fail(self, model: str, problem: str) -> None:
        self.problems.append(problem)

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def trained() -> Callable[[ReferenceModel], nn.Module]:
    """Trains a model in full, once for all tests; its module must not be changed."""

    @functools.cache
    def train_once(name: str) -> nn.Module:
        model = all_models()[name]
        return train(model, load(raw=model.raw_pixels)).module

    return lambda model: train_once(model.name)


@dataclass(frozen=True)
class Ran:
    """A finished model: its result, its folder, and what the watcher was told."""

    result: ModelResult
    folder: Path
    watcher: Silent


@pytest.fixture(scope="session")
def run_one() -> Callable[..., Ran]:
    """Runs the job for one model."""

    def run(folder: Path, *, epochs: int | None = None, name: str = "group_norm_cnn") -> Ran:
        watcher = Silent()
        budget = Budget(epochs=epochs, latency_blocks=1, latency_seconds=0.2)
        return Ran(run_model(all_models()[name], load(), folder, watcher, budget), folder, watcher)

    return run


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory, run_one: Callable[..., Ran]) -> Ran:
    """The whole job for one fully trained model."""
    return run_one(tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="session")
def job_of() -> Callable[..., JobResult]:
    """A job's result with these models."""

    def make(*results: ModelResult) -> JobResult:
        return JobResult(results, {"cpu": "a <fast> one", "python": "3"}, "python -m models", 12.0)

    return make
