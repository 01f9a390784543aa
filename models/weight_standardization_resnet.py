"""A pre-activation ResNet with weight standardization and group normalization, as Big Transfer (BiT) has them: the
weights of each filter are brought to mean 0 and variance 1 whenever they are used.

In evaluation the standardized weights are constants, written out; the group norms stay, with their ReLU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.record import ReferenceModel


class StandardizedConv2d(nn.Conv2d):
    """``nn.Conv2d`` whose filters have mean 0 and variance 1 when they are applied."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        variance, mean = torch.var_mean(weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (weight - mean) / torch.sqrt(variance + 1e-10)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PreActivation(nn.Module):
    """Norm, ReLU, convolution, twice, with a skip connection; a strided one projects the normalized input."""

    def __init__(self, channels: int, outputs: int, groups: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = StandardizedConv2d(channels, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.conv2 = StandardizedConv2d(outputs, outputs, 3, padding=1, bias=False)
        self.project = StandardizedConv2d(channels, outputs, 1, stride=stride, bias=False) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        skip = x if self.project is None else self.project(y)
        z: Tensor = self.conv2(F.relu(self.norm2(self.conv1(y))))
        return skip + z


class WeightStandardizationResNet(nn.Module):
    """A stem, one block at 8x8 and one that strides to 4x4, a norm, average over the positions, classifier."""

    def __init__(self, width: int = 24, groups: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.stem = StandardizedConv2d(1, width, 3, padding=1, bias=False)
        self.block1 = PreActivation(width, width, groups)
        self.block2 = PreActivation(width, 2 * width, groups, stride=2)
        self.norm = nn.GroupNorm(groups, 2 * width)
        self.classify = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.stem(x)))
        logits: Tensor = self.classify(F.relu(self.norm(x)).mean(dim=(2, 3)))
        return logits


MODEL = ReferenceModel(
    name="weight_standardization_resnet",
    title="Weight standardization ResNet",
    summary="A pre-activation ResNet as in Big Transfer: standardized weights, which are written out as constants, and "
    "group norms, each of which becomes one operator with its ReLU.",
    factory=WeightStandardizationResNet,
    norms=("weight standardization of Conv2d", "GroupNorm + ReLU"),
    norms_left=5,
    nodes_left=15,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=5,
    learning_rate=8e-3,
)
