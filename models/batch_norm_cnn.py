"""A residual CNN with batch normalization after every kind of layer into which it can be folded.

In evaluation, batch normalization is one multiplication and one addition per channel, so a layer before it can take
both into its own weights. Here it stands after a ConvTranspose2d, an ordinary, a strided and a depthwise Conv2d, and a
Linear layer; after optimization none is left.

The ConvTranspose2d has one group: with several, ONNX's reference evaluator (onnx 1.23), one of the judges here, gives
every group the bias of the first, whoever wrote the file.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.record import ReferenceModel


class DepthwiseBlock(nn.Module):
    """MobileNet's pair, a depthwise and a 1x1 convolution, with a skip connection around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.depthwise(x)))
        return F.relu(x + self.norm2(self.pointwise(y)))


class BatchNormCNN(nn.Module):
    """Enlarges the 8x8 scan to 16x16, convolves at 8x8, averages over the positions, classifies."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(1, width // 2, 2, stride=2, bias=False)
        self.enlarge_norm = nn.BatchNorm2d(width // 2)
        self.reduce = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.reduce_norm = nn.BatchNorm2d(width)
        self.block = DepthwiseBlock(width)
        self.widen = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.widen_norm = nn.BatchNorm2d(2 * width)
        self.hidden = nn.Linear(2 * width, 2 * width, bias=False)
        self.hidden_norm = nn.BatchNorm1d(2 * width)
        self.classify = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enlarge_norm(self.enlarge(x)))
        x = F.relu(self.reduce_norm(self.reduce(x)))
        x = self.block(x)
        x = F.relu(self.widen_norm(self.widen(x)))
        x = x.mean(dim=(2, 3))
        x = F.relu(self.hidden_norm(self.hidden(x)))
        logits: Tensor = self.classify(x)
        return logits


MODEL = ReferenceModel(
    name="batch_norm_cnn",
    title="Batch norm CNN",
    summary="A residual CNN with batch normalization after ordinary, strided, depthwise and transposed "
    "convolutions and a linear layer: everywhere it can be folded into the weights before it.",
    factory=BatchNormCNN,
    norms=("BatchNorm2d after ConvTranspose2d", "BatchNorm2d after Conv2d", "BatchNorm1d after Linear"),
    norms_left=0,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=8,
)
