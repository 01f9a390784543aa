"""What the job found out about one model, and about the machine; plain data for the table, the report and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.graph import FileFacts, Layer
from models.latency import Latency
from models.proofs import Proof
from models.record import ReferenceModel

#: What a trained model must reach on the test images.
ACCURACY_WANTED = 0.95

PYTORCH, PLAIN, ONNXNORM = "pytorch", "plain", "onnxnorm"
#: The other file of each model: what a training forward computes.
TRAINING = "training"
#: The ways in which each model is run, in the order of the story.
LABELS = {PYTORCH: "PyTorch", PLAIN: "ONNX Runtime, plain export", ONNXNORM: "ONNX Runtime, onnxnorm"}


@dataclass
class Way:
    """One way to run a model; what the job has not measured is None.

    Attributes:
        norms: normalization layers (PyTorch) or operators (files).
        accuracy: on all test images, 0 to 1.
        predictions: the class of each test image, for an exact comparison.
        distance: the largest from the float64 truth, relative to the output's scale.

    """

    label: str
    norms: int | None = None
    file: str = ""
    facts: FileFacts | None = None
    accuracy: float | None = None
    predictions: tuple[int, ...] = field(default=(), repr=False)
    distance: float | None = None
    latency: Latency | None = None


@dataclass(frozen=True)
class TrainingGraph:
    """The file of a training graph.

    Attributes:
        state: keys of what enters and leaves with each step.

    """

    file: str
    facts: FileFacts
    state: tuple[str, ...]


@dataclass
class ModelResult:
    """Everything about one model. ``problems`` says in a line each what is not as it must be."""

    model: ReferenceModel
    ways: dict[str, Way] = field(default_factory=lambda: {key: Way(label) for key, label in LABELS.items()})
    layers: tuple[Layer, ...] = ()
    parameters: int = 0
    losses: tuple[float, ...] = ()
    test_images: int = 0
    decisions: tuple[Any, ...] = ()
    training: TrainingGraph | None = None
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    proofs: tuple[Proof, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return {
            "model": self.model.name,
            "passed": self.passed,
            "problems": self.problems,
            "norms": list(self.model.norms),
            "parameters": self.parameters,
            "losses": list(self.losses),
            "test_images": self.test_images,
            "seconds": self.seconds,
            "ways": {key: _way_json(way) for key, way in self.ways.items()},
            "training": None if self.training is None else dataclasses.asdict(self.training),
            "proofs": [dataclasses.asdict(proof) for proof in self.proofs],
            "decisions": [decision.to_json() for decision in self.decisions],
            "checks": self.checks,
        }


def _way_json(way: Way) -> dict[str, Any]:
    plain = dataclasses.asdict(way)
    del plain["predictions"]
    return plain


@dataclass(frozen=True)
class JobResult:
    """All models, where and how."""

    models: tuple[ModelResult, ...]
    environment: Mapping[str, str]
    command: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether there was a model and nothing is wrong with any."""
        return bool(self.models) and all(model.passed for model in self.models)

    @property
    def exit_status(self) -> int:
        """0 passed, 1 failed."""
        return 0 if self.passed else 1

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return {
            "passed": self.passed,
            "command": self.command,
            "seconds": self.seconds,
            "environment": dict(self.environment),
            "models": [model.to_json() for model in self.models],
        }


def all_quiet(job: JobResult) -> bool:
    """Whether every latency was measured without another program in the way."""
    found = [way.latency for model in job.models for way in model.ways.values()]
    return all(latency.quiet for latency in found if latency is not None)
