"""A residual CNN with mean-only batch normalization behind convolutions with weight normalization (Salimans and
Kingma): the weights' norm sets the scale, so the batch has to take off the mean alone.

In evaluation the weight is a constant and the running mean goes into the convolution's bias: nothing is left.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from models.record import ReferenceModel
from models.trunk import ResidualCNN
from onnxnorm.nn import MeanOnlyBatchNorm2d


def normalized_conv(*arguments: Any, **options: Any) -> nn.Module:
    """A convolution whose weight is a direction of length 1 times a learned length per output channel."""
    convolution: nn.Module = weight_norm(nn.Conv2d(*arguments, **options))
    return convolution


class MeanOnlyBatchNormCNN(ResidualCNN):
    """The trunk with weight-normalized convolutions and mean-only batch norm after each of them."""

    def __init__(self, width: int = 24) -> None:
        super().__init__(MeanOnlyBatchNorm2d, normalized_conv, width=width)


MODEL = ReferenceModel(
    name="mean_only_batch_norm_cnn",
    title="Mean-only batch norm CNN",
    summary="A residual CNN with weight-normalized convolutions and mean-only batch normalization. Trained, both are "
    "constants: the weights are written out, the running mean goes into the bias.",
    factory=MeanOnlyBatchNormCNN,
    norms=("MeanOnlyBatchNorm2d after Conv2d", "weight norm of Conv2d"),
    norms_left=0,
    nodes_left=11,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=8,
    learning_rate=1.6e-2,
)
