"""A CNN with weight normalization in every layer: a weight is a direction of length 1 times a learned length.

Each kind of layer has its own axis for the lengths: output channels are axis 0 of a Conv2d and a Linear layer, axis 1
of a ConvTranspose2d, and the classifier has one length for the whole weight (``dim=None``). In evaluation the weights
are constants, written out; nothing is left of the normalization.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from models.record import ReferenceModel


class WeightNormCNN(nn.Module):
    """Enlarges the 8x8 scan to 16x16, convolves at 8x8, takes maxima over the positions, classifies."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.enlarge = weight_norm(nn.ConvTranspose2d(1, width // 2, 2, stride=2), dim=1)
        self.reduce = weight_norm(nn.Conv2d(width // 2, width, 3, stride=2, padding=1))
        self.depthwise = weight_norm(nn.Conv2d(width, width, 3, padding=1, groups=width))
        self.widen = weight_norm(nn.Conv2d(width, 2 * width, 3, padding=1))
        self.hidden = weight_norm(nn.Linear(2 * width, 2 * width))
        self.classify = weight_norm(nn.Linear(2 * width, classes), dim=None)  # type: ignore[arg-type]  # its own code takes None

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.enlarge(x), 0.1)
        x = F.leaky_relu(self.reduce(x), 0.1)
        x = F.leaky_relu(x + self.depthwise(x), 0.1)
        x = F.leaky_relu(self.widen(x), 0.1).amax(dim=(2, 3))
        logits: Tensor = self.classify(F.leaky_relu(self.hidden(x), 0.1))
        return logits


MODEL = ReferenceModel(
    name="weight_norm_cnn",
    title="Weight norm CNN",
    summary="A CNN with weight normalization in transposed, strided, depthwise and ordinary convolutions and linear "
    "layers. Trained, the weights are constants and are written out.",
    factory=WeightNormCNN,
    norms=("weight norm of ConvTranspose2d", "weight norm of Conv2d", "weight norm of Linear"),
    norms_left=0,
    nodes_left=12,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=8,
    learning_rate=8e-3,
)
