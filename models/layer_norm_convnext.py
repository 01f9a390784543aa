"""A small ConvNeXt: layer normalization over the channels of each position, between a depthwise convolution and two
layers that mix the channels.

It stands in all three layouts that such networks have: channels first (the stem and the step to half the size),
channels last (inside a block), and one row per image (before the classifier).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.record import ReferenceModel
from onnxnorm.nn import LayerNorm2d

EPSILON = 1e-6


class Block(nn.Module):
    """Depthwise convolution, then norm and two linear layers with the channels at the end, scaled, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPSILON)
        self.widen = nn.Linear(channels, 3 * channels)
        self.narrow = nn.Linear(3 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.widen(y)))
        return x + y.permute(0, 3, 1, 2)


class LayerNormConvNeXt(nn.Module):
    """A stem, one block at 8x8 and one at 4x4, average over the positions, norm, classifier.

    Args:
        width: channels of the stem; the second block has twice as many.
        classes: how many there are.
        block: makes a block from its channel count.

    """

    def __init__(self, width: int = 24, classes: int = 10, block: Callable[[int], nn.Module] = Block) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), LayerNorm2d(width, eps=EPSILON))
        self.block1 = block(width)
        self.reduce = nn.Sequential(LayerNorm2d(width, eps=EPSILON), nn.Conv2d(width, 2 * width, 2, stride=2))
        self.block2 = block(2 * width)
        self.norm = nn.LayerNorm(2 * width, eps=EPSILON)
        self.classify = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.reduce(self.block1(self.stem(x))))
        logits: Tensor = self.classify(self.norm(x.mean(dim=(2, 3))))
        return logits


MODEL = ReferenceModel(
    name="layer_norm_convnext",
    title="Layer norm ConvNeXt",
    summary="A small ConvNeXt with layer normalization over the channels: channels first, channels last, and of one "
    "row per image. Its statistics depend on the input; each stays one operator.",
    factory=LayerNormConvNeXt,
    norms=("LayerNorm2d over the channels of (N, C, H, W)", "LayerNorm over the last axis"),
    norms_left=5,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=8,
    learning_rate=8e-3,
)
