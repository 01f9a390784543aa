"""A residual CNN with group normalization, once before each of the activations that are fused into it.

Group normalization takes its statistics from the input itself, so unlike batch normalization it cannot be folded into
weights. It can become one operator with the activation behind it: ReLU, SiLU (as in diffusion networks) or GELU.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.record import ReferenceModel


class Block(nn.Module):
    """Convolution, group norm and activation, twice, with a skip connection as in a pre-activation network."""

    def __init__(self, channels: int, groups: int, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(groups, channels),
            activation,
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            activation,
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


class GroupNormCNN(nn.Module):
    """A stem, one block with SiLU and one with GELU, a norm with ReLU, average over the positions, classifier."""

    def __init__(self, width: int = 32, groups: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.silu = Block(width, groups, nn.SiLU())
        self.reduce = nn.Conv2d(width, width, 2, stride=2)
        self.gelu = Block(width, groups, nn.GELU())
        self.norm = nn.GroupNorm(1, width)
        self.relu = nn.ReLU()
        self.classify = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gelu(self.reduce(self.silu(self.stem(x))))
        x = self.relu(self.norm(x)).mean(dim=(2, 3))
        logits: Tensor = self.classify(x)
        return logits


MODEL = ReferenceModel(
    name="group_norm_cnn",
    title="Group norm CNN",
    summary="A residual CNN with group normalization before SiLU, GELU and ReLU. Its statistics depend on the input, "
    "so it cannot be folded away; it becomes one fused operator together with its activation.",
    factory=GroupNormCNN,
    norms=("GroupNorm + SiLU", "GroupNorm + GELU", "GroupNorm(1 group) + ReLU"),
    norms_left=5,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=10,
)
