"""A residual CNN with spectral normalization, as in the discriminators of generative networks: each weight is divided
by its largest singular value, so that no layer stretches its input.

The singular value is followed by one step of power iteration in each training forward, whose vectors u and v are the
state of a training graph. In evaluation they stand still and the weights are constants.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from models.record import ReferenceModel


class Block(nn.Module):
    """Two convolutions and a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = spectral_norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, 0.1)), 0.1))
        return x + y


class SpectralNormCNN(nn.Module):
    """Convolves at 8x8 and 4x4, takes maxima over the positions, classifies; every layer but the last is normalized.

    The last one is free, or no logit could be large enough for a confident answer.
    """

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = spectral_norm(nn.Conv2d(1, width, 3, padding=1))
        self.block = Block(width)
        self.reduce = spectral_norm(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1))
        self.mix = spectral_norm(nn.Linear(2 * width, 2 * width))
        self.classify = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.reduce(self.block(self.stem(x))), 0.1)
        x = F.leaky_relu(self.mix(x.amax(dim=(2, 3))), 0.1)
        logits: Tensor = self.classify(x)
        return logits


MODEL = ReferenceModel(
    name="spectral_norm_cnn",
    title="Spectral norm CNN",
    summary="A residual CNN built like the discriminator of a generative network, every weight divided by its largest "
    "singular value. Trained, the weights are constants and are written out.",
    factory=SpectralNormCNN,
    norms=("spectral norm of Conv2d", "spectral norm of Linear"),
    norms_left=0,
    nodes_left=12,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=8,
    learning_rate=8e-3,
)
