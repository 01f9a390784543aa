"""A CNN with switchable normalization, which learns for itself how to mix instance, layer and batch statistics.

torch.nn and ONNX have no such operator: ``onnxnorm.nn`` brings the PyTorch module, and the exported file holds one node
for each, which any ONNX runtime understands through the function that travels with it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.record import ReferenceModel
from onnxnorm.nn import SwitchableNorm2d


class Residual(nn.Module):
    """Two convolutions with switchable norm; the last norm starts at 0, so that the block starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = SwitchableNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = SwitchableNorm2d(channels, last_gamma=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class SwitchableNormCNN(nn.Module):
    """A stem, a residual block, a strided convolution, average over the positions, classifier."""

    def __init__(self, width: int = 24, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_norm = SwitchableNorm2d(width)
        self.block = Residual(width)
        self.reduce = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.reduce_norm = SwitchableNorm2d(2 * width)
        self.classify = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = self.block(x)
        x = F.relu(self.reduce_norm(self.reduce(x)))
        logits: Tensor = self.classify(x.mean(dim=(2, 3)))
        return logits


MODEL = ReferenceModel(
    name="switchable_norm_cnn",
    title="Switchable norm CNN",
    summary="A residual CNN with switchable normalization, a learned mix of instance, layer and batch statistics that "
    "neither PyTorch nor ONNX has; the file carries its definition with it.",
    factory=SwitchableNormCNN,
    norms=("SwitchableNorm2d + ReLU", "SwitchableNorm2d before a skip connection"),
    norms_left=4,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=10,
    learning_rate=6e-3,
)
