"""A residual CNN with EvoNorm-S0, a normalization and an activation in one that an evolutionary search came up with.

Its statistics are each image's own, so it cannot be folded; it becomes one operator.
"""

from __future__ import annotations

from torch import nn

from models.record import ReferenceModel
from models.trunk import ResidualCNN, identity
from onnxnorm.nn import EvoNorm2dS0


def evo_norm(channels: int) -> nn.Module:
    """EvoNorm-S0 with eight groups of channels."""
    return EvoNorm2dS0(channels, num_groups=8)


class EvoNormCNN(ResidualCNN):
    """The trunk with EvoNorm-S0 after each convolution, and no other activation."""

    def __init__(self, width: int = 24) -> None:
        super().__init__(evo_norm, width=width, activation=identity)


MODEL = ReferenceModel(
    name="evo_norm_cnn",
    title="EvoNorm-S0 CNN",
    summary="A residual CNN with EvoNorm-S0: the input gated by a sigmoid, over the standard deviation of its group of "
    "channels. Normalization and activation were found together, and are one operator.",
    factory=EvoNormCNN,
    norms=("EvoNorm2dS0",),
    norms_left=4,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=8,
    learning_rate=8e-3,
)
