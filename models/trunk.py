"""The body that many of the reference models share: a small residual CNN into which a normalization is put.

Sharing it keeps each model's file to what is its own, and makes the models comparable: they differ in the norm alone.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

#: Makes a normalization from its channel count.
Norm = Callable[[int], nn.Module]
#: What follows a normalization.
Activation = Callable[[Tensor], Tensor]
#: Makes a layer with the arguments of ``nn.Conv2d`` or ``nn.Linear``.
Layer = Callable[..., nn.Module]


def identity(x: Tensor) -> Tensor:
    """No activation: for norms that bring their own."""
    return x


class Residual(nn.Module):
    """Two convolutions with their norms and a skip connection around them, as in a ResNet's basic block."""

    def __init__(self, channels: int, norm: Norm, convolution: Layer, activation: Activation = F.relu) -> None:
        super().__init__()
        self.activation = activation
        self.conv1 = convolution(channels, channels, 3, padding=1, bias=False)
        self.norm1 = norm(channels)
        self.conv2 = convolution(channels, channels, 3, padding=1, bias=False)
        self.norm2 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        return self.activation(x + self.norm2(self.conv2(y)))


class ResidualCNN(nn.Module):
    """A stem, a residual block, a strided convolution, each with its norm; pooling, classifier.

    Takes (N, 1, H, W), gives (N, classes).

    Args:
        norm: makes the normalization behind a convolution.
        convolution: makes a convolution. It is asked for none with a bias: the norm behind it has one.
        linear: makes the classifier.
        width: channels of the stem; the strided convolution doubles them.
        classes: how many there are.
        activation: what follows a norm and a sum; the identity where the norm brings its own.

    """

    def __init__(
        self,
        norm: Norm,
        convolution: Layer = nn.Conv2d,
        linear: Layer = nn.Linear,
        width: int = 24,
        classes: int = 10,
        activation: Activation = F.relu,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.stem = convolution(1, width, 3, padding=1, bias=False)
        self.stem_norm = norm(width)
        self.block = Residual(width, norm, convolution, activation)
        self.reduce = convolution(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.reduce_norm = norm(2 * width)
        self.classify = linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem_norm(self.stem(x)))
        x = self.block(x)
        x = self.activation(self.reduce_norm(self.reduce(x)))
        logits: Tensor = self.classify(self.pool(x))
        return logits

    def pool(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C)."""
        return x.mean(dim=(2, 3))
